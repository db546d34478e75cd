"""Hold what a model needs to run: the choices of `compile`, its programs, and its data, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np

from lepton_jit import optimizers
from lepton_jit.common import arguments
from lepton_jit.errors import ArgumentError, ShapeError, UnsupportedError
from lepton_jit.ir.graph import Graph
from lepton_jit.layers.base.trainable import Trainable
from lepton_jit.layers.functional import Functional
from lepton_jit.losses.targets import LabelSpec
from lepton_jit.optimizers.optimizer import Optimizer
from lepton_jit.random import next_seed
from lepton_jit.training import step_names
from lepton_jit.training.feeding import (
    Rows,
    as_rows,
    by_name,
    check_weights,
    class_weights,
    labels_by_name,
    split_validation,
)
from lepton_jit.training.objective import Objective
from lepton_jit.training.programs import BoundProgram
from lepton_jit.training.steps import (
    sample_weight_dtype,
    trace_forward,
    trace_inference,
    trace_test_step,
    trace_training_step,
)

__all__ = ["Data", "Fed", "Runner", "single"]

_BATCH_SIZE = 32  # Keras' default


@dataclass
class Data:
    """Checked arrays of a training or test run, and the forms of their labels."""

    inputs: list[np.ndarray]
    labels: list[np.ndarray]
    targets: tuple[LabelSpec, ...]
    sample_weight: np.ndarray | None

    @property
    def count(self) -> int:
        return len(self.inputs[0])

    def rows(self, model: Functional, batch_size: int) -> Rows:
        columns: list[tuple[np.ndarray, Any]] = [(a, x.dtype) for a, x in zip(self.inputs, model.inputs, strict=True)]
        columns += [(a, t.dtype) for a, t in zip(self.labels, self.targets, strict=True)]
        if self.sample_weight is not None:
            columns.append((self.sample_weight, sample_weight_dtype(model)))
        return Rows(columns, batch_size)

    def split(self, share: float) -> tuple[Data, Data]:
        """The first rows, and the last `share` of them, sample weights included."""
        weights = [] if self.sample_weight is None else [self.sample_weight]
        halves = []
        inputs, labels = len(self.inputs), len(self.labels)
        for part in split_validation([*self.inputs, *self.labels, *weights], share):
            rest = part[inputs + labels :]
            halves.append(Data(part[:inputs], part[inputs : inputs + labels], self.targets, rest[0] if rest else None))
        return halves[0], halves[1]

    def weighted_by_class(self, owner: str, weights: Any) -> Data:
        """The same rows, each with the weight of its class; of `fit`, the rows that it trains on and no others."""
        if weights is None:
            return self
        if self.sample_weight is not None:
            raise ArgumentError(f"{owner}: expected one of class_weight and sample_weight, got both")
        if len(self.labels) != 1:
            raise UnsupportedError(f"{owner}: class_weight needs a model with one output, this has {len(self.labels)}")
        return replace(self, sample_weight=class_weights(self.labels[0], weights))


@dataclass(frozen=True)
class Fed:
    """Checked data, and the batches that programs take of them."""

    data: Data
    rows: Rows


class Runner:
    """Holds a model's optimizer, objective and programs, and checks its data."""

    def __init__(self, model: Functional) -> None:
        self.model = model
        self._optimizer: Optimizer | None = None
        self._objective: Objective | None = None
        self._compile_arguments: dict[str, Any] | None = None
        self._trained: Trainable | None = None
        self._programs: dict[Any, BoundProgram] = {}
        self.seed = np.zeros((), np.uint64)
        self.forward_step = np.zeros((), np.int64)

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
        **options: Any,
    ) -> None:
        """Choose optimizer, loss and metrics, and train what is `trainable` now, until the next `compile`.

        Native code is made when it is first needed.
        """
        if run_eagerly or jit_compile is False:
            raise UnsupportedError(f"{self.model.label}: compile: training is always compiled")
        arguments.only_defaults("compile", options, {"steps_per_execution": 1, "auto_scale_loss": True})
        chosen = optimizers.get(optimizer)
        wanted = {
            "loss": loss,
            "loss_weights": loss_weights,
            "metrics": metrics,
            "weighted_metrics": weighted_metrics,
        }
        self.set_training(chosen, wanted)
        self.seed[...] = next_seed()

    def set_training(self, optimizer: Optimizer, wanted: dict[str, Any]) -> None:
        """Do what `compile` does, with a checked optimizer and a seed that stays."""
        objective = self._make_objective(wanted) if self.model.built else None
        self._compile_arguments = None  # until all is as it should be, whatever comes between two lines
        self.forget_programs()
        self._optimizer, self._objective, self._trained = optimizer, objective, Trainable(self.model)
        self._compile_arguments = wanted

    def _make_objective(self, wanted: dict[str, Any]) -> Objective:
        model = self.model
        return Objective(list(zip(model.output_names, model.outputs, strict=True)), **wanted)

    @property
    def compiled(self) -> bool:
        """The flag whether `compile` was called."""
        return self._compile_arguments is not None

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that `compile` chose."""
        self._require_compiled()
        assert self._optimizer is not None
        return self._optimizer

    @property
    def trained(self) -> Trainable:
        """The flags of what training changes, as they were when `compile` was called."""
        self._require_compiled()
        assert self._trained is not None
        return self._trained

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
        """The names of what `evaluate` returns, in its order."""
        return [name for name, _ in self.objective.trackers()]

    def _require_compiled(self) -> None:
        if not self.compiled:
            raise ArgumentError(f"{self.model.label}: expected compile(optimizer, loss) to be called first")

    # Programs

    def forget_programs(self) -> None:
        """Compile again when something runs."""
        self._programs.clear()

    def _inference_program(self) -> BoundProgram:
        return self._program("inference", lambda: trace_inference(self.model), dict)

    def _forward_program(self) -> BoundProgram:
        return self._program(
            ("forward", *Trainable(self.model).frozen),
            lambda: trace_forward(self.model),
            lambda: {step_names.STEP: self.forward_step, step_names.SEED: self.seed},
        )

    def _training_program(self, data: Data) -> BoundProgram:
        self.objective.resolve(data.labels)
        weighted = data.sample_weight is not None

        def state() -> dict[str, np.ndarray]:
            slots = {step_names.slot(name): array for name, array in self.optimizer.slots.items()}
            counts = {step_names.STEP: self.optimizer.iterations, step_names.SEED: self.seed}
            return slots | self.objective.state() | counts

        def trace() -> Graph:
            self.optimizer.build(self.trained.weight_paths)
            return trace_training_step(
                self.model, self.optimizer, self.objective, data.targets, weighted=weighted, trainable=self.trained
            )

        return self._program(("train", data.targets, weighted), trace, state)

    def _test_program(self, data: Data) -> BoundProgram:
        self.objective.resolve(data.labels)
        weighted = data.sample_weight is not None
        return self._program(
            ("test", data.targets, weighted),
            lambda: trace_test_step(
                self.model, self.objective, data.targets, weighted=weighted, trainable=self.trained
            ),
            self.objective.state,
        )

    def _program(
        self, key: Any, trace: Callable[[], Graph], state: Callable[[], dict[str, np.ndarray]]
    ) -> BoundProgram:
        if key not in self._programs:
            graph = trace()
            self._programs[key] = BoundProgram(graph, self.model.weight_paths(), state())
        return self._programs[key]

    # Data

    def _inputs(self, owner: str, x: Any, *, one_sample: bool = False) -> list[np.ndarray]:
        """The arrays for the model's inputs, in order, checked; builds a Sequential that waited for a shape."""
        model = self.model
        if not model.built and not isinstance(x, (dict, list, tuple)):
            array = np.asarray(x)
            model.build((None, *array.shape[1:]))
        entries = by_name(f"{owner}: x", x, model.input_keys)
        arrays = [
            as_rows(owner, name, entry, s, one_sample=one_sample)
            for name, entry, s in zip(model.input_keys, entries, model.inputs, strict=True)
        ]
        counts = {len(a) for a in arrays}
        if len(counts) > 1:
            raise ShapeError(f"{owner}: expected inputs with the same number of rows, got {[len(a) for a in arrays]}")
        return arrays

    def _checked_data(self, owner: str, x: Any, y: Any, sample_weight: Any = None) -> Data:
        """Check all arrays against the model and each other: shapes, rows, labels, weights."""
        self._require_compiled()
        inputs = self._inputs(owner, x)
        count = len(inputs[0])
        if count == 0:
            raise ArgumentError(f"{owner}: expected at least one row, got empty arrays")
        judged = [o.name for o in self.objective.judged]
        if y is None and judged:
            raise ArgumentError(f"{owner}: expected y, the labels, got None")
        entries = labels_by_name(f"{owner}: y", y, judged, self.model.output_names) if judged else []
        targets = self.objective.resolve(entries)
        labels = [t.prepare(e, where=f"{owner}: y") for t, e in zip(targets, entries, strict=True)]
        for target, array in zip(targets, labels, strict=True):
            if len(array) != count:
                raise ShapeError(
                    f"{owner}: expected as many labels as inputs, got {count} rows of x and {len(array)} of y "
                    f"for output {target.output!r}"
                )
        weights = None if sample_weight is None else check_weights(f"{owner}: sample_weight", sample_weight, count)
        return Data(inputs, labels, targets, weights)

    def _fed(self, owner: str, data: Data, batch_size: int | None) -> Fed:
        return Fed(data, data.rows(self.model, self._batch_size(owner, batch_size, data.count)))

    def _validation_data(self, given: Any) -> Data:
        if not isinstance(given, (tuple, list)) or len(given) not in (2, 3):
            raise ArgumentError("fit: validation_data: expected (x, y) or (x, y, sample_weight)")
        return self._checked_data("fit: validation_data", *given)

    def _batch_size(self, owner: str, wanted: int | None, count: int) -> int:
        """The batch size: as asked for, else the model's own, else 32."""
        fixed = self.model.network.batch_size
        if wanted is not None:
            wanted = arguments.integer(owner, "batch_size", wanted)
        if fixed is None:
            return wanted or _BATCH_SIZE
        if wanted not in (None, fixed) or count % fixed:
            raise ArgumentError(
                f"{owner}: the model's input has the batch size {fixed}: expected multiples of it, got batches of "
                f"{wanted or fixed} and {count} rows"
            )
        return fixed

    def _whole_batch(self, owner: str, count: int) -> int:
        self._batch_size(owner, count, count)
        return count

    def _empty_outputs(self, count: int) -> list[np.ndarray]:
        return [np.empty((count, *cast("tuple[int, ...]", x.shape[1:])), x.dtype) for x in self.model.outputs]


def single(values: list[np.ndarray]) -> Any:
    """One array by itself, several as a list."""
    return values[0] if len(values) == 1 else values
