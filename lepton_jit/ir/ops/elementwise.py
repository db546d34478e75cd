"""Elementwise operations: the factory, and the machine primitives (arithmetic, logic, comparison, selection)."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jit.errors import DTypeError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.expression import Expression, select
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import NOT_DIFFERENTIABLE, AttributeKind, Family, GradientRule, NoRule, Op, Sample
from lepton_jit.ir.ops.rules import DTYPE, choice, define, expect_dtype, expect_same, the_cotangent
from lepton_jit.ir.traits import ORDINARY, Cost, Traits
from lepton_jit.ir.types import DTYPES, DType, TensorType

__all__ = ["BITS", "FLOATS", "NUMBERS", "Formula", "elementwise", "formula_rule"]

FLOATS = ("float",)
NUMBERS = ("float", "signed", "unsigned")
INTEGERS = ("signed", "unsigned")
BITS = ("signed", "unsigned", "bool")

_ONE_INSTRUCTION = Traits(cost=Cost.CHEAP)

Formula = Callable[..., Expression | tuple[Expression | None, ...]]


def elementwise(
    name: str,
    reference: Callable[..., np.ndarray],
    *,
    gradient: Formula | NoRule,
    operands: str = "x",
    kinds: tuple[str, ...] = FLOATS,
    infer: Callable[..., TensorType] | None = None,
    attributes: Mapping[str, AttributeKind] | None = None,
    native: Callable[..., Any] | None = None,
    low: float = -2.0,
    high: float = 2.0,
    samples: Sequence[Sample] | None = None,
    traits: Traits = ORDINARY,
) -> Op:
    """Declare `result[i] = f(x[i], ...)` for operands of one type, whose dtype is one of `kinds`.

    `gradient(dy, y, x, ...)` gives the cotangents of the operands, written with Expressions. `native` says how the
    machine computes it, None for its primitives. `low` and `high` bound the operands of the samples.
    """

    def same_type(*types: TensorType, **_: Any) -> TensorType:
        expect_dtype(types[0], *kinds)
        return expect_same(*types)

    return define(
        name,
        Family.ELEMENTWISE,
        operands=operands,
        attributes=attributes,
        infer=infer or same_type,
        reference=reference,
        gradient=gradient if isinstance(gradient, NoRule) else formula_rule(gradient),
        samples=samples or _samples(len(operands.split()), kinds, low, high),
        native=native,
        traits=traits,
    )


def formula_rule(formula: Formula) -> GradientRule:
    """The gradient rule of an operation with one result, from `formula(dy, y, x, ..., **attributes)`."""

    def rule(builder: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
        values = (the_cotangent(cotangents), node.result, *node.operands)
        found = formula(*(Expression(builder, v) for v in values), **node.attributes)
        found = (found,) if isinstance(found, Expression) else found
        return tuple(None if e is None else e.value for e in found)

    return rule


def _samples(count: int, kinds: tuple[str, ...], low: float, high: float) -> tuple[Sample, ...]:
    types = [TensorType.of("f32", "N", 3), TensorType.of("f64", 2, 5), TensorType.of("f32")] if "float" in kinds else []
    types += [TensorType.of("i32", "N", 4), TensorType.of("i8", 7)] if "signed" in kinds else []
    types += [TensorType.of("u8", 2, 3), TensorType.of("u64", "N")] if "unsigned" in kinds else []
    types += [TensorType.of("bool", 2, "N")] if "bool" in kinds else []
    return tuple(Sample((t,) * count, low=low, high=high) for t in types)


def _truncating_divide(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Toward zero; for integers x / 0 = -1 (all bits set), and the smallest number / -1 = itself."""
    if a.dtype.kind == "f":
        return a / b
    rest = _remainder(a, b)
    return np.where(b == 0, ~np.zeros_like(a), (a - rest) // np.where(b == 0, np.ones_like(b), b))


def _remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The remainder with the sign of the dividend; for integers x % 0 = x."""
    if a.dtype.kind == "f":
        return np.fmod(a, b)
    return np.where(b == 0, a, np.fmod(a, np.where(b == 0, np.ones_like(b), b)))


def _shifted(a: np.ndarray, count: np.ndarray, shift: Callable[..., np.ndarray]) -> np.ndarray:
    """A shift by as many bits as there are, or more, gives 0; the count is read without sign."""
    unsigned = np.dtype(f"u{a.dtype.itemsize}")
    bits, count = a.view(unsigned), count.view(unsigned)
    width = 8 * a.dtype.itemsize
    kept = shift(bits, np.minimum(count, unsigned.type(width - 1)))
    return np.where(count < width, kept, np.zeros_like(kept)).view(a.dtype)


def _truncated(x: Expression) -> Expression:
    return x("sign") * x("abs")("floor")


def _of_chosen(dy: Expression, chosen: Expression, tied: Expression) -> Expression:
    """The cotangent of the operand that maximum or minimum chose; equal operands share it."""
    return select(chosen, dy, select(tied, dy * 0.5, 0.0))


elementwise("abs", np.abs, kinds=("float", "signed"), gradient=lambda dy, y, x: dy * x("sign"), traits=_ONE_INSTRUCTION)
elementwise(
    "negate", np.negative, kinds=NUMBERS, gradient=lambda dy, y, x: -dy, traits=Traits(cost=Cost.CHEAP, additive=True)
)
elementwise("sqrt", np.sqrt, gradient=lambda dy, y, x: dy * 0.5 / y, low=0.1, high=4.0)
elementwise("floor", np.floor, gradient=NOT_DIFFERENTIABLE)
elementwise("ceil", np.ceil, gradient=NOT_DIFFERENTIABLE)
elementwise("round_nearest_even", np.rint, gradient=NOT_DIFFERENTIABLE)

elementwise(
    "add",
    np.add,
    operands="a b",
    kinds=NUMBERS,
    gradient=lambda dy, y, a, b: (dy, dy),
    traits=Traits(cost=Cost.CHEAP, additive=True),
)
elementwise(
    "subtract",
    np.subtract,
    operands="a b",
    kinds=NUMBERS,
    gradient=lambda dy, y, a, b: (dy, -dy),
    traits=_ONE_INSTRUCTION,
)
elementwise(
    "multiply",
    np.multiply,
    operands="a b",
    kinds=NUMBERS,
    gradient=lambda dy, y, a, b: (dy * b, dy * a),
    traits=_ONE_INSTRUCTION,
)
elementwise(
    "divide",
    _truncating_divide,
    operands="a b",
    kinds=NUMBERS,
    gradient=lambda dy, y, a, b: (dy / b, -(dy / b * y)),
    low=0.5,
)
elementwise(
    "maximum",
    np.maximum,
    operands="a b",
    kinds=NUMBERS,
    gradient=lambda dy, y, a, b: (_of_chosen(dy, a > b, a == b), _of_chosen(dy, b > a, a == b)),
    traits=_ONE_INSTRUCTION,
)
elementwise(
    "minimum",
    np.minimum,
    operands="a b",
    kinds=NUMBERS,
    gradient=lambda dy, y, a, b: (_of_chosen(dy, a < b, a == b), _of_chosen(dy, b < a, a == b)),
    traits=_ONE_INSTRUCTION,
)
elementwise(
    "remainder",
    _remainder,
    operands="a b",
    kinds=NUMBERS,
    gradient=lambda dy, y, a, b: (dy, -(dy * _truncated(a / b))),
    samples=[
        Sample((TensorType.of("f32", "N", 3), TensorType.of("f32", "N", 3)), low=0.5, high=3.0),
        Sample((TensorType.of("f64", 11), TensorType.of("f64", 11)), low=-3.0, high=3.0),
        Sample((TensorType.of("i32", 11), TensorType.of("i32", 11))),
        Sample((TensorType.of("u8", 11), TensorType.of("u8", 11))),
    ],
)

elementwise("not", np.invert, kinds=BITS, gradient=NOT_DIFFERENTIABLE)
elementwise("and", np.bitwise_and, operands="a b", kinds=BITS, gradient=NOT_DIFFERENTIABLE, traits=_ONE_INSTRUCTION)
elementwise("or", np.bitwise_or, operands="a b", kinds=BITS, gradient=NOT_DIFFERENTIABLE)
elementwise("xor", np.bitwise_xor, operands="a b", kinds=BITS, gradient=NOT_DIFFERENTIABLE)
elementwise(
    "shift_left",
    lambda a, count: _shifted(a, count, np.left_shift),
    operands="a count",
    kinds=INTEGERS,
    gradient=NOT_DIFFERENTIABLE,
)
elementwise(
    "shift_right_logical",
    lambda a, count: _shifted(a, count, np.right_shift),
    operands="a count",
    kinds=INTEGERS,
    gradient=NOT_DIFFERENTIABLE,
)

_COMPARISONS = {
    "EQ": operator.eq,
    "NE": operator.ne,
    "GE": operator.ge,
    "GT": operator.gt,
    "LE": operator.le,
    "LT": operator.lt,
}

elementwise(
    "compare",
    lambda a, b, *, direction: _COMPARISONS[direction](a, b),
    operands="a b",
    attributes={"direction": choice(*_COMPARISONS)},
    infer=lambda a, b, *, direction: expect_same(a, b).with_dtype(DTYPES["bool"]),
    gradient=NOT_DIFFERENTIABLE,
    samples=[
        *(Sample((TensorType.of("f32", "N", 3),) * 2, {"direction": d}) for d in _COMPARISONS),
        *(Sample((TensorType.of("i32", 9),) * 2, {"direction": d}) for d in _COMPARISONS),
        *(Sample((TensorType.of("bool", 9),) * 2, {"direction": d}) for d in ("EQ", "NE")),
    ],
    traits=_ONE_INSTRUCTION,
)


def _infer_select(predicate: TensorType, a: TensorType, b: TensorType) -> TensorType:
    expect_dtype(predicate, "bool", what="predicate")
    expect_same(predicate, expect_same(a, b).with_dtype(DTYPES["bool"]))
    return a


elementwise(
    "select",
    np.where,
    operands="predicate a b",
    infer=_infer_select,
    gradient=lambda dy, y, predicate, a, b: (None, select(predicate, dy, 0.0), select(predicate, 0.0, dy)),
    samples=[
        Sample((TensorType.of("bool", "N", 3), TensorType.of("f32", "N", 3), TensorType.of("f32", "N", 3))),
        Sample((TensorType.of("bool", 5), TensorType.of("f64", 5), TensorType.of("f64", 5))),
        Sample((TensorType.of("bool", 5), TensorType.of("i8", 5), TensorType.of("i8", 5))),
        Sample((TensorType.of("bool", 5), TensorType.of("bool", 5), TensorType.of("bool", 5))),
    ],
    traits=Traits(cost=Cost.CHEAP, keeps_numbers=True),
)


def _convert(x: np.ndarray, *, dtype: DType) -> np.ndarray:
    """Float to integer goes toward zero, to the nearest end of the range, and from NaN to 0; to bool: x != 0."""
    if dtype.kind == "bool":
        return x != 0
    if x.dtype.kind != "f" or dtype.is_float:
        return x.astype(dtype.numpy)
    limits = np.iinfo(dtype.numpy)
    # In floating point the largest integer may round up to one that does not fit: >= catches it.
    below, above = x <= limits.min, x >= limits.max
    inside = np.where(below | above | np.isnan(x), x.dtype.type(0), x).astype(dtype.numpy)
    return np.where(below, dtype.numpy.type(limits.min), np.where(above, dtype.numpy.type(limits.max), inside))


def _convert_gradient(builder: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    (dy,), (x,) = cotangents, node.operands
    if dy is None or not dy.type.dtype.is_float or not x.type.dtype.is_float:
        return (None,)
    return (builder("convert", dy, dtype=x.type.dtype),)


define(
    "convert",
    Family.ELEMENTWISE,
    operands="x",
    attributes={"dtype": DTYPE},
    infer=lambda x, *, dtype: x.with_dtype(dtype),
    reference=_convert,
    gradient=_convert_gradient,
    traits=Traits(cost=Cost.CHEAP, keeps_numbers=True, keeps_order=True),
    samples=[
        Sample((TensorType.of(source, "N", 5),), {"dtype": DTYPES[target]}, low=-300.0, high=300.0)
        for source, target in (
            ("f32", "f64"), ("f64", "f32"), ("f32", "f32"), ("f32", "i8"), ("f32", "u8"), ("f32", "i32"),
            ("f64", "i64"), ("f32", "u64"), ("f32", "bool"), ("bool", "f32"), ("i32", "f32"), ("u8", "f32"),
            ("i64", "f64"), ("i32", "i8"), ("i8", "u32"), ("u8", "i64"), ("u32", "u8"), ("i32", "bool"),
            ("bool", "i32"), ("u64", "f32"),
        )
    ],
)  # fmt: skip


def _infer_bitcast(x: TensorType, *, dtype: DType) -> TensorType:
    if x.dtype.bytes != dtype.bytes or "bool" in (x.dtype.kind, dtype.kind):
        raise DTypeError(f"expected a dtype of the width of {x.dtype}, got {dtype}")
    return x.with_dtype(dtype)


elementwise(
    "bitcast_convert",
    lambda x, *, dtype: x.view(dtype.numpy),
    attributes={"dtype": DTYPE},
    infer=_infer_bitcast,
    gradient=NOT_DIFFERENTIABLE,
    samples=[
        Sample((TensorType.of(source, "N", 5),), {"dtype": DTYPES[target]})
        for source, target in (
            ("f32", "i32"),
            ("i32", "f32"),
            ("f32", "u32"),
            ("f64", "i64"),
            ("u8", "i8"),
            ("i64", "u64"),
        )
    ],
    traits=Traits(weightless=True),
)
