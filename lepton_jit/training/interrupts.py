"""Ctrl-C between batches: a step that has begun is finished first."""

from __future__ import annotations

import signal
import threading
import weakref
from types import FrameType, TracebackType

__all__ = ["DeferredInterrupt"]


class DeferredInterrupt:
    """While it is entered, SIGINT is remembered, and `check()` raises KeyboardInterrupt; a second one raises at once.

    Without effect outside of the main thread, and where the program has a handler of its own.
    """

    def __init__(self) -> None:
        self._pending = False
        self._active = False

    def __enter__(self) -> DeferredInterrupt:
        in_main = threading.current_thread() is threading.main_thread()
        self._active = in_main and _is_default(signal.getsignal(signal.SIGINT))
        if self._active:
            signal.signal(signal.SIGINT, _Handler(self))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._active:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kind is None:
            self.check()

    def check(self) -> None:
        """Raise what was remembered."""
        if self._pending:
            self._pending = False
            raise KeyboardInterrupt

    def remember(self) -> None:
        """SIGINT came."""
        if self._pending:
            raise KeyboardInterrupt
        self._pending = True


class _Handler:
    """Tells a DeferredInterrupt of SIGINT; once that is gone, it does what Python's own handler does.

    An exception from another signal can come before the block has begun, or before it has set the old handler again.
    """

    def __init__(self, told: DeferredInterrupt) -> None:
        self.told = weakref.ref(told)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        told = self.told()
        if told is None:
            raise KeyboardInterrupt
        told.remember()


def _is_default(handler: object) -> bool:
    return handler is signal.default_int_handler or (isinstance(handler, _Handler) and handler.told() is None)
