"""Printing never ends the work that it tells of: none, a closed one, a poor encoding, a terminal that goes."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.training import progress

X, Y = np.ones((8, 4), np.float32), np.zeros((8, 1), np.float32)


class Terminal(io.TextIOWrapper):
    """A terminal of some encoding, whose line is cut after a number of writes."""

    def __init__(self, encoding: str = "utf-8", writes: float = np.inf) -> None:
        super().__init__(io.BytesIO(), encoding=encoding)
        self.writes = writes

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.writes -= 1
        if self.writes < 0:
            raise BrokenPipeError(32, "Broken pipe")
        return super().write(text)

    def shown(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


def closed() -> Any:
    stream = io.StringIO()
    stream.close()
    return stream


class WriteOnly:
    """What some servers put in the place of standard output."""

    def write(self, text: str) -> int:
        return len(text)


OUTPUTS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "closed": closed,
    "write only": WriteOnly,
    "ascii": lambda: io.TextIOWrapper(io.BytesIO(), encoding="ascii"),
    "cp1252": lambda: io.TextIOWrapper(io.BytesIO(), encoding="cp1252"),
    "unknown encoding": lambda: type("Odd", (io.StringIO,), {"encoding": "x-odd"})(),
    "ascii terminal": lambda: Terminal("ascii"),
    "no reader": lambda: Terminal(writes=0),
    "reader that goes": lambda: Terminal(writes=7),
}


@pytest.fixture(scope="module")
def model() -> Any:
    return small()


def small() -> Any:
    made = lpt.Sequential([lpt.Dense(1, input_shape=(4,), name="schräg")])
    made.compile("sgd", "mse")
    return made


@pytest.mark.parametrize("name", OUTPUTS)
@pytest.mark.parametrize("verbose", ["auto", 1, 2])
def test_a_model_runs_whatever_standard_output_is(
    model: Any, name: str, verbose: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    callbacks = [
        lpt.callbacks.EarlyStopping("loss", verbose=1, restore_best_weights=True),
        lpt.callbacks.ReduceLROnPlateau("loss", patience=0, verbose=1),
        lpt.callbacks.LearningRateScheduler(lambda epoch, rate: rate, verbose=1),
    ]
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    monkeypatch.setattr(sys, "stdout", OUTPUTS[name]())

    history = model.fit(X, Y, batch_size=2, epochs=2, validation_data=(X, Y), verbose=verbose, callbacks=callbacks)
    model.evaluate(X, Y, verbose=verbose)
    model.predict(X, verbose=verbose)
    model.summary()

    assert len(history.history["loss"]) == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_summary_is_drawn_with_what_the_encoding_has(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(encoding)
    monkeypatch.setattr(sys, "stdout", terminal)

    small().summary()

    frame = [line for line in terminal.shown().splitlines() if line.startswith("+")]
    assert len(frame) == 2
    assert set(frame[0]) <= set("+-")
    assert ("schr\\xe4g" if encoding == "ascii" else "schräg") in terminal.shown()


def test_a_print_function_gets_the_whole_summary_whatever_standard_output_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    seen: list[str] = []

    small().summary(print_fn=seen.append)

    assert "┌" in seen[0]
    assert "Total params: 5" in seen[0]


def test_a_bar_that_cannot_be_drawn_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal(writes=3)
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    asked: list[int] = []
    epoch = progress.EpochProgress(1, "Epoch 1/1", 100)
    for done in range(1, 101):
        epoch.update(done, lambda done=done: asked.append(done) or {"loss": 0.5})  # type: ignore[func-returns-value]
    epoch.finish({"loss": 0.5})

    assert 0 < len(asked) < 100
    assert sys.stdout is terminal
