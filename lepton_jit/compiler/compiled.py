"""Define what `lepton_jit.compile` returns: a callable that can also be read, planned, profiled and exported."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lepton_jit.common import arguments
from lepton_jit.compiler.compile_thread import run_apart
from lepton_jit.compiler.executable import PLANNED_BATCH, Executable
from lepton_jit.errors import ArgumentError
from lepton_jit.ir.graph import Graph, print_graph
from lepton_jit.ir.types import typical_batch as made_for
from lepton_jit.runtime.manifest import Tensor
from lepton_jit.runtime.native import Native
from lepton_jit.runtime.plan import MemoryPlan
from lepton_jit.runtime.profile import Profile

if TYPE_CHECKING:
    from networkx import MultiDiGraph

__all__ = ["CompiledModel"]

# The stages after the graphs.
_CODE = ("loops", "llvm", "asm")


class CompiledModel(Native):
    """A compiled model: `fast(x)`, `fast(a, b)` or `fast({"name": a})`, for any batch size.

    One output is an array, several are a tuple; results are fresh arrays.
    """

    def __init__(self, executable: Executable, weights: Callable[[], dict[str, np.ndarray]]) -> None:
        self.executable = executable
        self._weights = weights
        self._reading: tuple[Any, Any, Any] | None = None

    def __call__(self, *inputs: Any) -> np.ndarray | tuple[np.ndarray, ...]:
        results = self.executable.run(*inputs)
        return results[0] if len(results) == 1 else results

    @property
    def inputs(self) -> tuple[Tensor, ...]:
        """Name, dtype and shape of every input."""
        return self.executable.program.manifest.inputs

    @property
    def outputs(self) -> tuple[Tensor, ...]:
        """Name, dtype and shape of every output."""
        return self.executable.program.manifest.outputs

    def update_weights(self, model: Any) -> None:
        """Take a new snapshot of the weights of `model`, without recompiling."""
        arguments.model("update_weights", model, ("weights_by_name",))
        given = model.weights_by_name()
        missing = [i.name for i in self.executable.graph.inputs_of("parameter") if i.name not in given]
        if missing:
            raise ArgumentError(
                f"update_weights: expected a model with the weights of the compiled one: missing {missing}, "
                f"got {list(given)}"
            )
        self.executable.bind(given)

    @property
    def plan(self) -> MemoryPlan:
        """The memory plan for a batch of 64; `plan_at` is for other ones."""
        return self.plan_at(PLANNED_BATCH)

    def plan_at(self, batch: int) -> MemoryPlan:
        """The memory plan with every symbolic dimension at `batch`."""
        program = self.executable.program
        rows = arguments.integer("plan_at", "batch", batch, low=0)
        return program.plan(**dict.fromkeys(program.manifest.symbols, rows))

    def profile(self, *inputs: Any, calls: int = 10) -> Profile:
        """The time of every kernel, with its layer, FLOPs, bytes and share of the peak measured beside it."""
        from lepton_jit.codegen.llvm.peak import measure_peak  # emits code: imported when it is asked for

        count = arguments.integer("profile", "calls", calls)
        found = self.executable.program.profile(*inputs, parameters=self.executable.parameters, calls=count)
        return replace(found, peak=run_apart(partial(measure_peak, self.executable.target)) * found.threads)

    def ir(self, stage: str | None = None, *, layer: str | None = None) -> str:
        """The text of a stage: `traced`, the name of a pass, `optimized`, `loops`, `llvm` or `asm`; all of them joined.

        `prepare` is what is computed of weights alone, once, `prepare-fuse` what fusion makes of it; its code is
        `prepare-loops`, `prepare-llvm` and `prepare-asm`. `layer` keeps what comes from one layer and those inside it.
        """
        self._check_layer(layer)
        names = self.stages()
        if stage is None:
            return "\n".join(f"// ---- {name}\n{self.ir(name, layer=layer)}" for name in names)
        if stage not in names:
            raise ArgumentError(f"ir: expected a stage of {', '.join(names)}, got {stage!r}")
        return self._text(stage, layer)

    def _check_layer(self, layer: str | None) -> None:
        known = sorted({node.layer for node in self.executable.graph.nodes if node.layer})
        if layer is not None and not any(f"{name}/".startswith(f"{layer}/") for name in known):
            raise ArgumentError(f"ir: expected a layer that computes something, of {', '.join(known)}, got {layer!r}")

    def stages(self) -> list[str]:
        """The names that `ir` takes, in the order of compilation."""
        stages, _, _ = self._read()
        return [*stages.graphs, "optimized", *_CODE, *(f"prepare-{name}" for name in _CODE)]

    def _read(self) -> tuple[Any, Any, Any]:
        if self._reading is None:
            e = self.executable
            self._reading = e.recompile(e.graph, e.target, e.typical_batch)
        return self._reading

    def _text(self, stage: str, layer: str | None) -> str:
        _, prepare, main = self._read()
        made, kind = (prepare, stage.removeprefix("prepare-")) if stage.startswith("prepare-") else (main, stage)
        if kind == "llvm":
            return made.llvm
        if kind == "asm":
            return run_apart(made.assembly)
        if kind == "loops":
            from lepton_jit.codegen.program.step_printer import print_steps

            return print_steps(made.lowered.steps, layer)
        return print_graph(self._graph("ir", stage), layer=layer)

    def to_networkx(self, stage: str = "optimized", *, batch: int = PLANNED_BATCH) -> MultiDiGraph:
        """The graph of a stage as a `networkx.MultiDiGraph`, one of those that `ir` prints as a graph.

        `lepton_jit.to_networkx` says what it has. From `main` (`prepare`) on, `kernel` and `step` to `last_step` are
        those that a node ended up in; of `optimized`, `live` is what the memory plan keeps alive in these steps.
        """
        from lepton_jit.compiler.graph_view import to_networkx, with_kernels  # networkx is imported where it is used

        stages, prepare, main = self._read()
        name = list(stages.graphs)[-1] if stage == "optimized" else stage
        view = to_networkx(self._graph("to_networkx", stage), batch=batch)
        if name in ("prepare", "prepare-fuse"):
            return with_kernels(view, stages.graphs["prepare-fuse"], prepare.lowered)
        if name not in ("main", "fuse"):
            return view
        plan = self.plan_at(batch) if name == "fuse" else None
        return with_kernels(view, stages.graphs["fuse"], main.lowered, plan)

    def why_not_fused(self, first: str, second: str) -> str:
        """Why two nodes of the stage `main`, called as their results, are in two kernels: one sentence."""
        from lepton_jit.passes.fuse_reasons import why_not_fused

        with made_for(self.executable.typical_batch):
            return why_not_fused(self._graph("why_not_fused", "main"), first, second)

    def _graph(self, owner: str, stage: str) -> Graph:
        stages, _, _ = self._read()
        graphs = {**stages.graphs, "optimized": list(stages.graphs.values())[-1]}
        if stage not in graphs:
            raise ArgumentError(f"{owner}: expected a graph's stage of {', '.join(graphs)}, got {stage!r}")
        return graphs[stage]

    def export(self, path: str | os.PathLike[str], *, target: str = "native") -> tuple[Path, Path]:
        """Write a shared library and its C header; `target` is "native", "x86-64-v3" or "x86-64-v4"."""
        from lepton_jit.compiler.exporting import export_program  # the compiler is imported when something is compiled

        return export_program(path, self.executable, self._weights(), target)
