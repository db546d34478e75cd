"""Run a check over random graphs; what fails is cut down to the few nodes that matter, and printed as a golden case."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain

import numpy as np

from lepton_jit.ir.graph import Graph, Input, Node, Output, Value
from lepton_jit.ir.interpreter import bind_symbols, run_nodes
from lepton_jit.ir.types import symbols_of
from lepton_jit.passes.gradient.autodiff import Autodiff
from lepton_jit.passes.rewriting.rewrite import Rewriter, without_dead_nodes
from tests.random_graphs import RandomGraph, random_graph

Check = Callable[[RandomGraph], None]


def search(check: Check, seeds: Iterable[int]) -> None:
    """Call `check` on the graph of each seed; AssertionError with seed and the smallest failing graph where it raises.

    The same seed gives the same graph in every run, whatever else has been imported or drawn.
    """
    for seed in seeds:
        case = random_graph(seed)
        try:
            check(case)
        except Exception as error:
            kind = type(error)
            small = minimized(case, lambda smaller, kind=kind: _fails_with(check, smaller, kind))
            raise AssertionError(f"seed {seed}: {kind.__name__}: {error}\n\n{small}") from error


def _fails_with(check: Check, case: RandomGraph, error: type[Exception]) -> bool:
    try:
        check(case)
    except error:
        return True
    except Exception:
        return False
    return False


def minimized(case: RandomGraph, fails: Callable[[RandomGraph], bool]) -> RandomGraph:
    """A smaller graph that fails still: with one output, its gradient expanded where that is not what fails, nodes left
    out, and inputs in place of what need not be computed.
    """
    case = _first(_with_one_output(case), fails) or case
    case = _first(iter([_trimmed(Autodiff().apply(case.graph), case)]), fails) or case
    while (smaller := _first(_smaller(case), fails)) is not None:
        case = smaller
    return case


def _smaller(case: RandomGraph) -> Iterator[RandomGraph]:
    return chain(_with_an_earlier_output(case), _with_one_cut(case), _with_one_bypassed(case))


def _first(cases: Iterator[RandomGraph], fails: Callable[[RandomGraph], bool]) -> RandomGraph | None:
    return next((case for case in cases if fails(case)), None)


def _with_one_output(case: RandomGraph) -> Iterator[RandomGraph]:
    for output in case.graph.outputs:
        yield _trimmed(replace(case.graph, outputs=(output,)), case)


def _with_an_earlier_output(case: RandomGraph) -> Iterator[RandomGraph]:
    """The graph that returns what its output is computed from."""
    producers = case.graph.producers()
    for output in case.graph.outputs:
        for value in producers[output.value].operands if output.value in producers else ():
            if value in producers:
                yield _trimmed(replace(case.graph, outputs=(Output(value, output.name),)), case)


def _with_one_cut(case: RandomGraph) -> Iterator[RandomGraph]:
    """The graph with inputs in place of one node's results; nodes near the outputs first: more goes with them."""
    values = _values(case)
    for node in reversed(case.graph.nodes):
        if node.operands and all(v in values for v in node.results):
            yield _trimmed(_without(case.graph, node), case, {v: values[v] for v in node.results})


def _with_one_bypassed(case: RandomGraph) -> Iterator[RandomGraph]:
    """The graph with an operand in place of a node's result."""
    for node in case.graph.nodes:
        for operand in dict.fromkeys(node.operands):
            if [v.type for v in node.results] == [operand.type] and node.op != "gradient":
                rewriter = Rewriter(case.graph)
                for other in case.graph.nodes:
                    if other is not node:
                        rewriter.append(rewriter.renamed(other))
                    else:
                        rewriter.replace(node.results, (operand,))
                yield _trimmed(rewriter.finish(), case)


def _values(case: RandomGraph) -> dict[Value, np.ndarray]:
    """What every value is, except those that only stand for a gradient."""
    graph = Autodiff().apply(case.graph)
    known = {entry.value: case.arrays[entry.name] for entry in graph.inputs}
    return run_nodes(graph.nodes, known, bind_symbols(graph, {i.name: case.arrays[i.name] for i in graph.inputs}))


def _without(graph: Graph, node: Node) -> Graph:
    inputs = tuple(Input(value, f"cut_{value.name}") for value in node.results)
    return replace(graph, inputs=(*graph.inputs, *inputs), nodes=tuple(n for n in graph.nodes if n is not node))


def _trimmed(graph: Graph, case: RandomGraph, new: dict[Value, np.ndarray] | None = None) -> RandomGraph:
    """The graph without dead nodes and unread inputs, but for one that gives the batch."""
    graph = without_dead_nodes(graph)
    read = {v for node in graph.nodes for v in node.operands} | {o.value for o in graph.outputs}
    donated = {output.donates for output in graph.outputs}
    kept = [i for i in graph.inputs if i.value in read or i.name in donated]
    if not any(symbols_of(i.value.type.shape) for i in kept):
        kept = [next(i for i in graph.inputs if symbols_of(i.value.type.shape)), *kept]
    arrays = {**case.arrays, **{f"cut_{value.name}": array for value, array in (new or {}).items()}}
    return RandomGraph(replace(graph, inputs=tuple(kept)), {i.name: arrays[i.name] for i in kept}, case.sizes)
