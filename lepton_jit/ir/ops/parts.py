"""Operations on parts of tensors: slice, pad, concatenate."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lepton_jit.errors import DTypeError, ShapeError, UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import Family, Sample
from lepton_jit.ir.ops.rules import (
    DIMS,
    INT,
    INTS,
    at_least_zero,
    check_dimensions,
    define,
    expect_scalar,
    the_cotangent,
)
from lepton_jit.ir.traits import Traits
from lepton_jit.ir.types import Dim, Poly, Shape, TensorType

__all__ = ["padded"]

_N = Poly.symbol("N")

Cotangents = Sequence[Value | None]


def _expect_one_per_dimension(x: TensorType, **lists: Sequence[Dim]) -> None:
    for name, entries in lists.items():
        if len(entries) != x.rank:
            raise ShapeError(f"{name}: expected one number for every dimension of {x}, got {list(entries)}")


# slice


def _infer_slice(x: TensorType, *, start: Shape, limit: Shape, strides: Sequence[int]) -> TensorType:
    _expect_one_per_dimension(x, start=start, limit=limit, strides=strides)
    return x.with_shape(map(_slice_size, x.shape, start, limit, strides))


def _slice_size(dim: Dim, start: Dim, limit: Dim, stride: int) -> Dim:
    size = limit - start
    if stride < 1:
        raise ShapeError(f"strides: expected 1 or more, got {stride}")
    if not at_least_zero(start) or not at_least_zero(dim - limit) or (isinstance(size, int) and size < 0):
        raise ShapeError(f"expected 0 <= start <= limit <= {dim!r}, got start {start!r} and limit {limit!r}")
    if stride == 1:
        return size
    if isinstance(size, Poly):
        raise UnsupportedError(f"strides: a stride of {stride} along the symbolic size {size!r}")
    return -(-size // stride)


def _slice(x: np.ndarray, *, start: Sequence[int], limit: Sequence[int], strides: Sequence[int]) -> np.ndarray:
    if any(not 0 <= s <= e <= d for s, e, d in zip(start, limit, x.shape, strict=True)):
        raise ShapeError(f"expected 0 <= start <= limit <= {list(x.shape)}, got {list(start)} and {list(limit)}")
    return x[tuple(map(slice, start, limit, strides))]


def _slice_gradient(b: Builder, node: Node, cotangents: Cotangents) -> Cotangents:
    dy, (x,) = the_cotangent(cotangents), node.operands
    start, strides = node.attributes["start"], node.attributes["strides"]
    covered = [s + _dilated(d, k) for s, d, k in zip(start, dy.type.shape, strides, strict=True)]
    high = tuple(d - c for d, c in zip(x.type.shape, covered, strict=True))
    zero = b.constant(0, dy.type.dtype)
    return (b("pad", dy, zero, low=start, high=high, interior=tuple(k - 1 for k in strides)),)


def _dilated(dim: Dim, stride: int) -> Dim:
    """The size with `stride - 1` elements put between neighbours."""
    return dim if stride == 1 or dim == 0 else (dim - 1) * stride + 1


define(
    "slice",
    Family.MOVEMENT,
    operands="x",
    attributes={"start": DIMS, "limit": DIMS, "strides": INTS},
    infer=_infer_slice,
    reference=_slice,
    gradient=_slice_gradient,
    traits=Traits(fuses_as_map=True, keeps_numbers=True),
    samples=[
        Sample((TensorType.of("f32", "N", 8),), {"start": (0, 2), "limit": (_N, 5), "strides": (1, 1)}),
        Sample((TensorType.of("f32", 8 * _N),), {"start": (_N,), "limit": (4 * _N,), "strides": (1,)}),
        Sample((TensorType.of("f64", 9, 8),), {"start": (1, 0), "limit": (8, 8), "strides": (2, 3)}),
        Sample((TensorType.of("f64", 9, 8),), {"start": (1, 3), "limit": (9, 3), "strides": (3, 2)}),
        Sample((TensorType.of("i32", 9),), {"start": (4,), "limit": (5,), "strides": (4,)}),
    ],
)


# pad


def _infer_pad(x: TensorType, value: TensorType, *, low: Shape, high: Shape, interior: Sequence[int]) -> TensorType:
    expect_scalar(value, "value")
    if value.dtype != x.dtype:
        raise DTypeError(f"value: expected {x.dtype}, got {value.dtype}")
    _expect_one_per_dimension(x, low=low, high=high, interior=interior)
    return x.with_shape(map(_pad_size, x.shape, low, high, interior))


def _pad_size(dim: Dim, low: Dim, high: Dim, interior: int) -> Dim:
    if interior < 0:
        raise ShapeError(f"interior: expected 0 or more, got {interior}")
    if interior and isinstance(dim, Poly):
        raise UnsupportedError(f"interior: padding of {interior} along the symbolic dimension {dim!r}")
    size = _dilated(dim, interior + 1) + low + high
    if isinstance(size, int) and size < 0:
        raise ShapeError(f"expected a size of at least 0, got {dim!r} padded by {low!r} and {high!r}")
    return size


def padded(
    x: np.ndarray, value: np.ndarray, *, low: Sequence[int], high: Sequence[int], interior: Sequence[int]
) -> np.ndarray:
    """`x` with `interior` elements between neighbours and `low` and `high` ones at the ends; negative ones cut off."""
    dilated = [max(0, (d - 1) * (i + 1) + 1) for d, i in zip(x.shape, interior, strict=True)]
    sizes = [d + lo + hi for d, lo, hi in zip(dilated, low, high, strict=True)]
    if any(size < 0 for size in sizes):
        raise ShapeError(f"expected sizes of at least 0, got {sizes}")
    spread = np.full(dilated, value, x.dtype)
    spread[tuple(slice(None, None, i + 1) for i in interior)] = x
    result = np.full(sizes, value, x.dtype)
    source, target = [], []
    for d, lo, size in zip(dilated, low, sizes, strict=True):
        first, last = max(lo, 0), max(min(lo + d, size), max(lo, 0))
        target.append(slice(first, last))
        source.append(slice(first - lo, last - lo))
    result[tuple(target)] = spread[tuple(source)]
    return result


def _pad_gradient(b: Builder, node: Node, cotangents: Cotangents) -> Cotangents:
    dy, (x, _) = the_cotangent(cotangents), node.operands
    low, high, interior = (node.attributes[n] for n in ("low", "high", "interior"))
    zero = b.constant(0, dy.type.dtype)
    cut = b("pad", dy, zero, low=tuple(-d for d in low), high=tuple(-d for d in high), interior=(0,) * x.type.rank)
    dx = (
        b("slice", cut, start=(0,) * x.type.rank, limit=cut.type.shape, strides=tuple(i + 1 for i in interior))
        if any(interior)
        else cut
    )
    every = tuple(range(x.type.rank))
    total = b("reduce", dy, dimensions=every, kind="add") if every else dy
    inside = b("reduce", dx, dimensions=every, kind="add") if every else dx
    return dx, b("subtract", total, inside)


define(
    "pad",
    Family.MOVEMENT,
    operands="x value",
    attributes={"low": DIMS, "high": DIMS, "interior": INTS},
    infer=_infer_pad,
    reference=padded,
    gradient=_pad_gradient,
    traits=Traits(fuses_as_map=True),
    samples=[
        Sample((TensorType.of(dtype, *shape), TensorType.of(dtype)), {"low": low, "high": high, "interior": interior})
        for dtype, shape, low, high, interior in (
            ("f32", ("N", 3), (0, 1), (0, 2), (0, 0)),
            ("f32", ("N",), (_N,), (2 * _N,), (0,)),
            ("f32", (8 * _N,), (-_N,), (0,), (0,)),
            ("f64", (4, 5), (-1, 2), (3, -2), (0, 0)),
            ("f64", (4, 3), (1, 0), (0, 2), (1, 2)),
            ("f64", (4, 3), (-2, -1), (-1, 3), (2, 1)),
            ("f64", (0, 3), (1, 0), (1, 0), (2, 0)),
            ("f64", (3,), (-5,), (4,), (0,)),
            ("i32", (3,), (1,), (1,), (1,)),
        )
    ],
)


# concatenate


def _infer_concatenate(first: TensorType, *rest: TensorType, dimension: int) -> TensorType:
    check_dimensions("dimension", (dimension,), first.rank)
    size: Dim = 0
    for x in (first, *rest):
        if x.dtype != first.dtype:
            raise DTypeError(f"expected operands of one dtype, got {first} and {x}")
        if x.rank != first.rank or _without(x, dimension) != _without(first, dimension):
            raise ShapeError(f"expected shapes that differ in dimension {dimension} only, got {first} and {x}")
        size = x.shape[dimension] + size
    return first.with_shape((*first.shape[:dimension], size, *first.shape[dimension + 1 :]))


def _without(x: TensorType, dimension: int) -> Shape:
    return (*x.shape[:dimension], -1, *x.shape[dimension + 1 :])


def _concatenate_gradient(b: Builder, node: Node, cotangents: Cotangents) -> Cotangents:
    dy, dimension = the_cotangent(cotangents), node.attributes["dimension"]
    ones = (1,) * dy.type.rank
    offset: Dim = 0
    parts = []
    for x in node.operands:
        start: list[Dim] = [0] * dy.type.rank
        limit = list(dy.type.shape)
        start[dimension], limit[dimension] = offset, x.type.shape[dimension] + offset
        parts.append(b("slice", dy, start=start, limit=limit, strides=ones))
        offset = limit[dimension]
    return parts


define(
    "concatenate",
    Family.MOVEMENT,
    operands="first *rest",
    attributes={"dimension": INT},
    infer=_infer_concatenate,
    reference=lambda *xs, dimension: np.concatenate(xs, dimension),
    gradient=_concatenate_gradient,
    traits=Traits(keeps_numbers=True),
    samples=[
        Sample((TensorType.of("f32", "N", 3), TensorType.of("f32", "N", 1)), {"dimension": 1}),
        Sample(
            (TensorType.of("f32", "N", 3), TensorType.of("f32", 2, 3), TensorType.of("f32", "N", 3)), {"dimension": 0}
        ),
        Sample((TensorType.of("f64", 3), TensorType.of("f64", 0), TensorType.of("f64", 2)), {"dimension": 0}),
        Sample((TensorType.of("u8", 3),), {"dimension": 0}),
    ],
)
