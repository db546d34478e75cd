"""Simplify loops, so that they carry, stack and compute no more than they have to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.loops import Captured, ScanLoop
from lepton_jit.passes.base import Pass
from lepton_jit.passes.rewriting.rewrite import Rewriter
from lepton_jit.passes.scans.hoist import hoist_invariants, hoist_products
from lepton_jit.passes.scans.sink import sink_products, sink_sums

__all__ = ["SimplifyLoops"]


@dataclass(frozen=True)
class SimplifyLoops(Pass):
    """Move work out of the regions of loops, and drop what nobody reads.

    laws: operations are pure, so results, carries and operands that nothing depends on may go. A carry that a round
    returns as it came is a captured value. What depends on captured values alone is the same in every round, and is
    computed before the loop. A product of slices and captured values needs no carry: all rounds are one product before
    the loop; one whose result is only stacked is one product behind it. c' = c + a_t @ b_t, where nothing else reads
    c, is one product that sums over the rounds too. The products and sums round in another order.
    """

    name: ClassVar[str] = "simplify-loops"

    def apply(self, graph: Graph) -> Graph:
        if not any(node.op == "scan" for node in graph.nodes):
            return graph
        graph = _without_dead_parts(graph)
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            node = rewriter.renamed(node)
            if node.op == "scan":
                _simplify(rewriter, node)
            else:
                rewriter.append(node)
        return _without_dead_parts(rewriter.finish())


def _simplify(rewriter: Rewriter, node: Node) -> None:
    """Append the loop, after what it hoists and before what it sinks."""
    loop = ScanLoop.of(node)
    if loop.length == 0:
        _replace_nothing(rewriter, loop)
        return
    _capture_constant_carries(rewriter, loop)
    _capture_repeated_slices(rewriter, loop, Rewriter(node.regions[0]))
    _repeat_constants(rewriter, loop, Rewriter(loop.node().regions[0]))
    _join_operands(rewriter, loop)
    hoist_invariants(rewriter, loop)
    mark = len(rewriter.nodes)
    sink_sums(rewriter, loop)
    sums = rewriter.take_since(mark)
    hoist_products(rewriter, loop)
    mark = len(rewriter.nodes)
    sink_products(rewriter, loop)
    # A sum may read what a product has just taken the place of.
    behind = [*rewriter.take_since(mark), *sums]
    # What was hoisted has left slices that rounds pass on as they are.
    _join_operands(rewriter, loop)
    rewriter.append(node if loop == ScanLoop.of(node) else loop.node())
    for after in behind:
        rewriter.append(rewriter.renamed(after))


def _replace_nothing(rewriter: Rewriter, loop: ScanLoop) -> None:
    """law: without rounds the last carries are the initial ones, and stacks are empty"""
    with rewriter.layer(loop.layer, absolute=True):
        empty = [rewriter.full(0, stacked.stack.type) for stacked in loop.stacked]
    rewriter.replace([carry.final for carry in loop.carries], [carry.initial for carry in loop.carries])
    rewriter.replace([stacked.stack for stacked in loop.stacked], empty)


def _capture_constant_carries(rewriter: Rewriter, loop: ScanLoop) -> None:
    """law: a carry that a round returns as it came is the initial one for good"""
    for carry in [carry for carry in loop.carries if carry.new == carry.inner]:
        rewriter.replace([carry.final], [carry.initial])
        loop.captured.append(Captured(carry.inner, carry.initial))
        loop.carries.remove(carry)


def _capture_repeated_slices(rewriter: Rewriter, loop: ScanLoop, names: Rewriter) -> None:
    """law: a slice of what is repeated along the rounds is what is repeated"""
    for scanned in list(loop.scanned):
        node = rewriter.producer(scanned.array)
        if node is None or node.op != "broadcast_in_dim":
            continue
        dimensions: Any = node.attributes["dimensions"]
        if 0 in dimensions:
            continue
        outer = node.operands[0]
        inner = scanned.inner
        loop.scanned.remove(scanned)
        if outer.type != inner.type:
            inner = names.fresh(outer.type)
            attributes = {"dimensions": tuple(d - 1 for d in dimensions), "shape": scanned.inner.type.shape}
            loop.nodes.insert(0, Node("broadcast_in_dim", (inner,), (scanned.inner,), attributes, loop.layer))
        loop.captured.append(Captured(inner, outer))


def _repeat_constants(rewriter: Rewriter, loop: ScanLoop, names: Rewriter) -> None:
    """law: a captured number is a number; rules that look for numbers find it inside only"""
    for captured in list(loop.captured):
        node = rewriter.producer(captured.outer)
        if node is None or node.op not in ("constant", "broadcast_in_dim"):
            continue
        inside = [replace(node, results=(captured.inner,))]
        if node.op == "broadcast_in_dim":
            source = rewriter.producer(node.operands[0])
            if source is None or source.op != "constant":
                continue
            number = names.fresh(source.result.type)
            inside = [replace(source, results=(number,)), replace(inside[0], operands=(number,))]
        loop.captured.remove(captured)
        loop.nodes[:0] = inside


def _join_operands(rewriter: Rewriter, loop: ScanLoop) -> None:
    """law: an operand or a result that is there twice is needed once"""
    arrays: dict[Value, Value] = {}
    outers: dict[Value, Value] = {}
    same = {s.inner: arrays.setdefault(s.array, s.inner) for s in loop.scanned}
    same |= {c.inner: outers.setdefault(c.outer, c.inner) for c in loop.captured}
    loop.scanned = [s for s in loop.scanned if same[s.inner] == s.inner]
    loop.captured = [c for c in loop.captured if same[c.inner] == c.inner]
    _substitute(loop, {old: new for old, new in same.items() if old != new})
    steps: dict[Value, Value] = {}
    arrays = {scanned.inner: scanned.array for scanned in loop.scanned}
    for stacked in list(loop.stacked):
        known = arrays.get(stacked.step) or steps.setdefault(stacked.step, stacked.stack)
        if known != stacked.stack:
            rewriter.replace([stacked.stack], [known])
            loop.stacked.remove(stacked)


def _substitute(loop: ScanLoop, same: Mapping[Value, Value]) -> None:
    def current(value: Value) -> Value:
        return same.get(value, value)

    if same:
        loop.nodes = [replace(node, operands=tuple(map(current, node.operands))) for node in loop.nodes]
        loop.carries = [replace(carry, new=current(carry.new)) for carry in loop.carries]
        loop.stacked = [replace(stacked, step=current(stacked.step)) for stacked in loop.stacked]


def _without_dead_parts(graph: Graph) -> Graph:
    """The graph without nodes whose results nobody reads, and without such parts of its loops."""
    live = {output.value for output in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if not any(value in live for value in node.results):
            continue
        after = _live_part(node, live) if node.op == "scan" else node
        live.update(after.operands)
        kept.append(after)
    kept.reverse()
    if len(kept) == len(graph.nodes) and all(after is before for after, before in zip(kept, graph.nodes, strict=True)):
        return graph
    return replace(graph, nodes=tuple(kept))


def _live_part(node: Node, live: set[Value]) -> Node:
    """A loop without the results that nobody reads, and without what only these depend on."""
    loop = ScanLoop.of(node)
    loop.stacked = [stacked for stacked in loop.stacked if stacked.stack in live]
    wanted = {stacked.step for stacked in loop.stacked}
    wanted |= {carry.new for carry in loop.carries if carry.final in live}
    while True:
        found = set(wanted)
        for inside in reversed(loop.nodes):
            if any(value in found for value in inside.results):
                found.update(inside.operands)
        more = {carry.new for carry in loop.carries if carry.inner in found}
        if more <= wanted:
            break
        wanted |= more
    loop.carries = [carry for carry in loop.carries if carry.final in live or carry.inner in found]
    loop.scanned = [scanned for scanned in loop.scanned if scanned.inner in found]
    loop.captured = [captured for captured in loop.captured if captured.inner in found]
    loop.nodes = [inside for inside in loop.nodes if any(value in found for value in inside.results)]
    return node if loop == ScanLoop.of(node) else loop.node()
