"""From a traced graph to a program that runs: the stages in order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lepton_jit.ir.graph import Graph
from lepton_jit.ir.interpreter import run_graph


class Executable:
    def __init__(self, graph: Graph) -> None:
        from lepton_jit.passes.autodiff import Autodiff

        self.graph = Autodiff().apply(graph)
        self._arrays: dict[str, np.ndarray] = {}

    def bind(self, arrays: Mapping[str, np.ndarray]) -> None:
        self._arrays = {
            i.name: arrays[i.name].copy() if i.role == "parameter" else arrays[i.name]
            for i in self.graph.inputs
            if i.role != "input"
        }

    def run(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        named = dict(zip([i.name for i in self.graph.inputs_of("input")], inputs, strict=True))
        results = run_graph(self.graph, named | self._arrays)
        for output in self.graph.outputs:
            if output.donates is not None:
                self._arrays[output.donates][...] = results[output.name]
        return tuple(results[o.name] for o in self.graph.outputs if o.donates is None)


def build(graph: Graph, *, threads: int | None = None, verify: str | None = None) -> Executable:
    return Executable(graph)
