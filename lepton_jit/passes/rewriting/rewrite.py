"""Rewrite a graph node by node: a builder with substitution of values, local rules, removal of dead nodes."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from lepton_jit.errors import GraphError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Node, Output, Value
from lepton_jit.ir.types import TensorType

__all__ = ["Rewriter", "Rule", "rewrite", "without_dead_nodes"]


class Rewriter(Builder):
    """A builder that starts from a graph's inputs, knows who produces what, and can put values in place of others.

    Values of the original graph keep their names; new ones get names that the graph does not use.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph.name, taken=[v.name for v in graph.values()])
        self._inputs = {entry.name: entry for entry in graph.inputs}
        self._graph = graph
        self._replaced: dict[Value, Value] = {}
        self._producers: dict[Value, Node] = {}
        self._indexed = 0

    @property
    def nodes(self) -> Sequence[Node]:
        """The nodes so far."""
        return self._nodes

    def producer(self, value: Value) -> Node | None:
        """The node that defines a value, None for an input."""
        for node in self._nodes[self._indexed :]:
            self._producers.update(dict.fromkeys(node.results, node))
        self._indexed = len(self._nodes)
        return self._producers.get(value)

    def current(self, value: Value) -> Value:
        """The value that stands for `value` now."""
        while value in self._replaced:
            value = self._replaced[value]
        return value

    def renamed(self, node: Node) -> Node:
        """The node with the values that stand for its operands now."""
        operands = tuple(map(self.current, node.operands))
        return node if operands == node.operands else replace(node, operands=operands)

    def replace(self, old: Sequence[Value], new: Sequence[Value]) -> None:
        """Let `new` stand for `old` from here on; the types have to be the same."""
        for before, after in zip(old, new, strict=True):
            if before.type != after.type:
                raise GraphError(f"rewrite of %{before.name}: expected {before.type}, got {after.type}")
            if self.current(after) != before:
                self._replaced[before] = after

    def fresh(self, type: TensorType) -> Value:
        """A value with a name that no other has, for a node put together by hand."""
        return Value(self._fresh(), type)

    def exchange(self, node: Node, other: Node) -> None:
        """Put `other` where `node` stands; it defines the same values and perhaps more, from the same operands."""
        self._nodes[self._nodes.index(node)] = other
        self._taken.update(value.name for value in other.results)
        self._indexed = 0

    def take_since(self, mark: int) -> list[Node]:
        """Remove the nodes from position `mark` on, and return them."""
        taken = self._nodes[mark:]
        del self._nodes[mark:]
        if self._indexed > mark:
            for node in taken:
                for value in node.results:
                    self._producers.pop(value, None)
            self._indexed = mark
        return taken

    def finish(self) -> Graph:
        """The rewritten graph; the original object where no node and no output changed."""
        outputs = tuple(_renamed_output(o, self.current(o.value)) for o in self._graph.outputs)
        nodes = tuple(self._nodes)
        before = (*self._graph.nodes, *self._graph.outputs)
        after = (*nodes, *outputs)
        if len(after) == len(before) and all(map(operator.is_, after, before)):
            return self._graph
        return replace(self._graph, nodes=nodes, outputs=outputs)


# A rule gets the rewriter and a node whose operands are current. It returns the values in place of the node's
# results, built with the rewriter where they are new, or None where its law does not apply.
Rule = Callable[[Rewriter, Node], Sequence[Value] | Value | None]


def rewrite(graph: Graph, rules: Mapping[str, Sequence[Rule]]) -> Graph:
    """Apply local rules, keyed by op, until none of them applies; nodes that this leaves dead are removed.

    Nodes that a rule builds are visited in their turn, so rules compose within one walk. They carry the layer of
    the node that they replace.
    """
    rewriter = Rewriter(graph)
    for node in graph.nodes:
        _visit(rewriter, rewriter.renamed(node), rules)
    result = rewriter.finish()
    return result if result is graph else without_dead_nodes(result)


def _visit(rewriter: Rewriter, node: Node, rules: Mapping[str, Sequence[Rule]]) -> None:
    for rule in rules.get(node.op, ()):
        mark = len(rewriter.nodes)
        with rewriter.layer(node.layer, absolute=True):
            found = rule(rewriter, node)
        built = rewriter.take_since(mark)
        if found is None:
            continue
        for new in built:
            _visit(rewriter, rewriter.renamed(new), rules)
        values = (found,) if isinstance(found, Value) else tuple(found)
        rewriter.replace(node.results, [rewriter.current(v) for v in values])
        return
    rewriter.append(node)


def without_dead_nodes(graph: Graph) -> Graph:
    """The graph without nodes whose results nobody reads; every operation is pure."""
    live = {o.value for o in graph.outputs}
    kept: list[Node] = []
    for node in reversed(graph.nodes):
        if any(v in live for v in node.results):
            live.update(node.operands)
            kept.append(node)
    if len(kept) == len(graph.nodes):
        return graph
    return replace(graph, nodes=tuple(reversed(kept)))


def _renamed_output(output: Output, value: Value) -> Output:
    return output if output.value == value else replace(output, value=value)
