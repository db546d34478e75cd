"""The graph IR: an immutable list of nodes in order, each with the layer that it came from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lepton_jit.ir.types import DType, Poly, TensorType

__all__ = ["Attribute", "Attributes", "Graph", "Input", "Node", "Output", "Role", "Value", "users"]

Attribute = None | bool | int | float | str | DType | Poly | tuple["Attribute", ...]
# Values are Attributes, of the kinds that the operation's record states; rules read them as what they are.
Attributes = Mapping[str, Any]

# input: data of one call. parameter: read-only weights, the same over many calls. state: weights, slots and
# counters that the program also writes, in place, through an output that donates it.
Role = Literal["input", "parameter", "state"]


@dataclass(frozen=True)
class Value:
    """A tensor that an input or a node defines once; its name is unique in its graph."""

    name: str
    type: TensorType

    def __hash__(self) -> int:
        return hash(self.name)

    def __repr__(self) -> str:
        return f"%{self.name}: {self.type}"


@dataclass(frozen=True)
class Node:
    """An operation on values. `layer` is the path of the layer that it came from: `features/conv2d_1`."""

    op: str
    operands: tuple[Value, ...]
    results: tuple[Value, ...]
    attributes: Attributes = field(default_factory=dict)
    layer: str = ""
    regions: tuple[Graph, ...] = ()

    def __hash__(self) -> int:
        return hash(self.results)

    @property
    def result(self) -> Value:
        """The one result of an operation that has one."""
        (value,) = self.results
        return value


@dataclass(frozen=True)
class Input:
    """A value that comes from outside, with its public name: `x`, `conv2d/kernel`."""

    value: Value
    name: str
    role: Role = "input"


@dataclass(frozen=True)
class Output:
    """A value that leaves the graph; one that `donates` is written in place of the input of that name."""

    value: Value
    name: str
    donates: str | None = None


@dataclass(frozen=True)
class Graph:
    """A closed function of tensors: nodes stand in an order in which they can run.

    Two graphs are equal when their texts are.
    """

    name: str
    inputs: tuple[Input, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Output, ...]

    def input_named(self, name: str) -> Input:
        return next(i for i in self.inputs if i.name == name)

    def inputs_of(self, role: Role) -> tuple[Input, ...]:
        return tuple(i for i in self.inputs if i.role == role)

    def values(self) -> Iterator[Value]:
        """Every value, in order of definition."""
        for entry in self.inputs:
            yield entry.value
        for node in self.nodes:
            yield from node.results

    def producers(self) -> dict[Value, Node]:
        return {value: node for node in self.nodes for value in node.results}

    def __str__(self) -> str:
        from lepton_jit.ir.printer import print_graph  # the printer reads graphs: an import at the top is a cycle

        return print_graph(self)


def users(graph: Graph) -> dict[Value, list[Node]]:
    """The nodes that read each value, in order; outputs are not nodes."""
    result: dict[Value, list[Node]] = {value: [] for value in graph.values()}
    for node in graph.nodes:
        for value in dict.fromkeys(node.operands):
            result[value].append(node)
    return result
