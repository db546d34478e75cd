"""compile, fit, evaluate, predict and the `*_on_batch` methods: what turns a description of layers into a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lepton_jit import arguments, optimizers
from lepton_jit.callbacks import CallbackList, History
from lepton_jit.errors import ArgumentError, ShapeError, UnsupportedError
from lepton_jit.feeding import Rows, as_rows, by_name, check_weights, class_weights, split_validation
from lepton_jit.interrupts import DeferredInterrupt
from lepton_jit.ir.graph import Graph
from lepton_jit.objective import Objective
from lepton_jit.optimizers.optimizer import Optimizer
from lepton_jit.programs import Program
from lepton_jit.progress import EpochProgress, resolve_verbose
from lepton_jit.random import generator, next_seed
from lepton_jit.steps import trace_forward, trace_inference, trace_test_step, trace_training_step
from lepton_jit.targets import Target

if TYPE_CHECKING:
    from lepton_jit.models import Model

__all__ = ["Trainer"]

_BATCH_SIZE = 32  # Keras' default


@dataclass
class _Data:
    """Checked arrays of a training or test run, and the forms of their labels."""

    inputs: list[np.ndarray]
    labels: list[np.ndarray]
    targets: tuple[Target, ...]
    sample_weight: np.ndarray | None

    def rows(self, model: Model, batch_size: int) -> Rows:
        columns: list[tuple[np.ndarray, Any]] = [(a, x.dtype) for a, x in zip(self.inputs, model.inputs, strict=True)]
        columns += [(a, t.dtype) for a, t in zip(self.labels, self.targets, strict=True)]
        if self.sample_weight is not None:
            columns.append((self.sample_weight, model.sample_weight_dtype))
        return Rows(columns, batch_size)


class Trainer:
    """The part of a model that runs."""

    stop_training: bool
    history: History | None

    def __init__(self) -> None:
        self.stop_training = False
        self.history = None
        self._optimizer: Optimizer | None = None
        self._objective: Objective | None = None
        self._compile_arguments: dict[str, Any] | None = None
        self._programs: dict[Any, Program] = {}
        self._seed = np.zeros((), np.uint64)
        self._forward_step = np.zeros((), np.int64)

    @property
    def _model(self) -> Model:
        return cast("Model", self)

    # compile

    def compile(
        self,
        optimizer: Any = "rmsprop",
        loss: Any = None,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
        run_eagerly: bool = False,
        jit_compile: Any = "auto",
    ) -> None:
        """Choose optimizer, loss and metrics. Native code is made when it is first needed."""
        if run_eagerly or jit_compile is False:
            raise UnsupportedError(f"{self._model.label}: compile: training is always compiled")
        chosen = optimizers.get(optimizer)
        wanted = {
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
        }
        objective = self._make_objective(wanted) if self._model.built else None
        self._optimizer, self._objective, self._compile_arguments = chosen, objective, wanted
        self._seed[...] = next_seed()
        self.forget_programs()

    def _make_objective(self, wanted: dict[str, Any]) -> Objective:
        model = self._model
        return Objective(list(zip(model.output_names, model.outputs, strict=True)), **wanted)

    @property
    def compiled(self) -> bool:
        """Whether `compile` was called."""
        return self._compile_arguments is not None

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that `compile` chose."""
        self._require_compiled()
        assert self._optimizer is not None
        return self._optimizer

    @property
    def objective(self) -> Objective:
        """Losses and metrics that `compile` chose, and their running means."""
        self._require_compiled()
        if self._objective is None:
            assert self._compile_arguments is not None
            self._objective = self._make_objective(self._compile_arguments)
        return self._objective

    @property
    def metrics_names(self) -> list[str]:
        """What `evaluate` returns, in its order."""
        return [name for name, _ in self.objective.trackers()]

    @property
    def sample_weight_dtype(self) -> str:
        """The element type of sample weights: float64 if an output is."""
        return "float64" if any(x.dtype == "float64" for x in self._model.outputs) else "float32"

    def _require_compiled(self) -> None:
        if not self.compiled:
            raise ArgumentError(f"{self._model.label}: expected compile(optimizer, loss) to be called first")

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
    ) -> History:
        """Train for `epochs - initial_epoch` epochs; the returned History has what each reported.

        Everything is checked before the first step. `validation_split` takes the last rows, before shuffling.
        """
        self._require_compiled()
        epochs = arguments.integer("fit", "epochs", epochs, low=0)
        initial_epoch = arguments.integer("fit", "initial_epoch", initial_epoch, low=0)
        validation_freq = arguments.integer("fit", "validation_freq", validation_freq)
        shuffle = arguments.boolean("fit", "shuffle", shuffle)
        verbose = resolve_verbose(verbose)
        validation = None if validation_data is None else self._validation_data(validation_data)
        data = self._checked_data("fit", x, y, sample_weight, class_weight)
        if validation is None and validation_split:
            data, validation = _split(data, validation_split)
        rows = data.rows(self._model, self._batch_size("fit", batch_size, data))
        validation_rows = None
        if validation is not None:
            size = self._batch_size("fit", validation_batch_size or batch_size, validation)
            validation_rows = validation.rows(self._model, size)
        program = self._training_program(data)
        rng = generator(None)
        history = History()
        params = {"verbose": verbose, "epochs": epochs, "steps": rows.batch_count}
        listeners = CallbackList(callbacks, self._model, params)
        self.stop_training = False
        self.history = history
        for callback in (*listeners.callbacks, history):
            callback.set_model(self._model)
        listeners.callbacks.append(history)
        logs: dict[str, float] = {}
        listeners.call("on_train_begin")
        with DeferredInterrupt() as interrupt:
            for epoch in range(initial_epoch, epochs):
                self.objective.resolve(data.labels)
                self.objective.reset()
                listeners.call("on_epoch_begin", epoch)
                progress = EpochProgress(verbose, f"Epoch {epoch + 1}/{epochs}", rows.count)
                try:
                    order = rng.permutation(rows.count) if shuffle else None
                    self._train_epoch(program, rows, order, listeners, progress, interrupt)
                    logs = dict(sorted(self.objective.results().items()))
                    if validation is not None and validation_rows is not None and (epoch + 1) % validation_freq == 0:
                        tested = self._test(validation, validation_rows, listeners, None, interrupt)
                        logs |= {f"val_{k}": v for k, v in sorted(tested.items())}
                    progress.finish(logs)
                finally:
                    progress.close()
                listeners.call("on_epoch_end", epoch, logs)
                if self.stop_training:
                    break
        listeners.call("on_train_end", logs)
        return history

    def _train_epoch(
        self,
        program: Program,
        rows: Rows,
        order: np.ndarray | None,
        listeners: CallbackList,
        progress: EpochProgress,
        interrupt: DeferredInterrupt,
    ) -> None:
        begin = listeners.listeners("on_train_batch_begin")
        end = listeners.listeners("on_train_batch_end")
        optimizer, results = self.optimizer, self.objective.results
        rate = np.zeros((), np.float32)
        for batch, (done, arrays) in enumerate(rows.batches(order)):
            for listener in begin:
                listener(batch, {})
            rate[...] = optimizer.learning_rate
            program.run(*arrays, rate)
            if end:
                logs = dict(sorted(results().items()))
                for listener in end:
                    listener(batch, logs)
            progress.update(done, results)
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
    ) -> Any:
        """Loss and metrics as a list (a number if there is only the loss), or as a dict."""
        data = self._checked_data("evaluate", x, y, sample_weight)
        rows = data.rows(self._model, self._batch_size("evaluate", batch_size, data))
        listeners = CallbackList(callbacks, self._model, {"verbose": verbose, "epochs": 1, "steps": rows.batch_count})
        progress = EpochProgress(resolve_verbose(verbose, fitting=False), "Evaluate", rows.count)
        try:
            with DeferredInterrupt() as interrupt:
                results = self._test(data, rows, listeners, progress, interrupt)
            progress.finish(results)
        finally:
            progress.close()
        return _in_order(results, return_dict)

    def _test(
        self,
        data: _Data,
        rows: Rows,
        listeners: CallbackList,
        progress: EpochProgress | None,
        interrupt: DeferredInterrupt,
    ) -> dict[str, float]:
        program = self._test_program(data)
        objective = self.objective
        objective.resolve(data.labels)
        objective.reset()
        begin, end = (listeners.listeners(f"on_test_batch_{moment}") for moment in ("begin", "end"))
        listeners.call("on_test_begin")
        for batch, (done, arrays) in enumerate(rows.batches()):
            for listener in begin:
                listener(batch, {})
            program.run(*arrays)
            for listener in end:
                listener(batch, objective.results())
            if progress is not None:
                progress.update(done, objective.results)
            interrupt.check()
        results = objective.results()
        listeners.call("on_test_end", results)
        return results

    # predict

    def predict(self, x: Any, batch_size: int | None = None, verbose: Any = "auto", callbacks: Any = None) -> Any:
        """The outputs for all rows of `x`; one sample without a batch axis is taken as a batch of one."""
        inputs = self._inputs("predict", x, one_sample=True)
        model = self._model
        rows = Rows(
            [(a, s.dtype) for a, s in zip(inputs, model.inputs, strict=True)],
            self._batch_size("predict", batch_size, _Data(inputs, [], (), None)),
        )
        listeners = CallbackList(callbacks, model, {"verbose": verbose, "epochs": 1, "steps": rows.batch_count})
        begin, end = (listeners.listeners(f"on_predict_batch_{moment}") for moment in ("begin", "end"))
        outputs = self._empty_outputs(rows.count)
        progress = EpochProgress(resolve_verbose(verbose, fitting=False), "Predict", rows.count)
        listeners.call("on_predict_begin")
        start = 0
        try:
            with DeferredInterrupt() as interrupt:
                program = self._inference_program()
                for batch, (stop, arrays) in enumerate(rows.batches()):
                    for listener in begin:
                        listener(batch, {})
                    results = program.run(*arrays)
                    for whole, part in zip(outputs, results, strict=True):
                        whole[start:stop] = part
                    start = stop
                    for listener in end:
                        listener(batch, {"outputs": _single(list(results))})
                    progress.update(stop, dict)
                    interrupt.check()
            progress.finish({})
        finally:
            progress.close()
        listeners.call("on_predict_end")
        return _single(outputs)

    # One batch

    def train_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, class_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """One step; the loss and metrics of this batch."""
        self._require_compiled()
        data = self._checked_data("train_on_batch", x, y, sample_weight, class_weight)
        program = self._training_program(data)
        self.objective.resolve(data.labels)
        self.objective.reset()
        ((_, arrays),) = data.rows(self._model, self._whole_batch("train_on_batch", data)).batches()
        program.run(*arrays, np.asarray(self.optimizer.learning_rate, np.float32))
        return _in_order(self.objective.results(), return_dict)

    def test_on_batch(self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """The loss and metrics of one batch."""
        data = self._checked_data("test_on_batch", x, y, sample_weight)
        program = self._test_program(data)
        self.objective.resolve(data.labels)
        self.objective.reset()
        ((_, arrays),) = data.rows(self._model, self._whole_batch("test_on_batch", data)).batches()
        program.run(*arrays)
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
        wanted = [np.ascontiguousarray(a, s.dtype) for a, s in zip(arrays, self._model.inputs, strict=True)]
        if len(wanted[0]) == 0:
            return _single(self._empty_outputs(0))
        self._whole_batch("call", _Data(arrays, [], (), None))
        program = self._forward_program() if training else self._inference_program()
        return _single(list(program.run(*wanted)))

    # Programs

    def forget_programs(self) -> None:
        """Compile again when something runs."""
        self._programs.clear()

    def _inference_program(self) -> Program:
        return self._program("inference", lambda: trace_inference(self._model), dict)

    def _forward_program(self) -> Program:
        return self._program(
            ("forward", self._trained()),
            lambda: trace_forward(self._model),
            lambda: {"step": self._forward_step, "seed": self._seed},
        )

    def _training_program(self, data: _Data) -> Program:
        self.objective.resolve(data.labels)
        weighted = data.sample_weight is not None

        def state() -> dict[str, np.ndarray]:
            slots = {f"optimizer/{name}": array for name, array in self.optimizer.slots.items()}
            return {**slots, **self.objective.state(), "step": self.optimizer.iterations, "seed": self._seed}

        def trace() -> Graph:
            trained = set(self._model.trainable_weights)
            self.optimizer.build({p: w for p, w in self._model.weight_paths().items() if w in trained})
            return trace_training_step(self._model, self.optimizer, self.objective, data.targets, weighted=weighted)

        return self._program(("train", data.targets, weighted, self._trained()), trace, state)

    def _test_program(self, data: _Data) -> Program:
        self.objective.resolve(data.labels)
        weighted = data.sample_weight is not None
        return self._program(
            ("test", data.targets, weighted, self._trained()),
            lambda: trace_test_step(self._model, self.objective, data.targets, weighted=weighted),
            self.objective.state,
        )

    def _program(self, key: Any, trace: Callable[[], Graph], state: Callable[[], dict[str, np.ndarray]]) -> Program:
        if key not in self._programs:
            graph = trace()
            self._programs[key] = Program(graph, self._model.weight_paths(), state())
        return self._programs[key]

    def _trained(self) -> tuple[int, ...]:
        """Which weights are trained, as a key: freezing a layer needs another program."""
        return tuple(id(w) for w in self._model.trainable_weights)

    # Data

    def _inputs(self, owner: str, x: Any, *, one_sample: bool = False) -> list[np.ndarray]:
        """The arrays for the model's inputs, in order, checked; builds a Sequential that waited for a shape."""
        model = self._model
        if not model.built and not isinstance(x, (dict, list, tuple)):
            array = np.asarray(x)
            model.ensure_built([((None, *array.shape[1:]), "float32")])
        entries = by_name(f"{owner}: x", x, model.input_keys)
        arrays = [
            as_rows(owner, name, entry, s, one_sample=one_sample)
            for name, entry, s in zip(model.input_keys, entries, model.inputs, strict=True)
        ]
        counts = {len(a) for a in arrays}
        if len(counts) > 1:
            raise ShapeError(f"{owner}: expected inputs with the same number of rows, got {[len(a) for a in arrays]}")
        return arrays

    def _checked_data(self, owner: str, x: Any, y: Any, sample_weight: Any = None, class_weight: Any = None) -> _Data:
        """All arrays, checked against the model and each other: shapes, rows, labels, weights."""
        self._require_compiled()
        inputs = self._inputs(owner, x)
        count = len(inputs[0])
        if count == 0:
            raise ArgumentError(f"{owner}: expected at least one row, got empty arrays")
        outputs = self.objective.judged
        if y is None and outputs:
            raise ArgumentError(f"{owner}: expected y, the labels, got None")
        entries = by_name(f"{owner}: y", y, [o.name for o in outputs]) if outputs else []
        targets = self.objective.resolve(entries)
        labels = [t.prepare(e, where=f"{owner}: y") for t, e in zip(targets, entries, strict=True)]
        for target, array in zip(targets, labels, strict=True):
            if len(array) != count:
                raise ShapeError(
                    f"{owner}: expected as many labels as inputs, got {count} rows of x and {len(array)} of y "
                    f"for output {target.output!r}"
                )
        return _Data(inputs, labels, targets, self._weights_of_rows(owner, labels, count, sample_weight, class_weight))

    def _weights_of_rows(
        self, owner: str, labels: Sequence[np.ndarray], count: int, sample_weight: Any, class_weight: Any
    ) -> np.ndarray | None:
        weights = None if sample_weight is None else check_weights(f"{owner}: sample_weight", sample_weight, count)
        if class_weight is None:
            return weights
        if weights is not None:
            raise ArgumentError(f"{owner}: expected one of class_weight and sample_weight, got both")
        if len(labels) != 1:
            raise UnsupportedError(f"{owner}: class_weight needs a model with one output, this has {len(labels)}")
        return class_weights(labels[0], class_weight)

    def _validation_data(self, given: Any) -> _Data:
        if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
            raise ArgumentError("fit: validation_data: expected (x, y) or (x, y, sample_weight)")
        return self._checked_data("fit: validation_data", *given)

    def _batch_size(self, owner: str, wanted: int | None, data: _Data) -> int:
        """The batch size: as asked for, else the model's own, else 32."""
        fixed = self._model.inputs[0].shape[0]
        if wanted is not None:
            wanted = arguments.integer(owner, "batch_size", wanted)
        if fixed is None:
            return wanted or _BATCH_SIZE
        if wanted not in (None, fixed) or len(data.inputs[0]) % fixed:
            raise ArgumentError(
                f"{owner}: the model's input has the batch size {fixed}: expected multiples of it, got batches of "
                f"{wanted or fixed} and {len(data.inputs[0])} rows"
            )
        return fixed

    def _whole_batch(self, owner: str, data: _Data) -> int:
        count = len(data.inputs[0])
        self._batch_size(owner, count, data)
        return count

    def _empty_outputs(self, count: int) -> list[np.ndarray]:
        return [np.empty((count, *cast("tuple[int, ...]", x.shape[1:])), x.dtype) for x in self._model.outputs]


def _split(data: _Data, split: float) -> tuple[_Data, _Data]:
    weights = [] if data.sample_weight is None else [data.sample_weight]
    halves = []
    inputs, labels = len(data.inputs), len(data.labels)
    for part in split_validation([*data.inputs, *data.labels, *weights], split):
        rest = part[inputs + labels :]
        halves.append(_Data(part[:inputs], part[inputs : inputs + labels], data.targets, rest[0] if rest else None))
    return halves[0], halves[1]


def _single(values: list[np.ndarray]) -> Any:
    return values[0] if len(values) == 1 else values


def _in_order(results: dict[str, float], return_dict: bool) -> Any:
    if return_dict:
        return results
    values = list(results.values())
    return values[0] if len(values) == 1 else values
