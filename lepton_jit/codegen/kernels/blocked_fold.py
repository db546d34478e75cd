"""Fold many terms in loops; sums go by blocks, and by blocks of blocks, so that their errors hardly grow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lepton_jit.codegen.loops.ir import Affine, Atom
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder, identity_of
from lepton_jit.ir.types import Dim, DType

# Each addition of a chain loses up to half a unit: 50,176 equal float32 in one chain are off by up to 7e-4 of their
# sum, and in blocks of 16, those in blocks of 16 and so on, by 5e-7. Blocks of 32 lose twice as much, of 128 twelve
# times.
FOLD_BLOCK = 16
# Blocks of FOLD_BLOCK**LEVELS terms follow each other in one chain.
LEVELS = 4

Totals = list[Atom]
Kinds = Sequence[tuple[str, DType]]


def first_totals(kinds: Kinds, lanes: int) -> Totals:
    """The values that reductions of these kinds start from."""
    return [replace(identity_of(kind, dtype), lanes=lanes) for kind, dtype in kinds]


def combined(k: KernelBuilder, kinds: Kinds, totals: Sequence[Atom], part: Sequence[Atom]) -> Totals:
    """Combine the totals of two parts."""
    return [k.apply(kind, t, p) for (kind, _), t, p in zip(kinds, totals, part, strict=True)]


def fold_loop(
    k: KernelBuilder,
    kinds: Kinds,
    ends: tuple[Affine | Dim, Affine | Dim],
    step: int,
    most: Dim,
    totals: Sequence[Atom],
    combine: Callable[[Affine, Totals], Sequence[Atom]],
    terms: int = 1,
    *,
    blocks: bool = True,
) -> Totals:
    """Combine `combine(i, totals)` for i from ends[0] to ends[1] into totals, in blocks if that makes sums more exact.

    `most` bounds the length of the loop, and each iteration adds `terms` numbers to a total, one after the other.
    The cut into blocks depends on these alone. Blocks start from nothing, so chains of additions are short: an error
    grows with the logarithm of the number of terms as long as FOLD_BLOCK**LEVELS are enough, and beyond that with their
    quotient.
    """
    start, stop = map(Affine.of, ends)
    length = (stop - start).constant if not (stop - start).terms else None
    lanes = totals[0].lanes

    def fold(start: Affine, stop: Affine, sizes: Sequence[int], totals: Sequence[Atom]) -> Totals:
        if not sizes:
            with k.carried_loop(start, stop, step, totals) as (i, carried, following):
                following[:] = combine(i, list(carried))
            return list(carried)
        *smaller, size = sizes
        with k.carried_loop(start, stop, size, totals) as (i, carried, following):
            nothing = first_totals(kinds, lanes)
            if size == step:
                part = combine(i, nothing)
            else:
                part = fold(i, end_of(i, size, stop), smaller, nothing)
            following[:] = combined(k, kinds, carried, part)
        return list(carried)

    def end_of(i: Affine, size: int, stop: Affine) -> Affine:
        if isinstance(length, int) and length % size == 0:
            return i + size
        return Affine.var(k.apply("minimum", k.index(i + size), k.index(stop)).name)

    return fold(start, stop, _block_sizes(kinds, step, most, terms) if blocks else (), totals)


def _block_sizes(kinds: Kinds, step: int, most: Dim, terms: int) -> list[int]:
    """The lengths of blocks, of blocks of blocks, and so on, innermost first; none where one chain is short."""
    if not any(kind in ("add", "multiply") and dtype.is_float for kind, dtype in kinds):
        return []
    sizes: list[int] = []
    size = step * max(FOLD_BLOCK // terms, 1)
    while len(sizes) < LEVELS and (size < most if isinstance(most, int) else len(sizes) < LEVELS - 1):
        sizes.append(size)
        size *= FOLD_BLOCK
    return sizes
