"""Run passes in order, with one observer around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from time import perf_counter

from lepton_jit.errors import LeptonError
from lepton_jit.ir.graph import Graph, Node
from lepton_jit.passes.base import Pass

__all__ = ["Observer", "Observers", "StopPipeline", "apply_everywhere", "run_pipeline"]


class StopPipeline(Exception):  # noqa: N818  control flow between an observer and the manager, never seen outside
    """Raised by an observer: the graph that it has just seen is the pipeline's result."""


class Observer:
    """Watches a pipeline; this one does nothing. Every graph it sees is immutable and may be kept."""

    def start(self, graph: Graph) -> None:
        """Take the graph as it enters the pipeline."""

    def after(self, pass_: Pass, before: Graph, after: Graph, seconds: float) -> None:
        """Take the result of a pass; `after is before` where it changed nothing."""

    def split(self, before: Graph, prepare: Graph, main: Graph) -> tuple[Observer, Observer]:
        """Take the two graphs of `split_prepare`; returns the observers of the passes on `prepare` and on `main`."""
        return self, self


class Observers(Observer):
    """Several observers as one, asked in order."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def start(self, graph: Graph) -> None:
        for observer in self.observers:
            observer.start(graph)

    def after(self, pass_: Pass, before: Graph, after: Graph, seconds: float) -> None:
        stop = None
        for observer in self.observers:
            try:
                observer.after(pass_, before, after, seconds)
            except StopPipeline as request:
                stop = request
        if stop is not None:
            raise stop

    def split(self, before: Graph, prepare: Graph, main: Graph) -> tuple[Observer, Observer]:
        halves = [observer.split(before, prepare, main) for observer in self.observers]
        return Observers(*(first for first, _ in halves)), Observers(*(second for _, second in halves))


def apply_everywhere(pass_: Pass, graph: Graph) -> Graph:
    """Apply a pass to a graph, after the regions of its loops, the innermost ones first."""
    nodes = tuple(_with_region(pass_, node) if node.op == "scan" else node for node in graph.nodes)
    changed = any(after is not before for after, before in zip(nodes, graph.nodes, strict=True))
    return pass_.apply(replace(graph, nodes=nodes) if changed else graph)


def _with_region(pass_: Pass, loop: Node) -> Node:
    inside = pass_.inside(loop)
    (region,) = loop.regions
    after = region if inside is None else apply_everywhere(inside, region)
    return loop if after is region else replace(loop, regions=(after,))


def run_pipeline(graph: Graph, passes: Sequence[Pass], observer: Observer | None = None) -> Graph:
    """Apply all passes to a graph, in order.

    An error of this package inside a pass keeps its class and message, and gets the pass's name as a note.
    """
    observer = observer or Observer()
    try:
        observer.start(graph)
        for pass_ in passes:
            started = perf_counter()
            try:
                result = apply_everywhere(pass_, graph)
            except LeptonError as error:
                error.add_note(f"in pass {pass_}")
                raise
            before, graph = graph, result
            observer.after(pass_, before, graph, perf_counter() - started)
    except StopPipeline:
        pass
    return graph
