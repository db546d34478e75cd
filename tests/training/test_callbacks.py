"""Callbacks: moments, and what the ready-made ones do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.callbacks import (
    Callback,
    CSVLogger,
    EarlyStopping,
    LambdaCallback,
    LearningRateScheduler,
    ModelCheckpoint,
    ReduceLROnPlateau,
    TerminateOnNaN,
)

X, Y = np.ones((6, 2), "float32"), np.ones((6, 1), "float32")


def model(rate: float = 0.0) -> Any:
    made = lpt.Sequential([lpt.Dense(1, input_shape=(2,), kernel_initializer="zeros", name="d")])
    made.compile(lpt.optimizers.SGD(rate), "mse", metrics=["mae"])
    return made


class Recorder(Callback):
    """Remembers every moment."""

    def __init__(self) -> None:
        self.moments: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("on_"):
            return super().__getattribute__(name)
        return lambda *args: self.moments.append(name)


def test_moments_come_in_keras_order() -> None:
    recorder, extra = Recorder(), []

    class Batches(Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            extra.append(("begin", batch))

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            extra.append(("end", batch, sorted(logs)))

        def on_test_batch_end(self, batch: int, logs: Any = None) -> None:
            extra.append(("test", batch))

    model().fit(X, Y, batch_size=4, validation_data=(X, Y), verbose=0, callbacks=[recorder, Batches()])

    assert recorder.moments == [
        "on_train_begin", "on_epoch_begin", "on_test_begin", "on_test_end", "on_epoch_end", "on_train_end",
    ]  # fmt: skip
    assert extra == [
        ("begin", 0), ("end", 0, ["loss", "mae"]), ("begin", 1), ("end", 1, ["loss", "mae"]), ("test", 0), ("test", 1),
    ]  # fmt: skip


def test_early_stopping_waits_and_restores_the_best_weights() -> None:
    made = model(0.1)
    values = iter([3.0, 2.0, 2.5, 2.4, 1.0])
    kept: list[Any] = []

    class Score(Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            logs["score"] = next(values)
            kept.append(self.model.get_weights())

    stop = EarlyStopping("score", patience=2, mode="min", restore_best_weights=True)
    history = made.fit(X, Y, epochs=9, verbose=0, callbacks=[Score(), stop])

    assert history.epoch == [0, 1, 2, 3]
    assert stop.stopped_epoch == 3
    assert all((a == b).all() for a, b in zip(made.get_weights(), kept[1], strict=True))


def test_auto_mode_knows_that_more_accuracy_is_better() -> None:
    made = lpt.Sequential([lpt.Dense(2, activation="softmax", input_shape=(2,))])
    made.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    stop = EarlyStopping("accuracy")
    made.fit(X, np.zeros(6), verbose=0, callbacks=[stop])

    assert stop.improves(0.9, 0.8)
    assert not stop.improves(0.7, 0.8)
    stop.monitor = "loss_of_hair"
    with pytest.raises(lpt.ArgumentError, match="'loss_of_hair' is neither a loss nor a metric"):
        stop.improves(1.0, 2.0)


def test_a_monitor_that_is_not_there_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="monitor 'val_loss' is not available; there are loss, mae"):
        model().fit(X, Y, verbose=0, callbacks=[EarlyStopping()])


def test_learning_rates_are_scheduled_and_reported() -> None:
    history = model(0.1).fit(
        X, Y, epochs=3, verbose=0, callbacks=[LearningRateScheduler(lambda epoch, rate: rate / 2 if epoch else rate)]
    )

    assert history.history["learning_rate"] == [0.1, 0.05, 0.025]


def test_the_learning_rate_falls_on_a_plateau() -> None:
    history = model(0.0).fit(X, Y, epochs=1, verbose=0)
    made = model(1e-9)
    history = made.fit(
        X, Y, epochs=5, verbose=0, callbacks=[ReduceLROnPlateau("loss", factor=0.5, patience=2, min_lr=3e-10)]
    )

    assert history.history["learning_rate"] == pytest.approx([1e-9, 1e-9, 1e-9, 0.5e-9, 0.5e-9])
    assert made.optimizer.learning_rate == pytest.approx(3e-10)


def test_checkpoints_are_models_of_their_epoch(tmp_path: Path) -> None:
    made = model(0.1)
    made.fit(X, Y, epochs=2, verbose=0, callbacks=[ModelCheckpoint(tmp_path / "deep" / "m{epoch:02d}.lepton")])

    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == ["m01.lepton", "m02.lepton"]
    np.testing.assert_array_equal(lpt.load(tmp_path / "deep" / "m02.lepton").get_weights()[0], made.get_weights()[0])


def test_only_the_best_checkpoint_is_kept_if_asked(tmp_path: Path) -> None:
    made = model(50.0)  # diverges: the first epoch is the best
    keep = ModelCheckpoint(tmp_path / "best", monitor="loss", save_best_only=True, save_weights_only=True)
    weights: list[Any] = []
    after = LambdaCallback(on_epoch_end=lambda epoch, logs: weights.append(made.get_weights()))
    made.fit(X, Y, epochs=3, verbose=0, callbacks=[keep, after])

    made.load_weights(tmp_path / "best")

    assert all((a == b).all() for a, b in zip(made.get_weights(), weights[0], strict=True))


def test_checkpoints_every_few_batches(tmp_path: Path) -> None:
    model().fit(X, Y, batch_size=1, verbose=0, callbacks=[ModelCheckpoint(tmp_path / "b{batch}", save_freq=2)])

    assert sorted(p.name for p in tmp_path.iterdir()) == ["b2", "b4", "b6"]


def test_a_csv_file_has_a_line_for_every_epoch(tmp_path: Path) -> None:
    for append in (False, True):
        model().fit(X, Y, epochs=2, verbose=0, callbacks=[CSVLogger(tmp_path / "log.csv", append=append)])
    lines = (tmp_path / "log.csv").read_text().splitlines()

    assert lines[0] == "epoch,loss,mae,val_loss,val_mae"
    assert lines[1] == "0,1.0,1.0,NA,NA"
    assert len(lines) == 5


def test_training_ends_when_the_loss_is_not_a_number(capsys: pytest.CaptureFixture[str]) -> None:
    made = model()
    history = made.fit(X * np.inf, Y, batch_size=2, epochs=3, verbose=0, callbacks=[TerminateOnNaN()])

    assert len(history.epoch) == 1
    assert made.optimizer.iterations == 1
    assert "Invalid loss" in capsys.readouterr().out


def test_a_schedule_of_epochs_may_know_the_learning_rate_or_not() -> None:
    def rates(schedule: Any) -> list[float]:
        model = lpt.Sequential([lpt.Dense(1, input_shape=(2,))])
        model.compile(lpt.optimizers.SGD(0.5), "mse")
        scheduler = lpt.callbacks.LearningRateScheduler(schedule)
        x, y = np.ones((4, 2)), np.zeros((4, 1))
        return model.fit(x, y, epochs=3, callbacks=[scheduler], verbose=0).history["learning_rate"]

    assert rates(lambda epoch: 0.1 / (epoch + 1)) == [0.1, 0.05, 0.1 / 3]
    assert rates(lambda epoch, rate=1.0: rate / 2) == [0.25, 0.125, 0.0625]
