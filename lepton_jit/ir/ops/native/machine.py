"""Define what native forms are written in: machine primitives, the layout of floats, polynomials, exact arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lepton_jit.errors import UnsupportedError

__all__ = [
    "FloatFormat",
    "Machine",
    "Scalar",
    "clamp_to",
    "copy_sign",
    "fast_two_sum",
    "float_format",
    "polynomial",
    "two_product",
    "two_sum",
]

Scalar = Any  # a scalar or vector of the machine; it has a `.dtype`


class Machine(Protocol):
    """The primitives. Operands of one call have one dtype; integers wrap; shifts are by less than the width."""

    def constant(self, value: float, dtype: str) -> Scalar: ...
    def add(self, a: Scalar, b: Scalar, /) -> Scalar: ...
    def subtract(self, a: Scalar, b: Scalar, /) -> Scalar: ...
    def multiply(self, a: Scalar, b: Scalar, /) -> Scalar: ...
    def divide(self, a: Scalar, b: Scalar, /) -> Scalar: ...
    def fma(self, a: Scalar, b: Scalar, c: Scalar, /) -> Scalar:
        """a*b + c, rounded once on targets with FMA and twice on others: no form may rely on one rounding."""
        ...

    def maximum(self, a: Scalar, b: Scalar, /) -> Scalar: ...
    def minimum(self, a: Scalar, b: Scalar, /) -> Scalar: ...
    def negate(self, x: Scalar, /) -> Scalar: ...
    def abs(self, x: Scalar, /) -> Scalar: ...
    def sqrt(self, x: Scalar, /) -> Scalar: ...
    def floor(self, x: Scalar, /) -> Scalar: ...
    def round_nearest_even(self, x: Scalar, /) -> Scalar: ...
    def compare(self, a: Scalar, b: Scalar, direction: str) -> Scalar: ...
    def select(self, p: Scalar, a: Scalar, b: Scalar, /) -> Scalar: ...
    def convert(self, x: Scalar, dtype: str) -> Scalar: ...
    def bitcast_convert(self, x: Scalar, dtype: str) -> Scalar: ...
    def and_(self, a: Scalar, b: Scalar, /) -> Scalar: ...
    def or_(self, a: Scalar, b: Scalar, /) -> Scalar: ...
    def not_(self, x: Scalar, /) -> Scalar: ...
    def xor(self, a: Scalar, b: Scalar, /) -> Scalar: ...
    def shift_left(self, a: Scalar, b: Scalar, /) -> Scalar: ...
    def shift_right_logical(self, a: Scalar, b: Scalar, /) -> Scalar: ...


@dataclass(frozen=True)
class FloatFormat:
    """The layout of a binary float, and the unsigned integer of the same width."""

    dtype: str
    bits: str
    width: int
    mantissa: int  # explicit bits of the mantissa
    bias: int  # of the exponent

    @property
    def sign_mask(self) -> int:
        return 1 << (self.width - 1)

    @property
    def mantissa_mask(self) -> int:
        return (1 << self.mantissa) - 1

    @property
    def one(self) -> int:
        """The bits of 1.0."""
        return self.bias << self.mantissa

    @property
    def rounder(self) -> float:
        """1.5 * 2**mantissa: t = x + rounder has round(x) in its low bits, and t - rounder is round(x)."""
        return 1.5 * 2.0**self.mantissa

    @property
    def smallest_normal(self) -> float:
        return 2.0 ** (1 - self.bias)


_FORMATS = {
    "f32": FloatFormat("f32", "u32", 32, 23, 127),
    "f64": FloatFormat("f64", "u64", 64, 52, 1023),
}


def float_format(op: str, x: Scalar) -> FloatFormat:
    """The format of a value's dtype; UnsupportedError where the operation has no native form."""
    name = x.dtype.name
    if name not in _FORMATS:
        raise UnsupportedError(f"{op}: expected an operand of {' or '.join(_FORMATS)}, got {name}")
    return _FORMATS[name]


def polynomial(m: Machine, x: Scalar, coefficients: Sequence[float]) -> Scalar:
    """c[0] + c[1]*x + c[2]*x**2 + ... by Horner's rule: one fma for each coefficient but the last."""
    *rest, result = (m.constant(c, x.dtype.name) for c in coefficients)
    for coefficient in reversed(rest):
        result = m.fma(result, x, coefficient)
    return result


def clamp_to(m: Machine, x: Scalar, low: float, high: float) -> Scalar:
    """x between two constants; NaN stays."""
    dtype = x.dtype.name
    return m.minimum(m.maximum(x, m.constant(low, dtype)), m.constant(high, dtype))


def copy_sign(m: Machine, magnitude: Scalar, x: Scalar, form: FloatFormat) -> Scalar:
    """`magnitude`, whose sign is plus or that of x, with the sign of x."""
    sign = m.and_(m.bitcast_convert(x, dtype=form.bits), m.constant(form.sign_mask, dtype=form.bits))
    return m.bitcast_convert(m.or_(m.bitcast_convert(magnitude, dtype=form.bits), sign), dtype=form.dtype)


def two_sum(m: Machine, a: Scalar, b: Scalar) -> tuple[Scalar, Scalar]:
    """a + b rounded, and what rounding lost (Knuth)."""
    total = m.add(a, b)
    virtual = m.subtract(total, a)
    rest = m.add(m.subtract(a, m.subtract(total, virtual)), m.subtract(b, virtual))
    return total, rest


def fast_two_sum(m: Machine, a: Scalar, b: Scalar) -> tuple[Scalar, Scalar]:
    """The same for |a| >= |b| (Dekker)."""
    total = m.add(a, b)
    return total, m.subtract(b, m.subtract(total, a))


def two_product(m: Machine, a: Scalar, b: Scalar) -> tuple[Scalar, Scalar]:
    """a * b rounded, and what rounding lost, for f64; by halves (Dekker), as it has to work without FMA."""
    product = m.multiply(a, b)
    (a_high, a_low), (b_high, b_low) = split_f64(m, a), split_f64(m, b)
    rest = m.subtract(m.multiply(a_high, b_high), product)
    rest = m.add(m.add(rest, m.multiply(a_high, b_low)), m.multiply(a_low, b_high))
    return product, m.add(rest, m.multiply(a_low, b_low))


def split_f64(m: Machine, x: Scalar) -> tuple[Scalar, Scalar]:
    """x as the exact sum of its upper 26 bits and the 27 below."""
    mask = m.constant((1 << 64) - (1 << 27), dtype="u64")
    high = m.bitcast_convert(m.and_(m.bitcast_convert(x, dtype="u64"), mask), dtype="f64")
    return high, m.subtract(x, high)
