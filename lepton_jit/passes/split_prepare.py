"""Cut a graph in two: what depends on parameters alone, and the rest."""

from __future__ import annotations

import itertools
from dataclasses import replace

from lepton_jit.ir.graph import Graph, Input, Output, Value
from lepton_jit.passes.rewriting.facts import of_parameters_alone
from lepton_jit.passes.rewriting.rewrite import without_dead_nodes

__all__ = ["SPLIT", "split_prepare"]

# The name of the stage for observers; it is no pass, as it gives two graphs.
SPLIT = "split-prepare"


def split_prepare(graph: Graph) -> tuple[Graph, Graph]:
    """Split a graph into (prepare, main): running main on what prepare returns is running `graph`.

    law: a function of parameters alone has the same value in every call, until the parameters change.

    `prepare` reads parameters and returns values called `prepared/0`, `prepared/1`, ..., names that no input has; main
    has them as inputs of role "parameter" under these names; parameters that main itself reads stay its inputs.
    Constants are repeated in both. A broadcast is repeated in main rather than stored, and a value whose shape is
    symbolic is computed in main.
    Where nothing depends on parameters alone, `prepare` has no nodes and main is `graph`.
    """
    moved = of_parameters_alone(graph)
    frontier = _frontier(graph, moved)
    if not frontier:
        return Graph("prepare", (), (), ()), graph
    taken = {entry.name for entry in graph.inputs}
    free = (name for name in (f"prepared/{i}" for i in itertools.count()) if name not in taken)
    names = list(itertools.islice(free, len(frontier)))
    outputs = tuple(Output(value, name) for value, name in zip(frontier, names, strict=True))
    prepare = without_dead_nodes(Graph("prepare", graph.inputs_of("parameter"), graph.nodes, outputs))
    arriving = set(frontier)
    staying = tuple(node for node in graph.nodes if not any(v in arriving for v in node.results))
    prepared = tuple(Input(value, name, "parameter") for value, name in zip(frontier, names, strict=True))
    main = without_dead_nodes(replace(graph, inputs=(*graph.inputs, *prepared), nodes=staying))
    return _without_unread_inputs(prepare), _without_unread_inputs(main)


def _frontier(graph: Graph, moved: set[Value]) -> list[Value]:
    """The values to store: moved ones that something not moved reads, looking through broadcasts; in order."""
    producers = graph.producers()
    wanted = [o.value for o in graph.outputs]
    wanted += [v for node in graph.nodes if not any(r in moved for r in node.results) for v in node.operands]
    found: set[Value] = set()
    while wanted:
        value = wanted.pop()
        if value not in moved or value in found:
            continue
        node = producers[value]
        if node.op == "broadcast_in_dim":
            wanted.extend(node.operands)
        else:
            # All results of a node arrive together, so that none of them has to be computed twice.
            found.update(node.results)
    return [value for node in graph.nodes for value in node.results if value in found]


def _without_unread_inputs(graph: Graph) -> Graph:
    """Drop parameters that nothing reads; other inputs stay, since a caller passes them by position."""
    read = {v for node in graph.nodes for v in node.operands} | {o.value for o in graph.outputs}
    return replace(graph, inputs=tuple(i for i in graph.inputs if i.role != "parameter" or i.value in read))
