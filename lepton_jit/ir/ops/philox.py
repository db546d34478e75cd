"""Random bits: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), by counter."""

from __future__ import annotations

import numpy as np

from lepton_jit.errors import ArgumentError
from lepton_jit.ir.op import NOT_DIFFERENTIABLE, Family, Sample
from lepton_jit.ir.ops.rules import DIMS, INT, define, expect_dtype, expect_scalar, expect_shape
from lepton_jit.ir.traits import Storage, Traits
from lepton_jit.ir.types import DTYPES, Poly, Shape, TensorType

__all__ = ["philox"]

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

Words = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Four words of random bits for every counter of four words; everything is below 2^32 and of dtype u64.

    >>> [hex(int(w)) for w in philox((np.uint64(0),) * 4, (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (p1 >> _32) ^ c1 ^ np.uint64(k0), p1 & _LOW, (p0 >> _32) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def _infer(seed: TensorType, step: TensorType, *, stream: int, shape: Shape) -> TensorType:
    expect_scalar(seed, "seed")
    expect_scalar(step, "step")
    expect_dtype(seed, "u64", what="seed")
    expect_dtype(step, "i64", what="step")
    if not 0 <= stream < 2**32:
        raise ArgumentError(f"stream: expected 0 to 2^32 - 1, got {stream}")
    expect_shape(shape)
    return TensorType(DTYPES["u32"], tuple(shape))


def _bits(seed: np.ndarray, step: np.ndarray, *, stream: int, shape: tuple[int, ...]) -> np.ndarray:
    """Element e in row-major order: word 0 for the counter (e low, e high, stream, step low), with the seed as key."""
    element = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64)
    words = (
        element & _LOW,
        element >> _32,
        np.full_like(element, stream),
        np.full_like(element, int(step) & 0xFFFFFFFF),
    )
    first, *_ = philox(words, (int(seed) & 0xFFFFFFFF, int(seed) >> 32))
    return first.astype(np.uint32).reshape(shape)


define(
    "rng_bit_generator",
    Family.MOVEMENT,
    operands="seed step",
    attributes={"stream": INT, "shape": DIMS},
    infer=_infer,
    reference=_bits,
    gradient=NOT_DIFFERENTIABLE,
    traits=Traits(storage=Storage.RECOMPUTED),
    samples=[
        Sample((TensorType.of("u64"), TensorType.of("i64")), {"stream": 0, "shape": (Poly.symbol("N"), 3)}),
        Sample((TensorType.of("u64"), TensorType.of("i64")), {"stream": 2**32 - 1, "shape": (17,)}),
        Sample((TensorType.of("u64"), TensorType.of("i64")), {"stream": 5, "shape": ()}),
    ],
)
