"""Hoist work out of a loop to before it: what is the same in every iteration (round), and products without carry."""

from __future__ import annotations

from collections.abc import Iterable

from lepton_jit.ir.graph import Value
from lepton_jit.ir.loops import Captured, ScanLoop, Scanned
from lepton_jit.ir.op import Family, get_op, traits_of
from lepton_jit.passes.rewriting.rewrite import Rewriter
from lepton_jit.passes.scans.lifting import Outside, can_lift

__all__ = ["hoist_invariants", "hoist_products"]


def hoist_invariants(rewriter: Rewriter, loop: ScanLoop) -> None:
    """law: what depends on captured values and constants alone is the same in every round"""
    invariant = loop.invariant()
    moving = (n for n in loop.nodes if not traits_of(n).stays_in_loops)
    moved = [n for n in moving if all(value in invariant for value in n.results)]
    outside = Outside(rewriter, loop, invariant)
    for stacked in [s for s in loop.stacked if s.step in invariant]:
        rewriter.replace([stacked.stack], [outside.stacked(stacked.step)])
        loop.stacked.remove(stacked)
    values = _leave(loop, {value for node in moved for value in node.results})
    loop.captured += [Captured(value, outside.of(value).value) for value in values]


def hoist_products(rewriter: Rewriter, loop: ScanLoop) -> None:
    """law: x_t @ w for every t is one product of the whole of x

    Elementwise operations on such products that need no carry either (a bias, a mask) go with them.
    """
    independent = _independent(loop)
    moved: set[Value] = set()
    invariant = loop.invariant()
    for node in loop.nodes:
        if len(node.results) != 1 or node.result not in independent or node.result in invariant:
            continue
        follows = get_op(node.op).family is Family.ELEMENTWISE and any(v in moved for v in node.operands)
        product = node.op == "dot_general" and any(v in invariant for v in node.operands)
        if product or follows:
            moved.add(node.result)
    outside = Outside(rewriter, loop, independent)
    loop.scanned += [Scanned(value, outside.of(value).value) for value in _leave(loop, moved)]


def _independent(loop: ScanLoop) -> set[Value]:
    """The values that need no carry, and only operations that can be done for all rounds at once; slices too."""
    given = {scanned.inner for scanned in loop.scanned} | loop.invariant()
    for node in loop.nodes:
        if can_lift(node) and all(value in given for value in node.operands):
            given.update(node.results)
    return given


def _leave(loop: ScanLoop, moved: Iterable[Value]) -> list[Value]:
    """Take the nodes of these values out of the region; returns the values that it goes on reading, in order."""
    gone = set(moved)
    order = [value for node in loop.nodes for value in node.results if value in gone]
    loop.nodes = [node for node in loop.nodes if not any(value in gone for value in node.results)]
    read = loop.read()
    return [value for value in order if value in read]
