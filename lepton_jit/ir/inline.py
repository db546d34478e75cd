"""Copy a graph into a builder: for regions, decompositions and expansions."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_jit.errors import GraphError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value

__all__ = ["inline"]


def inline(builder: Builder, graph: Graph, operands: Sequence[Value]) -> list[Value]:
    """The graph's outputs, computed from `operands` by copies of its nodes.

    The copies get fresh names, and keep their layer; those of nodes without one carry the builder's current layer.
    Every node is typed again, for the types of the operands, which may differ from those of the graph's inputs.

    >>> from lepton_jit.ir.types import TensorType
    >>> b = Builder("double")
    >>> b.output(b("multiply", b.input("x", TensorType.of("f32", 3)), 2.0), "y")
    >>> outer = Builder("main")
    >>> inline(outer, b.build(), [outer.input("a", TensorType.of("f32", 3))])
    [%2: f32[3]]
    """
    if len(operands) != len(graph.inputs):
        raise GraphError(f"graph {graph.name}: expected {len(graph.inputs)} operands, got {len(operands)}")
    known = {entry.value: operand for entry, operand in zip(graph.inputs, operands, strict=True)}
    for node in graph.nodes:
        values = [known[value] for value in node.operands]
        with builder.layer(node.layer or builder.current_layer, absolute=True):
            results = builder.emit(node.op, *values, regions=node.regions, **node.attributes)
        known.update(zip(node.results, results, strict=True))
    return [known[output.value] for output in graph.outputs]
