"""Laws of the elementwise operations. A rule's docstring is its law; `c` is a constant, all else any value."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.types import DType
from lepton_jit.passes.rewriting.matching import constant_node, is_splat_of, producer_of, splat
from lepton_jit.passes.rewriting.rewrite import Rewriter, Rule

__all__ = ["ELEMENTWISE_RULES"]

_MIRRORED = {"EQ": "EQ", "NE": "NE", "GE": "LE", "LE": "GE", "GT": "LT", "LT": "GT"}
_NEGATED_INTEGER = {"EQ": "NE", "NE": "EQ", "GE": "LT", "LT": "GE", "GT": "LE", "LE": "GT"}
_NEGATED_FLOAT = {"EQ": "NE", "NE": "EQ"}  # nan compares false both ways, so `<` is not the contrary of `>=`


def constant_to_the_right(rewriter: Rewriter, node: Node) -> Value | None:
    """law: f(c, x) == f(x, c) for commutative f (the larger one of 0.0 and -0.0 may be either)"""
    x, y = node.operands
    if constant_node(rewriter, x) is None or constant_node(rewriter, y) is not None:
        return None
    return rewriter(node.op, y, x)


def add_zero(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x + 0 == x (as numbers: -0.0 stays -0.0)"""
    x, y = node.operands
    return x if is_splat_of(rewriter, y, 0) else None


