"""Callbacks of `fit`, `evaluate` and `predict`, with Keras' names, arguments and moments."""

from __future__ import annotations

import csv
import inspect
import math
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lepton_jit.common import arguments
from lepton_jit.common.console import say
from lepton_jit.errors import ArgumentError

__all__ = [
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "History",
    "LambdaCallback",
    "LearningRateScheduler",
    "ModelCheckpoint",
    "ReduceLROnPlateau",
    "TerminateOnNaN",
]

Logs = dict[str, Any]


class Callback:
    """Override what you need. `self.model` is the model; `self.params` has epochs, steps and verbose.

    Methods of batches cost time in the inner loop, so that they are only called if some callback overrides them.
    """

    model: Any  # the Model, which stands on this module
    params: Mapping[str, Any]

    def set_model(self, model: Any) -> None:
        self.model = model

    def set_params(self, params: Mapping[str, Any]) -> None:
        self.params = params

    def on_train_begin(self, logs: Logs | None = None) -> None: ...
    def on_train_end(self, logs: Logs | None = None) -> None: ...
    def on_test_begin(self, logs: Logs | None = None) -> None: ...
    def on_test_end(self, logs: Logs | None = None) -> None: ...
    def on_predict_begin(self, logs: Logs | None = None) -> None: ...
    def on_predict_end(self, logs: Logs | None = None) -> None: ...
    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None: ...
    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None: ...
    def on_batch_begin(self, batch: int, logs: Logs | None = None) -> None: ...
    def on_batch_end(self, batch: int, logs: Logs | None = None) -> None: ...

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        self.on_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        self.on_batch_end(batch, logs)

    def on_test_batch_begin(self, batch: int, logs: Logs | None = None) -> None: ...
    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None: ...
    def on_predict_batch_begin(self, batch: int, logs: Logs | None = None) -> None: ...
    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None: ...


class CallbackList:
    """Calls every callback's method of a name; knows which batch methods anybody overrides."""

    def __init__(self, callbacks: Any, model: Any, params: Mapping[str, Any]) -> None:
        given = list(callbacks) if isinstance(callbacks, (list, tuple)) else [] if callbacks is None else [callbacks]
        for callback in given:
            if not isinstance(callback, Callback):
                raise ArgumentError(f"callbacks: expected instances of Callback, got {callback!r}")
        self.callbacks: list[Callback] = given
        self.model = model
        for callback in given:
            callback.set_model(model)
            callback.set_params(params)

    def append(self, history: History) -> History:
        """One more behind all others: what each epoch ends with, theirs included."""
        history.set_model(self.model)
        self.callbacks.append(history)
        return history

    def listeners(self, method: str) -> list[Callable[..., None]]:
        """The methods of that name that do something."""
        own = getattr(Callback, method)
        relayed = method.replace("train_batch", "batch")
        return [
            getattr(c, method)
            for c in self.callbacks
            if getattr(type(c), method) is not own
            or getattr(type(c), relayed) is not getattr(Callback, relayed)
            or method in vars(c)
        ]

    def call(self, method: str, *arguments: Any) -> None:
        """Call one method of all."""
        for callback in self.callbacks:
            getattr(callback, method)(*arguments)


class History(Callback):
    """`history.history` has a list for every key, `history.epoch` the epochs."""

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.epoch = []

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        self.epoch.append(epoch)
        for key, value in (logs or {}).items():
            self.history.setdefault(key, []).append(value)
        self.model.history = self


class LambdaCallback(Callback):
    """Functions as a callback: `LambdaCallback(on_epoch_end=lambda epoch, logs: print(logs))`."""

    def __init__(
        self,
        on_epoch_begin: Callable[..., Any] | None = None,
        on_epoch_end: Callable[..., Any] | None = None,
        on_train_begin: Callable[..., Any] | None = None,
        on_train_end: Callable[..., Any] | None = None,
        on_train_batch_begin: Callable[..., Any] | None = None,
        on_train_batch_end: Callable[..., Any] | None = None,
        **methods: Callable[..., Any],
    ) -> None:
        methods |= {
            "on_epoch_begin": on_epoch_begin,
            "on_epoch_end": on_epoch_end,
            "on_train_begin": on_train_begin,
            "on_train_end": on_train_end,
            "on_train_batch_begin": on_train_batch_begin,
            "on_train_batch_end": on_train_batch_end,
        }  # pyright: ignore[reportAssignmentType]
        for name, function in methods.items():
            if function is None:
                continue
            if not name.startswith("on_") or not hasattr(Callback, name) or not callable(function):
                raise ArgumentError(f"LambdaCallback: expected functions named as the methods of Callback, got {name}")
            setattr(self, name, function)


