"""Flatten, Reshape and ZeroPadding2D: layers that only move elements."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lepton_jit.common import arguments
from lepton_jit.errors import ArgumentError, ShapeError
from lepton_jit.ir.graph import Value
from lepton_jit.layers.base.layer import Layer
from lepton_jit.layers.base.registry import registry
from lepton_jit.layers.base.symbolic import ShapeTuple
from lepton_jit.tracing import Tracer

__all__ = ["Flatten", "Reshape", "ZeroPadding2D"]


def _elements(shape: ShapeTuple) -> int:
    return math.prod(d for d in shape if d is not None)


@registry.register
class Flatten(Layer):
    """`[N, a, b, ...]` as `[N, a * b * ...]`."""

    accepts = ("data_format",)
    keeps_integers = True

    def __init__(self, data_format: str | None = None, **options: Any) -> None:
        super().__init__(data_format=data_format, **options)

    def compute_output_shape(self, input_shape: ShapeTuple) -> ShapeTuple:
        return (input_shape[0], _elements(input_shape[1:]))

    def trace(self, t: Tracer, x: Value) -> Value:
        return t.reshape(x, (x.type.shape[0], _elements(x.type.shape[1:])))  # pyright: ignore[reportArgumentType]


@registry.register
class Reshape(Layer):
    """Each sample in the shape `target_shape`; one entry may be -1, which takes what is left."""

    fields = ("target_shape",)
    keeps_integers = True

    def __init__(self, target_shape: Sequence[int], **options: Any) -> None:
        super().__init__(**options)
        self.target_shape = arguments.integer_tuple(self.label, "target_shape", target_shape, low=-1)
        if self.target_shape.count(-1) > 1 or 0 in self.target_shape:
            raise ArgumentError(
                f"{self.label}: target_shape: expected positive integers and at most one -1, got {self.target_shape}"
            )

    def compute_output_shape(self, input_shape: ShapeTuple) -> ShapeTuple:
        available = _elements(input_shape[1:])
        known = math.prod(d for d in self.target_shape if d != -1)
        fits = available % known == 0 if -1 in self.target_shape else available == known
        if not fits:
            raise ShapeError(
                f"{self.label}: expected samples that fit the shape {self.target_shape}, got shape {input_shape} "
                f"with {available} elements each"
            )
        return (input_shape[0], *(available // known if d == -1 else d for d in self.target_shape))

    def trace(self, t: Tracer, x: Value) -> Value:
        shape = self.compute_output_shape((None, *x.type.shape[1:]))  # pyright: ignore[reportArgumentType]
        return t.reshape(x, (x.type.shape[0], *shape[1:]))  # pyright: ignore[reportArgumentType]


@registry.register
class ZeroPadding2D(Layer):
    """Zeros around images: `padding` is one number, `(vertical, horizontal)` or `((top, bottom), (left, right))`."""

    fields = ("padding",)
    accepts = ("data_format",)
    rank = 4
    keeps_integers = True

    def __init__(
        self,
        padding: int | Sequence[int] | Sequence[Sequence[int]] = (1, 1),
        data_format: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data_format=data_format, **options)
        self.padding = self._sides(padding)

    def _sides(self, padding: Any) -> tuple[tuple[int, int], tuple[int, int]]:
        if isinstance(padding, Sequence) and len(padding) == 2:
            vertical, horizontal = padding
            return (
                arguments.pair(self.label, "padding", vertical, low=0),
                arguments.pair(self.label, "padding", horizontal, low=0),
            )
        both = arguments.pair(self.label, "padding", padding, low=0)
        return both, both

    def compute_output_shape(self, input_shape: ShapeTuple) -> ShapeTuple:
        batch, height, width, channels = input_shape
        assert height is not None
        assert width is not None
        return (batch, height + sum(self.padding[0]), width + sum(self.padding[1]), channels)

    def trace(self, t: Tracer, x: Value) -> Value:
        (top, bottom), (left, right) = self.padding
        zero = t.b.constant(0, x.type.dtype)
        return t("pad", x, zero, low=(0, top, left, 0), high=(0, bottom, right, 0), interior=(0, 0, 0, 0))
