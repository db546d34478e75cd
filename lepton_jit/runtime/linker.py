"""Object bytes -> functions in memory, through LLVM's LLJIT."""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lepton_jit.errors import LeptonError
from lepton_jit.runtime import forks
from lepton_jit.runtime.native import Code, Support
from lepton_jit.runtime.support_text import SUPPORT_FUNCTIONS

if TYPE_CHECKING:
    from llvmlite.binding.orcjit import LLJIT, ResourceTracker

__all__ = ["link", "link_support"]

_serial = itertools.count()
_process: _Process | None = None


class _Process:
    """The part of a process that is linked once: the engine, and the support code, in which the pool's workers stay."""

    def __init__(self, support_object: bytes) -> None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        # JITLink puts a program into one piece of memory. The other linker maps its sections apart, in a process with a
        # large address space so far apart that their relocations overflow: LLVM then ends the process.
        self.engine: LLJIT = llvm.create_lljit_compiler(use_jit_link=True)
        builder = llvm.JITLibraryBuilder().add_object_img(support_object).add_current_process()
        for name in SUPPORT_FUNCTIONS:
            builder.export_symbol(name)
        self.tracker: ResourceTracker = builder.link(self.engine, "lepton_jit_support")
        self.addresses = {name: self.tracker[name] for name in SUPPORT_FUNCTIONS}
        self.support = Support.at(self.addresses)
        # Never freed, not even when the interpreter goes down: a worker may still be running in it.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))


def link(objects: Sequence[bytes], support_object: bytes, prefix: str) -> Code:
    """Link the parts of a program's object code; they are freed when the last reference to the result goes.

    `support_object` is linked by the first call of a process; later calls share that one. LeptonError if a symbol is
    missing.
    """
    import llvmlite.binding as llvm

    process = _linked_once(support_object)
    builder = llvm.JITLibraryBuilder().add_current_process()
    for part in objects:
        builder.add_object_img(part)
    for name, address in process.addresses.items():
        builder.import_symbol(name, address)
    entry = f"{prefix}_run"
    builder.export_symbol(entry)
    try:
        tracker = builder.link(process.engine, f"{prefix}_{next(_serial)}")
    except RuntimeError as error:
        raise LeptonError(f"program {prefix}: linking failed: {error}") from None
    return Code.at(tracker[entry], process.support, tracker)


def link_support(support_object: bytes) -> Support:
    """The support code of this process alone, which plans the memory of programs that are not linked."""
    return _linked_once(support_object).support


def _linked_once(support_object: bytes) -> _Process:
    global _process
    with forks.linking:
        if _process is None:
            _process = _Process(support_object)
        return _process
