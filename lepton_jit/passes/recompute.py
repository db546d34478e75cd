"""Give every reader its own copy of what is cheaper to compute again than to store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

from lepton_jit.ir.graph import Graph, Node, Value, users
from lepton_jit.ir.op import Family, get_op, traits_of
from lepton_jit.ir.traits import Cost
from lepton_jit.ir.types import typical
from lepton_jit.passes.base import Pass

__all__ = ["Recompute"]


@dataclass(frozen=True)
class Recompute(Pass):
    """Rematerialize: give each reader of a cheap operation on one large tensor an operation of its own.

    The other operands are constants or broadcast from smaller tensors, so that a reader takes the large operand from
    memory in place of the result, and the result is never written. Readers have to be operations that fusion computes
    in their own kernel: elementwise ones and reductions. Batch normalization's `x - mean` is such a node: the forward
    and the backward pass share it.

    law: an operation is pure; computed twice, it gives the same.
    """

    name: ClassVar[str] = "recompute"

    def apply(self, graph: Graph) -> Graph:
        producers, readers = graph.producers(), users(graph)
        outputs = {o.value for o in graph.outputs}
        cloned = {
            node.result: node
            for node in graph.nodes
            if traits_of(node).cost is Cost.CHEAP
            and node.result not in outputs
            and len(readers[node.result]) > 1
            and all(_fuses(user) for user in readers[node.result])
            and _large_operands(node, producers) == 1
        }
        if not cloned:
            return graph
        names = {v.name for v in graph.values()}
        nodes: list[Node] = []
        for node in graph.nodes:
            if not any(v in cloned for v in node.results):
                _append(node, cloned, nodes, names)
        return replace(graph, nodes=tuple(nodes))


def _append(node: Node, cloned: Mapping[Value, Node], nodes: list[Node], names: set[str]) -> None:
    """Add a node behind its own copies of the cloned nodes that it reads."""
    copies: dict[Value, Value] = {}
    for value in node.operands:
        if value in cloned and value not in copies:
            source = cloned[value]
            name = next(n for i in range(len(names)) if (n := f"{value.name}_{i}") not in names)
            names.add(name)
            copies[value] = replace(value, name=name)
            _append(replace(source, results=(copies[value],)), cloned, nodes, names)
    operands = tuple(copies.get(v, v) for v in node.operands)
    nodes.append(node if operands == node.operands else replace(node, operands=operands))


def _fuses(node: Node) -> bool:
    return node.op == "reduce" or get_op(node.op).family is Family.ELEMENTWISE


def _large_operands(node: Node, producers: Mapping[Value, Node]) -> int:
    """The number of operands that are tensors of the result's size in memory."""
    return len({v for v in node.operands if not _is_small(v, producers)})


def _is_small(value: Value, producers: Mapping[Value, Node]) -> bool:
    """A constant, or the broadcast of something smaller."""
    node = producers.get(value)
    if node is None or not traits_of(node).repeats_numbers:
        return not value.type.rank
    return not node.operands or typical(node.operands[0].type.elements) < typical(value.type.elements)
