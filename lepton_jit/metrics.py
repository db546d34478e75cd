"""Metrics: means over the samples of an epoch, accumulated inside the compiled step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from lepton_jit.common import arguments
from lepton_jit.common.configurable import ClassRegistry, Configurable
from lepton_jit.common.naming import snake_case
from lepton_jit.errors import ShapeError, UnsupportedError
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import DTYPES
from lepton_jit.layers.base.symbolic import ShapeTuple
from lepton_jit.losses import losses
from lepton_jit.losses.targets import LabelSpec
from lepton_jit.tracing import Tracer, evaluate

__all__ = [
    "BinaryAccuracy",
    "BinaryCrossentropy",
    "CategoricalAccuracy",
    "CategoricalCrossentropy",
    "Mean",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Metric",
    "SparseCategoricalAccuracy",
    "SparseCategoricalCrossentropy",
    "get",
    "registry",
]

registry: ClassRegistry[Metric] = ClassRegistry("metric")


class Metric(Configurable):
    """`values(t, y_true, y_pred)` is one number per row; the metric is their mean, weighted if weights are given.

    The sums are float64, so that a long epoch loses nothing.
    """

    fields = ("name",)
    larger_is_better: ClassVar[bool] = False

    def __init__(self, name: str | None = None) -> None:
        owner = type(self).__name__
        self.name = snake_case(owner) if name is None else arguments.text(owner, "name", name)
        self.total = np.zeros(())
        self.count = np.zeros(())

    def values(self, t: Tracer, y_true: Value, y_pred: Value) -> Value:
        """The metric of every row."""
        raise NotImplementedError

    def target(self, y_shape: tuple[int, ...], shape: ShapeTuple, dtype: str) -> LabelSpec:
        """The form of labels of shape `y_shape`, where no loss decides it."""
        return LabelSpec.dense("y_pred", shape, dtype)

    def trace_sums(
        self, t: Tracer, y_true: Value, y_pred: Value, sample_weight: Value | None = None
    ) -> tuple[Value, Value]:
        """Trace what a batch adds to total and count: `f64[]`, `f64[]`."""
        values = self.values(t, y_true, y_pred)
        mask = losses.mask_of_values(self.name, t, y_pred, values)
        positions = tuple(range(1, values.type.rank))
        totals, counts = t.mean(values if mask is None else t("multiply", values, mask), positions), None
        if mask is not None:
            counts = t.mean(mask, positions)  # a row counts as much as the share of its positions that do
        if sample_weight is not None:
            weights = t.convert(sample_weight, values.type.dtype)
            totals = t("multiply", totals, weights)
            counts = weights if counts is None else t("multiply", counts, weights)
        count = (
            t.size(values.type.shape[0], DTYPES["f64"]) if counts is None else t.convert(t.sum(counts), DTYPES["f64"])
        )
        return t.convert(t.sum(totals), DTYPES["f64"]), count

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Add a batch of arrays."""
        predicted = np.asarray(y_pred)
        if predicted.dtype.kind != "f":
            predicted = predicted.astype("float32")
        form = self.target(np.shape(y_true), (None, *predicted.shape[1:]), predicted.dtype.name)
        labels = form.prepare(y_true, where="y_true").astype(form.dtype)
        if len(labels) != len(predicted):
            raise ShapeError(f"{self.name}: expected {len(predicted)} rows of y_true, got {len(labels)}")
        operands = [labels, predicted]
        if sample_weight is not None:
            operands.append(np.broadcast_to(np.asarray(sample_weight, predicted.dtype).reshape(-1), (len(labels),)))
        self.total += evaluate(lambda t, *xs: self.trace_sums(t, *xs)[0], *operands)
        self.count += evaluate(lambda t, *xs: self.trace_sums(t, *xs)[1], *operands)

    def result(self) -> float:
        """The mean so far, 0 before the first batch."""
        count = self.count.item()
        return self.total.item() / count if count else 0.0

    def reset_state(self) -> None:
        """Start again."""
        self.total.fill(0)
        self.count.fill(0)

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
        """Add a batch; the mean so far."""
        self.update_state(y_true, y_pred, sample_weight)
        return self.result()


