"""compile, fit, evaluate, predict and the `*_on_batch` methods: what turns a description of layers into a model."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lepton_jit.callbacks import CallbackList, History
from lepton_jit.common import arguments
from lepton_jit.layers.functional import Functional
from lepton_jit.random import generator
from lepton_jit.runtime.arguments import address_of
from lepton_jit.runtime.native import Batches
from lepton_jit.training.feeding import Rows
from lepton_jit.training.interrupts import DeferredInterrupt
from lepton_jit.training.programs import BoundProgram
from lepton_jit.training.progress import EpochProgress, resolve_verbose
from lepton_jit.training.runner import Fed, Runner, single

__all__ = ["Trainer"]

# Steps that run without Python in between, so that progress is shown and Ctrl-C heard in time.
STRETCH_SECONDS = 0.025


class Trainer(Runner):
    """Runs a model: steps, batches, epochs, and who listens to them."""

    def __init__(self, model: Functional) -> None:
        super().__init__(model)
        self.stop_training = False
        self.history: History | None = None

    # fit

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Any = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        validation_batch_size: int | None = None,
        validation_freq: int = 1,
        **options: Any,
    ) -> History:
        """Train for `epochs - initial_epoch` epochs; the returned History has what each reported.

        Everything is checked before the first step. `validation_split` takes the last rows, before shuffling.
        """
        self._require_compiled()
        arguments.only_defaults("fit", options, {"steps_per_epoch": None, "validation_steps": None})
        epochs = arguments.integer("fit", "epochs", epochs, low=0)
        initial_epoch = arguments.integer("fit", "initial_epoch", initial_epoch, low=0)
        validation_freq = arguments.integer("fit", "validation_freq", validation_freq)
        shuffle = arguments.boolean("fit", "shuffle", shuffle)
        verbose = resolve_verbose(verbose)
        validation = None if validation_data is None else self._validation_data(validation_data)
        data = self._checked_data("fit", x, y, sample_weight)
        if validation is None and validation_split:
            data, validation = data.split(validation_split)
        training = self._fed("fit", data.weighted_by_class("fit", class_weight), batch_size)
        tested = None if validation is None else self._fed("fit", validation, validation_batch_size or batch_size)
        program = self._training_program(training.data)
        rng = generator(None)
        steps = training.rows.batch_count
        listeners = CallbackList(callbacks, self.model, {"verbose": verbose, "epochs": epochs, "steps": steps})
        self.stop_training = False
        self.history = history = listeners.append(History())
        logs: dict[str, float] = {}
        listeners.call("on_train_begin")
        with DeferredInterrupt() as interrupt:
            for epoch in range(initial_epoch, epochs):
                self.objective.resolve(training.data.labels)
                self.objective.reset()
                listeners.call("on_epoch_begin", epoch)
                with EpochProgress(verbose, f"Epoch {epoch + 1}/{epochs}", training.rows.count) as progress:
                    order = rng.permutation(training.rows.count) if shuffle else None
                    self._train_epoch(program, training.rows, order, listeners, progress, interrupt)
                    logs = dict(sorted(self.objective.results().items()))
                    if tested is not None and (epoch + 1) % validation_freq == 0:
                        found = self._test(tested, listeners, None, interrupt)
                        logs |= {f"val_{k}": v for k, v in sorted(found.items())}
                    progress.finish(logs)
                listeners.call("on_epoch_end", epoch, logs)
                if self.stop_training:
                    break
        listeners.call("on_train_end", logs)
        return history

    def _train_epoch(
        self,
        program: BoundProgram,
        rows: Rows,
        order: np.ndarray | None,
        listeners: CallbackList,
        progress: EpochProgress,
        interrupt: DeferredInterrupt,
    ) -> None:
        begin = listeners.listeners("on_train_batch_begin")
        end = listeners.listeners("on_train_batch_end")
        optimizer, results = self.optimizer, self.objective.results
        # Plain numbers and addresses: behind a step that filled the caches, every touch of an array costs microseconds.
        rate = ctypes.c_float()
        unread = program.allocate(rows.batch_size)  # each step's loss; the sums have it too
        inputs_end, outputs = [ctypes.addressof(rate)], [address_of(a) for a in unread]
        done = 0
        if not begin and not end and not optimizer.scheduled and not self.stop_training:
            rate.value = optimizer.learning_rate
            for done in _stretches(program, rows.native(order), inputs_end, outputs):
                progress.update(done * rows.batch_size, results)
                interrupt.check()
                if self.stop_training:
                    return
        rest = rows.batches(done) if order is None else rows.shuffled(order, program.gather, done)
        for batch, (start, stop, inputs) in enumerate(rest, done):
            for listener in begin:
                listener(batch, {})
            rate.value = optimizer.learning_rate
            program.run_at(stop - start, inputs + inputs_end, outputs)
            if end:
                logs = dict(sorted(results().items()))
                for listener in end:
                    listener(batch, logs)
            progress.update(stop, results)
            interrupt.check()
            if self.stop_training:
                break

    # evaluate

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: Any = "auto",
        sample_weight: Any = None,
        callbacks: Any = None,
        return_dict: bool = False,
        **options: Any,
    ) -> Any:
        """Loss and metrics as a list (a number if there is only the loss), or as a dict."""
        arguments.only_defaults("evaluate", options, {"steps": None})
        fed = self._fed("evaluate", self._checked_data("evaluate", x, y, sample_weight), batch_size)
        params = {"verbose": verbose, "epochs": 1, "steps": fed.rows.batch_count}
        listeners = CallbackList(callbacks, self.model, params)
        shown = resolve_verbose(verbose, fitting=False)
        with EpochProgress(shown, "Evaluate", fed.rows.count) as progress, DeferredInterrupt() as interrupt:
            results = self._test(fed, listeners, progress, interrupt)
            progress.finish(results)
        return _in_order(results, return_dict)

    def _test(
        self,
        fed: Fed,
        listeners: CallbackList,
        progress: EpochProgress | None,
        interrupt: DeferredInterrupt,
    ) -> dict[str, float]:
        program, rows = self._test_program(fed.data), fed.rows
        objective = self.objective
        objective.resolve(fed.data.labels)
        objective.reset()
        begin, end = (listeners.listeners(f"on_test_batch_{moment}") for moment in ("begin", "end"))
        listeners.call("on_test_begin")
        unread = program.allocate(rows.batch_size)  # each batch's loss; the sums have it too
        outputs = [address_of(a) for a in unread]
        done = 0
        if not begin and not end:
            for done in _stretches(program, rows.native(None), [], outputs):
                if progress is not None:
                    progress.update(done * rows.batch_size, objective.results)
                interrupt.check()
        for batch, (start, stop, inputs) in enumerate(rows.batches(done), done):
            for listener in begin:
                listener(batch, {})
            program.run_at(stop - start, inputs, outputs)
            for listener in end:
                listener(batch, objective.results())
            if progress is not None:
                progress.update(stop, objective.results)
            interrupt.check()
        results = objective.results()
        listeners.call("on_test_end", results)
        return results

    # predict

    def predict(
        self, x: Any, batch_size: int | None = None, verbose: Any = "auto", callbacks: Any = None, **options: Any
    ) -> Any:
        """The outputs for all rows of `x`; one sample without a batch axis is taken as a batch of one."""
        arguments.only_defaults("predict", options, {"steps": None})
        inputs = self._inputs("predict", x, one_sample=True)
        model = self.model
        rows = Rows(
            [(a, s.dtype) for a, s in zip(inputs, model.inputs, strict=True)],
            self._batch_size("predict", batch_size, len(inputs[0])),
        )
        listeners = CallbackList(callbacks, model, {"verbose": verbose, "epochs": 1, "steps": rows.batch_count})
        begin, end = (listeners.listeners(f"on_predict_batch_{moment}") for moment in ("begin", "end"))
        outputs = self._empty_outputs(rows.count)
        row_bytes = [a.nbytes // max(1, rows.count) for a in outputs]
        addresses = [address_of(a) for a in outputs]
        shown = resolve_verbose(verbose, fitting=False)
        listeners.call("on_predict_begin")
        with EpochProgress(shown, "Predict", rows.count) as progress, DeferredInterrupt() as interrupt:
            program = self._inference_program()
            for batch, (start, stop, columns) in enumerate(rows.batches()):
                for listener in begin:
                    listener(batch, {})
                places = [at + start * size for at, size in zip(addresses, row_bytes, strict=True)]
                program.run_at(stop - start, columns, places)
                for listener in end:
                    listener(batch, {"outputs": single([a[start:stop] for a in outputs])})
                progress.update(stop, dict)
                interrupt.check()
            progress.finish({})
        listeners.call("on_predict_end")
        return single(outputs)

    # One batch

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """One step; the loss and metrics of this batch."""
        self._require_compiled()
        data = self._checked_data("train_on_batch", x, y, sample_weight)
        data = data.weighted_by_class("train_on_batch", class_weight)
        program = self._training_program(data)
        self.objective.reset()
        rate = np.asarray(self.optimizer.learning_rate, np.float32)
        _run_whole(program, data.rows(self.model, self._whole_batch("train_on_batch", data.count)), rate)
        return _in_order(self.objective.results(), return_dict)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """The loss and metrics of one batch."""
        data = self._checked_data("test_on_batch", x, y, sample_weight)
        program = self._test_program(data)
        self.objective.reset()
        _run_whole(program, data.rows(self.model, self._whole_batch("test_on_batch", data.count)))
        return _in_order(self.objective.results(), return_dict)

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for one batch."""
        return self.call_on_arrays(x, False)

    def reset_metrics(self) -> None:
        """Set the running means back to 0."""
        self.objective.reset()

    def call_on_arrays(self, inputs: Any, training: bool) -> Any:
        """The outputs for all rows at once; with `training`, dropout drops and moving statistics move."""
        arrays = self._inputs("call", inputs, one_sample=True)
        wanted = [np.ascontiguousarray(a, s.dtype) for a, s in zip(arrays, self.model.inputs, strict=True)]
        if len(wanted[0]) == 0:
            return single(self._empty_outputs(0))
        self._whole_batch("call", len(arrays[0]))
        program = self._forward_program() if training else self._inference_program()
        return single(list(program.run(*wanted)))


