"""Losses, with Keras' names, arguments and reductions; computed from logits wherever logits are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from lepton_jit.common import arguments
from lepton_jit.common.configurable import ClassRegistry, Configurable
from lepton_jit.common.naming import snake_case
from lepton_jit.errors import ArgumentError, ShapeError, UnsupportedError
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import element_count
from lepton_jit.layers.base.symbolic import ShapeTuple
from lepton_jit.losses.targets import LabelSpec
from lepton_jit.tracing import Tracer, evaluate

__all__ = [
    "BinaryCrossentropy",
    "CategoricalCrossentropy",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "SparseCategoricalCrossentropy",
    "get",
    "registry",
]

registry: ClassRegistry[Loss] = ClassRegistry("loss")

# Keras' epsilon: probabilities are kept this far from 0 and 1 before their logarithm is taken.
EPSILON = 1e-7
_REDUCTIONS = ("sum_over_batch_size", "mean", "sum", "none", "mean_with_sample_weight")


class Loss(Configurable):
    """`values(t, y_true, y_pred)` is one number per row, `trace` their mean: `sum(values * weights) / rows`."""

    fields = ("reduction", "name")

    def __init__(self, reduction: str | None = "sum_over_batch_size", name: str | None = None) -> None:
        owner = type(self).__name__
        self.reduction = arguments.choice(owner, "reduction", reduction or "none", _REDUCTIONS)
        self.name = snake_case(owner) if name is None else arguments.text(owner, "name", name)

    def target(self, output: str, y_shape: tuple[int, ...], shape: ShapeTuple, dtype: str) -> LabelSpec:
        """The form of labels of shape `y_shape` for an output."""
        return LabelSpec.dense(output, shape, dtype)

    def values(self, t: Tracer, y_true: Value, y_pred: Value) -> Value:
        """The loss of every row."""
        raise NotImplementedError

    def trace(self, t: Tracer, y_true: Value, y_pred: Value, sample_weight: Value | None = None) -> Value:
        """The reduced loss; values that the mask of `y_pred` leaves out count neither in the sum nor in the mean."""
        values = self.values(t, y_true, y_pred)
        mask = mask_of_values(self.name, t, y_pred, values)
        weights = None if sample_weight is None else t.convert(sample_weight, values.type.dtype)
        if weights is not None:
            values = t("multiply", values, t.b.broadcast(weights, values.type.shape, dimensions=(0,)))
        if mask is not None:
            values = t("multiply", values, mask)
        if self.reduction == "none":
            return values
        total = t.sum(values)
        if self.reduction == "sum":
            return total
        if self.reduction == "mean_with_sample_weight" and weights is not None:
            if mask is not None:
                weights = t("multiply", t.b.broadcast(weights, mask.type.shape, dimensions=(0,)), mask)
            return ratio(t, total, t.sum(weights))
        if mask is not None:
            return ratio(t, total, t.sum(mask))
        return t("divide", total, t.size(element_count(values.type.shape), total.type.dtype))

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> np.ndarray:
        """The loss of arrays."""
        predicted = np.asarray(y_pred)
        if predicted.dtype.kind != "f":
            predicted = predicted.astype("float32")
        if predicted.ndim == 0 or len(predicted) == 0:
            raise ArgumentError(f"{self.name}: expected predictions with at least one row, got shape {predicted.shape}")
        shape: ShapeTuple = (None, *predicted.shape[1:])
        form = self.target("y_pred", np.shape(y_true), shape, predicted.dtype.name)
        labels = form.prepare(y_true, where="y_true").astype(form.dtype)
        if len(labels) != len(predicted):
            raise ShapeError(f"{self.name}: expected {len(predicted)} rows of y_true, got {len(labels)}")
        weights = () if sample_weight is None else (np.asarray(sample_weight, predicted.dtype).reshape(-1),)
        return evaluate(self.trace, labels, predicted, *weights)


@registry.register
class MeanSquaredError(Loss):
    """`mean((y_true - y_pred)**2)` over the last axis.

    >>> MeanSquaredError()([[0.0, 1.0]], [[1.0, 1.0]])
    array(0.5)
    """

    def values(self, t: Tracer, y_true: Value, y_pred: Value) -> Value:
        difference = t("subtract", y_pred, same_form(self.name, y_true, y_pred))
        return last_mean(t, t("multiply", difference, difference))


@registry.register
class MeanAbsoluteError(Loss):
    """`mean(abs(y_true - y_pred))` over the last axis."""

    def values(self, t: Tracer, y_true: Value, y_pred: Value) -> Value:
        return last_mean(t, t("abs", t("subtract", y_pred, same_form(self.name, y_true, y_pred))))


class _Crossentropy(Loss):
    fields = ("from_logits", "label_smoothing", "axis", "reduction", "name")

    def __init__(
        self,
        from_logits: bool = False,
        label_smoothing: float = 0.0,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
    ) -> None:
        super().__init__(reduction, name)
        self.from_logits = arguments.boolean(self.name, "from_logits", from_logits)
        self.label_smoothing = arguments.number(self.name, "label_smoothing", label_smoothing, low=0, high=1)
        self.axis = arguments.integer(self.name, "axis", axis, low=None)
        if self.axis != -1:
            raise UnsupportedError(f"{self.name}: axis={axis}: only the last axis, -1, is supported")

    def _logits(self, t: Tracer, y_pred: Value, activation: str) -> Value | None:
        """The logits behind `y_pred`, where it is logits or the result of that activation."""
        if self.from_logits:
            return y_pred
        op, logits = t.applied.get(y_pred, ("", y_pred))
        return logits if op == activation else None


@registry.register
class BinaryCrossentropy(_Crossentropy):
    """`mean(-y log p - (1 - y) log(1 - p))` over the last axis; `y_true` in [0, 1]."""

    def target(self, output: str, y_shape: tuple[int, ...], shape: ShapeTuple, dtype: str) -> LabelSpec:
        return LabelSpec.dense(output, shape, dtype, low=0, high=1)

    def values(self, t: Tracer, y_true: Value, y_pred: Value) -> Value:
        y = same_form(self.name, y_true, y_pred)
        if self.label_smoothing:
            y = t("add", t("multiply", y, 1.0 - self.label_smoothing), 0.5 * self.label_smoothing)
        logits = self._logits(t, y_pred, "logistic")
        if logits is not None:
            return last_mean(t, t("sigmoid_cross_entropy", logits, y))
        p = clipped(t, y_pred)
        one = t("multiply", y, t("log", p))
        other = t(
            "multiply", t("subtract", t.b.full(1.0, y.type), y), t("log", t("subtract", t.b.full(1.0, p.type), p))
        )
        return last_mean(t, t("negate", t("add", one, other)))


class _ClassCrossentropy(_Crossentropy):
    def values(self, t: Tracer, y_true: Value, y_pred: Value) -> Value:
        classes = y_pred.type.shape[-1]
        assert isinstance(classes, int)
        sparse = y_true.type.rank < y_pred.type.rank
        logits = self._logits(t, y_pred, "softmax")
        if sparse and logits is not None and not self.label_smoothing:
            return t("sparse_softmax_cross_entropy", logits, y_true)
        y = t.one_hot(y_true, classes, y_pred.type.dtype) if sparse else same_form(self.name, y_true, y_pred)
        if self.label_smoothing:
            y = t("add", t("multiply", y, 1.0 - self.label_smoothing), self.label_smoothing / classes)
        if logits is not None:
            return t("softmax_cross_entropy", logits, y)
        axis = y_pred.type.rank - 1
        total = t.sum(y_pred, (axis,))
        repeated = t.b.broadcast(total, y_pred.type.shape, dimensions=tuple(range(axis)))
        p = clipped(t, t("divide", y_pred, repeated))
        return t("negate", t.sum(t("multiply", y, t("log", p)), (axis,)))


@registry.register
class CategoricalCrossentropy(_ClassCrossentropy):
    """`-sum(y_true * log(p))` over the last axis; `y_true` is one-hot (or probabilities), or integer labels."""

    def target(self, output: str, y_shape: tuple[int, ...], shape: ShapeTuple, dtype: str) -> LabelSpec:
        if is_sparse(y_shape, shape):
            return LabelSpec.classes(output, shape)
        return LabelSpec.dense(output, shape, dtype, low=0)


@registry.register
class SparseCategoricalCrossentropy(_ClassCrossentropy):
    """`-log(p[y_true])`; `y_true` is integer labels."""

    fields = ("from_logits", "axis", "reduction", "name")

    def __init__(
        self,
        from_logits: bool = False,
        ignore_class: int | None = None,
        axis: int = -1,
        reduction: str | None = "sum_over_batch_size",
        name: str | None = None,
    ) -> None:
        super().__init__(from_logits, 0.0, axis, reduction, name)
        if ignore_class is not None:
            raise UnsupportedError(f"{self.name}: ignore_class={ignore_class} is not supported, only None")

    def target(self, output: str, y_shape: tuple[int, ...], shape: ShapeTuple, dtype: str) -> LabelSpec:
        return LabelSpec.classes(output, shape)


registry.alias(mse=MeanSquaredError, mae=MeanAbsoluteError, bce=BinaryCrossentropy)


def get(identifier: Any) -> Loss:
    """A loss from its name (`"mse"`), class, configuration, or as it stands."""
    if callable(identifier) and not isinstance(identifier, (Loss, type)):
        raise UnsupportedError(f"loss: expected a name or an instance of a Loss, got the function {identifier!r}")
    if isinstance(identifier, Mapping):
        return registry.deserialize(identifier)
    return registry.get(identifier, Loss)


def is_sparse(y_shape: tuple[int, ...], shape: ShapeTuple) -> bool:
    """Tell whether labels of that shape are integers for the classes on an output's last axis."""
    if len(y_shape) < len(shape):
        return True
    return len(y_shape) == len(shape) and y_shape[-1] == 1 and shape[-1] != 1


