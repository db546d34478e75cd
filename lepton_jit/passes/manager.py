"""Run passes in order, with one observer around them."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

from lepton_jit.errors import LeptonError
from lepton_jit.ir.graph import Graph
from lepton_jit.passes.base import Pass

__all__ = ["Observer", "Observers", "StopPipeline", "run_pipeline"]


class StopPipeline(Exception):  # noqa: N818  control flow between an observer and the manager, never seen outside
    """Raised by an observer: the graph that it has just seen is the pipeline's result."""


class Observer:
    """Watches a pipeline; this one does nothing. Every graph it sees is immutable and may be kept."""

    def start(self, graph: Graph) -> None:
        """The graph as it enters the pipeline."""

    def after(self, pass_: Pass, before: Graph, after: Graph, seconds: float) -> None:
        """One pass has run; `after is before` where it changed nothing."""


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


def run_pipeline(graph: Graph, passes: Sequence[Pass], observer: Observer | None = None) -> Graph:
    """The graph after all passes, in order.

    An error of this package inside a pass keeps its class and message, and gets the pass's name as a note.
    """
    observer = observer or Observer()
    try:
        observer.start(graph)
        for pass_ in passes:
            started = perf_counter()
            try:
                result = pass_.apply(graph)
            except LeptonError as error:
                error.add_note(f"in pass {pass_}")
                raise
            before, graph = graph, result
            observer.after(pass_, before, graph, perf_counter() - started)
    except StopPipeline:
        pass
    return graph
