"""Combine vectors lane by lane along one dimension: the inner loop of every reduction along contiguous elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lepton_jit.codegen.kernels.blocked_fold import Kinds, Totals, fold_loop
from lepton_jit.codegen.kernels.evaluate import LANE, tail_mask
from lepton_jit.codegen.loops.ir import Affine, Atom, Const
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder, identity_of
from lepton_jit.ir.types import Dim

Elements = Callable[[Affine, Atom | None], Sequence[Atom]]  # (index with lanes, mask) -> a value for each reduction


def fold_row(
    k: KernelBuilder,
    kinds: Kinds,
    length: Affine | Dim,
    lanes: int,
    elements: Elements,
    totals: Totals,
    *,
    held: bool = False,
    most: Dim | None = None,
) -> Totals:
    """Combine `elements(inner, mask)` over 0..length into totals; with `held`, written out without a loop.

    `most` bounds the length where that is computed.
    """
    count = Affine.of(length)
    static = count.constant if not count.terms and isinstance(count.constant, int) else None

    def step(totals: Sequence[Atom], start: Affine, mask: Atom | None = None) -> list[Atom]:
        found = []
        for total, value, (kind, dtype) in zip(totals, elements(start + Affine.var(LANE), mask), kinds, strict=True):
            value = value if mask is None else k.select(mask, value, identity_of(kind, dtype))
            # One number for all lanes stands for each of them, so that it has to become a vector before they are added.
            first = isinstance(total, Const) and value.lanes == total.lanes
            found.append(value if first else k.apply(kind, total, value))
        return found

    if static is not None:
        rest = Affine.of(static % lanes)
    else:
        rest = Affine.var(k.apply("modulo", k.index(count), k.index(Affine.of(lanes))).name)
    whole = count - rest
    if held and static is not None:
        for start in range(0, static - static % lanes, lanes):
            totals = step(totals, Affine.of(start))
    elif whole != Affine():
        bound = count.constant if most is None else most
        totals = fold_loop(k, kinds, (Affine(), whole), lanes, bound, totals, lambda i, carried: step(carried, i))
    return totals if rest == Affine() else step(totals, whole, tail_mask(k, rest, lanes))


def finished(k: KernelBuilder, kinds: Kinds, totals: Sequence[Atom]) -> list[Atom]:
    """Combine the lanes: one number for each reduction."""
    return [k.horizontal(kind, total) for (kind, _), total in zip(kinds, totals, strict=True)]
