"""Rows of a table by number: the lookup, the sum that is its gradient, and the check of the numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lepton_jit.errors import ArgumentError, DTypeError, OutOfRangeError, ShapeError, UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import NOT_DIFFERENTIABLE, Family, Sample
from lepton_jit.ir.ops.rules import INT, check_dimensions, define, expect_dtype, the_cotangent
from lepton_jit.ir.traits import Storage, Traits
from lepton_jit.ir.types import TensorType

__all__ = ["INTEGERS"]

INTEGERS = ("signed", "unsigned")
_LIMIT = 2**31 - 1  # a row's number fits into 32 bits, whatever the dtype of the indices


def _expect_indices(indices: TensorType) -> None:
    expect_dtype(indices, *INTEGERS, what="indices")


def _clamped(indices: np.ndarray, size: int) -> np.ndarray:
    """The numbers of rows that exist, as StableHLO's `gather` takes them."""
    last = min(size - 1, np.iinfo(indices.dtype).max)
    return np.minimum(np.maximum(indices, 0), last).astype(np.int64)


# take


def _infer_take(table: TensorType, indices: TensorType, *, axis: int) -> TensorType:
    _expect_indices(indices)
    check_dimensions("axis", (axis,), table.rank)
    size = table.shape[axis]
    if not isinstance(size, int):
        raise UnsupportedError(f"table: expected a known number of rows in dimension {axis}, got {table}")
    if not 1 <= size <= _LIMIT:
        raise ShapeError(f"table: expected from 1 to {_LIMIT} rows in dimension {axis}, got {table}")
    return table.with_shape((*table.shape[:axis], *indices.shape, *table.shape[axis + 1 :]))


def _take(table: np.ndarray, indices: np.ndarray, *, axis: int) -> np.ndarray:
    return np.take(table, _clamped(indices, table.shape[axis]), axis)


def _take_gradient(b: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    table, indices = node.operands
    axis = node.attributes["axis"]
    dy = the_cotangent(cotangents)
    return b("scatter_add", dy, indices, axis=axis, size=table.type.shape[axis]), None


define(
    "take",
    Family.MOVEMENT,
    operands="table indices",
    attributes={"axis": INT},
    infer=_infer_take,
    reference=_take,
    gradient=_take_gradient,
    traits=Traits(fuses_as_map=True),
    samples=[
        Sample((TensorType.of(dtype, *table), TensorType.of(number, *indices)), {"axis": axis})
        for dtype, table, number, indices, axis in (
            ("f32", (4, 20), "i32", ("N", 5), 0),
            ("f64", (3, 2), "i64", (4,), 0),
            ("f64", (2, 3, 2), "u8", (), 1),
            ("f64", (2, 3), "i8", (2, 5), 1),
            ("f32", ("N", 3), "i32", (21,), 1),
            ("f32", (4,), "u64", ("N", 9), 0),
            ("i8", (1, 3), "i16", (2,), 0),
            ("bool", (3, 2), "u32", (0, 2), 0),
        )
    ],
)


# scatter_add


def _infer_scatter_add(updates: TensorType, indices: TensorType, *, axis: int, size: int) -> TensorType:
    _expect_indices(indices)
    expect_dtype(updates, "float", *INTEGERS, what="updates")
    check_dimensions("axis", (axis,), updates.rank - indices.rank + 1)
    end = axis + indices.rank
    if updates.shape[axis:end] != indices.shape:
        raise ShapeError(f"updates: expected the dimensions of {indices} from {axis} on, got {updates}")
    if not 1 <= size <= _LIMIT:
        raise ShapeError(f"size: expected from 1 to {_LIMIT} rows, got {size}")
    return updates.with_shape((*updates.shape[:axis], size, *updates.shape[end:]))


def _scatter_add(updates: np.ndarray, indices: np.ndarray, *, axis: int, size: int) -> np.ndarray:
    end = axis + indices.ndim
    result = np.zeros((*updates.shape[:axis], size, *updates.shape[end:]), updates.dtype)
    rows_first = np.moveaxis(result, axis, 0)
    leading = np.moveaxis(updates, range(axis, end), range(indices.ndim))
    np.add.at(rows_first, _clamped(indices, size), leading)
    return result


def _scatter_add_gradient(b: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    return b("take", the_cotangent(cotangents), node.operands[1], axis=node.attributes["axis"]), None


define(
    "scatter_add",
    Family.REDUCTION,
    operands="updates indices",
    attributes={"axis": INT, "size": INT},
    infer=_infer_scatter_add,
    reference=_scatter_add,
    gradient=_scatter_add_gradient,
    traits=Traits(accumulates=True),
    samples=[
        Sample((TensorType.of(dtype, *updates), TensorType.of(number, *indices)), {"axis": axis, "size": size})
        for dtype, updates, number, indices, axis, size in (
            ("f32", ("N", 5, 20), "i32", ("N", 5), 0, 4),
            ("f64", (9, 2), "i64", (9,), 0, 3),
            ("f64", (2, 2), "u8", (), 1, 3),
            ("f64", (2, 2, 5), "i8", (2, 5), 1, 3),
            ("f32", ("N", 21), "i32", (21,), 1, 3),
            ("f32", ("N", 9), "u64", ("N", 9), 0, 7),
            ("i8", (2, 3), "i16", (2,), 0, 1),
            ("i32", (0, 2, 3), "u32", (0, 2), 0, 3),
        )
    ],
)


# check_indices


def _infer_check(indices: TensorType, *, low: int, high: int) -> TensorType:
    _expect_indices(indices)
    limits = np.iinfo(indices.dtype.numpy)
    if low > high:
        raise ArgumentError(f"low: expected at most high, {high}, got {low}")
    if not (limits.min <= low and high <= limits.max):
        raise DTypeError(f"expected low and high that are numbers of {indices.dtype}, got {low} and {high}")
    return indices


def _check(indices: np.ndarray, *, low: int, high: int) -> np.ndarray:
    bad = (indices < low) | (indices > high)
    if bad.any():
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        raise OutOfRangeError(f"expected integers from {low} to {high}, got {indices[first]} at {list(first)}")
    return indices


define(
    "check_indices",
    Family.MOVEMENT,
    operands="indices",
    attributes={"low": INT, "high": INT},
    infer=_infer_check,
    reference=_check,
    gradient=NOT_DIFFERENTIABLE,
    traits=Traits(storage=Storage.ALIAS, weightless=True, keeps_numbers=True),
    samples=[
        Sample((TensorType.of("i32", "N", 5),), {"low": 0, "high": 3}),
        Sample((TensorType.of("i64", 70),), {"low": -7, "high": 2**40}),
        Sample((TensorType.of("u8"),), {"low": 0, "high": 255}),
        Sample((TensorType.of("i8", 2, 300),), {"low": -128, "high": 3}),
    ],
)
