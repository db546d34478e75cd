"""Accumulate cotangents in reverse over the nodes of a rewriter, for graphs and for regions of loops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lepton_jit.errors import GraphError, UnsupportedError
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import DECOMPOSED, OF_REGION, NoRule, get_op
from lepton_jit.passes.expand_composites import expand_node
from lepton_jit.passes.gradient.reverse_scan import Backward, Seed, pull_back_scan
from lepton_jit.passes.rewriting.facts import varied_values
from lepton_jit.passes.rewriting.rewrite import Rewriter

__all__ = ["differentiate"]


def differentiate(rewriter: Rewriter, seeds: Sequence[Seed], targets: Sequence[Value]) -> Backward:
    """Append the nodes that compute the cotangents of `targets`, from a cotangent for each value of the seeds.

    What the rewriter has so far is the forward pass. Composites without a gradient of their own are expanded in it, so
    that their intermediate values are at hand, and its loops stack what the backward pass reads. The cotangents of a
    value are added where its producer is differentiated, that is, after its last reader.
    """
    _expand_composites_on_path(rewriter, [value for value, _ in seeds], targets)
    seeds = [(rewriter.current(value), cotangent) for value, cotangent in seeds]
    targets = [rewriter.current(target) for target in targets]
    forward = len(rewriter.nodes)
    varied = varied_values(rewriter.nodes, targets)
    cotangents = _Cotangents(rewriter, varied)
    for value, cotangent in seeds:
        cotangents.add(value, cotangent)
    for node in _path(rewriter.nodes, [value for value, _ in seeds], varied):
        with rewriter.layer(node.layer, absolute=True):
            _pull_back(rewriter, node, cotangents)
    return Backward(forward, [cotangents.total(target) for target in targets])


class _Cotangents:
    """The cotangents that have reached each value so far, added up when one is read."""

    def __init__(self, rewriter: Rewriter, varied: set[Value]) -> None:
        self.varied = varied
        self._rewriter = rewriter
        self._parts: dict[Value, list[Value]] = {}

    def add(self, value: Value, cotangent: Value | None) -> None:
        if cotangent is None or value not in self.varied:
            return
        if cotangent.type != value.type:
            raise GraphError(f"gradient of {value!r}: expected {value.type}, got {cotangent.type}")
        self._parts.setdefault(value, []).append(cotangent)

    def total(self, value: Value) -> Value | None:
        parts = self._parts.get(value, [])
        while len(parts) > 1:
            parts[:2] = [self._rewriter("add", parts[0], parts[1])]
        return parts[0] if parts else None


def _pull_back(rewriter: Rewriter, node: Node, cotangents: _Cotangents) -> None:
    """Add to the cotangents of a node's operands those that its gradient rule makes of its results'."""
    incoming = [cotangents.total(value) for value in node.results]
    if all(cotangent is None for cotangent in incoming):
        return
    where = f"layer {node.layer!r}: " if node.layer else ""
    try:
        outgoing = _operand_cotangents(rewriter, node, incoming, cotangents.varied)
    except UnsupportedError as error:
        raise UnsupportedError(f"{where}{error}") from None
    if len(outgoing) != len(node.operands):
        raise GraphError(f"{where}{node.op}: expected {len(node.operands)} cotangents of its rule, got {len(outgoing)}")
    try:
        for operand, cotangent in zip(node.operands, outgoing, strict=True):
            cotangents.add(operand, cotangent)
    except GraphError as error:
        raise GraphError(f"{where}{node.op}: {error}") from None


def _operand_cotangents(
    rewriter: Rewriter, node: Node, incoming: Sequence[Value | None], varied: set[Value]
) -> Sequence[Value | None]:
    rule = get_op(node.op).gradient
    if rule is OF_REGION:
        return pull_back_scan(rewriter, node, incoming, varied, differentiate)
    if isinstance(rule, NoRule):
        raise UnsupportedError(f"{node.op}: the operation has no gradient, and the loss depends on it")
    return rule(rewriter, node, incoming)


def _path(nodes: Sequence[Node], ends: Iterable[Value], varied: set[Value]) -> list[Node]:
    """The nodes that lead from varied values to the ends, last first."""
    wanted = set(ends)
    path = []
    for node in reversed(nodes):
        reads_varied = any(operand in varied for operand in node.operands)
        if reads_varied and any(v in wanted and v in varied for v in node.results):
            wanted.update(node.operands)
            path.append(node)
    return path


def _expand_composites_on_path(rewriter: Rewriter, ends: Sequence[Value], targets: Sequence[Value]) -> None:
    """Put decompositions in place of the composites that are differentiated through theirs."""
    while True:
        nodes = rewriter.nodes
        current = [rewriter.current(target) for target in targets]
        path = _path(nodes, map(rewriter.current, ends), varied_values(nodes, current))
        expanded = {node.results for node in path if get_op(node.op).gradient is DECOMPOSED}
        if not expanded:
            return
        for node in rewriter.take_since(0):
            node = rewriter.renamed(node)
            if node.results in expanded:
                expand_node(rewriter, node)
            else:
                rewriter.append(node)
