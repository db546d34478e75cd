"""Native functions as Python sees them, whether linked in this process or loaded from a shared library."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lepton_jit.errors import UnsupportedError

__all__ = ["Batches", "Code", "ColumnRecord", "ContextRecord", "Native", "StepRecord", "Support"]

_POINTER = ctypes.c_void_p
_COUNT = ctypes.c_int64
_RUN = ctypes.CFUNCTYPE(ctypes.c_int32, _POINTER, _POINTER, _POINTER, _POINTER, _POINTER)
# PyInstanceMethod wraps a native function as a method: an attribute of a class that is called with the object.
_as_method = ctypes.pythonapi.PyInstanceMethod_New
_as_method.argtypes, _as_method.restype = (ctypes.py_object,), ctypes.py_object
_SIGNATURES: dict[str, Callable[[int], Callable]] = {
    "lpt_context_destroy": ctypes.CFUNCTYPE(None, _POINTER),
    "lpt_context_set_threads": ctypes.CFUNCTYPE(None, _POINTER, ctypes.c_int32),
    "lpt_context_profile": ctypes.CFUNCTYPE(ctypes.c_int32, _POINTER, ctypes.c_int32),
    "lpt_gather_rows": ctypes.CFUNCTYPE(
        None, ctypes.c_int32, _POINTER, _POINTER, ctypes.c_int64, ctypes.c_int64, _POINTER
    ),
    "lpt_run_batches": ctypes.CFUNCTYPE(ctypes.c_int32, *[_POINTER] * 7, _COUNT, _POINTER, *[_COUNT] * 3),
    "lpt_plan": ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, _POINTER, _POINTER, _POINTER, _POINTER),
}


class Native:
    """Base of what holds code and addresses of this process, and so cannot be copied."""

    def __reduce__(self) -> Any:
        raise UnsupportedError(
            f"a {type(self).__name__} holds native code of this process, and is neither copied nor pickled; "
            "copy the model and compile that, or export a library and load it again"
        )


class StepRecord(ctypes.Structure):
    """The time of one step: total nanoseconds and number of calls."""

    _fields_ = (("nanoseconds", ctypes.c_int64), ("calls", ctypes.c_int64))


class ContextRecord(ctypes.Structure):
    """The public first bytes of a context."""

    _fields_ = (
        ("arena", ctypes.c_void_p),
        ("offsets", ctypes.c_void_p),
        ("code", ctypes.c_int32),
        ("step", ctypes.c_int32),
        ("index", ctypes.c_int64),
        ("arena_bytes", ctypes.c_int64),
        ("profile", ctypes.c_void_p),
    )


class ColumnRecord(ctypes.Structure):
    """Rows for one input, of many batches; of those in another order, one batch is gathered at a time."""

    _fields_ = (
        ("source", ctypes.c_void_p),
        ("gathered", ctypes.c_void_p),
        ("row_bytes", ctypes.c_int64),
    )


@dataclass(frozen=True)
class Batches:
    """`count` batches of `rows` rows from number `first` on.

    `order` is the address of the rows' numbers, i64, or None where they stay as they are.
    """

    columns: ctypes.Array[ColumnRecord]
    rows: int
    order: int | None
    first: int
    count: int


@dataclass(frozen=True)
class Support:
    """The support functions that Python calls."""

    context_create: Callable[[int], ctypes.c_void_p]  # a null pointer without memory
    context_set_threads: Callable[[int, int], None]
    context_profile: Callable[[int, int], int]
    plan: Callable[..., int]
    # a module has none of these
    gather_rows: Callable[..., None] | None = None
    run_batches: Callable[..., int] | None = None

    @staticmethod
    def at(addresses: Mapping[str, int]) -> Support:
        """Make it from addresses by the functions' names."""
        found = {n.removeprefix("lpt_"): make(addresses[n]) for n, make in _SIGNATURES.items() if n in addresses}
        context = _context_type(found.pop("context_destroy"))
        return Support(ctypes.CFUNCTYPE(context, ctypes.c_int32)(addresses["lpt_context_create"]), **found)


def _context_type(destroy: Callable[[object], None]) -> type[ctypes.c_void_p]:
    """A pointer to a context, which goes when its last reference does.

    Both ends are native code: between two lines of a destructor in Python, or between a call that returns an address
    and a line that keeps it, a signal handler could raise, and the context would stay for ever.
    """
    return type("Context", (ctypes.c_void_p,), {"__del__": _as_method(destroy)})


@dataclass(frozen=True)
class Code:
    """A linked program: its entry, the support code that it calls, and what keeps both in memory."""

    run: Callable[[int, object, object, object, object], int]
    run_at: int  # its address
    support: Support
    owner: object

    @staticmethod
    def at(run: int, support: Support, owner: object) -> Code:
        """Make it from the address of `<prefix>_run`; the function by itself keeps the code in memory too."""
        function = _RUN(run)
        function.owner = owner  # pyright: ignore[reportAttributeAccessIssue]
        return Code(function, run, support, owner)
