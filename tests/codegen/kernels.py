"""Single kernels, from their text to machine code that runs."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Mapping

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from lepton_jit.codegen.llvm.emit_contract import ContractUnit
from lepton_jit.codegen.llvm.emit_kernel import emit_kernel
from lepton_jit.codegen.llvm.machine_code import compile_object
from lepton_jit.codegen.loops.ir import CeilDiv, Kernel
from lepton_jit.codegen.target import Target, native_target
from lepton_jit.ir.types import dim_value

_NUMBERS = itertools.count()
_SIGNATURE = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)


def emitted(kernel: Kernel, symbols: tuple[str, ...] = ("N",), target: Target | None = None) -> str:
    """The LLVM IR of a module that exports the kernel."""
    target = target or native_target()
    module = ir.Module("kernels")
    function = emit_kernel(module, kernel, target, symbols, ContractUnit(module, target).emit)
    function.linkage = ""
    return str(module)


def run_emitted(kernel: Kernel, arrays: Mapping[str, np.ndarray], symbols: Mapping[str, int]) -> None:
    """Run all iterations natively on the arrays."""
    code = compile_object(emitted(kernel, tuple(symbols)), native_target())
    builder = llvm.JITLibraryBuilder().add_object_img(code).add_current_process()
    builder.export_symbol(kernel.name)
    library = builder.link(llvm.create_lljit_compiler(), f"kernel{next(_NUMBERS)}")
    dims = np.array(list(symbols.values()), np.int64)
    frame = np.array([0, dims.ctypes.data, *(arrays[b.name].ctypes.data for b in kernel.buffers)], np.uint64)
    extent = kernel.extent.value(symbols) if isinstance(kernel.extent, CeilDiv) else dim_value(kernel.extent, symbols)
    _SIGNATURE(library[kernel.name])(frame.ctypes.data, 0, extent)
