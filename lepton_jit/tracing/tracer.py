"""Define the tracer that a layer sees in a trace: builder, weights as values, and where to leave side effects."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np

from lepton_jit.errors import GraphError, ShapeError, UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import DTYPES, Dim, DType, Shape, TensorType, dtype_of, element_count
from lepton_jit.tracing.weight import Weight

__all__ = ["Tracer", "evaluate"]


class HasFlag(Protocol):
    """A layer, of which the tracer asks nothing else."""

    @property
    def trainable(self) -> bool: ...


class Flags(Protocol):
    """The `trainable` flags of layers at one moment."""

    def holds(self, part: Any) -> bool: ...


class Tracer:
    """Traces layers into one builder.

    `t(op, x, ...)` adds an operation, `t.weight(w)` is a weight's value, `t.assign(w, value)` its new value after
    the step, `t.add_loss(value)` a scalar that training adds to the loss. `t.mask_of(x)` tells which positions of x
    count, where a layer has said so.
    """

    def __init__(
        self,
        builder: Builder,
        *,
        training: bool = False,
        weights: Mapping[Weight, Value] | None = None,
        randomness: Callable[[], tuple[Value, Value]] | None = None,
        trainable: Flags | None = None,
    ) -> None:
        self.b = builder
        self.training = training
        self.updates: dict[Weight, Value] = {}
        self.losses: list[Value] = []
        self.applied: dict[Value, tuple[str, Value]] = {}  # result of an activation -> (operation, operand)
        self._masks: dict[Value, Value] = {}
        self._weights = weights or {}
        self._randomness = randomness
        self._trainable = trainable
        self._streams = 0

    def __call__(self, op: str, *operands: Value | int | float | bool, **attributes: Any) -> Value:
        return self.b(op, *operands, **attributes)

    def weight(self, weight: Weight) -> Value:
        """The value of a weight, the one assigned last where one was."""
        if weight in self.updates:
            return self.updates[weight]
        if weight not in self._weights:
            raise GraphError(f"weight {weight.name!r} does not belong to the traced model")
        return self._weights[weight]

    def assign(self, weight: Weight, value: Value) -> None:
        """Give a weight a new value, written when the program has run."""
        self.updates[weight] = value

    def add_loss(self, value: Value) -> None:
        """Add a scalar to the training loss."""
        self.losses.append(value)

    def random(self) -> tuple[Value, Value, int]:
        """Seed, step and the next stream of random bits; streams are numbered in the order of the trace."""
        if self._randomness is None:
            raise UnsupportedError(f"layer {self.b.current_layer!r}: random numbers outside of training")
        self._streams += 1
        return *self._randomness(), self._streams - 1

    def trains(self, layer: HasFlag) -> bool:
        """Tell whether the layer is trained, and not frozen, where the trace is one of training."""
        return layer.trainable if self._trainable is None else self._trainable.holds(layer)

    @contextmanager
    def mode(self, training: bool | None) -> Iterator[None]:
        """Set whether what is traced inside is in training; None leaves it as it is."""
        saved = self.training
        self.training = saved if training is None else training
        try:
            yield
        finally:
            self.training = saved

    def mask_of(self, x: Value) -> Value | None:
        """The positions of `x: [N, T, ...]` that count: `bool[N, T]`, or None if nothing is said about it."""
        return self._masks.get(x)

    def set_mask(self, x: Value, mask: Value | None) -> None:
        """Say which positions of `x` count; its shape begins with the mask's."""
        if mask is None:
            self._masks.pop(x, None)
            return
        if mask.type.dtype != DTYPES["bool"] or x.type.shape[: mask.type.rank] != mask.type.shape:
            raise ShapeError(
                f"layer {self.b.current_layer!r}: expected a mask of bool and the first dimensions of {x.type}, "
                f"got {mask.type}"
            )
        self._masks[x] = mask

    def convert(self, x: Value, dtype: DType) -> Value:
        """`x` with another element type, and the same mask."""
        if x.type.dtype == dtype:
            return x
        result = self.b("convert", x, dtype=dtype)
        self.set_mask(result, self.mask_of(x))
        return result

    def size(self, dim: Dim, dtype: DType) -> Value:
        """A dimension, or a product of some, as a scalar."""
        if isinstance(dim, int):
            return self.b.constant(dim, dtype)
        return self.b("dimension_value", value=dim, dtype=dtype)

    def sum(self, x: Value, dimensions: Sequence[int] | None = None) -> Value:
        """The sum over some dimensions, all by default."""
        dimensions = tuple(range(x.type.rank)) if dimensions is None else tuple(d % x.type.rank for d in dimensions)
        return self.b("reduce", x, dimensions=dimensions, kind="add") if dimensions else x

    def mean(self, x: Value, dimensions: Sequence[int] | None = None) -> Value:
        """The mean over some dimensions, all by default."""
        dimensions = tuple(range(x.type.rank)) if dimensions is None else tuple(d % x.type.rank for d in dimensions)
        if not dimensions:
            return x
        count = element_count(x.type.shape[d] for d in dimensions)
        return self.b("divide", self.sum(x, dimensions), self.size(count, x.type.dtype))

    def reshape(self, x: Value, shape: Shape) -> Value:
        """The same elements in another shape."""
        return x if x.type.shape == tuple(shape) else self.b("reshape", x, shape=tuple(shape))

    def along(self, vector: Value, like: Value, axis: int = -1) -> Value:
        """A vector along one axis of `like`, repeated over the others."""
        return self.b.broadcast(vector, like.type.shape, dimensions=(axis % like.type.rank,))

    def one_hot(self, labels: Value, classes: int, dtype: DType) -> Value:
        """`labels: i32[...]` as `dtype[..., classes]` of 0 and 1."""
        shape = (*labels.type.shape, classes)
        index = self.b("iota", dtype=labels.type.dtype, shape=shape, dimension=len(shape) - 1)
        repeated = self.b.broadcast(labels, shape, dimensions=tuple(range(len(shape) - 1)))
        return self.convert(self.b("compare", index, repeated, direction="EQ"), dtype)


def evaluate(function: Callable[..., Value], *arrays: Any) -> np.ndarray:
    """`function(tracer, *values)` on these arrays, computed by the graph interpreter."""
    operands = [_supported(np.asarray(a)) for a in arrays]
    builder = Builder("eager")
    values = [builder.input(f"x{i}", TensorType(dtype_of(a.dtype), a.shape)) for i, a in enumerate(operands)]
    builder.output(function(Tracer(builder), *values), "result")
    return run_graph(builder.build(), {f"x{i}": a for i, a in enumerate(operands)})["result"]


def _supported(array: np.ndarray) -> np.ndarray:
    return array.astype(DTYPES["f32"].numpy) if array.dtype == np.float16 else array
