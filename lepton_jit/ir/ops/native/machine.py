"""What native forms share: the layout of the float formats, polynomials, exact sums and products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lepton_jit.errors import UnsupportedError

__all__ = ["FloatFormat", "constants", "copy_sign", "float_format", "polynomial"]


@dataclass(frozen=True)
class FloatFormat:
    """The layout of a binary float and the unsigned integer of the same width."""

    dtype: str
    bits: str  # the integer dtype of the same width
    mantissa: int  # explicit mantissa bits
    bias: int  # of the exponent

    @property
    def sign_mask(self) -> int:
        return 1 << (2 * self.width - 1)

    @property
    def width(self) -> int:
        """Half of the number of bits."""
        return 16 if self.dtype == "f32" else 32

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


_FORMATS = {
    "f32": FloatFormat("f32", "u32", 23, 127),
    "f64": FloatFormat("f64", "u64", 52, 1023),
}


def float_format(op: str, x: Any) -> FloatFormat:
    """The format of a value's dtype; UnsupportedError where there is no native form."""
    name = x.dtype.name
    if name not in _FORMATS:
        raise UnsupportedError(f"{op}: expected an operand of {' or '.join(_FORMATS)}, got {name}")
    return _FORMATS[name]


def constants(m: Any, dtype: str) -> Any:
    """A function from a number to a constant of `dtype`."""
    return lambda value: m.constant(value, dtype)


def polynomial(m: Any, x: Any, coefficients: Sequence[float]) -> Any:
    """c[0] + c[1]*x + c[2]*x**2 + ... by Horner's rule: one fma for each coefficient but the last."""
    dtype = x.dtype.name
    *rest, result = (m.constant(c, dtype) for c in coefficients)
    for coefficient in reversed(rest):
        result = m.fma(result, x, coefficient)
    return result


def copy_sign(m: Any, magnitude: Any, x: Any, form: FloatFormat) -> Any:
    """`magnitude`, whose sign is that of x or plus, with the sign of x."""
    mask = m.constant(form.sign_mask, form.bits)
    sign = m.and_(m.bitcast_convert(x, dtype=form.bits), mask)
    return m.bitcast_convert(m.or_(m.bitcast_convert(magnitude, dtype=form.bits), sign), dtype=form.dtype)
