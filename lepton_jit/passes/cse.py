"""Eliminate common subexpressions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lepton_jit.ir.graph import Attribute, Graph, Node, Value
from lepton_jit.passes.base import Pass
from lepton_jit.passes.rewriting.rewrite import Rewriter

__all__ = ["EliminateCommonSubexpressions"]


@dataclass(frozen=True)
class EliminateCommonSubexpressions(Pass):
    """Let the first of several equal nodes serve for all.

    law: operations are pure; the same operation on the same values with the same attributes gives the same results.
    Attributes count as equal when they print alike: `-0.0` is not `0.0`, `1` is not `true`, nan is nan. The layer does
    not count: the first one stays. Nodes with regions are left alone.
    """

    name: ClassVar[str] = "cse"

    def apply(self, graph: Graph) -> Graph:
        rewriter = Rewriter(graph)
        seen: dict[tuple[Any, ...], tuple[Value, ...]] = {}
        for node in graph.nodes:
            node = rewriter.renamed(node)
            known = None if node.regions else seen.setdefault(_key(node), node.results)
            if known is None or known is node.results:
                rewriter.append(node)
            else:
                rewriter.replace(node.results, known)
        return rewriter.finish()


def _key(node: Node) -> tuple[Any, ...]:
    attributes = tuple((name, _distinct(node.attributes[name])) for name in sorted(node.attributes))
    return node.op, tuple(value.name for value in node.operands), attributes


def _distinct(attribute: Attribute) -> object:
    """A key that tells apart what Python's == does not (0.0 and -0.0, 1, True and 1.0), and lets nan equal itself."""
    if isinstance(attribute, tuple):
        return tuple(map(_distinct, attribute))
    return (type(attribute), repr(attribute)) if isinstance(attribute, (bool, int, float)) else attribute