def add_negated(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x + (-y) == x - y and (-x) + y == y - x"""
    x, y = node.operands
    if negated := producer_of(rewriter, y, "negate"):
        return rewriter("subtract", x, negated.operands[0])
    if negated := producer_of(rewriter, x, "negate"):
        return rewriter("subtract", y, negated.operands[0])
    return None


def subtract_zero(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x - 0 == x, but x - (-0.0) == x + 0.0, which has another zero for -0.0"""
    x, y = node.operands
    return x if is_splat_of(rewriter, y, 0) and repr(splat(rewriter, y)) != "-0.0" else None


def subtract_negated(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x - (-y) == x + y"""
    x, y = node.operands
    negated = producer_of(rewriter, y, "negate")
    return rewriter("add", x, negated.operands[0]) if negated else None


def subtract_itself(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x - x == 0 for integers (inf - inf is nan)"""
    x, y = node.operands
    return rewriter.full(0, x.type) if x == y and not x.type.dtype.is_float else None


def multiply_by_one(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x * 1 == x"""
    x, y = node.operands
    return x if is_splat_of(rewriter, y, 1) else None


def multiply_by_minus_one(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x * -1 == -x for floats"""
    x, y = node.operands
    return rewriter("negate", x) if x.type.dtype.is_float and is_splat_of(rewriter, y, -1) else None


def multiply_by_zero(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x * 0 == 0 for integers (inf * 0 is nan)"""
    x, y = node.operands
    return y if not x.type.dtype.is_float and is_splat_of(rewriter, y, 0) else None


def multiply_negated(rewriter: Rewriter, node: Node) -> Value | None:
    """law: (-x) * (-y) == x * y"""
    negated = [producer_of(rewriter, operand, "negate") for operand in node.operands]
    if negated[0] is None or negated[1] is None:
        return None
    return rewriter("multiply", negated[0].operands[0], negated[1].operands[0])


def divide_by_one(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x / 1 == x"""
    x, y = node.operands
    return x if is_splat_of(rewriter, y, 1) else None


def divide_by_power_of_two(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x / 2^k == x * 2^-k for floats: both round the same number once, where 2^-k is a normal number"""
    x, y = node.operands
    number = splat(rewriter, y)
    if not isinstance(number, float) or not math.isfinite(number) or abs(math.frexp(number)[0]) != 0.5:
        return None
    limits = np.finfo(x.type.dtype.numpy)
    if not float(limits.tiny) <= abs(1 / number) <= float(limits.max):
        return None
    return rewriter("multiply", x, rewriter.full(1 / number, y.type))


def operand_twice(rewriter: Rewriter, node: Node) -> Value | None:
    """law: f(x, x) == x for maximum, minimum, and, or"""
    x, y = node.operands
    return x if x == y else None


def xor_itself(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x xor x == 0"""
    x, y = node.operands
    return rewriter.full(0, x.type) if x == y else None


def neutral_zero(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x or 0 == x, x xor 0 == x, x << 0 == x, x >> 0 == x"""
    x, y = node.operands
    return x if is_splat_of(rewriter, y, 0) else None


def and_constant(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x and 0 == 0, x and true == x"""
    x, y = node.operands
    if is_splat_of(rewriter, y, 0):
        return y
    return x if x.type.dtype.kind == "bool" and is_splat_of(rewriter, y, 1) else None


def or_true(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x or true == true"""
    x, y = node.operands
    return y if x.type.dtype.kind == "bool" and is_splat_of(rewriter, y, 1) else None


def bound_at_infinity(rewriter: Rewriter, node: Node) -> Value | None:
    """law: maximum(x, -inf) == x, minimum(x, inf) == x"""
    x, y = node.operands
    return x if is_splat_of(rewriter, y, -math.inf if node.op == "maximum" else math.inf) else None


def power_of_constant(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x^0 == 1, x^1 == x, x^2 == x * x for floats"""
    x, y = node.operands
    exponent = splat(rewriter, y)
    if not isinstance(exponent, float) or exponent not in (0.0, 1.0, 2.0):
        return None
    return {0.0: lambda: rewriter.full(1, x.type), 1.0: lambda: x, 2.0: lambda: rewriter("multiply", x, x)}[exponent]()


def undone_twice(rewriter: Rewriter, node: Node) -> Value | None:
    """law: f(f(x)) == x for negate, not"""
    inner = producer_of(rewriter, node.operands[0], node.op)
    return inner.operands[0] if inner else None


def done_twice(rewriter: Rewriter, node: Node) -> Value | None:
    """law: f(f(x)) == f(x) for abs, floor, ceil, round_nearest_even, sign"""
    return node.operands[0] if producer_of(rewriter, node.operands[0], node.op) else None


def abs_of_negated(rewriter: Rewriter, node: Node) -> Value | None:
    """law: abs(-x) == abs(x)"""
    negated = producer_of(rewriter, node.operands[0], "negate")
    return rewriter("abs", negated.operands[0]) if negated else None


def not_compare(rewriter: Rewriter, node: Node) -> Value | None:
    """law: not (x == y) is x != y, and back; for integers also not (x < y) is x >= y, and so on"""
    compare = producer_of(rewriter, node.operands[0], "compare")
    if compare is None:
        return None
    contrary = _NEGATED_FLOAT if compare.operands[0].type.dtype.is_float else _NEGATED_INTEGER
    direction = contrary.get(str(compare.attributes["direction"]))
    return rewriter("compare", *compare.operands, direction=direction) if direction else None


def compare_constant_to_the_right(rewriter: Rewriter, node: Node) -> Value | None:
    """law: c < x is x > c, and so on"""
    x, y = node.operands
    if constant_node(rewriter, x) is None or constant_node(rewriter, y) is not None:
        return None
    return rewriter("compare", y, x, direction=_MIRRORED[str(node.attributes["direction"])])


def compare_itself(rewriter: Rewriter, node: Node) -> Value | None:
    """law: x == x, x <= x and x >= x are true, their contraries false, for integers (nan != nan)"""
    x, y = node.operands
    if x != y or x.type.dtype.is_float:
        return None
    return rewriter.full(node.attributes["direction"] in ("EQ", "LE", "GE"), node.result.type)


def compare_converted_bool(rewriter: Rewriter, node: Node) -> Value | None:
    """law: convert(p) != 0 is p, convert(p) == 0 is not p, for bool p"""
    x, y = node.operands
    converted = producer_of(rewriter, x, "convert")
    if converted is None or converted.operands[0].type.dtype.kind != "bool" or not is_splat_of(rewriter, y, 0):
        return None
    predicate = converted.operands[0]
    if node.attributes["direction"] == "NE":
        return predicate
    return rewriter("not", predicate) if node.attributes["direction"] == "EQ" else None


def select_constant(rewriter: Rewriter, node: Node) -> Value | None:
    """law: select(true, x, y) == x, select(false, x, y) == y"""
    predicate, x, y = node.operands
    number = splat(rewriter, predicate)
    return None if number is None else x if number else y


def select_alike(rewriter: Rewriter, node: Node) -> Value | None:
    """law: select(p, x, x) == x"""
    _, x, y = node.operands
    return x if x == y else None


def select_not(rewriter: Rewriter, node: Node) -> Value | None:
    """law: select(not p, x, y) == select(p, y, x)"""
    predicate, x, y = node.operands
    negated = producer_of(rewriter, predicate, "not")
    return rewriter("select", negated.operands[0], y, x) if negated else None


def select_bool(rewriter: Rewriter, node: Node) -> Value | None:
    """law: select(p, true, false) == p, select(p, false, true) == not p"""
    predicate, x, y = node.operands
    if x.type.dtype.kind != "bool":
        return None
    numbers = splat(rewriter, x), splat(rewriter, y)
    if numbers == (True, False):
        return predicate
    return rewriter("not", predicate) if numbers == (False, True) else None


def convert_nothing(rewriter: Rewriter, node: Node) -> Value | None:
    """law: convert(x) == x and bitcast_convert(x) == x for x of that type"""
    return node.operands[0] if node.operands[0].type == node.result.type else None


def convert_converted(rewriter: Rewriter, node: Node) -> Value | None:
    """law: convert(convert(x)) == convert(x) where the type in between holds every x, and where the result does as well
    if an integer goes through a float: as a float it would be brought into the range, as an integer it wraps
    """
    inner = producer_of(rewriter, node.operands[0], "convert")
    if inner is None:
        return None
    source, middle, result = (v.type.dtype for v in (inner.operands[0], inner.result, node.result))
    if not _holds_every(middle, source):
        return None
    if middle.is_float and _is_integer(source) and _is_integer(result) and not _holds_every(result, source):
        return None
    return rewriter("convert", inner.operands[0], dtype=result)


def bitcast_converted(rewriter: Rewriter, node: Node) -> Value | None:
    """law: bitcast_convert(bitcast_convert(x)) == bitcast_convert(x); float to float stays: it would get a gradient"""
    inner = producer_of(rewriter, node.operands[0], "bitcast_convert")
    if inner is None or (inner.operands[0].type.dtype.is_float and node.result.type.dtype.is_float):
        return None
    return rewriter("bitcast_convert", inner.operands[0], dtype=node.result.type.dtype)


def _is_integer(dtype: DType) -> bool:
    return dtype.kind in ("signed", "unsigned")


def _holds_every(wide: DType, narrow: DType) -> bool:
    if wide.is_float and not narrow.is_float:
        return narrow.kind == "bool" or 8 * narrow.bytes <= np.finfo(wide.numpy).nmant
    return np.can_cast(narrow.numpy, wide.numpy, "safe")


ELEMENTWISE_RULES: Mapping[str, Sequence[Rule]] = {
    "add": (constant_to_the_right, add_zero, add_negated),
    "subtract": (subtract_zero, subtract_negated, subtract_itself),
    "multiply": (constant_to_the_right, multiply_by_one, multiply_by_minus_one, multiply_by_zero, multiply_negated),
    "divide": (divide_by_one, divide_by_power_of_two),
    "maximum": (constant_to_the_right, bound_at_infinity, operand_twice),
    "minimum": (constant_to_the_right, bound_at_infinity, operand_twice),
    "and": (constant_to_the_right, and_constant, operand_twice),
    "or": (constant_to_the_right, neutral_zero, or_true, operand_twice),
    "xor": (constant_to_the_right, neutral_zero, xor_itself),
    "shift_left": (neutral_zero,),
    "shift_right_logical": (neutral_zero,),
    "power": (power_of_constant,),
    "negate": (undone_twice,),
    "not": (undone_twice, not_compare),
    "abs": (done_twice, abs_of_negated),
    "sign": (done_twice,),
    "floor": (done_twice,),
    "ceil": (done_twice,),
    "round_nearest_even": (done_twice,),
    "compare": (compare_constant_to_the_right, compare_itself, compare_converted_bool),
    "select": (select_constant, select_alike, select_not, select_bool),
    "convert": (convert_nothing, convert_converted),
    "bitcast_convert": (convert_nothing, bitcast_converted),
}
