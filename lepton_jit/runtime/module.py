"""Loading an exported module: neither LLVM nor networkx is needed, nor imported."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import Any

import numpy as np

from lepton_jit.errors import FileFormatError
from lepton_jit.runtime.library import open_library
from lepton_jit.runtime.manifest import Manifest, Tensor
from lepton_jit.runtime.module_file import check_header, check_host, is_module, read_sealed
from lepton_jit.runtime.native import Code, Native, Support
from lepton_jit.runtime.program import Parameters, Program
from lepton_jit.runtime.wrapper import MODULE_TABLE

__all__ = ["Module", "is_module", "load_module"]

_TABLE_VERSION = 1


class Module(Native):
    """An exported program: `module(x)` gives the same bits as the program that it was exported from.

    As there, one output is an array, several are a tuple.
    """

    def __init__(self, program: Program, parameters: Parameters) -> None:
        self.program = program
        self.parameters = parameters

    @property
    def manifest(self) -> Manifest:
        return self.program.manifest

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Name, dtype and shape of every input."""
        return self.manifest.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Name, dtype and shape of every output."""
        return self.manifest.outputs

    def __call__(self, *inputs: Any) -> np.ndarray | tuple[np.ndarray, ...]:
        results = self.program(*inputs, parameters=self.parameters)
        return results[0] if len(results) == 1 else results


def load_module(path: str | os.PathLike[str], *, threads: int | None = None) -> Module:
    """Check a module's file, then open it.

    FileFormatError if the file is damaged, truncated, of another kind or beside the header of another interface;
    UnsupportedError if it was built for another processor; both before any of its code is in memory.
    """
    with open(path, "rb") as file:
        manifest, digest = read_sealed(file, path)
        check_host(manifest, str(path))
        check_header(manifest, Path(path))
        try:
            library = open_library(file, digest)
            table = (ctypes.c_void_p * (3 + len(MODULE_TABLE))).in_dll(library, "lepton_module")
        except (OSError, ValueError) as error:
            raise FileFormatError(f"{path}: cannot be opened as a shared library: {error}") from None
    version, run, parameters, *functions = (address or 0 for address in table)
    if version != _TABLE_VERSION:
        raise FileFormatError(f"{path}: expected module table version {_TABLE_VERSION}, got {version}")
    code = Code.at(run, Support.at(dict(zip(MODULE_TABLE, functions, strict=True))), library)
    pointers = (ctypes.c_void_p * len(manifest.params)).from_address(parameters)
    return Module(Program(manifest, code, threads=threads), Parameters([p or 0 for p in pointers], library))
