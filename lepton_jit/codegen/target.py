"""Describe the machine that code is generated for: an instruction-set level, and what schedules derive from it."""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass

from lepton_jit.errors import ArgumentError

# The features of each level; a host that lacks one of them is not of that level.
# https://gitlab.com/x86-psABIs/x86-64-ABI (micro-architecture levels)
X86_64_V3_FEATURES = ("avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
X86_64_V4_FEATURES = (*X86_64_V3_FEATURES, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")


# The bytes of a cache line, the same on all levels.
LINE_BYTES = 64
# A tensor of so many elements does not stay in the caches of one core.
FAR_ELEMENTS = 1 << 19


@dataclass(frozen=True)
class Target:
    """An instruction-set level with its vector unit.

    `tile_rows` and `tile_vectors` are the largest register tile of a contraction: rows times vectors of accumulators
    (AVX2: 6 x 2 of 16 registers; AVX-512: 14 x 2 of 32). Results are the same bits on every machine of one level.
    """

    name: str
    triple: str
    cpu: str
    features: str
    vector_bytes: int
    tile_rows: int
    tile_vectors: int
    required: tuple[str, ...] = ()

    def lanes(self, bits: int) -> int:
        """The number of elements of `bits` bits in one vector register."""
        return self.vector_bytes * 8 // bits


# `-prefer-256-bit`: the level's own tuning splits 512-bit vectors in two, which halves a contraction's speed.
TARGETS = {
    target.name: target
    for target in (
        Target("x86-64-v4", "x86_64-unknown-linux-gnu", "x86-64-v4", "-prefer-256-bit", 64, 14, 2, X86_64_V4_FEATURES),
        Target("x86-64-v3", "x86_64-unknown-linux-gnu", "x86-64-v3", "", 32, 6, 2, X86_64_V3_FEATURES),
        Target("x86-64", "x86_64-unknown-linux-gnu", "x86-64", "", 16, 6, 2),
        Target("aarch64", "aarch64-unknown-linux-gnu", "generic", "", 16, 8, 2),
    )
}


def get_target(name: str) -> Target:
    """The target called `name`; `"native"` is the best level that this machine has.

    >>> get_target("x86-64-v3").lanes(32)
    8
    """
    if name == "native":
        return native_target()
    if name not in TARGETS:
        raise ArgumentError(f"target: expected 'native' or one of {', '.join(TARGETS)}, got {name!r}")
    return TARGETS[name]


@functools.cache
def native_target() -> Target:
    """The best level that this machine has, by its features and never by its name or vendor."""
    if platform.machine() in ("aarch64", "arm64"):
        return TARGETS["aarch64"]
    features = host_features()
    return next(t for t in TARGETS.values() if t.name != "aarch64" and features.issuperset(t.required))


@functools.cache
def host_features() -> frozenset[str]:
    """The names of the instruction-set features of this machine, as LLVM calls them."""
    import llvmlite.binding as llvm

    return frozenset(name for name, present in llvm.get_host_cpu_features().items() if present)
