"""Pooling of channels-last images: x: f32[N, *space, channels], windows over space only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lepton_jit.errors import ShapeError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import Sample
from lepton_jit.ir.ops.composites.composite import composite
from lepton_jit.ir.ops.rules import INTS, PAIRS, expect_dtype, the_cotangent, window_size
from lepton_jit.ir.ops.window import Pairs, window_sum_gradient
from lepton_jit.ir.types import TensorType

Ints = Sequence[int]


def _infer(x: TensorType, *, window: Ints, strides: Ints, padding: Pairs) -> TensorType:
    expect_dtype(x, "float")
    if x.rank < 2:
        raise ShapeError(f"x: expected a batch, spatial dimensions and channels, got {x}")
    for name, entries in (("window", window), ("strides", strides), ("padding", padding)):
        if len(entries) != x.rank - 2:
            raise ShapeError(
                f"{name}: expected one entry for each of {x.rank - 2} spatial dimensions, got {list(entries)}"
            )
    space = map(window_size, x.shape[1:-1], window, strides, padding, [1] * len(window))
    return x.with_shape((x.shape[0], *space, x.shape[-1]))


def _full(window: Ints, strides: Ints, padding: Pairs) -> dict[str, Any]:
    """The attributes for all dimensions: batch and channels have windows of one element."""
    return {"window": (1, *window, 1), "strides": (1, *strides, 1), "padding": ((0, 0), *padding, (0, 0))}


def _max_pool(b: Builder, x: Value, *, window: Ints, strides: Ints, padding: Pairs) -> Value:
    full = _full(window, strides, padding)
    return b("reduce_window", x, kind="maximum", dilation=(1,) * x.type.rank, **full)


def _max_pool_gradient(b: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    attributes: Any = node.attributes
    return (b("select_and_scatter", node.operands[0], the_cotangent(cotangents), **_full(**attributes)),)


def _sums(b: Builder, x: Value, window: Ints, strides: Ints, padding: Pairs) -> Value:
    full = _full(window, strides, padding)
    return b("reduce_window", x, kind="add", dilation=(1,) * x.type.rank, **full)


def _divided_by_count(b: Builder, y: Value, space: Ints, window: Ints, strides: Ints, padding: Pairs) -> Value:
    """Divided by how many elements each window covers; padding does not count."""
    if all(tuple(pair) == (0, 0) for pair in padding):
        return b("divide", y, float(math.prod(window)))
    ones = b.full(1.0, TensorType(y.type.dtype, (1, *space, 1)))
    counts = _sums(b, ones, window, strides, padding)
    spatial = counts.type.shape[1:-1]
    counts = b("reshape", counts, shape=spatial)
    return b("divide", y, b.broadcast(counts, y.type.shape, range(1, len(spatial) + 1)))


def _average_pool(b: Builder, x: Value, *, window: Ints, strides: Ints, padding: Pairs) -> Value:
    sums = _sums(b, x, window, strides, padding)
    return _divided_by_count(b, sums, x.type.shape[1:-1], window, strides, padding)  # pyright: ignore[reportArgumentType]


def _average_pool_gradient(b: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    attributes: Any = node.attributes
    x = node.operands[0].type
    dy: Any = _divided_by_count(b, the_cotangent(cotangents), x.shape[1:-1], **attributes)  # pyright: ignore[reportArgumentType]
    return (window_sum_gradient(b, dy, x, dilation=(1,) * x.rank, **_full(**attributes)),)


_SAMPLES = [
    Sample((TensorType.of(dtype, *shape),), {"window": window, "strides": strides, "padding": padding})
    for dtype, shape, window, strides, padding in (
        ("f32", ("N", 6, 6, 2), (2, 2), (2, 2), ((0, 0), (0, 0))),
        ("f64", ("N", 7, 5, 3), (3, 2), (2, 2), ((1, 1), (0, 1))),
        ("f64", (2, 5, 5, 1), (3, 3), (1, 1), ((1, 1), (1, 1))),
        ("f64", (2, 5, 7, 2), (2, 3), (2, 3), ((0, 0), (0, 0))),
        ("f64", (2, 7, 3), (3,), (2,), ((0, 1),)),
    )
]
_ATTRIBUTES = {"window": INTS, "strides": INTS, "padding": PAIRS}

composite(
    "max_pool",
    _max_pool,
    operands="x",
    attributes=_ATTRIBUTES,
    infer=_infer,
    gradient=_max_pool_gradient,
    samples=_SAMPLES,
)
composite(
    "average_pool",
    _average_pool,
    operands="x",
    attributes=_ATTRIBUTES,
    infer=_infer,
    gradient=_average_pool_gradient,
    samples=_SAMPLES,
)