def _stretches(
    program: BoundProgram, batches: Batches | None, inputs: Sequence[int], outputs: Sequence[int]
) -> Iterator[int]:
    """Run the batches, several a call, and yield how many are done; none if `batches` is None.

    Behind a step that filled the caches Python takes 20 to 30 us to start the next one. A program remembers how many
    steps were a stretch.
    """
    done = 0
    while batches is not None and done < batches.count:
        count = min(program.stretch, batches.count - done)
        start = time.perf_counter()
        program.run_at(batches.rows, inputs, outputs, replace(batches, first=done, count=count))
        seconds = time.perf_counter() - start
        done += count
        yield done
        if seconds > 2 * STRETCH_SECONDS:
            program.stretch = max(1, count // 2)
        elif seconds < STRETCH_SECONDS and count == program.stretch:
            program.stretch *= 2


def _run_whole(program: BoundProgram, rows: Rows, *others: np.ndarray) -> None:
    """One step on all rows at once."""
    unread = program.allocate(rows.count)
    ((_, count, inputs),) = rows.batches()
    program.run_at(count, inputs + [address_of(a) for a in others], [address_of(a) for a in unread])


def _in_order(results: dict[str, float], return_dict: bool) -> Any:
    if return_dict:
        return results
    values = list(results.values())
    return values[0] if len(values) == 1 else values
