"""Writing a program as a shared library with a C header: weights inside, nothing needed but libc."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from lepton_jit.common.writing import file_path, whole_file, work_folder
from lepton_jit.errors import ArgumentError, LeptonError, UnsupportedError
from lepton_jit.runtime.arguments import check_parameters
from lepton_jit.runtime.cpu import host_architecture
from lepton_jit.runtime.manifest import Manifest
from lepton_jit.runtime.module_file import seal
from lepton_jit.runtime.wrapper import function_name, header_text, version_script, weights_assembly, wrapper_text

__all__ = ["export", "find_linker"]

_ALIGNMENT = 64
# The small code model reaches 2 GB; the rest of the library needs little.
_MAX_WEIGHT_BYTES = 2**31 - 2**24


def export(
    path: str | os.PathLike[str],
    manifest: Manifest,
    *,
    program: Sequence[bytes],
    support: bytes,
    compile_text: Callable[[str], bytes],
    parameters: Sequence[np.ndarray] = (),
    name: str | None = None,
) -> tuple[Path, Path]:
    """Write the library at `path` and the header beside it (`.h`); returns both paths.

    `program` (its parts) and `support` are object code, `compile_text` turns LLVM IR text into object code for the same
    target, `parameters` are the arrays in the manifest's order. The C function is called `name`, by default as the
    file. Each file is replaced in one step; one of the old pair does not link with one of a new pair that has another
    interface. LeptonError if there is no linker, or if it fails.
    """
    path = file_path("export", path)
    if manifest.donations:
        raise UnsupportedError(f"{manifest.name}: a program that overwrites its parameters cannot be exported yet")
    check_parameters(manifest, parameters)
    if sum(a.nbytes for a in parameters) > _MAX_WEIGHT_BYTES:
        raise UnsupportedError(f"{manifest.name}: more than {_MAX_WEIGHT_BYTES:,} bytes of weights cannot be embedded")
    name = function_name(path.stem if name is None else name, manifest)
    header = path.with_suffix(".h")
    if header == path:
        raise ArgumentError(f"export: {str(path)!r} is the name of the header; expected a name such as 'model.so'")
    linker = find_linker(manifest.architecture)
    # Beside the library, where there is room for it.
    with work_folder(path.parent) as work:
        for i, code in enumerate(program):
            (work / f"program{i}.o").write_bytes(code)
        (work / "support.o").write_bytes(support)
        (work / "wrapper.o").write_bytes(compile_text(wrapper_text(manifest, name)))
        (work / "exports.map").write_text(version_script(manifest, name))
        offsets = _write_weights(work / "weights.bin", parameters)
        (work / "weights.s").write_text(weights_assembly("weights.bin", offsets))
        _link(linker, work, path.name, len(program))
        with whole_file(path, mode=0o777) as file:
            seal(work / "module.so", manifest, file)
        with whole_file(header) as file:
            file.write(header_text(manifest, name).encode())
    return path, header


def find_linker(architecture: str) -> list[str]:
    """The command that assembles and links for an architecture: `cc`, else the `ziglang` wheel; else LeptonError."""
    native = architecture == host_architecture()
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if native and compiler:
        return [compiler]
    if importlib.util.find_spec("ziglang") is not None:
        return [sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-gnu"]
    what = "a C compiler (`apt install gcc`) or " if native else ""
    raise LeptonError(f"export for {architecture} needs {what}the wheel `ziglang` (`pip install ziglang`); not found")


def _write_weights(path: Path, parameters: Sequence[np.ndarray]) -> list[int]:
    """Write the arrays one after the other, each on a 64-byte boundary; returns their offsets."""
    offsets = []
    with open(path, "wb") as file:
        for array in parameters:
            file.write(bytes(-file.tell() % _ALIGNMENT))
            offsets.append(file.tell())
            file.write(np.ascontiguousarray(array).data)
    return offsets


def _link(linker: list[str], work: Path, soname: str, parts: int) -> None:
    # Assembled by itself, since the compiler would put the random name of its temporary file into the symbol table.
    _run([*linker, "-c", "weights.s", "-o", "weights.o"], work)
    objects = [*(f"program{i}.o" for i in range(parts)), "support.o", "wrapper.o", "weights.o"]
    options = [
        "--version-script=exports.map",
        f"-soname={soname}",
        *("-z", "nodelete"),  # workers run in it until the process ends
        *("-z", "noexecstack"),
        "--no-undefined",
        "--as-needed",
    ]
    _run(
        [*linker, "-shared", "-o", "module.so", *objects, *(x for o in options for x in ("-Xlinker", o)), "-pthread"],
        work,
    )


def _run(command: list[str], folder: Path) -> None:
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    except OSError as error:
        raise LeptonError(f"export: {command[0]} cannot be started: {error}") from None
    except subprocess.CalledProcessError as error:
        raise LeptonError(f"export: linking failed: {' '.join(command)}: {error.stderr.strip()}") from None
