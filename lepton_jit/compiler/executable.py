"""A compiled graph with the arrays that it works on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from lepton_jit.runtime.arguments import aligned_copy
from lepton_jit.runtime.linker import link
from lepton_jit.runtime.manifest import Manifest
from lepton_jit.runtime.native import Batches
from lepton_jit.runtime.program import Parameters, Program

if TYPE_CHECKING:
    from lepton_jit.codegen.target import Target
    from lepton_jit.ir.graph import Graph

__all__ = ["PLANNED_BATCH", "Code", "Executable"]

# The batch that a memory plan states, unless another one is asked for.
PLANNED_BATCH = 64


@dataclass(frozen=True)
class Code:
    """One program as it is compiled, cached and exported."""

    manifest: Manifest
    objects: tuple[bytes, ...]

    def program(self, support: bytes, threads: int | None) -> Program:
        return Program(self.manifest, link(self.objects, support, self.manifest.prefix), threads=threads)


class Executable:
    """Runs a program on the arrays that `bind` gives it: parameters are copied or packed, state is updated in place."""

    def __init__(
        self,
        graph: Graph,
        target: Target,
        typical_batch: int | None,
        prepare: Code,
        main: Code,
        support: bytes,
        *,
        threads: int | None,
        recompile: Callable[[Graph, Target, int | None], tuple[Any, Any, Any]],
    ) -> None:
        self.graph = graph
        self.target = target
        self.typical_batch = typical_batch
        self.prepare = prepare
        self.main = main
        self.support = support
        self.recompile = recompile
        self.program = main.program(support, threads)
        self._symbols = len(main.manifest.symbols)
        self._preparing = prepare.program(support, threads) if prepare.manifest.outputs else None
        self._bound: tuple[dict[str, np.ndarray], Parameters] | None = None  # one value: both change, or neither

    def bind(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Use these arrays from now on: a snapshot of parameters, the very arrays of state."""
        given: dict[str, np.ndarray] = dict(arrays)
        params = self.main.manifest.params
        kept = {p.name for p in params if p.role == "state"}
        if self._preparing is not None:
            names = [p.name for p in self.prepare.manifest.params]
            held = {name: np.asarray(given[name], order="C") for name in names}
            prepared = self._preparing.allocate_weights()
            self._preparing.run((), self._preparing.bind(held), (), prepared)
            own = {o.name: a for o, a in zip(self.prepare.manifest.outputs, prepared, strict=True)}
            given |= own
            kept |= own.keys()
        held = {p.name: given[p.name] if p.name in kept else aligned_copy(given[p.name]) for p in params}
        self._bound = held, self.program.bind(held)

    def run(self, *inputs: Any) -> tuple[np.ndarray, ...]:
        """One call, inputs by position or one mapping by name; fresh arrays for the outputs that donate nothing."""
        return self.program(*inputs, parameters=self.parameters)

    def run_at(self, batch: int, inputs: Sequence[int], outputs: Sequence[int], batches: Batches | None = None) -> None:
        """One call on addresses, which the caller vouches for, or one for each of `batches`, whose columns are the
        first inputs; every symbol has the value `batch`."""
        assert self._bound is not None
        self.program.run_at((batch,) * self._symbols, self._bound[1], inputs, outputs, batches)

    def allocate(self, batch: int) -> list[np.ndarray]:
        """Fresh arrays for the outputs of `run_at`."""
        return self.program.allocate((batch,) * self._symbols)

    @property
    def arrays(self) -> Mapping[str, np.ndarray]:
        """The arrays of the program's parameters, by name; none before `bind`."""
        return {} if self._bound is None else self._bound[0]

    @property
    def parameters(self) -> Parameters | None:
        return None if self._bound is None else self._bound[1]
