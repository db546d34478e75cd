"""Operations that make or move elements: constants, broadcasts, reshapes, slices, padding."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lepton_jit.errors import DTypeError, ShapeError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import NOT_DIFFERENTIABLE, Family, Sample
from lepton_jit.ir.ops.rules import (
    CONSTANT,
    DIM,
    DIMS,
    DTYPE,
    INT,
    INTS,
    check_dimensions,
    define,
    expect_rank,
    expect_shape,
    the_cotangent,
)
from lepton_jit.ir.traits import Storage, Traits
from lepton_jit.ir.types import DTYPES, Dim, DType, Poly, Shape, TensorType, element_count

_N = Poly.symbol("N")
_F32, _F64, _I32, _BOOL = (DTYPES[name] for name in ("f32", "f64", "i32", "bool"))

Cotangents = Sequence[Value | None]

_OF_ATTRIBUTES = Traits(
    storage=Storage.RECOMPUTED,
    weightless=True,
    stays_in_loops=True,
    repeats_numbers=True,
    scalar_source=True,
    named_in_steps=False,
)

# constant


def _infer_constant(*, value: Any, dtype: DType, shape: Shape) -> TensorType:
    expect_shape(shape)
    rows: list[Any] = [value]
    for dim in shape:
        if not all(isinstance(row, (tuple, list)) and len(row) == dim for row in rows):
            raise ShapeError(f"value: expected lists nested as {list(shape)}")
        rows = list(itertools.chain.from_iterable(rows))
    for number in rows:
        _check_constant(number, dtype)
    return TensorType(dtype, tuple(shape))


def _check_constant(number: object, dtype: DType) -> None:
    if dtype.kind == "bool":
        fits = isinstance(number, bool)
    elif dtype.is_float:
        fits = isinstance(number, (int, float)) and not isinstance(number, bool)
    else:
        limits = np.iinfo(dtype.numpy)
        fits = isinstance(number, int) and not isinstance(number, bool) and limits.min <= number <= limits.max
    if not fits:
        error = ShapeError if isinstance(number, (tuple, list)) else DTypeError
        raise error(f"value: expected a number of {dtype}, got {number!r}")


define(
    "constant",
    Family.MOVEMENT,
    operands="",
    attributes={"value": CONSTANT, "dtype": DTYPE, "shape": INTS},
    infer=_infer_constant,
    reference=lambda *, value, dtype, shape: np.array(value, dtype.numpy).reshape(shape),
    gradient=NOT_DIFFERENTIABLE,
    traits=replace(_OF_ATTRIBUTES, compact=True),
    samples=[
        Sample((), {"value": 1.5, "dtype": _F32, "shape": ()}),
        Sample((), {"value": float("-inf"), "dtype": _F64, "shape": ()}),
        Sample((), {"value": True, "dtype": _BOOL, "shape": ()}),
        Sample((), {"value": 2**64 - 1, "dtype": DTYPES["u64"], "shape": ()}),
        Sample((), {"value": ((1, 2, 3), (4, 5, -6)), "dtype": _I32, "shape": (2, 3)}),
        Sample((), {"value": ((), ()), "dtype": _F32, "shape": (2, 0)}),
    ],
)


# iota, dimension_value


def _infer_iota(*, dtype: DType, shape: Shape, dimension: int) -> TensorType:
    expect_shape(shape)
    check_dimensions("dimension", (dimension,), len(shape))
    if dtype.kind == "bool":
        raise DTypeError("dtype: expected numbers, got bool")
    return TensorType(dtype, tuple(shape))


def _iota(*, dtype: DType, shape: tuple[int, ...], dimension: int) -> np.ndarray:
    column = np.arange(shape[dimension]).astype(dtype.numpy)
    return np.broadcast_to(column.reshape(-1, *[1] * (len(shape) - dimension - 1)), shape)


define(
    "iota",
    Family.MOVEMENT,
    operands="",
    attributes={"dtype": DTYPE, "shape": DIMS, "dimension": INT},
    infer=_infer_iota,
    reference=_iota,
    gradient=NOT_DIFFERENTIABLE,
    traits=Traits(storage=Storage.RECOMPUTED, weightless=True, stays_in_loops=True, compact=True),
    samples=[
        Sample((), {"dtype": _I32, "shape": (4, 3), "dimension": 0}),
        Sample((), {"dtype": _F32, "shape": (4, 3), "dimension": 1}),
        Sample((), {"dtype": DTYPES["i8"], "shape": (300,), "dimension": 0}),
        Sample((), {"dtype": _I32, "shape": (2, _N, 3), "dimension": 1}),
    ],
)


def _infer_dimension_value(*, value: Dim, dtype: DType) -> TensorType:
    if dtype.kind == "bool":
        raise DTypeError("dtype: expected numbers, got bool")
    return TensorType(dtype, ())


define(
    "dimension_value",
    Family.MOVEMENT,
    operands="",
    attributes={"value": DIM, "dtype": DTYPE},
    infer=_infer_dimension_value,
    reference=lambda *, value, dtype: np.array(value).astype(dtype.numpy),
    gradient=NOT_DIFFERENTIABLE,
    traits=_OF_ATTRIBUTES,
    samples=[
        Sample((), {"value": _N, "dtype": _F32}),
        Sample((), {"value": 128 * _N + 4, "dtype": _I32}),
        Sample((), {"value": 7, "dtype": _F64}),
    ],
)


# broadcast_in_dim, reshape, transpose, reverse


def _infer_broadcast(x: TensorType, *, shape: Shape, dimensions: Sequence[int]) -> TensorType:
    expect_shape(shape)
    expect_rank(x, len(dimensions))
    check_dimensions("dimensions", dimensions, len(shape))
    if any(d != 1 and d != shape[to] for d, to in zip(x.shape, dimensions, strict=True)):
        raise ShapeError(f"expected dimensions of 1 or of {list(shape)} at {list(dimensions)}, got {x}")
    return x.with_shape(shape)


def _broadcast(x: np.ndarray, *, shape: tuple[int, ...], dimensions: Sequence[int]) -> np.ndarray:
    order = np.argsort(dimensions) if dimensions else []
    aligned = [1] * len(shape)
    for dim, to in zip(x.shape, dimensions, strict=True):
        aligned[to] = dim
    return np.broadcast_to(x.transpose(order).reshape(aligned), shape)


def _broadcast_gradient(b: Builder, node: Node, cotangents: Cotangents) -> Cotangents:
    dy, (x,) = the_cotangent(cotangents), node.operands
    shape, dimensions = node.result.type.shape, node.attributes["dimensions"]
    kept = [to for dim, to in zip(x.type.shape, dimensions, strict=True) if dim == shape[to]]
    summed = tuple(d for d in range(len(shape)) if d not in kept)
    dx = b("reduce", dy, dimensions=summed, kind="add") if summed else dy
    order = tuple(int(i) for i in np.argsort(np.argsort(kept)))
    if order != tuple(range(len(order))):
        dx = b("transpose", dx, permutation=order)
    return (_reshaped(b, dx, x.type.shape),)


def _reshaped(b: Builder, x: Value, shape: Shape) -> Value:
    return x if x.type.shape == shape else b("reshape", x, shape=shape)


define(
    "broadcast_in_dim",
    Family.MOVEMENT,
    operands="x",
    attributes={"shape": DIMS, "dimensions": INTS},
    infer=_infer_broadcast,
    reference=_broadcast,
    gradient=_broadcast_gradient,
    traits=Traits(
        storage=Storage.RECOMPUTED,
        weightless=True,
        stays_in_loops=True,
        compact=True,
        repeats_numbers=True,
        named_in_steps=False,
        keeps_numbers=True,
    ),
    samples=[
        Sample((TensorType.of("f32"),), {"shape": (_N, 3), "dimensions": ()}),
        Sample((TensorType.of("f32", 3),), {"shape": (_N, 3), "dimensions": (1,)}),
        Sample((TensorType.of("f64", "N"),), {"shape": (_N, 3), "dimensions": (0,)}),
        Sample((TensorType.of("f64", 2, 1, 4),), {"shape": (2, 3, 4), "dimensions": (0, 1, 2)}),
        Sample((TensorType.of("f64", 2, 3),), {"shape": (3, 4, 2), "dimensions": (2, 0)}),
        Sample((TensorType.of("f64", 1, 3, 2),), {"shape": (3, 2, 5), "dimensions": (2, 0, 1)}),
        Sample((TensorType.of("f64", 4, 2, 3),), {"shape": (2, 3, 5, 4), "dimensions": (3, 0, 1)}),
        Sample((TensorType.of("f64", 4, 2),), {"shape": (4, 2), "dimensions": (0, 1)}),
        Sample((TensorType.of("bool", 3),), {"shape": (2, 3), "dimensions": (1,)}),
    ],
)


def _infer_reshape(x: TensorType, *, shape: Shape) -> TensorType:
    expect_shape(shape)
    if element_count(shape) != x.elements:
        raise ShapeError(
            f"shape: expected {x.elements!r} elements, as {x} has, got {list(shape)}: {element_count(shape)!r}"
        )
    return x.with_shape(shape)


define(
    "reshape",
    Family.MOVEMENT,
    operands="x",
    attributes={"shape": DIMS},
    infer=_infer_reshape,
    reference=lambda x, *, shape: x.reshape(shape),
    gradient=lambda b, node, dys: (b("reshape", the_cotangent(dys), shape=node.operands[0].type.shape),),
    traits=Traits(storage=Storage.ALIAS, weightless=True, keeps_numbers=True, keeps_order=True, additive=True),
    samples=[
        Sample((TensorType.of("f32", "N", 4, 3),), {"shape": (_N, 12)}),
        Sample((TensorType.of("f32", "N", 4, 3),), {"shape": (4 * _N, 3)}),
        Sample((TensorType.of("f64", 6),), {"shape": (2, 1, 3)}),
        Sample((TensorType.of("f64", 1),), {"shape": ()}),
    ],
)


def _infer_transpose(x: TensorType, *, permutation: Sequence[int]) -> TensorType:
    if sorted(permutation) != list(range(x.rank)):
        raise ShapeError(f"permutation: expected the dimensions of {x} in some order, got {list(permutation)}")
    return x.with_shape(x.shape[d] for d in permutation)


def _transpose_gradient(b: Builder, node: Node, cotangents: Cotangents) -> Cotangents:
    permutation = node.attributes["permutation"]
    inverse = tuple(permutation.index(d) for d in range(len(permutation)))
    return (b("transpose", the_cotangent(cotangents), permutation=inverse),)


define(
    "transpose",
    Family.MOVEMENT,
    operands="x",
    attributes={"permutation": INTS},
    infer=_infer_transpose,
    reference=lambda x, *, permutation: x.transpose(permutation),
    gradient=_transpose_gradient,
    traits=Traits(fuses_as_map=True, keeps_numbers=True, additive=True),
    samples=[
        Sample((TensorType.of("f32", "N", 3),), {"permutation": (1, 0)}),
        Sample((TensorType.of("f64", 2, 3, 4),), {"permutation": (1, 2, 0)}),
        Sample((TensorType.of("f64"),), {"permutation": ()}),
    ],
)


def _infer_reverse(x: TensorType, *, dimensions: Sequence[int]) -> TensorType:
    check_dimensions("dimensions", dimensions, x.rank)
    return x


define(
    "reverse",
    Family.MOVEMENT,
    operands="x",
    attributes={"dimensions": INTS},
    infer=_infer_reverse,
    reference=lambda x, *, dimensions: np.flip(x, tuple(dimensions)),
    gradient=lambda b, node, dys: (b("reverse", the_cotangent(dys), dimensions=node.attributes["dimensions"]),),
    traits=Traits(fuses_as_map=True, keeps_numbers=True),
    samples=[
        Sample((TensorType.of("f32", "N", 3),), {"dimensions": (0,)}),
        Sample((TensorType.of("f64", 2, 3, 4),), {"dimensions": (2, 0)}),
        Sample((TensorType.of("f64", 2),), {"dimensions": ()}),
    ],
)
