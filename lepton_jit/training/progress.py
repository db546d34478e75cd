"""The progress of an epoch, on a terminal as a bar, elsewhere as a line when it ends."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from lepton_jit.common.console import FAILURES, is_terminal, say
from lepton_jit.errors import ArgumentError

__all__ = ["EpochProgress", "resolve_verbose"]

# A redraw takes about a millisecond: four a second cost less than what a timer can tell.
_INTERVAL = 0.25

Logs = Mapping[str, float]


def resolve_verbose(verbose: Any, *, fitting: bool = True) -> int:
    """0 silent, 1 bar, 2 one line an epoch; `"auto"` is a bar on a terminal, else lines for `fit` only."""
    if isinstance(verbose, str) and verbose == "auto":
        return 1 if is_terminal() else 2 if fitting else 0
    if isinstance(verbose, (int, np.integer, np.bool_)) and verbose in (0, 1, 2):
        return int(verbose)
    raise ArgumentError(f"verbose: expected 0, 1, 2 or 'auto', got {verbose!r}")


def format_logs(logs: Logs) -> str:
    """`loss: 0.1234 - accuracy: 0.9876`"""
    return " - ".join(f"{k}: {v:.4f}" if abs(v) > 1e-3 or v == 0 else f"{k}: {v:.4e}" for k, v in logs.items())


class EpochProgress:
    """Shows samples done, loss, metrics and samples per second; `update` costs a clock reading unless it draws."""

    def __init__(self, verbose: int, title: str, total: int) -> None:
        self._verbose = verbose
        self._title = title
        self._done = 0
        self._start = self._last = time.perf_counter()
        self._bar: Progress | None = None
        self._task = TaskID(0)
        if verbose == 1 and is_terminal():
            self._bar = _bar()
            self._task = self._bar.add_task(title, total=total, logs="", rate="")
            with self._as_far_as_it_goes():
                self._bar.start()

    def __enter__(self) -> EpochProgress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def update(self, done: int, logs: Callable[[], Logs]) -> None:
        """`done` samples are done; `logs` is called only if it is time to draw."""
        self._done = done
        if self._bar is None:
            return
        now = time.perf_counter()
        if now - self._last < _INTERVAL:
            return
        self._last = now
        shown = logs()
        with self._as_far_as_it_goes():
            self._draw(now, shown)

    def finish(self, logs: Logs) -> None:
        """The epoch ended: the bar gives way to a line that stays."""
        self.close()
        if self._verbose:
            now = time.perf_counter()
            fields = [self._title, f"{now - self._start:.1f}s", self._rate(now), format_logs(logs)]
            say(" - ".join(f for f in fields if f))

    def close(self) -> None:
        """Leave the terminal as it was, after an interruption."""
        bar, self._bar = self._bar, None
        if bar is not None:
            with suppress(*FAILURES, IndexError):  # of a bar that could not start, rich takes down what is not there
                bar.stop()

    @contextmanager
    def _as_far_as_it_goes(self) -> Iterator[None]:
        """A bar that cannot be drawn any more is given up, and training goes on."""
        try:
            yield
        except FAILURES:
            self.close()

    def _rate(self, now: float) -> str:
        return f"{self._done / max(now - self._start, 1e-9):,.0f} samples/s"

    def _draw(self, now: float, logs: Logs) -> None:
        assert self._bar is not None
        self._bar.update(self._task, completed=self._done, logs=format_logs(logs), rate=self._rate(now))
        self._bar.refresh()


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[logs]}"),
    )
    return Progress(*columns, console=Console(file=sys.stdout), auto_refresh=False, transient=True)
