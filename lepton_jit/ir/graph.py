"""The graph IR: an immutable list of nodes in order, each with the layer that it came from; and its text."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lepton_jit.ir.types import DType, Poly, TensorType

__all__ = [
    "Attribute",
    "Attributes",
    "Graph",
    "Input",
    "Node",
    "Output",
    "Role",
    "Value",
    "print_attribute",
    "print_graph",
    "print_node",
    "users",
]

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
        """List every value, in order of definition."""
        for entry in self.inputs:
            yield entry.value
        for node in self.nodes:
            yield from node.results

    def producers(self) -> dict[Value, Node]:
        return {value: node for node in self.nodes for value in node.results}

    def __str__(self) -> str:
        return print_graph(self)


def users(graph: Graph) -> dict[Value, list[Node]]:
    """The nodes that read each value, in order; outputs are not nodes."""
    result: dict[Value, list[Node]] = {value: [] for value in graph.values()}
    for node in graph.nodes:
        for value in dict.fromkeys(node.operands):
            result[value].append(node)
    return result


# Text: docs/graph_ir.md has the grammar, `parser` reads it back


def print_graph(graph: Graph, *, layer: str | None = None) -> str:
    """The text of a graph; with `layer`, only the nodes of that layer and of those inside it (this is not read back).

    >>> from lepton_jit.ir.builder import Builder
    >>> from lepton_jit.ir.types import TensorType
    >>> b = Builder("square")
    >>> x = b.input("x", TensorType.of("f32", "N"))
    >>> b.output(b("multiply", x, x), "y")
    >>> print(print_graph(b.build()), end="")
    graph @square(%x: f32[N] input "x") {
      %0 = multiply(%x, %x) : f32[N]
      return %0 "y"
    }
    """
    lines = [f"graph {_symbol(graph.name)}({_inputs(graph)}) {{"]
    lines += [f"  {line}" for line in _body(graph, layer)]
    return "\n".join([*lines, "}", ""])


def print_node(node: Node) -> str:
    """The line of a node, or lines, where it has regions."""
    text = f"{node.op}({', '.join('%' + v.name for v in node.operands)})"
    if node.results:
        text = f"{', '.join('%' + v.name for v in node.results)} = {text}"
    if node.attributes:
        items = ", ".join(f"{name} = {print_attribute(node.attributes[name])}" for name in sorted(node.attributes))
        text += f" {{{items}}}"
    if node.results:
        text += f" : {', '.join(repr(v.type) for v in node.results)}"
    if node.layer:
        text += f" @{json.dumps(node.layer, ensure_ascii=False)}"
    return text + "".join(f" {_region(region)}" for region in node.regions)


def print_attribute(value: Attribute) -> str:
    """One attribute: `[1, 2]`, `"same"`, `f32`, `128*N + 4`, `-inf`, `none`."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (DType, Poly, int)):
        return repr(value)
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else repr(value).lower()
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return f"[{', '.join(map(print_attribute, value))}]"


def _body(graph: Graph, layer: str | None) -> Iterator[str]:
    for node in graph.nodes:
        if layer is None or node.layer == layer or node.layer.startswith(f"{layer}/"):
            yield from print_node(node).split("\n")
    if graph.outputs:
        yield f"return {', '.join(map(_output, graph.outputs))}"


def _region(region: Graph) -> str:
    name = "" if region.name == "region" else f" {_symbol(region.name)}"
    lines = [f"region{name}({_inputs(region)}) {{", *(f"  {line}" for line in _body(region, None)), "}"]
    return "\n".join(lines)


def _inputs(graph: Graph) -> str:
    return ", ".join(map(_input, graph.inputs))


def _input(entry: Input) -> str:
    return f"{entry.value!r} {entry.role} {json.dumps(entry.name, ensure_ascii=False)}"


def _output(output: Output) -> str:
    text = f"%{output.value.name} {json.dumps(output.name, ensure_ascii=False)}"
    return text if output.donates is None else f"{text} donates {json.dumps(output.donates, ensure_ascii=False)}"


def _symbol(name: str) -> str:
    return f"@{name}" if re.fullmatch(r"\w+", name) else f"@{json.dumps(name, ensure_ascii=False)}"
