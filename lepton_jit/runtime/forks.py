"""Let a child of `fork` compile: LLVM is at rest then, and no lock is held by a thread that the child does not have.

A fork waits for the call of LLVM that is under way, and for nothing else: before it, other packages take their locks,
which a compilation may need to go on.
"""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

__all__ = ["compiling", "linking"]

# Reentrant, since a thread that holds one may fork. Used as `forks.compiling`: a child has new ones.
compiling = threading.RLock()  # one program at a time
linking = threading.RLock()


class _Held(threading.local):
    """LLVM's lock, while this thread forks and has got it: a signal handler may have raised instead."""

    lock: Any = None


_held = _Held()


def _before() -> None:
    library = getattr(sys.modules.get("llvmlite.binding.ffi"), "lib", None)  # None while it is being imported
    if library is not None:
        lock = library._lock._lock
        lock.acquire()
        _held.lock = lock


def _after() -> None:
    lock, _held.lock = _held.lock, None
    if lock is not None:
        lock.release()


def _after_in_child() -> None:
    global compiling, linking
    _after()
    compiling, linking = threading.RLock(), threading.RLock()


os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after_in_child)
