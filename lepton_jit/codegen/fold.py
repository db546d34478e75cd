"""Vectors combined lane by lane along one dimension: the inner loop of every reduction whose lanes lie in a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from lepton_jit.codegen.evaluate import LANE, tail_mask
from lepton_jit.codegen.kernel_builder import KernelBuilder, identity_of
from lepton_jit.codegen.loop_ir import Affine, Atom, Const
from lepton_jit.ir.types import Dim, DType

# Sums side by side in a row, which hide the latency of one; they are added in pairs at its end.
ACCUMULATORS = 4

Elements = Callable[[Affine, Atom | None], Sequence[Atom]]  # (index with lanes, mask) -> a value for each reduction
Totals = list[list[Atom]]  # by reduction, then by accumulator


def first_totals(kinds: Sequence[tuple[str, DType]], lanes: int) -> Totals:
    """What reductions of these kinds start from."""
    return [[replace(identity_of(kind, dtype), lanes=lanes)] * ACCUMULATORS for kind, dtype in kinds]


def fold_row(
    k: KernelBuilder,
    kinds: Sequence[tuple[str, DType]],
    length: Affine | Dim,
    lanes: int,
    elements: Elements,
    totals: Totals,
    *,
    held: bool = False,
) -> Totals:
    """Combine `elements(inner, mask)` over 0..length into totals. `held`: written out, without a loop."""
    count = Affine.of(length)
    static = count.constant if not count.terms and isinstance(count.constant, int) else None

    def step(totals: Totals, number: int, inner: Affine, mask: Atom | None = None) -> Totals:
        values = elements(inner + Affine.var(LANE), mask)
        found = [list(row) for row in totals]
        for row, value, (kind, dtype) in zip(found, values, kinds, strict=True):
            value = value if mask is None else k.select(mask, value, identity_of(kind, dtype))
            row[number] = value if isinstance(row[number], Const) else k.apply(kind, row[number], value)
        return found

    def loop(totals: Totals, start: Affine, stop: Affine, vectors: int) -> Totals:
        flat = [total for row in totals for total in row]
        with k.carried_loop(start, stop, lanes * vectors, flat) as (i, carried, following):
            found = by_reduction(carried)
            for number in range(vectors):
                found = step(found, number, i + number * lanes)
            following[:] = [total for row in found for total in row]
        return by_reduction(carried)

    if static is None:
        rest = Affine.var(k.apply("modulo", k.index(count), k.index(Affine.of(lanes))).name)
        totals = loop(totals, Affine(), count - rest, 1)
        return step(totals, 0, count - rest, tail_mask(k, rest, lanes))
    vectors = static // lanes
    looped = 0 if held else vectors - vectors % ACCUMULATORS
    if looped:
        totals = loop(totals, Affine(), Affine.of(looped * lanes), ACCUMULATORS)
    for number in range(looped, vectors):
        totals = step(totals, number % ACCUMULATORS, Affine.of(number * lanes))
    if static % lanes:
        start = Affine.of(vectors * lanes)
        totals = step(totals, vectors % ACCUMULATORS, start, tail_mask(k, static % lanes, lanes))
    return totals


def by_reduction(flat: Sequence[Atom]) -> Totals:
    """Accumulators one after the other as those of each reduction."""
    return [list(flat[i : i + ACCUMULATORS]) for i in range(0, len(flat), ACCUMULATORS)]


def finished(k: KernelBuilder, kind: str, accumulators: Sequence[Atom]) -> Atom:
    """One number of a reduction's accumulators: (0 + 1) + (2 + 3), then the lanes; unused ones stay out."""
    used = [a for a in accumulators if not isinstance(a, Const)] or list(accumulators[:1])
    while len(used) > 1:
        pairs = [k.apply(kind, a, b) for a, b in zip(used[::2], used[1::2], strict=False)]
        used = pairs + used[len(pairs) * 2 :]
    return k.horizontal(kind, used[0])
