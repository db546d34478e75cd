"""x**y."""

from __future__ import annotations

import math
from typing import Any

from lepton_jit.ir.ops.native.exponential import exponential
from lepton_jit.ir.ops.native.logarithm import log
from lepton_jit.ir.ops.native.machine import float_format

__all__ = ["power"]


def power(m: Any, x: Any, y: Any) -> Any:
    """x**y with the special cases of C's `pow`; UnsupportedError for integers."""
    form = float_format("power", x)
    if form.dtype == "f32":
        wide = power(m, m.convert(x, dtype="f64"), m.convert(y, dtype="f64"))
        return m.convert(wide, dtype="f32")
    constant = lambda value: m.constant(value, form.dtype)  # noqa: E731
    size = exponential(m, m.multiply(y, log(m, m.abs(x))))
    half = m.multiply(y, constant(0.5))
    is_integer = m.compare(m.floor(y), y, direction="EQ")
    is_odd = m.and_(is_integer, m.compare(m.floor(half), half, direction="NE"))
    bits = m.bitcast_convert(size, dtype=form.bits)
    sign = m.and_(m.bitcast_convert(x, dtype=form.bits), m.constant(form.sign_mask, form.bits))
    signed = m.bitcast_convert(m.xor(bits, sign), dtype=form.dtype)
    result = m.select(is_odd, signed, size)
    finite_negative = m.and_(
        m.compare(x, constant(0.0), direction="LT"), m.compare(x, constant(-math.inf), direction="GT")
    )
    result = m.select(m.and_(finite_negative, m.not_(is_integer)), constant(math.nan), result)
    is_one = m.or_(
        m.compare(x, constant(1.0), direction="EQ"), m.compare(y, constant(0.0), direction="EQ")
    )
    minus_one = m.and_(
        m.compare(x, constant(-1.0), direction="EQ"), m.compare(m.abs(y), constant(math.inf), direction="EQ")
    )
    return m.select(m.or_(is_one, minus_one), constant(1.0), result)
