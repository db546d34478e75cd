"""Expand `gradient(loss, v1 .. vk)` into the nodes that compute the cotangents: reverse accumulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepton_jit.errors import ShapeError
from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.passes.base import Pass
from lepton_jit.passes.gradient.reverse import differentiate
from lepton_jit.passes.rewriting.rewrite import Rewriter, without_dead_nodes

__all__ = ["Autodiff"]


@dataclass(frozen=True)
class Autodiff(Pass):
    """Replace every `gradient` node by the backward pass that it stands for.

    Only nodes on a path from the `v`s to the loss are differentiated, composites by their own rule or, where they
    have none, by that of their decomposition, a loop by a loop in the other direction. Backward nodes carry the layer
    of their forward node. The cotangents of a value are added where its producer is differentiated, that is, after its
    last reader. A `v` without a path to the loss gets zeros. Gradients of gradients work: a backward pass consists of
    ordinary nodes.

    Raises UnsupportedError, with op and layer, for an operation without a gradient on such a path.
    """

    name: ClassVar[str] = "autodiff"

    def inside(self, loop: Node) -> None:
        """Regions have no gradient nodes."""

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
    with rewriter.layer(gradient.layer, absolute=True):
        seed = rewriter.constant(1.0, loss.type.dtype)
    found = differentiate(rewriter, [(loss, seed)], targets).cotangents
    with rewriter.layer(gradient.layer, absolute=True):
        pairs = zip(found, targets, strict=True)
        return [rewriter.full(0, target.type) if value is None else value for value, target in pairs]
