"""Numbers at the edges of every element type, and what it means that two arrays are the same bit for bit."""

from __future__ import annotations

import numpy as np

from lepton_jit.ir.types import DType
from tests.ir.ulp import special_values

__all__ = ["edges", "same_bits"]


def edges(dtype: DType) -> np.ndarray:
    """Both zeros, denormals, the ends of the range, infinities and NaN; of integers the ends and what is near zero."""
    if dtype.is_float:
        return special_values(dtype.numpy.type)
    if dtype.kind == "bool":
        return np.array([False, True])
    limits = np.iinfo(dtype.numpy)
    near_zero = [n for n in (-3, -2, -1, 0, 1, 2, 3, 7, 8) if limits.min <= n]
    return np.array([limits.min, limits.min + 1, *near_zero, limits.max - 1, limits.max], dtype.numpy)


def same_bits(found: np.ndarray, expected: np.ndarray, *, sign_of_zero: bool = True) -> bool:
    """Whether two arrays hold the same numbers: NaN where there is NaN, and zeros of the same sign if that counts."""
    if (found.dtype, found.shape) != (expected.dtype, expected.shape):
        return False
    if found.dtype.kind != "f":
        return np.array_equal(found, expected)
    signs = ~np.isnan(expected) if sign_of_zero else np.zeros(expected.shape, bool)
    return np.array_equal(found, expected, equal_nan=True) and np.array_equal(
        np.signbit(found[signs]), np.signbit(expected[signs])
    )