@registry.register
class Mean(Metric):
    """The mean of plain numbers: `update_state(values, sample_weight=None)`."""

    def update_state(self, values: Any, sample_weight: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        array = np.asarray(values, np.float64)
        weights = np.broadcast_to(np.asarray(1.0 if sample_weight is None else sample_weight, np.float64), array.shape)
        self.total += (array * weights).sum()
        self.count += weights.sum()


@registry.register
class BinaryAccuracy(Metric):
    """The share of elements for which `y_pred > threshold` equals `y_true`."""

    fields = ("name", "threshold")
    larger_is_better = True

    def __init__(self, name: str | None = None, threshold: float = 0.5) -> None:
        super().__init__(name)
        self.threshold = arguments.number(self.name, "threshold", threshold)

    def values(self, t: Tracer, y_true: Value, y_pred: Value) -> Value:
        y = losses.same_form(self.name, y_true, y_pred)
        positive = t.convert(t("compare", y_pred, self.threshold, direction="GT"), y.type.dtype)
        return losses.last_mean(t, t.convert(t("compare", y, positive, direction="EQ"), y_pred.type.dtype))


class _ClassAccuracy(Metric):
    larger_is_better = True

    def values(self, t: Tracer, y_true: Value, y_pred: Value) -> Value:
        # The largest logit is the largest probability: where both are there, softmax need not be computed for this.
        op, logits = t.applied.get(y_pred, ("", y_pred))
        chosen = self._largest(t, logits if op == "softmax" else y_pred)
        wanted = y_true if y_true.type.rank < y_pred.type.rank else self._largest(t, y_true)
        return t.convert(t("compare", chosen, t.convert(wanted, DTYPES["i32"]), direction="EQ"), y_pred.type.dtype)

    @staticmethod
    def _largest(t: Tracer, x: Value) -> Value:
        return t("argmax", x, axis=x.type.rank - 1)


@registry.register
class CategoricalAccuracy(_ClassAccuracy):
    """The share of samples whose largest prediction is the largest of a one-hot `y_true`."""


@registry.register
class SparseCategoricalAccuracy(_ClassAccuracy):
    """The share of samples whose largest prediction is at the integer `y_true`."""

    def target(self, y_shape: tuple[int, ...], shape: ShapeTuple, dtype: str) -> LabelSpec:
        return LabelSpec.classes("y_pred", shape)


class _LossMetric(Metric):
    """A loss as a metric: the arguments are the loss's."""

    _loss_class: ClassVar[type[losses.Loss]]

    def __init__(self, name: str | None = None, **options: Any) -> None:
        super().__init__(name)
        self.loss = self._loss_class(**options)

    def get_config(self) -> dict[str, Any]:
        return {"name": self.name} | {k: v for k, v in self.loss.get_config().items() if k not in ("name", "reduction")}

    def target(self, y_shape: tuple[int, ...], shape: ShapeTuple, dtype: str) -> LabelSpec:
        return self.loss.target("y_pred", y_shape, shape, dtype)

    def values(self, t: Tracer, y_true: Value, y_pred: Value) -> Value:
        return self.loss.values(t, y_true, y_pred)


@registry.register
class MeanSquaredError(_LossMetric):
    """The loss of this name."""

    _loss_class = losses.MeanSquaredError


@registry.register
class MeanAbsoluteError(_LossMetric):
    """The loss of this name."""

    _loss_class = losses.MeanAbsoluteError


@registry.register
class BinaryCrossentropy(_LossMetric):
    """The loss of this name."""

    _loss_class = losses.BinaryCrossentropy


@registry.register
class CategoricalCrossentropy(_LossMetric):
    """The loss of this name."""

    _loss_class = losses.CategoricalCrossentropy


@registry.register
class SparseCategoricalCrossentropy(_LossMetric):
    """The loss of this name."""

    _loss_class = losses.SparseCategoricalCrossentropy


registry.alias(mse=MeanSquaredError, mae=MeanAbsoluteError, bce=BinaryCrossentropy)


def get(identifier: Any) -> Metric:
    """A metric from its name (`"mse"`), class, configuration, or as it stands."""
    if isinstance(identifier, str):
        metric = registry.named(identifier)()
        metric.name = identifier
        return metric
    if callable(identifier) and not isinstance(identifier, (Metric, type)):
        raise UnsupportedError(f"metric: expected a name or an instance of a Metric, got the function {identifier!r}")
    if isinstance(identifier, Mapping):
        return registry.deserialize(identifier)
    return registry.get(identifier, Metric)


def accuracy_for(target: LabelSpec, shape: ShapeTuple, name: str) -> Metric:
    """Find the metric that `"accuracy"` means for labels of a form and an output of a shape, as Keras decides it."""
    if target.kind == "classes":
        return SparseCategoricalAccuracy(name)
    return BinaryAccuracy(name) if shape[-1] == 1 else CategoricalAccuracy(name)
