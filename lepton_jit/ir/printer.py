"""Graphs as text; docs/graph_ir.md has the grammar, `parser` reads it back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator

from lepton_jit.ir.graph import Attribute, Graph, Input, Node, Output
from lepton_jit.ir.types import DType, Poly

__all__ = ["print_attribute", "print_graph", "print_node"]


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
