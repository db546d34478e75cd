"""Put the decompositions of composites in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepton_jit.errors import GraphError
from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.op import Family, get_op
from lepton_jit.passes.base import Pass
from lepton_jit.passes.rewriting.rewrite import Rewriter

__all__ = ["ExpandComposites", "expand_node"]


@dataclass(frozen=True)
class ExpandComposites(Pass):
    """Replace composites by their decompositions, and these in turn; those named in `claimed` stay.

    law: a composite *is* its decomposition. The nodes that appear carry the layer of the composite.
    """

    name: ClassVar[str] = "expand-composites"

    claimed: frozenset[str] = frozenset()

    def apply(self, graph: Graph) -> Graph:
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            self._visit(rewriter, rewriter.renamed(node))
        return rewriter.finish()

    def _visit(self, rewriter: Rewriter, node: Node) -> None:
        if get_op(node.op).family is not Family.COMPOSITE or node.op in self.claimed:
            rewriter.append(node)
            return
        mark = len(rewriter.nodes)
        expand_node(rewriter, node)
        for inner in rewriter.take_since(mark):
            self._visit(rewriter, rewriter.renamed(inner))


def expand_node(rewriter: Rewriter, node: Node) -> None:
    """Append a composite's decomposition, and let its results stand for the node's."""
    decompose = get_op(node.op).decompose
    if decompose is None:
        raise GraphError(f"{node.op}: expected a composite")
    with rewriter.layer(node.layer, absolute=True):
        results = decompose(rewriter, *node.operands, **node.attributes)
    rewriter.replace(node.results, (results,) if isinstance(results, Value) else tuple(results))
