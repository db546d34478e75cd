"""Check a graph's invariants: between passes, in tests, and on texts that somebody wrote."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_jit.errors import GraphError, LeptonError
from lepton_jit.ir.graph import Graph, Input, Node, Output, Value, print_node
from lepton_jit.ir.op import get_op

__all__ = ["verify"]

_ROLES = ("input", "parameter", "state")
_CONTEXT = 3  # nodes shown on each side of the fault


def verify(graph: Graph) -> None:
    """Raise GraphError, with the nodes around the fault, unless the graph is well formed.

    Every value is defined once and before it is read, has a name of its own, and the type that the operation's rule
    gives; names of inputs and of outputs are unique; an output donates a state input of its type, each at most once;
    regions are well formed graphs that read nothing but their inputs, and donate nothing.
    """
    defined: dict[str, Value] = {}
    for entry in graph.inputs:
        _check_input(graph, entry)
        _define(graph, entry.value, defined, at=-1)
    _check_unique(graph, "inputs", [entry.name for entry in graph.inputs])
    for at, node in enumerate(graph.nodes):
        _check_node(graph, at, node, defined)
        for value in node.results:
            _define(graph, value, defined, at)
    _check_unique(graph, "outputs", [output.name for output in graph.outputs])
    _check_unique(graph, "donated inputs", [o.donates for o in graph.outputs if o.donates is not None])
    for output in graph.outputs:
        _check_output(graph, output, defined)


def _check_input(graph: Graph, entry: Input) -> None:
    if entry.role not in _ROLES:
        raise _fault(graph, f"input {entry.name!r}: expected a role of {_ROLES}, got {entry.role!r}")


def _define(graph: Graph, value: Value, defined: dict[str, Value], at: int) -> None:
    if value.name in defined:
        raise _fault(graph, f"%{value.name} is defined twice", at)
    defined[value.name] = value


def _check_unique(graph: Graph, what: str, names: Sequence[str]) -> None:
    twice = sorted({n for n in names if names.count(n) > 1}) if len(set(names)) < len(names) else []
    if twice:
        raise _fault(graph, f"{what}: expected different names, got {twice[0]!r} twice")


def _check_node(graph: Graph, at: int, node: Node, defined: dict[str, Value]) -> None:
    for value in node.operands:
        _check_read(graph, value, defined, at)
    for region in node.regions:
        _check_region(graph, at, region)
    attributes = {**node.attributes, "_regions": node.regions} if node.regions else node.attributes
    try:
        expected = tuple(get_op(node.op).infer([v.type for v in node.operands], attributes))
    except LeptonError as error:
        raise _fault(graph, f"{node.op}: {error}", at) from error
    found = tuple(v.type for v in node.results)
    if expected != found:
        raise _fault(graph, f"{node.op}: expected results of type {_types(expected)}, got {_types(found)}", at)


def _check_read(graph: Graph, value: Value, defined: dict[str, Value], at: int) -> None:
    if value.name not in defined:
        raise _fault(graph, f"%{value.name} is read, but nothing before defines it", at)
    if defined[value.name].type != value.type:
        raise _fault(graph, f"%{value.name} is read as {value.type}, but was defined as {defined[value.name].type}", at)


def _check_region(graph: Graph, at: int, region: Graph) -> None:
    try:
        verify(region)
    except GraphError as error:
        raise _fault(graph, f"region: {error}", at) from error
    if any(output.donates is not None for output in region.outputs):
        raise _fault(graph, "region: expected outputs that donate nothing", at)
    if any(entry.role != "input" for entry in region.inputs):
        raise _fault(graph, "region: expected inputs of role input", at)


def _check_output(graph: Graph, output: Output, defined: dict[str, Value]) -> None:
    end = len(graph.nodes)
    _check_read(graph, output.value, defined, end)
    if output.donates is None:
        return
    donated = next((entry for entry in graph.inputs if entry.name == output.donates), None)
    if donated is None or donated.role != "state":
        expected = f"expected to donate an input of role state, got {output.donates!r}"
        raise _fault(graph, f"output {output.name!r}: {expected}", end)
    if donated.value.type != output.value.type:
        expected = f"expected {donated.value.type}, the type of the state that it donates"
        raise _fault(graph, f"output {output.name!r}: {expected}, got {output.value.type}", end)


def _types(types: Sequence[object]) -> str:
    return ", ".join(map(repr, types)) or "nothing"


def _fault(graph: Graph, message: str, at: int | None = None) -> GraphError:
    """The error, with the lines of the nodes around number `at`."""
    if at is None:
        return GraphError(f"graph {graph.name}: {message}")
    lines = [f"graph {graph.name}: {message}"]
    first = max(0, at - _CONTEXT)
    for i, node in enumerate(graph.nodes[first : at + _CONTEXT + 1], first):
        text = print_node(node).split("\n")[0]
        lines.append(f"  {'->' if i == at else '  '} {text if len(text) <= 200 else text[:200] + ' ...'}")
    return GraphError("\n".join(lines))
