"""An exported network in a C program, and in a Python that has no compiler: the bits of the one that compiled it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.datasets import digits as digits_module
from lepton_jit.demo import build_model

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "classify_digits.c"
STRICT = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
BATCH = 100  # of the C program

needs_cc = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")


@dataclass(frozen=True)
class Exported:
    """A library, digits to try it on, `u8[n, 28, 28, 1]`, and the answers of the program that it came from."""

    library: Path
    images: np.ndarray
    answers: np.ndarray


def real_digits() -> np.ndarray:
    """250 digits of all classes, from the installed wheel; where it is missing, noise."""
    wheel = digits_module._wheel_file()
    if wheel is None:
        return np.random.default_rng(0).integers(0, 256, (250, 28, 28, 1), np.uint8)
    return digits_module._read_wheel(wheel)["test_images"][:250]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    lpt.set_random_seed(1)
    fast = lpt.compile(build_model())
    library, _ = fast.export(tmp_path_factory.mktemp("aot") / "digits.so")
    images = real_digits()
    answers = fast(images.astype(np.float32) / np.float32(255))
    assert isinstance(answers, np.ndarray)
    return Exported(library, images, answers)


def build(source: str, exported: Exported, name: str) -> Path:
    """Compile a C program against the header and the library."""
    folder = exported.library.parent
    (folder / f"{name}.c").write_text(source)
    command = ["cc", *STRICT, "-O2", f"{name}.c", "./digits.so", "-o", name, "-Wl,-rpath,$ORIGIN"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / name


@needs_cc
def test_a_c_program_gets_the_bits_of_python(exported: Exported, tmp_path: Path) -> None:
    program = build(EXAMPLE.read_text(), exported, "classify_digits")

    done = subprocess.run([program, tmp_path / "out"], input=exported.images.tobytes(), capture_output=True, check=True)

    assert (tmp_path / "out").read_bytes() == exported.answers.tobytes()
    assert done.stdout.split() == [b"%d" % c for c in exported.answers.argmax(axis=1)]
    assert len(exported.images) % BATCH, "the ragged last batch is to be tried too"


@needs_cc
def test_the_c_program_of_the_readme_compiles_and_runs(exported: Exported) -> None:
    (source,) = re.findall(r"```c\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    program = build(source, exported, "readme")

    done = subprocess.run([program], capture_output=True, text=True, check=True)

    blank = lpt.load(exported.library)(np.zeros((1, 28, 28, 1), np.float32))
    assert [float(p) for p in done.stdout.split()] == [float(f"{p:.6f}") for p in blank[0]]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_python_without_a_compiler_gets_the_same_bits(exported: Exported, tmp_path: Path, threads: int) -> None:
    x, y = tmp_path / "x.npy", tmp_path / "y.npy"
    np.save(x, exported.images.astype(np.float32) / np.float32(255))
    code = (
        "import sys\n"
        "for name in ('llvmlite', 'networkx', 'lepton_jit.ir', 'lepton_jit.codegen', 'lepton_jit.layers'):\n"
        "    sys.modules[name] = None\n"  # an import of it would raise
        "import numpy as np, lepton_jit as lpt\n"
        f"np.save({str(y)!r}, lpt.load({str(exported.library)!r})(np.load({str(x)!r})))"
    )
    subprocess.run([sys.executable, "-c", code], env={"LEPTON_JIT_THREADS": str(threads)}, check=True)

    assert np.load(y).tobytes() == exported.answers.tobytes()


@pytest.mark.skipif(shutil.which("readelf") is None, reason="no binutils")
def test_the_library_needs_libc_only(exported: Exported) -> None:
    listing = subprocess.run(["readelf", "-d", exported.library], capture_output=True, text=True, check=True).stdout

    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", listing)

    # Before glibc 2.34, threads were a library of their own; the loader holds thread-local storage.
    assert "libc.so.6" in needed
    assert set(needed) <= {"libc.so.6", "libpthread.so.0", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}


@needs_cc
def test_a_library_of_many_parts_gives_the_same_bits(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_jit.codegen.llvm.module_parts.PART_CHARACTERS", 1)
    monkeypatch.setenv("LEPTON_JIT_CACHE", "off")
    lpt.set_random_seed(1)
    fast = lpt.compile(build_model())
    assert len(fast.executable.main.objects) > 3
    library, _ = fast.export(exported.library.parent / "parts.so")
    images = exported.images.astype(np.float32) / np.float32(255)
    assert np.asarray(lpt.load(library)(images)).tobytes() == exported.answers.tobytes()
