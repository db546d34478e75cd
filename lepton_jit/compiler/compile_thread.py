"""Run compilations, each on a thread of its own.

Python runs signal handlers on the main thread. So an interrupt ends the wait for a compilation at once, and never comes
between two lines of it: what it changes for the whole process is set back, LLVM's lock is given back.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

from lepton_jit.errors import OutOfMemoryError
from lepton_jit.runtime.memory import require_memory

__all__ = ["HelperThread", "check_wanted", "run_apart"]

T = TypeVar("T")


class UnwantedError(Exception):
    """Nobody waits for this compilation any more."""


class _Task(Generic[T]):
    """Work on another thread, and whether somebody waits for it."""

    def __init__(self, work: Callable[[], T]) -> None:
        self.work = work
        self.wanted = True
        self.done: SimpleQueue[tuple[T | None, BaseException | None]] = SimpleQueue()

    def run(self) -> None:
        _current.set(self)
        try:
            self.done.put((self.work(), None))
        except MemoryError as error:
            ours = error if isinstance(error, OutOfMemoryError) else OutOfMemoryError("compiling: out of memory")
            self.done.put((None, ours))
        except BaseException as error:
            self.done.put((None, error))

    def result(self) -> T:
        value, error = self.done.get()
        if error is None:
            return value  # pyright: ignore[reportReturnType]
        try:
            raise error
        finally:
            del error  # which refers to this frame


_current: ContextVar[_Task[Any] | None] = ContextVar("task", default=None)


def run_apart(work: Callable[[], T]) -> T:
    """Run `work` on a thread of its own, or at once where this is such a thread; returns or raises what it does."""
    if _current.get() is not None:
        return work()
    task = _Task(work)
    try:
        _start(task)
        return task.result()
    finally:
        task.wanted = False


def _start(task: _Task[Any]) -> None:
    try:
        threading.Thread(target=copy_context().run, args=(task.run,), name="lepton-jit-compile").start()
    except (RuntimeError, MemoryError) as error:
        raise OutOfMemoryError(f"compiling needs a thread, and none can be started: {error}") from None


def check_wanted() -> None:
    """End a compilation that nobody waits for any more: long ones ask from time to time."""
    _check(_current.get())


def _check(task: _Task[Any] | None) -> None:
    if task is not None and not task.wanted:
        raise UnwantedError


class HelperThread(ThreadPoolExecutor):
    """One more thread of a compilation; what waits in its queue at the end, or is not wanted any more, is left out."""

    def __init__(self, name: str) -> None:
        super().__init__(1, name)

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        check_wanted()
        return super().submit(_if_wanted, _current.get(), partial(fn, *args, **kwargs))

    def __exit__(self, *_: object) -> None:
        self.shutdown(cancel_futures=True)


def _if_wanted(task: _Task[Any] | None, work: Callable[[], T]) -> T:
    _check(task)
    require_memory("compiling a part with LLVM", address_space=64 * 2**20, data=40 * 2**20)
    return work()
