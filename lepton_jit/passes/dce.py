"""Remove nodes that no output depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lepton_jit.ir.graph import Graph
from lepton_jit.passes.base import Pass
from lepton_jit.passes.rewriting.rewrite import without_dead_nodes

__all__ = ["EliminateDeadCode"]


@dataclass(frozen=True)
class EliminateDeadCode(Pass):
    """Keep the nodes that an output depends on; inputs and outputs stay.

    law: every operation is pure, so what nobody reads has no effect.
    """

    name: ClassVar[str] = "dce"

    def apply(self, graph: Graph) -> Graph:
        return without_dead_nodes(graph)
