"""Ahead of time: a shared library that C and Python run to the same bits, and that is checked before it is opened."""

from __future__ import annotations

import dataclasses
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lepton_jit.codegen.llvm.machine_code import compile_object
from lepton_jit.errors import ArgumentError, FileFormatError, LeptonError, UnsupportedError
from lepton_jit.runtime import export as export_module
from lepton_jit.runtime.cpu import cpu_features, host_architecture
from lepton_jit.runtime.export import export, find_linker
from lepton_jit.runtime.manifest import Manifest, Tensor
from lepton_jit.runtime.module import Module, is_module, load_module
from lepton_jit.runtime.module_file import read_module
from lepton_jit.runtime.wrapper import header_text
from tests.runtime.programs import AFFINE_MANIFEST, TARGET, affine, affine_object, support_object

SHIFT = np.array([0.1], np.float32)
X = np.random.default_rng(0).normal(size=1000).astype(np.float32)


def export_affine(path: Path, manifest: Manifest = AFFINE_MANIFEST) -> tuple[Path, Path]:
    return export(
        path,
        manifest,
        program=[affine_object()],
        support=support_object(),
        compile_text=lambda text: compile_object(text, TARGET),
        parameters=[SHIFT],
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_affine(tmp_path_factory.mktemp("export") / "affine.so")[0]


def test_a_module_gives_the_bits_of_the_program(library: Path) -> None:
    program = affine(2)
    (expected,) = program(X, parameters=program.bind([SHIFT]))
    assert [load_module(library, threads=t)(X).tobytes() for t in (1, 2)] == [expected.tobytes()] * 2


def test_a_module_knows_its_manifest_plan_and_errors(library: Path) -> None:
    module = load_module(library)
    assert module.manifest == AFFINE_MANIFEST
    assert module.program.plan(N=100).arena == 448
    assert len(module.program.profile(X, parameters=module.parameters).steps) == 2
    with pytest.raises(ArgumentError, match=r"affine: head/double: expected no 13 \(at element 1\)"):
        module([0.0, 13.0])


# One name, several contents


def export_shift(path: Path, shift: float) -> Path:
    return export(
        path,
        AFFINE_MANIFEST,
        program=[affine_object()],
        support=support_object(),
        compile_text=lambda text: compile_object(text, TARGET),
        parameters=[np.array([shift], np.float32)],
    )[0]


def answer(module: Module) -> float:
    return float(np.asarray(module([1.0]))[0])


def test_a_file_that_was_exported_again_is_loaded_anew_and_the_old_module_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "m.so"
    modules = [load_module(export_shift(path, shift)) for shift in (1.0, 2.0, 3.0)]
    assert [answer(m) for m in modules] == [3.0, 4.0, 5.0]


def test_a_library_of_the_same_name_elsewhere_is_another_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for shift in (1.0, 2.0):
        folder = tmp_path / str(shift)
        folder.mkdir()
        export_shift(folder / "m.so", shift)
        monkeypatch.chdir(folder)
        found.append(answer(load_module("m.so")))
    assert found == [3.0, 4.0]


def test_links_lead_to_what_they_lead_to_now(tmp_path: Path) -> None:
    for name, shift in (("a.so", 1.0), ("b.so", 2.0)):
        export_shift(tmp_path / name, shift)
    link, hard = tmp_path / "link.so", tmp_path / "hard.so"
    found = []
    for name in ("a.so", "b.so"):
        for path in (link, hard):
            path.unlink(missing_ok=True)
        link.symlink_to(tmp_path / name)
        hard.hardlink_to(tmp_path / name)
        found += [answer(load_module(link)), answer(load_module(hard))]
    assert found == [3.0, 3.0, 4.0, 4.0]


def test_a_file_that_was_written_over_in_place_is_loaded_anew(tmp_path: Path) -> None:
    path, other = export_shift(tmp_path / "m.so", 1.0), export_shift(tmp_path / "n.so", 2.0)
    before = answer(load_module(path))
    path.write_bytes(other.read_bytes())  # the same file to the system: the loader would take it for the old one
    assert (before, answer(load_module(path))) == (3.0, 4.0)


def test_loading_one_content_often_maps_it_once(tmp_path: Path) -> None:
    def mappings() -> int:
        return Path("/proc/self/maps").read_text().count("often")

    first = load_module(export_shift(tmp_path / "often.so", 1.0))
    once = mappings()
    shutil.copy(tmp_path / "often.so", tmp_path / "often_too.so")
    modules = [load_module(tmp_path / name) for name in ("often.so", "often_too.so") for _ in range(20)]
    assert once > 0
    assert mappings() == once
    assert {answer(m) for m in (first, *modules)} == {3.0}


C_PROGRAM = r"""
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include "affine.h"

static float x[1000], y[8][1000];
static int codes[8];

static void *work(void *argument) {
    long k = (long)argument;
    for (int i = 0; i < 100; i++) codes[k] |= affine(1000, x, y[k]);
    return NULL;
}

int main(void) {
    if (fread(x, sizeof x, 1, stdin) != 1) return 1;
    affine_set_threads(2);
    pthread_t threads[8];
    for (long k = 0; k < 8; k++) pthread_create(&threads[k], NULL, work, (void *)k);
    for (long k = 0; k < 8; k++) { pthread_join(threads[k], NULL); if (codes[k]) return 2; }
    fwrite(y, sizeof y, 1, stdout);
    float bad = 13.0f, ignored;
    fprintf(stderr, "%s|%s|%s|", affine_message(0), affine_message(affine(1, &bad, &ignored)), affine_message(99));
    fprintf(stderr, "%s|%d", affine_message(affine(-1, x, y[0])), affine(0, x, y[0]));
    return 0;
}
"""


def test_a_c_program_gets_the_same_bits_from_eight_threads(library: Path) -> None:
    folder = library.parent
    (folder / "main.c").write_text(C_PROGRAM)
    flags = ["-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic"]
    command = ["cc", *flags, "main.c", "./affine.so", "-o", "main", "-pthread", "-Wl,-rpath,$ORIGIN"]
    subprocess.run(command, cwd=folder, check=True)
    done = subprocess.run([folder / "main"], input=X.tobytes(), capture_output=True, check=True)
    expected = load_module(library)(X)
    assert done.stdout == expected.tobytes() * 8
    assert done.stderr.decode() == (
        "no error|expected no 13|unknown error|a dimension is negative or not below 2147483648|0"
    )


def test_a_module_loads_without_compiler_and_graphs(library: Path) -> None:
    code = (
        "import sys\n"
        "from lepton_jit.runtime.module import load_module\n"
        f"assert load_module({str(library)!r})([1.0]).shape == (1,)\n"
        "print([m for m in ('llvmlite', 'networkx', 'lepton_jit.ir', 'lepton_jit.codegen') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(shutil.which("readelf") is None, reason="needs readelf")
def test_the_library_needs_libc_only_and_exports_its_own_names_only(library: Path) -> None:
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = [line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line]
    assert set(needed) <= {"libc.so.6", "libpthread.so.0"}
    assert "NODELETE" in dynamic
    symbols = subprocess.run(
        ["readelf", "--dyn-syms", "-W", library], capture_output=True, text=True, check=True
    ).stdout
    rows = [line.split() for line in symbols.splitlines() if " GLOBAL DEFAULT " in line and " UND " not in line]
    assert sorted(row[-1] for row in rows) == [
        "affine",
        f"affine_interface_{AFFINE_MANIFEST.interface}",
        "affine_message",
        "affine_set_threads",
        "lepton_module",
    ]


def test_the_same_export_gives_the_same_bytes(library: Path, tmp_path: Path) -> None:
    again, header = export_affine(tmp_path / "affine.so")
    assert again.read_bytes() == library.read_bytes()
    assert header.read_bytes() == library.with_suffix(".h").read_bytes()


OTHER_INTERFACE = dataclasses.replace(AFFINE_MANIFEST, inputs=(Tensor("wide", "f64", ("N",)),))
CALLER = '#include "affine.h"\nint main(void) { float x = 1, y; return affine(1, (const void *)&x, &y); }\n'


def test_a_header_and_a_library_of_different_interfaces_are_refused(tmp_path: Path) -> None:
    path, header = export_affine(tmp_path / "affine.so")
    header.write_text(header_text(OTHER_INTERFACE, "affine"))

    with pytest.raises(FileFormatError, match=r"affine.so: expected a header of interface .*: export again"):
        load_module(path)
    header.write_text("#define some_interface_of_somebody_else 1")
    assert load_module(path)([1.0]).shape == (1,)


def test_a_program_neither_links_nor_starts_with_a_library_of_another_interface(tmp_path: Path) -> None:
    export_affine(tmp_path / "affine.so")
    (tmp_path / "main.c").write_text(CALLER)
    command = ["cc", "main.c", "./affine.so", "-o", "main", "-Wl,-rpath,$ORIGIN"]
    subprocess.run(command, cwd=tmp_path, check=True)
    subprocess.run([tmp_path / "main"], check=True)

    header = (tmp_path / "affine.h").read_bytes()
    export_affine(tmp_path / "affine.so", OTHER_INTERFACE)
    (tmp_path / "affine.h").write_bytes(header)

    missing = f"affine_interface_{AFFINE_MANIFEST.interface}"
    started = subprocess.run([tmp_path / "main"], capture_output=True, text=True, check=False)
    linked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    for done in (linked, started):
        assert done.returncode != 0
        assert missing in done.stderr


def test_an_export_keeps_links_and_modes(tmp_path: Path) -> None:
    (tmp_path / "releases").mkdir()
    (tmp_path / "affine.so").symlink_to("releases/1.so")
    (tmp_path / "affine.h").touch()
    (tmp_path / "affine.h").chmod(0o600)

    export_affine(tmp_path / "affine.so")

    assert (tmp_path / "affine.so").is_symlink()
    assert is_module(tmp_path / "releases" / "1.so")
    assert (tmp_path / "affine.h").stat().st_mode & 0o777 == 0o600


def test_an_export_leaves_nothing_else_behind(tmp_path: Path) -> None:
    export_affine(tmp_path / "affine.so")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["affine.h", "affine.so"]


def test_a_failed_export_leaves_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module, "find_linker", lambda _: ["false"])
    with pytest.raises(LeptonError, match="linking failed: false"):
        export_affine(tmp_path / "affine.so")
    assert list(tmp_path.iterdir()) == []


def test_without_a_linker_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_module.shutil, "which", lambda _: None)
    assert find_linker(host_architecture())[1:3] == ["-m", "ziglang"]
    monkeypatch.setattr(export_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(LeptonError, match=r"needs a C compiler .* or the wheel `ziglang`"):
        find_linker(host_architecture())


def test_a_program_that_overwrites_parameters_is_refused(tmp_path: Path) -> None:
    donating = dataclasses.replace(AFFINE_MANIFEST, donations={0: 0})
    with pytest.raises(UnsupportedError, match="affine: a program that overwrites its parameters"):
        export_affine(tmp_path / "x.so", donating)


def test_damaged_files_are_refused_before_they_are_opened(library: Path, tmp_path: Path) -> None:
    good = library.read_bytes()
    rng = random.Random(0)
    path = tmp_path / "damaged.so"
    for _ in range(150):
        damaged = bytearray(good)
        kind = rng.randrange(3)
        if kind == 0:
            damaged = damaged[: rng.randrange(len(good))]
        elif kind == 1:
            damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        else:
            position = rng.randrange(len(good))
            damaged[position:position] = b"\0" * rng.randrange(1, 100)
        path.write_bytes(damaged)
        with pytest.raises(FileFormatError, match=r"damaged.so: offset \d+: "):
            load_module(path)


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"LEPTONJT" * 20, bytes(1000)])
def test_foreign_files_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "foreign.so"
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"foreign.so: offset \d+: "):
        read_module(path)


