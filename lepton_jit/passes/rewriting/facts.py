"""Collect facts about a graph for the rules that look beyond one node."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.passes.rewriting.matching import reads_symbols

__all__ = ["Facts", "of_parameters_alone", "varied_values"]


@dataclass(frozen=True)
class Facts:
    """Facts about a graph before a pass: values read exactly once, values of parameters alone, and the inputs."""

    read_once: frozenset[Value]
    of_parameters: frozenset[Value]
    inputs: frozenset[Value]

    @staticmethod
    def of(graph: Graph) -> Facts:
        counts = Counter(value for node in graph.nodes for value in node.operands)
        counts.update(output.value for output in graph.outputs)
        parameters = (entry.value for entry in graph.inputs_of("parameter"))
        return Facts(
            read_once=frozenset(value for value, count in counts.items() if count == 1),
            of_parameters=frozenset((*parameters, *of_parameters_alone(graph))),
            inputs=frozenset(entry.value for entry in graph.inputs),
        )


def of_parameters_alone(graph: Graph) -> set[Value]:
    """The results of nodes that read a parameter, at first or second hand, and nothing else but constants.

    Values that depend on a symbolic dimension are not among them.
    """
    constant: set[Value] = set()
    parameters = {entry.value for entry in graph.inputs_of("parameter")}
    found = set(parameters)
    for node in graph.nodes:
        if reads_symbols(node):
            continue
        if all(v in constant for v in node.operands):
            constant.update(node.results)
        elif all(v in constant or v in found for v in node.operands):
            found.update(node.results)
    return found - parameters


def varied_values(nodes: Iterable[Node], targets: Iterable[Value]) -> set[Value]:
    """The float values that depend on the targets through float values, targets included."""
    varied = set(targets)
    for node in nodes:
        if any(operand in varied for operand in node.operands):
            varied.update(value for value in node.results if value.type.dtype.is_float)
    return varied