class _Monitor(Callback):
    """Watches one number of the logs and knows whether less or more is better."""

    def __init__(self, monitor: str, mode: str, min_delta: float) -> None:
        owner = type(self).__name__
        self.monitor = arguments.text(owner, "monitor", monitor)
        self.mode = arguments.choice(owner, "mode", mode, ("auto", "min", "max"))
        self.min_delta = abs(arguments.number(owner, "min_delta", min_delta))
        self.best: float | None = None

    def improves(self, value: float, reference: float | None) -> bool:
        """Tell whether `value` is better than `reference` by more than `min_delta`."""
        if reference is None:
            return True
        return value - self.min_delta > reference if self._larger_is_better() else value + self.min_delta < reference

    def _larger_is_better(self) -> bool:
        if self.mode != "auto":
            return self.mode == "max"
        name = self.monitor.removeprefix("val_")
        if name == "loss" or name.endswith("_loss"):
            return False
        for known, metric in self.model._trainer.objective.trackers():
            if known == name:
                return metric.larger_is_better
        raise ArgumentError(
            f"{type(self).__name__}: monitor {self.monitor!r} is neither a loss nor a metric of the model; "
            f"say mode='min' or mode='max'"
        )

    def _value(self, logs: Logs | None) -> float | None:
        value = (logs or {}).get(self.monitor)
        if value is None:
            warnings.warn(
                f"{type(self).__name__}: monitor {self.monitor!r} is not available; there are {', '.join(logs or {})}",
                stacklevel=2,
            )
        return value


