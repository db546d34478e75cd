"""Expand `gradient(loss, v1 .. vk)` into the nodes that compute the cotangents: reverse accumulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lepton_jit.errors import GraphError, ShapeError, UnsupportedError
from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.op import DECOMPOSED, NoRule, get_op
from lepton_jit.passes.base import Pass
from lepton_jit.passes.expand_composites import expand_node
from lepton_jit.passes.rewrite import Rewriter, without_dead_nodes

__all__ = ["Autodiff"]


@dataclass(frozen=True)
class Autodiff(Pass):
    """Replace every `gradient` node by the backward pass that it stands for.

    Only nodes on a path from the `v`s to the loss are differentiated, composites by their own rule or, where they
    have none, by that of their decomposition. Backward nodes carry the layer of their forward node. The cotangents
    of a value are added where its producer is differentiated, that is, after its last reader. A `v` without a path to
    the loss gets zeros. Gradients of gradients work: a backward pass consists of ordinary nodes.

    Raises UnsupportedError, with op and layer, for an operation without a gradient on such a path.
    """

    name: ClassVar[str] = "autodiff"

    def apply(self, graph: Graph) -> Graph:
        if not any(node.op == "gradient" for node in graph.nodes):
            return graph
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            node = rewriter.renamed(node)
            if node.op == "gradient":
                rewriter.replace(node.results, _expand(rewriter, node))
            else:
                rewriter.append(node)
        return without_dead_nodes(rewriter.finish())


def _expand(rewriter: Rewriter, gradient: Node) -> list[Value]:
    loss, targets = gradient.operands[0], gradient.operands[1:]
    if loss.type.rank != 0 or not loss.type.dtype.is_float:
        raise ShapeError(f"gradient: the loss is expected to be a float scalar, got {loss!r}")
    _expand_composites_on_path(rewriter, loss, targets)
    loss, *targets = map(rewriter.current, gradient.operands)
    varied = _varied(rewriter.nodes, targets)
    cotangents = _Cotangents(rewriter, varied)
    with rewriter.layer(gradient.layer, absolute=True):
        cotangents.add(loss, rewriter.constant(1.0, loss.type.dtype))
    for node in _path(rewriter.nodes, loss, varied):
        with rewriter.layer(node.layer, absolute=True):
            _pull_back(rewriter, node, cotangents)
    results = []
    for target in targets:
        with rewriter.layer(gradient.layer, absolute=True):
            found = cotangents.total(target)
            results.append(rewriter.full(0, target.type) if found is None else found)
    return results


class _Cotangents:
    """What has reached each value so far, added up when it is asked for."""

    def __init__(self, rewriter: Rewriter, varied: set[Value]) -> None:
        self._rewriter = rewriter
        self._varied = varied
        self._parts: dict[Value, list[Value]] = {}

    def add(self, value: Value, cotangent: Value | None) -> None:
        if cotangent is None or value not in self._varied:
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
    """Add to the cotangents of a node's operands what those of its results make of them."""
    incoming = [cotangents.total(value) for value in node.results]
    if all(cotangent is None for cotangent in incoming):
        return
    where = f"layer {node.layer!r}: " if node.layer else ""
    rule = get_op(node.op).gradient
    if isinstance(rule, NoRule):
        raise UnsupportedError(f"{where}{node.op}: the operation has no gradient, and the loss depends on it")
    try:
        outgoing = rule(rewriter, node, incoming)
    except UnsupportedError as error:
        raise UnsupportedError(f"{where}{error}") from None
    if len(outgoing) != len(node.operands):
        raise GraphError(f"{where}{node.op}: expected {len(node.operands)} cotangents of its rule, got {len(outgoing)}")
    try:
        for operand, cotangent in zip(node.operands, outgoing, strict=True):
            cotangents.add(operand, cotangent)
    except GraphError as error:
        raise GraphError(f"{where}{node.op}: {error}") from None


def _varied(nodes: Sequence[Node], targets: Sequence[Value]) -> set[Value]:
    """The float values that depend on the targets through float values, targets included."""
    varied = set(targets)
    for node in nodes:
        if any(operand in varied for operand in node.operands):
            varied.update(value for value in node.results if value.type.dtype.is_float)
    return varied


def _path(nodes: Sequence[Node], loss: Value, varied: set[Value]) -> list[Node]:
    """The nodes that lead from varied values to the loss, last first."""
    wanted = {loss}
    path = []
    for node in reversed(nodes):
        reads_varied = any(operand in varied for operand in node.operands)
        if reads_varied and any(v in wanted and v in varied for v in node.results):
            wanted.update(node.operands)
            path.append(node)
    return path


def _expand_composites_on_path(rewriter: Rewriter, loss: Value, targets: Sequence[Value]) -> None:
    """Put decompositions in place of the composites that are differentiated through theirs.

    This happens in the forward pass itself, so that its intermediate values are at hand for the backward pass.
    """
    while True:
        nodes = rewriter.nodes
        current = [rewriter.current(target) for target in targets]
        path = _path(nodes, rewriter.current(loss), _varied(nodes, current))
        expanded = {node.results for node in path if get_op(node.op).gradient is DECOMPOSED}
        if not expanded:
            return
        for node in rewriter.take_since(0):
            node = rewriter.renamed(node)
            if node.results in expanded:
                expand_node(rewriter, node)
            else:
                rewriter.append(node)
