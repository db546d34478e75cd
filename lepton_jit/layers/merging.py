"""Add, Subtract, Multiply, Average, Maximum, Minimum and Concatenate: layers of several inputs."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import Any, ClassVar

from lepton_jit.common import arguments
from lepton_jit.errors import ArgumentError, ShapeError
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import DTYPES, Shape, TensorType
from lepton_jit.layers.base.layer import Layer, Spec
from lepton_jit.layers.base.registry import registry
from lepton_jit.layers.base.symbolic import ShapeTuple
from lepton_jit.tracing import Tracer

__all__ = ["Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract"]


class _Merging(Layer):
    takes_list = True
    keeps_integers = True
    supports_masking = True

    def ensure_built(self, inputs: Sequence[Spec], **arguments: Any) -> None:
        if len(inputs) < 2:
            raise ArgumentError(f"{self.label}: expected a list of two tensors or more, got {len(inputs)}")
        super().ensure_built(inputs, **arguments)

    def build(self, input_shape: Sequence[ShapeTuple]) -> None:
        self.compute_output_shape(input_shape)

    def trace_mask(self, t: Tracer, inputs: Sequence[Value], masks: Sequence[Value | None]) -> Value | None:
        """A position counts if it does in some input; nothing is masked if one input is not."""
        known = [mask for mask in masks if mask is not None]
        if len(known) < len(masks):
            return None
        return reduce(lambda a, b: t("or", a, b), _alike(t, known))


class _Elementwise(_Merging):
    """One operation between the inputs.

    Dimensions of 1 are repeated, and tensors of lower rank get ones behind the batch.
    """

    _operation: ClassVar[str]

    def compute_output_shape(self, input_shape: Sequence[ShapeTuple]) -> ShapeTuple:
        rank = max(len(s) for s in input_shape)
        aligned = [_aligned(s, rank) for s in input_shape]
        result = []
        for dims in zip(*aligned, strict=True):
            sizes = set(dims) - {1} or {1}
            if len(sizes) != 1:
                raise ShapeError(f"{self.label}: expected shapes that fit each other, got {list(input_shape)}")
            result.append(sizes.pop())
        return tuple(result)

    def trace(self, t: Tracer, *inputs: Value) -> Value:
        return reduce(lambda x, y: t(self._operation, x, y), _alike(t, inputs))


@registry.register
class Add(_Elementwise):
    """The elementwise sum."""

    _operation = "add"


@registry.register
class Subtract(_Elementwise):
    """The first input minus the second."""

    _operation = "subtract"

    def ensure_built(self, inputs: Sequence[Spec], **arguments: Any) -> None:
        if len(inputs) != 2:
            raise ArgumentError(f"{self.label}: expected a list of two tensors, got {len(inputs)}")
        super().ensure_built(inputs, **arguments)


@registry.register
class Multiply(_Elementwise):
    """The elementwise product."""

    _operation = "multiply"


@registry.register
class Average(_Elementwise):
    """The elementwise mean."""

    keeps_integers = False
    _operation = "add"

    def trace(self, t: Tracer, *inputs: Value) -> Value:
        return t("divide", super().trace(t, *inputs), float(len(inputs)))


@registry.register
class Maximum(_Elementwise):
    """The elementwise maximum."""

    _operation = "maximum"


@registry.register
class Minimum(_Elementwise):
    """The elementwise minimum."""

    _operation = "minimum"


@registry.register
class Concatenate(_Merging):
    """The inputs one after the other along `axis`."""

    fields = ("axis",)

    def __init__(self, axis: int = -1, **options: Any) -> None:
        super().__init__(**options)
        self.axis = arguments.integer(self.label, "axis", axis, low=None)

    def compute_output_shape(self, input_shape: Sequence[ShapeTuple]) -> ShapeTuple:
        rank = len(input_shape[0])
        if not -rank <= self.axis < rank or self.axis % rank == 0:
            raise ShapeError(
                f"{self.label}: expected an axis of shape {input_shape[0]}, not the batch, got {self.axis}"
            )
        axis = self.axis % rank
        others = {(*s[:axis], *s[axis + 1 :]) for s in input_shape if len(s) == rank}
        if len(others) != 1 or any(len(s) != rank for s in input_shape):
            raise ShapeError(
                f"{self.label}: expected shapes that are equal but along axis {self.axis}, got {list(input_shape)}"
            )
        total = sum(s[axis] or 0 for s in input_shape)
        return (*input_shape[0][:axis], total, *input_shape[0][axis + 1 :])

    def trace(self, t: Tracer, *inputs: Value) -> Value:
        return t("concatenate", *inputs, dimension=self.axis % inputs[0].type.rank)

    def trace_mask(self, t: Tracer, inputs: Sequence[Value], masks: Sequence[Value | None]) -> Value | None:
        """The masks one after the other, inputs without one counting everywhere.

        Along the last axis, a position counts if it does in some input.
        """
        if all(mask is None for mask in masks):
            return None
        shapes = [x.type.shape[: x.type.rank - 1] for x in inputs]
        whole = [
            t.b.full(True, TensorType(DTYPES["bool"], shape)) if mask is None else _behind(t, mask, shape)
            for mask, shape in zip(masks, shapes, strict=True)
        ]
        axis = self.axis % inputs[0].type.rank
        if axis == inputs[0].type.rank - 1:
            return reduce(lambda a, b: t("or", a, b), whole)
        return t("concatenate", *whole, dimension=axis)


def _aligned(shape: Sequence[Any], rank: int) -> tuple[Any, ...]:
    """The shape with ones behind the batch, up to a rank."""
    return (*shape[:1], *[1] * (rank - len(shape)), *shape[1:])


def _behind(t: Tracer, mask: Value, shape: Shape) -> Value:
    """A mask of the first dimensions, repeated to `shape`."""
    return t.b.broadcast(mask, shape, dimensions=tuple(range(mask.type.rank)))


def _alike(t: Tracer, values: Sequence[Value]) -> list[Value]:
    """The values, aligned and repeated to their common shape."""
    rank = max(x.type.rank for x in values)
    shapes = [_aligned(x.type.shape, rank) for x in values]
    shape = tuple(next((d for d in dims if d != 1), 1) for dims in zip(*shapes, strict=True))
    return [_repeated(t, x, shape) for x in values]


def _repeated(t: Tracer, x: Value, shape: Shape) -> Value:
    """`x`, aligned and repeated to `shape`."""
    aligned = _aligned(x.type.shape, len(shape))
    kept = [i for i, (own, wanted) in enumerate(zip(aligned, shape, strict=True)) if own == wanted]
    dropped = t.reshape(x, tuple(aligned[i] for i in kept))
    return t.b.broadcast(dropped, shape, dimensions=kept)