class EarlyStopping(_Monitor):
    """Stops training when `monitor` has not improved for `patience` epochs."""

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = arguments.integer("EarlyStopping", "patience", patience, low=0)
        self.verbose = verbose
        self.baseline = arguments.optional_number("EarlyStopping", "baseline", baseline)
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.wait = self.stopped_epoch = self.best_epoch = 0
        self.best = None
        self.best_weights: list[Any] | None = None

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        value = self._value(logs)
        if value is None or epoch < self.start_from_epoch:
            return
        if self.restore_best_weights and self.best_weights is None:
            self._keep(epoch)
        self.wait += 1
        if self.improves(value, self.best):
            self.best = value
            self._keep(epoch)
            if self.baseline is None or self.improves(value, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self.stopped_epoch > 0 and self.verbose:
            say(f"Epoch {self.stopped_epoch + 1}: early stopping")
        if self.restore_best_weights and self.best_weights is not None:
            if self.verbose:
                say(f"Restoring model weights from the end of the best epoch: {self.best_epoch + 1}.")
            self.model.set_weights(self.best_weights)

    def _keep(self, epoch: int) -> None:
        self.best_epoch = epoch
        if self.restore_best_weights:
            self.best_weights = self.model.get_weights()


class ReduceLROnPlateau(_Monitor):
    """Multiplies the learning rate by `factor` when `monitor` has not improved for `patience` epochs."""

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        owner = "ReduceLROnPlateau"
        self.factor = arguments.number(owner, "factor", factor, low=0)
        if self.factor >= 1:
            raise ArgumentError(f"{owner}: factor: expected a number below 1, got {factor}")
        self.patience = arguments.integer(owner, "patience", patience, low=0)
        self.verbose = verbose
        self.cooldown = arguments.integer(owner, "cooldown", cooldown, low=0)
        self.min_lr = arguments.number(owner, "min_lr", min_lr, low=0)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.best = None
        self.wait = self.cooldown_counter = 0

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        logs = {} if logs is None else logs
        logs["learning_rate"] = self.model.optimizer.learning_rate
        value = self._value(logs)
        if value is None:
            return
        if self.cooldown_counter > 0:
            self.cooldown_counter -= 1
            self.wait = 0
        if self.improves(value, self.best):
            self.best = value
            self.wait = 0
        elif self.cooldown_counter <= 0:
            self.wait += 1
            if self.wait >= self.patience:
                self._reduce(epoch)

    def _reduce(self, epoch: int) -> None:
        old = self.model.optimizer.learning_rate
        if old <= self.min_lr:
            return
        self.model.optimizer.learning_rate = new = max(old * self.factor, self.min_lr)
        if self.verbose:
            say(f"\nEpoch {epoch + 1}: ReduceLROnPlateau reducing learning rate to {new}.")
        self.cooldown_counter = self.cooldown
        self.wait = 0


class LearningRateScheduler(Callback):
    """Sets the learning rate before every epoch to `schedule(epoch, learning_rate)`, or `schedule(epoch)`."""

    def __init__(self, schedule: Callable[..., float], verbose: int = 0) -> None:
        if not callable(schedule):
            raise ArgumentError(f"LearningRateScheduler: expected a function of epoch and rate, got {schedule!r}")
        self.schedule = schedule
        self.verbose = verbose
        self._knows_rate = _takes_two(schedule)

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        known = (self.model.optimizer.learning_rate,) if self._knows_rate else ()
        self.model.optimizer.learning_rate = rate = self.schedule(epoch, *known)
        if self.verbose:
            say(f"\nEpoch {epoch + 1}: LearningRateScheduler setting learning rate to {rate}.")

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if logs is not None:
            logs["learning_rate"] = self.model.optimizer.learning_rate


def _takes_two(function: Callable[..., Any]) -> bool:
    try:
        inspect.signature(function).bind(0, 0.0)
    except TypeError:
        return False
    except ValueError:  # of a built-in function without a signature
        return True
    return True


class ModelCheckpoint(_Monitor):
    """Saves the model after every epoch, or every `save_freq` batches; `filepath` may hold `{epoch}` and metrics."""

    def __init__(
        self,
        filepath: str | os.PathLike[str],
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        super().__init__(monitor, mode, 0.0)
        self.filepath = os.fspath(filepath)
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq = (
            save_freq if save_freq == "epoch" else arguments.integer("ModelCheckpoint", "save_freq", save_freq)
        )
        self.best = arguments.optional_number("ModelCheckpoint", "initial_value_threshold", initial_value_threshold)
        self._epoch = 0
        self._batches = 0
        if self.save_freq != "epoch":
            self.on_train_batch_end = self._count_batch  # only then is the inner loop told to call it

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        self._epoch = epoch

    def _count_batch(self, batch: int, logs: Logs | None = None) -> None:
        self._batches += 1
        if self._batches >= int(self.save_freq):
            self._batches = 0
            self._save({"batch": batch + 1, **(logs or {})}, logs)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self.save_freq == "epoch":
            self._save(dict(logs or {}), logs)

    def _save(self, fields: Logs, logs: Logs | None) -> None:
        if self.save_best_only:
            value = self._value(logs)
            if value is not None:
                if not self.improves(value, self.best):
                    return
                self.best = value
        try:
            path = Path(self.filepath.format(epoch=self._epoch + 1, **fields))
        except (KeyError, IndexError, ValueError) as error:
            raise ArgumentError(f"ModelCheckpoint: cannot fill in {self.filepath!r}: {error!r}") from None
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.save_weights_only:
            self.model.save_weights(path)
        else:
            self.model.save(path)
        if self.verbose:
            say(f"\nEpoch {self._epoch + 1}: saved model to {path}")


class CSVLogger(Callback):
    """Writes a line for every epoch."""

    def __init__(self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False) -> None:
        self.filename = Path(filename)
        self.separator = separator
        self.append = append

    def on_train_begin(self, logs: Logs | None = None) -> None:
        continued = self.append and self.filename.exists() and self.filename.stat().st_size > 0
        if not continued:
            self.filename.write_text("", encoding="utf-8")
        self._keys: list[str] | None = None
        self._header = not continued

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        logs = logs or {}
        if self._keys is None:
            self._keys = sorted(logs)
            if self._keys and not any(k.startswith("val_") for k in self._keys):
                self._keys += [f"val_{k}" for k in self._keys]
        with self.filename.open("a", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter=self.separator)
            if self._header:
                writer.writerow(["epoch", *self._keys])
                self._header = False
            writer.writerow([epoch, *(logs.get(k, "NA") for k in self._keys)])


class TerminateOnNaN(Callback):
    """Stops training when the loss is not a finite number any more; with `raise_error`, by an error."""

    def __init__(self, raise_error: bool = False) -> None:
        self.raise_error = raise_error

    def on_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if math.isfinite(loss):
            return
        if self.raise_error:
            raise ArgumentError(f"TerminateOnNaN: the loss became {loss} at batch {batch}")
        say(f"Batch {batch}: Invalid loss, terminating training")
        self.model.stop_training = True
