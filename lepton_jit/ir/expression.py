"""Arithmetic on the values of a graph under construction, as formulas are written."""

from __future__ import annotations

from typing import Any

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import DType, TensorType

__all__ = ["Expression", "select"]

Number = int | float | bool


class Expression:
    """A value and the builder that it grows in; operators and calls add elementwise nodes.

    >>> b = Builder()
    >>> x = Expression(b, b.input("x", TensorType.of("f32", 3)))
    >>> y = x * x("logistic")
    >>> y.value
    %1: f32[3]
    """

    __slots__ = ("builder", "value")
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, builder: Builder, value: Value) -> None:
        self.builder = builder
        self.value = value

    @property
    def type(self) -> TensorType:
        return self.value.type

    def __call__(self, op: str, *others: Expression | Number, **attributes: Any) -> Expression:
        """`op(self, *others)`."""
        return Expression(self.builder, self.builder(op, self.value, *map(_operand, others), **attributes))

    def reversed(self, op: str, other: Number) -> Expression:
        """`op(other, self)`."""
        return Expression(self.builder, self.builder(op, other, self.value))

    def convert(self, dtype: DType) -> Expression:
        return self("convert", dtype=dtype)

    def broadcast(self, like: Expression, dimensions: tuple[int, ...]) -> Expression:
        """Dimension `i` becomes `dimensions[i]` of `like`."""
        return Expression(self.builder, self.builder.broadcast(self.value, like.type.shape, dimensions))

    def sum(self, dimensions: tuple[int, ...]) -> Expression:
        return self("reduce", dimensions=dimensions, kind="add") if dimensions else self

    def __add__(self, other: Expression | Number) -> Expression:
        return self("add", other)

    def __sub__(self, other: Expression | Number) -> Expression:
        return self("subtract", other)

    def __mul__(self, other: Expression | Number) -> Expression:
        return self("multiply", other)

    def __truediv__(self, other: Expression | Number) -> Expression:
        return self("divide", other)

    def __radd__(self, other: Number) -> Expression:
        return self.reversed("add", other)

    def __rsub__(self, other: Number) -> Expression:
        return self.reversed("subtract", other)

    def __rmul__(self, other: Number) -> Expression:
        return self.reversed("multiply", other)

    def __rtruediv__(self, other: Number) -> Expression:
        return self.reversed("divide", other)

    def __neg__(self) -> Expression:
        return self("negate")

    def __eq__(self, other: Expression | Number) -> Expression:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self("compare", other, direction="EQ")

    def __ne__(self, other: Expression | Number) -> Expression:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self("compare", other, direction="NE")

    def __gt__(self, other: Expression | Number) -> Expression:
        return self("compare", other, direction="GT")

    def __ge__(self, other: Expression | Number) -> Expression:
        return self("compare", other, direction="GE")

    def __lt__(self, other: Expression | Number) -> Expression:
        return self("compare", other, direction="LT")

    def __le__(self, other: Expression | Number) -> Expression:
        return self("compare", other, direction="LE")


def select(predicate: Expression, yes: Expression | Number, no: Expression | Number) -> Expression:
    """`yes` where the predicate holds, else `no`; at least one of them is a tensor."""
    builder = predicate.builder
    if isinstance(yes, Expression) and not isinstance(no, Expression):
        return Expression(builder, builder("select", predicate.value, yes.value, no))
    return Expression(builder, builder("select", predicate.value, _operand(yes), _operand(no)))


def _operand(other: Expression | Number) -> Value | Number:
    return other.value if isinstance(other, Expression) else other
