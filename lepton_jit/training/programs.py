"""A compiled graph with the arrays that it works on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from lepton_jit.ir.graph import Graph
from lepton_jit.runtime.native import Batches
from lepton_jit.tracing.weight import Weight

__all__ = ["BoundProgram"]


class BoundProgram:
    """Runs a graph; weights that changed since the last run are bound again, state is updated in place."""

    def __init__(self, graph: Graph, weights: Mapping[str, Weight], state: Mapping[str, np.ndarray]) -> None:
        from lepton_jit.compiler.build import build  # what only compiling needs is imported when something is compiled

        self._executable = build(graph)
        arrays = {path: w.array for path, w in weights.items()} | dict(state)
        self._arrays = {i.name: arrays[i.name] for i in graph.inputs if i.role != "input"}
        self._read = [weights[i.name] for i in graph.inputs_of("parameter")]
        self._written = [weights[i.name] for i in graph.inputs_of("state") if i.name in weights]
        self._versions: list[int] | None = None
        self.stretch = 1  # steps that go by without Python in between, where many are to be run

    def run(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """The graph's results for its inputs, in their order."""
        self._bind()
        self._count_writes()
        results = self._executable.run(*inputs)
        self._count_writes()
        return results

    def run_at(self, batch: int, inputs: Sequence[int], outputs: Sequence[int], batches: Batches | None = None) -> None:
        """The same for `batch` rows on addresses that the caller vouches for, and nothing is checked.

        With `batches` once for each of them, without Python in between; their columns come before `inputs`.
        """
        self._bind()
        self._count_writes()
        self._executable.run_at(batch, inputs, outputs, batches)
        self._count_writes()

    def allocate(self, batch: int) -> list[np.ndarray]:
        """Arrays for the results of `batch` rows."""
        return self._executable.allocate(batch)

    def gather(self, source: int, rows: int, count: int, row_bytes: int, destination: int) -> None:
        """Copy rows of a table on the program's threads: see `feeding.Gather`."""
        self._executable.program.gather_rows(source, rows, count, row_bytes, destination)

    def _bind(self) -> None:
        versions = [w.version for w in self._read]
        if versions != self._versions:
            self._executable.bind(self._arrays)
            self._versions = versions

    def _count_writes(self) -> None:
        """Before a run, which an exception may follow at once, and after it: who reads meanwhile is to read again."""
        for weight in self._written:
            weight.version += 1