def test_any_other_library_is_no_module(library: Path) -> None:
    assert is_module(library)
    assert not is_module(sys.executable)


def test_a_module_for_another_processor_is_refused(tmp_path: Path) -> None:
    manifest = dataclasses.replace(AFFINE_MANIFEST, target="x86-64-v9", features=("avx1024", "sse4.2"))
    path, _ = export_affine(tmp_path / "future.so", manifest)
    with pytest.raises(UnsupportedError, match="built for x86-64-v9; this processor lacks avx1024"):
        load_module(path)
    manifest = dataclasses.replace(AFFINE_MANIFEST, architecture="aarch64")
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(export_module, "find_linker", lambda _: ["cc"])
        path, _ = export_affine(tmp_path / "arm.so", manifest)
    with pytest.raises(FileFormatError, match="offset 18: expected ELF machine 183 for aarch64, got 62"):
        load_module(path)


def test_processor_features_have_llvms_names(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu bmi1 abm avx2\n")
    assert cpu_features(info) == {"fpu", "bmi", "lzcnt", "avx2"}


def test_a_header_names_every_argument() -> None:
    manifest = dataclasses.replace(
        AFFINE_MANIFEST,
        symbols=("N", "T"),
        inputs=(Tensor("n", "u8", ("N", "2*T")), Tensor("float", "f64", ())),
        outputs=(Tensor("layer/1", "i64", ("T",)),),
    )
    header = header_text(manifest, "net")
    assert "int net(int64_t n, int64_t t, const uint8_t *n_, const double *float_, int64_t *layer_1);" in header
    assert " *   n_           uint8_t[N][2*T], read" in header


WORDS = (
    "int",
    "class",
    "NULL",
    "linux",
    "int8_t",
    "float",
    "errno",
    "bool",
    "net",
    "net_message",
    "n",
    "é",
    "",
    "*/",
    "2d",
)


@pytest.mark.parametrize("compiler", [["cc", "-std=c99"], ["cc", "-std=gnu17"], ["c++", "-x", "c++"]], ids=" ".join)
def test_a_header_compiles_whatever_inputs_and_errors_are_called(tmp_path: Path, compiler: list[str]) -> None:
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no {compiler[0]}")
    manifest = dataclasses.replace(
        AFFINE_MANIFEST,
        name="/* */",
        inputs=tuple(Tensor(word, "i8", ("N",)) for word in WORDS),
        outputs=tuple(Tensor(word, "u64", ("N",)) for word in WORDS),
        errors={1: "layer '*/ int x; /*\n #error'"},
    )
    (tmp_path / "net.h").write_text(header_text(manifest, "net"))
    (tmp_path / "main.c").write_text('#include <errno.h>\n#include <stdio.h>\n#include "net.h"\nint unused;\n')

    flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-fsyntax-only"]
    subprocess.run([*compiler, *flags, "main.c"], cwd=tmp_path, check=True)
