"""The FMA peak of several threads together, measured now."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from lepton_jit.codegen.llvm.peak import measure_peak
from lepton_jit.codegen.target import get_target

__all__ = ["fma_peak"]

# Times the 2.5 ms that one measurement takes: as long as a processor needs to settle on its frequency.
REPEATS = 8


def fma_peak(threads: int) -> float:
    """Floating-point operations per second on f32 vectors; the loop lets go of the interpreter's lock."""
    target = get_target("native")
    with ThreadPoolExecutor(threads) as pool:
        return max(sum(pool.map(measure_peak, [target] * threads)) for _ in range(REPEATS))
