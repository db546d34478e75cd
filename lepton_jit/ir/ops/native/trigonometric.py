"""sine and cosine."""

from __future__ import annotations

from typing import Any

from lepton_jit.ir.ops.native.machine import float_format, polynomial

__all__ = ["cosine", "sine"]

# (sin(r) - r)/r**3 and (cos(r) - 1 + r**2/2)/r**4 in powers of r**2 on |r| <= pi/4
_SINE = (
    -0.1666666666666663,
    0.008333333333322063,
    -0.00019841269829542387,
    2.755731360443099e-06,
    -2.5050745021758826e-08,
    1.5896066559373722e-10,
)
_COSINE = (
    0.041666666666666595,
    -0.0013888888888872975,
    2.4801587288799977e-05,
    -2.7557314163955983e-07,
    2.0875698705070023e-09,
    -1.1358423314216656e-11,
)
_TWO_OVER_PI = 0.6366197723675814
# pi/2 in parts of 26 bits and a rest
_HALF_PI = (
    float.fromhex("0x1.921fb5p+0"),
    float.fromhex("0x1.110b46p-26"),
    float.fromhex("0x1.1a6263p-54"),
    6.36831716351095e-25,
)


def sine(m: Any, x: Any) -> Any:
    """sin(x)."""
    return _sine_of_quarter(m, x, "sine", 0)


def cosine(m: Any, x: Any) -> Any:
    """cos(x) = sin(x + pi/2)."""
    return _sine_of_quarter(m, x, "cosine", 1)


def _sine_of_quarter(m: Any, x: Any, op: str, quarters: int) -> Any:
    """sin(x + quarters*pi/2)."""
    form = float_format(op, x)
    if form.dtype == "f32":
        wide = _sine_of_quarter(m, m.convert(x, dtype="f64"), op, quarters)
        return m.convert(wide, dtype="f32")
    constant = lambda value: m.constant(value, "f64")  # noqa: E731
    bits = lambda value: m.constant(value, "u64")  # noqa: E731
    shifted = m.fma(x, constant(_TWO_OVER_PI), constant(form.rounder))
    n = m.subtract(shifted, constant(form.rounder))
    r = x
    for part in _HALF_PI:
        r = m.fma(n, constant(-part), r)
    z = m.multiply(r, r)
    odd = m.fma(m.multiply(r, z), polynomial(m, z, _SINE), r)
    even = m.fma(m.multiply(z, z), polynomial(m, z, _COSINE), m.fma(z, constant(-0.5), constant(1.0)))
    quadrant = m.add(m.bitcast_convert(shifted, dtype="u64"), bits(quarters))
    is_even = m.compare(m.and_(quadrant, bits(1)), bits(0), direction="EQ")
    flip = m.shift_left(m.and_(quadrant, bits(2)), bits(62))
    value = m.bitcast_convert(m.select(is_even, odd, even), dtype="u64")
    return m.bitcast_convert(m.xor(value, flip), dtype="f64")
