"""Sink work out of a loop to behind it: sums of products, and products that are only stacked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.loops import ScanCarry, ScanLoop
from lepton_jit.ir.op import traits_of
from lepton_jit.passes.rewriting.rewrite import Rewriter
from lepton_jit.passes.scans.lifting import Outside, can_lift, product_over_rounds

__all__ = ["sink_products", "sink_sums"]


def sink_sums(rewriter: Rewriter, loop: ScanLoop) -> None:
    """law: c' = c + f(x_t), where nothing else reads c, ends as c + sum over t of f(x_t)

    For products and sums that is one operation over all rounds, in an order of its own.
    """
    producers = {value: node for node in loop.nodes for value in node.results}
    outside = Outside(rewriter, loop, loop.invariant())
    for carry in list(loop.carries):
        part = _accumulated(loop, carry, producers)
        if part is None or not _can_sum(part, producers, outside):
            continue
        total = _Sum(rewriter, producers, outside).of(part)
        rewriter.replace([carry.final], [rewriter("add", carry.initial, total)])
        loop.carries.remove(carry)


def _accumulated(loop: ScanLoop, carry: ScanCarry, producers: dict[Value, Node]) -> Value | None:
    """The value that every round adds to the carry, if nothing else happens to it; else None."""
    node = producers.get(carry.new)
    if node is None or node.op != "add" or node.operands.count(carry.inner) != 1:
        return None
    readers = [n for n in loop.nodes if carry.inner in n.operands or carry.new in n.operands]
    returned = [other.new for other in loop.carries if other is not carry] + [s.step for s in loop.stacked]
    if readers != [node] or carry.inner in returned or carry.new in returned:
        return None
    return next(value for value in node.operands if value != carry.inner)


def _can_sum(value: Value, producers: dict[Value, Node], outside: Outside) -> bool:
    node = producers.get(value)
    if node is None:
        return False
    if node.op == "dot_general":
        return True
    if node.op == "reduce":
        return node.attributes["kind"] == "add" and outside.knows(node.operands[0])
    return traits_of(node).additive and all(_can_sum(operand, producers, outside) for operand in node.operands)


class _Sum:
    """Computes sums over the rounds of values that are sums and products themselves."""

    def __init__(self, rewriter: Rewriter, producers: dict[Value, Node], outside: Outside) -> None:
        self.rewriter = rewriter
        self.producers = producers
        self.outside = outside

    def of(self, value: Value) -> Value:
        node = self.producers[value]
        attributes: Any = node.attributes
        with self.rewriter.layer(node.layer, absolute=True):
            if node.op == "dot_general":
                return product_over_rounds(self.rewriter, node, *map(self.outside.stacked, node.operands))
            if node.op == "reduce":
                dimensions = (0, *(d + 1 for d in attributes["dimensions"]))
                return self.rewriter(
                    "reduce", self.outside.stacked(node.operands[0]), dimensions=dimensions, kind="add"
                )
            return self.rewriter(node.op, *map(self.of, node.operands), **attributes)


def sink_products(rewriter: Rewriter, loop: ScanLoop) -> None:
    """law: stack(a_0 @ w, a_1 @ w, ...) == stack(a_0, a_1, ...) @ w, where w is the same in every round"""
    sunk = _products_only_stacked(loop)
    outside = Outside(rewriter, loop, loop.invariant() | sunk)
    for stacked in [s for s in loop.stacked if s.step in sunk]:
        rewriter.replace([stacked.stack], [outside.stacked(stacked.step)])
        loop.stacked.remove(stacked)


def _products_only_stacked(loop: ScanLoop) -> set[Value]:
    """The products with an invariant operand, and what is computed from them, where no carry depends on it."""
    carried = _ancestors(loop, (carry.new for carry in loop.carries))
    invariant = loop.invariant()
    excluded: set[Value] = set()
    while True:
        sunk: set[Value] = set()
        for node in loop.nodes:
            if any(value in carried or value in invariant for value in node.results):
                continue
            product = node.op == "dot_general" and any(value in invariant for value in node.operands)
            if any(value in sunk for value in node.operands) or (product and node.result not in excluded):
                if not can_lift(node):
                    excluded |= _ancestors(loop, node.results)
                    break
                sunk.update(node.results)
        else:
            return sunk


def _ancestors(loop: ScanLoop, ends: Iterable[Value]) -> set[Value]:
    """The values that the ends depend on within a round, themselves included."""
    found = set(ends)
    for node in reversed(loop.nodes):
        if any(value in found for value in node.results):
            found.update(node.operands)
    return found
