"""Philox-4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as
1, 2, 3" (2011)."""

from __future__ import annotations

from typing import Any

__all__ = ["philox"]

_ROUNDS = 10
_MULTIPLIER_0 = 0xD2511F53
_MULTIPLIER_1 = 0xCD9E8D57
_WEYL_0 = 0x9E3779B9
_WEYL_1 = 0xBB67AE85


def philox(m: Any, key_lo: Any, key_hi: Any, e_lo: Any, e_hi: Any, stream: Any, step: Any) -> Any:
    """Word 0 of Philox-4x32-10 with counter (e_lo, e_hi, stream, step) and key (key_lo, key_hi); all values u32."""
    x0, x1, x2, x3 = e_lo, e_hi, stream, step
    k0, k1 = key_lo, key_hi
    for number in range(_ROUNDS):
        if number:
            k0 = m.add(k0, m.constant(_WEYL_0, "u32"))
            k1 = m.add(k1, m.constant(_WEYL_1, "u32"))
        high0, low0 = _wide_product(m, x0, _MULTIPLIER_0)
        high1, low1 = _wide_product(m, x2, _MULTIPLIER_1)
        x0, x1, x2, x3 = m.xor(m.xor(high1, x1), k0), low1, m.xor(m.xor(high0, x3), k1), low0
    return x0


def _wide_product(m: Any, a: Any, multiplier: int) -> tuple[Any, Any]:
    """The high and the low word of a 32 by 32 bit product."""
    product = m.multiply(m.convert(a, dtype="u64"), m.constant(multiplier, "u64"))
    high = m.convert(m.shift_right_logical(product, m.constant(32, "u64")), dtype="u32")
    return high, m.convert(product, dtype="u32")
