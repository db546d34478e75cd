"""dot_general: products of two tensors summed over shared dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lepton_jit.errors import DTypeError, ShapeError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import Family, Sample
from lepton_jit.ir.ops.rules import INTS, check_dimensions, define, expect_dtype, the_cotangent
from lepton_jit.ir.types import DTYPES, DType, TensorType, dtype_of

Dims = Sequence[int]


def type_of_sums(dtype: DType) -> DType:
    """The type of a sum of products: that of the operands, but 32 bits wide for narrower integers, which would wrap.

    >>> (
    ...     type_of_sums(DTYPES["i8"]),
    ...     type_of_sums(DTYPES["u16"]),
    ...     type_of_sums(DTYPES["i64"]),
    ...     type_of_sums(DTYPES["f32"]),
    ... )
    (i32, u32, i64, f32)
    """
    if dtype.is_float or dtype.bytes >= 4:
        return dtype
    return DTYPES["i32" if dtype.kind == "signed" else "u32"]


def free_dimensions(rank: int, *used: Dims) -> tuple[int, ...]:
    """The dimensions that are in none of the lists."""
    taken = {d for dims in used for d in dims}
    return tuple(d for d in range(rank) if d not in taken)


def _infer(
    a: TensorType,
    b: TensorType,
    *,
    lhs_batching: Dims,
    rhs_batching: Dims,
    lhs_contracting: Dims,
    rhs_contracting: Dims,
) -> TensorType:
    if a.dtype != b.dtype:
        raise DTypeError(f"expected operands of one dtype, got {a} and {b}")
    expect_dtype(a, "float", "signed", "unsigned")
    check_dimensions("lhs_batching and lhs_contracting", (*lhs_batching, *lhs_contracting), a.rank)
    check_dimensions("rhs_batching and rhs_contracting", (*rhs_batching, *rhs_contracting), b.rank)
    _expect_equal("batching", a, lhs_batching, b, rhs_batching)
    _expect_equal("contracting", a, lhs_contracting, b, rhs_contracting)
    return a.with_dtype(type_of_sums(a.dtype)).with_shape(
        [a.shape[d] for d in lhs_batching]
        + [a.shape[d] for d in free_dimensions(a.rank, lhs_batching, lhs_contracting)]
        + [b.shape[d] for d in free_dimensions(b.rank, rhs_batching, rhs_contracting)]
    )


def _expect_equal(what: str, a: TensorType, lhs: Dims, b: TensorType, rhs: Dims) -> None:
    if [a.shape[d] for d in lhs] != [b.shape[d] for d in rhs]:
        raise ShapeError(f"{what}: expected equal dimensions, got {list(lhs)} of {a} against {list(rhs)} of {b}")


def _dot_general(
    a: np.ndarray,
    b: np.ndarray,
    *,
    lhs_batching: Dims,
    rhs_batching: Dims,
    lhs_contracting: Dims,
    rhs_contracting: Dims,
) -> np.ndarray:
    a_free = free_dimensions(a.ndim, lhs_batching, lhs_contracting)
    b_free = free_dimensions(b.ndim, rhs_batching, rhs_contracting)
    batch = [a.shape[d] for d in lhs_batching]
    rows, columns = [a.shape[d] for d in a_free], [b.shape[d] for d in b_free]
    sizes = math.prod(batch), math.prod(rows), math.prod(columns), math.prod(a.shape[d] for d in lhs_contracting)
    left = a.transpose((*lhs_batching, *a_free, *lhs_contracting)).reshape(sizes[0], sizes[1], sizes[3])
    right = b.transpose((*rhs_batching, *rhs_contracting, *b_free)).reshape(sizes[0], sizes[3], sizes[2])
    return np.matmul(left, right, dtype=type_of_sums(dtype_of(a.dtype)).numpy).reshape((*batch, *rows, *columns))


def _gradient(b: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    dy, (lhs, rhs) = the_cotangent(cotangents), node.operands
    lhs_dims = node.attributes["lhs_batching"], node.attributes["lhs_contracting"]
    rhs_dims = node.attributes["rhs_batching"], node.attributes["rhs_contracting"]
    batch = len(lhs_dims[0])
    rows = lhs.type.rank - batch - len(lhs_dims[1])
    of_rows = tuple(range(batch, batch + rows))
    of_columns = tuple(range(batch + rows, dy.type.rank))
    return (
        _operand_gradient(b, dy, of_columns, rhs, rhs_dims, lhs_dims),
        _operand_gradient(b, dy, of_rows, lhs, lhs_dims, rhs_dims),
    )


def _operand_gradient(
    b: Builder, dy: Value, summed: Dims, other: Value, other_dims: tuple[Dims, Dims], own_dims: tuple[Dims, Dims]
) -> Value:
    """dy times the other operand, summed over the other's free dimensions, in the order of one's own dimensions."""
    (other_batching, other_contracting), (batching, contracting) = other_dims, own_dims
    rank = len(batching) + len(contracting) + dy.type.rank - len(batching) - len(summed)
    free = free_dimensions(rank, batching, contracting)
    # The product has the contracted dimensions in the order in which the other operand has them.
    contracted = tuple(contracting[i] for i in sorted(range(len(contracting)), key=lambda i: other_contracting[i]))
    first = (dy, tuple(range(len(batching))), summed)
    second = (other, other_batching, free_dimensions(other.type.rank, other_batching, other_contracting))
    layout = (*batching, *free, *contracted)
    natural = tuple(range(rank))
    turned = (*batching, *contracted, *free)
    # The other way round no transpose is needed, or one that leaves the last dimension where it is.
    if turned == natural or (layout[-1:] != natural[-1:] and turned[-1:] == natural[-1:]):
        first, second, layout = second, first, turned
    product = b(
        "dot_general",
        first[0],
        second[0],
        lhs_batching=first[1],
        rhs_batching=second[1],
        lhs_contracting=first[2],
        rhs_contracting=second[2],
    )
    order = tuple(layout.index(d) for d in natural)
    return product if order == natural else b("transpose", product, permutation=order)


define(
    "dot_general",
    Family.CONTRACTION,
    operands="a b",
    attributes={"lhs_batching": INTS, "rhs_batching": INTS, "lhs_contracting": INTS, "rhs_contracting": INTS},
    infer=_infer,
    reference=_dot_general,
    gradient=_gradient,
    samples=[
        Sample(
            (TensorType.of(dtype, *a), TensorType.of(dtype, *b)),
            {"lhs_batching": lb, "rhs_batching": rb, "lhs_contracting": lc, "rhs_contracting": rc},
        )
        for dtype, a, b, lb, rb, lc, rc in (
            ("f32", ("N", 5), (5, 4), (), (), (1,), (0,)),
            ("f64", ("N", 5), ("N", 4), (), (), (0,), (0,)),
            ("f64", (3, 5), (4, 5), (), (), (1,), (1,)),
            ("f64", ("N", 2, 3, 4), ("N", 2, 5, 4), (0, 1), (0, 1), (3,), (3,)),
            ("f64", (3, 2, 4), (5, 2, 3), (1,), (1,), (0,), (2,)),
            ("f64", (3, 4, 5), (4, 2, 3), (), (), (0, 1), (2, 0)),
            ("f64", (2, 3, 4, 5), (5, 3, 2, 6), (0, 1), (2, 1), (3,), (0,)),
            ("f64", (2, 3, 4), (4, 3, 2), (1, 0), (1, 2), (2,), (0,)),
            ("f64", (3,), (3,), (), (), (0,), (0,)),
            ("f64", (3,), (2,), (), (), (), ()),
            ("f64", (3, 0), (0, 2), (), (), (1,), (0,)),
            ("i8", (3, 4), (4, 2), (), (), (1,), (0,)),
            ("u16", ("N", 5), (5, 4), (), (), (1,), (0,)),
            ("i64", (3, 4), (4, 2), (), (), (1,), (0,)),
        )
    ],
)
