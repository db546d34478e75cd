"""Reductions over dimensions; `KINDS` serves windowed reductions too."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lepton_jit.errors import ShapeError, UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.expression import Expression, select
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import Family, Sample
from lepton_jit.ir.ops.rules import INTS, check_dimensions, choice, define, expect_dtype, the_cotangent
from lepton_jit.ir.traits import Traits
from lepton_jit.ir.types import TensorType, element_count

__all__ = ["KINDS", "combine_along", "identity"]


@dataclass(frozen=True)
class _Kind:
    combine: np.ufunc
    dtypes: tuple[str, ...]


_NUMBERS, _BITS = ("float", "signed", "unsigned"), ("signed", "unsigned", "bool")

KINDS = {
    "add": _Kind(np.add, _NUMBERS),
    "multiply": _Kind(np.multiply, _NUMBERS),
    "maximum": _Kind(np.maximum, _NUMBERS),
    "minimum": _Kind(np.minimum, _NUMBERS),
    "and": _Kind(np.bitwise_and, _BITS),
    "or": _Kind(np.bitwise_or, _BITS),
}


def identity(kind: str, dtype: np.dtype) -> int | float | bool:
    """The number that the reduction of nothing gives.

    >>> (
    ...     identity("maximum", np.dtype("float32")),
    ...     identity("minimum", np.dtype("int8")),
    ...     identity("and", np.dtype("uint8")),
    ... )
    (-inf, 127, 255)
    """
    if kind in ("add", "or"):
        return False if dtype.kind == "b" else 0
    if kind == "multiply":
        return 1
    if kind == "and":
        return True if dtype.kind == "b" else -1 if dtype.kind == "i" else int(np.iinfo(dtype).max)
    if dtype.kind == "f":
        return -np.inf if kind == "maximum" else np.inf
    limits = np.iinfo(dtype)
    return int(limits.min if kind == "maximum" else limits.max)


def _infer(x: TensorType, *, dimensions: Sequence[int], kind: str) -> TensorType:
    expect_dtype(x, *KINDS[kind].dtypes)
    check_dimensions("dimensions", dimensions, x.rank)
    return x.with_shape(d for i, d in enumerate(x.shape) if i not in dimensions)


def combine_along(x: np.ndarray, axes: Sequence[int], kind: str) -> np.ndarray:
    """The elements along some axes combined; float32 is summed in float64.

    What judges other sums must not lose more than they do, and NumPy adds in one chain along all axes but the last.
    """
    wide = np.dtype(np.float64) if kind == "add" and x.dtype == np.float32 else x.dtype
    found = KINDS[kind].combine.reduce(x, axis=tuple(axes), dtype=wide, initial=identity(kind, x.dtype))
    with np.errstate(over="ignore"):
        return found.astype(x.dtype, copy=False)


def _reduce(x: np.ndarray, *, dimensions: Sequence[int], kind: str) -> np.ndarray:
    return combine_along(x, dimensions, kind)


def _gradient(b: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    dimensions, kind = node.attributes["dimensions"], node.attributes["kind"]
    x, y, dy = (Expression(b, v) for v in (node.operands[0], node.result, the_cotangent(cotangents)))
    kept = tuple(d for d in range(x.type.rank) if d not in dimensions)
    if kind == "add":
        return (dy.broadcast(x, kept).value,)
    if kind in ("maximum", "minimum"):
        # Equal extremes share the cotangent.
        chosen = x == y.broadcast(x, kept)
        share = dy / chosen.convert(x.type.dtype).sum(dimensions)
        return (select(chosen, share.broadcast(x, kept), 0.0).value,)
    if kind == "multiply":
        return (_product_gradient(x, dy, dimensions, kept).value,)
    raise UnsupportedError(f"reduce of kind {kind!r} has no gradient")


def _product_gradient(x: Expression, dy: Expression, dimensions: tuple[int, ...], kept: tuple[int, ...]) -> Expression:
    """dy times the product of the other factors, also where factors are zero."""
    zero = x == 0.0
    zeros = zero.convert(x.type.dtype).sum(dimensions)
    factors = select(zero, 1.0, x)
    product = dy * factors("reduce", dimensions=dimensions, kind="multiply")
    at_zero = select(zeros == 1.0, product, 0.0).broadcast(x, kept)
    elsewhere = select(zeros == 0.0, product, 0.0).broadcast(x, kept) / factors
    return select(zero, at_zero, elsewhere)


_SHAPES = (
    (TensorType.of("f32", "N", 3), (0,)),
    (TensorType.of("f32", "N", 3, 4), (0, 2)),
    (TensorType.of("f64", 2, 3, 4), (1,)),
    (TensorType.of("f64", 2, 3), (0, 1)),
    (TensorType.of("f64", 3), ()),
)

define(
    "reduce",
    Family.REDUCTION,
    operands="x",
    attributes={"dimensions": INTS, "kind": choice(*KINDS)},
    infer=_infer,
    reference=_reduce,
    gradient=_gradient,
    traits=Traits(accumulates=True),
    samples=[
        *(
            Sample((x,), {"dimensions": dimensions, "kind": kind})
            for x, dimensions in _SHAPES
            for kind in ("add", "multiply", "maximum", "minimum")
        ),
        *(Sample((TensorType.of("i8", 5, "N"),), {"dimensions": (1,), "kind": kind}) for kind in KINDS),
        *(Sample((TensorType.of("u32", 5, 3),), {"dimensions": (1,), "kind": kind}) for kind in KINDS),
        *(Sample((TensorType.of("bool", "N", 3),), {"dimensions": (0,), "kind": kind}) for kind in ("and", "or")),
        Sample((TensorType.of("f32", 3, 0),), {"dimensions": (1,), "kind": "add"}),
    ],
)


# moments


def _infer_moments(x: TensorType) -> Sequence[TensorType]:
    expect_dtype(x, "float")
    if x.rank < 2:
        raise ShapeError(f"moments: expected columns in the last of two dimensions or more, got {x}")
    column = x.with_shape(x.shape[-1:])
    return column, column


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """mean = sum(x) / count, variance = sum((x - mean)**2) / count, both of nothing nan."""
    rows = tuple(range(x.ndim - 1))
    count = np.asarray(np.prod(x.shape[:-1]), x.dtype)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = combine_along(x, rows, "add") / count
        return mean, combine_along(np.square(x - mean), rows, "add") / count


def _moments_gradient(b: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    """dx = dmean / count + dvariance * 2 / count * (x - mean)."""
    x, mean = Expression(b, node.operands[0]), Expression(b, node.results[0])
    dmean, dvariance = (None if c is None else Expression(b, c) for c in cotangents)
    column = (x.type.rank - 1,)
    size = element_count(x.type.shape[:-1])
    count = Expression(b, b("dimension_value", value=size, dtype=x.type.dtype))
    shift = None if dmean is None else (dmean / count).broadcast(x, column)
    if dvariance is None:
        return (None if shift is None else shift.value,)
    slope = (dvariance * 2.0 / count).broadcast(x, column)
    spread = slope * (x - mean.broadcast(x, column))
    return ((spread if shift is None else spread + shift).value,)


define(
    "moments",
    Family.REDUCTION,
    operands="x",
    infer=_infer_moments,
    reference=_moments,
    gradient=_moments_gradient,
    traits=Traits(loads_operands=True),
    samples=[
        Sample((TensorType.of("f32", "N", 3, 3, 20),), low=-3.0, high=9.0),
        Sample((TensorType.of("f32", "N", 64),)),
        Sample((TensorType.of("f32", 5, "N"),)),
        Sample((TensorType.of("f64", 7, 5),)),
        Sample((TensorType.of("f64", 1, 2),)),
    ],
)