def same_form(owner: str, y_true: Value, y_pred: Value) -> Value:
    """`y_true`, if it has one number for each of `y_pred`'s."""
    if y_true.type.shape != y_pred.type.shape:
        raise ShapeError(f"{owner}: expected y_true of shape {y_pred.type.shape}, got {y_true.type.shape}")
    return y_true


def mask_of_values(owner: str, t: Tracer, y_pred: Value, values: Value) -> Value | None:
    """1 for each of `values` that the mask of `y_pred` lets count and 0 for the others, or None without a mask."""
    mask = t.mask_of(y_pred)
    if mask is None:
        return None
    shape = values.type.shape
    if shape[: mask.type.rank] != mask.type.shape:
        raise UnsupportedError(f"{owner}: values of shape {shape} do not fit the mask {mask.type} of the output")
    return t.convert(t.b.broadcast(mask, shape, dimensions=tuple(range(mask.type.rank))), values.type.dtype)


def ratio(t: Tracer, total: Value, count: Value) -> Value:
    """`total / count`, and 0 where nothing counts: where all weights are 0, or a mask leaves nothing."""
    nothing = t("compare", count, 0.0, direction="EQ")
    return t("select", nothing, 0.0, t("divide", total, t("select", nothing, 1.0, count)))


def last_mean(t: Tracer, x: Value) -> Value:
    """The mean over the last axis; a batch of numbers is left as it is."""
    return t.mean(x, (-1,)) if x.type.rank > 1 else x


def clipped(t: Tracer, p: Value) -> Value:
    """Probabilities kept away from 0 and 1."""
    low, high = t.b.constant(EPSILON, p.type.dtype), t.b.constant(1.0 - EPSILON, p.type.dtype)
    return t("clamp", t.b.broadcast(low, p.type.shape), p, t.b.broadcast(high, p.type.shape))
