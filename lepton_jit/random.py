"""Seeds: one number decides initial weights, the order of the rows and what dropout drops."""

from __future__ import annotations

import itertools
import os
import random as python_random
from typing import Any

import numpy as np

from lepton_jit.errors import ArgumentError

__all__ = ["generator", "next_seed", "set_random_seed"]

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # SplitMix64 (Steele, Lea, Flood 2014), as are the two factors below


class _SeedStream:
    def __init__(self, seed: int) -> None:
        # One step of the interpreter, so that no two threads draw the same number; a lock could be held in a fork.
        self._states = itertools.count(seed + _GOLDEN, _GOLDEN)

    def next(self) -> int:
        z = next(self._states) & _MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK
        return z ^ (z >> 31)


_stream = _SeedStream(int.from_bytes(os.urandom(8), "little"))


def set_random_seed(seed: int) -> None:
    """Seed this package, Python's `random` and NumPy's global generator: the same seed, the same bits.

    >>> set_random_seed(1)
    >>> first = next_seed()
    >>> set_random_seed(1)
    >>> next_seed() == first
    True
    """
    global _stream
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= _MASK:
        raise ArgumentError(f"set_random_seed: expected an integer of 0 to 2**64 - 1, got {seed!r}")
    _stream = _SeedStream(int(seed))
    python_random.seed(int(seed))
    np.random.seed(int(seed) & 0xFFFFFFFF)  # noqa: NPY002  Keras' function of this name does it too


def next_seed() -> int:
    """The next 64-bit seed of this process."""
    return _stream.next()


def generator(seed: int | None) -> np.random.Generator:
    """A generator from a seed, or from the next one of this process.

    Philox, because its bits are specified.
    """
    return np.random.Generator(np.random.Philox(key=next_seed() if seed is None else seed & _MASK))


def check_seed(owner: str, seed: Any) -> int | None:
    """A seed argument: None or an integer of 64 bits."""
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed <= _MASK:
        raise ArgumentError(f"{owner}: seed: expected None or an integer of 0 to 2**64 - 1, got {seed!r}")
    return int(seed)
