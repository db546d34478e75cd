"""Simplify locally; the rules, each with its law, stand in the modules `rules_*`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from lepton_jit.ir.graph import Graph
from lepton_jit.passes.base import Pass
from lepton_jit.passes.rewriting.rewrite import Rule, rewrite
from lepton_jit.passes.rewriting.rules_elementwise import ELEMENTWISE_RULES
from lepton_jit.passes.rewriting.rules_movement import MOVEMENT_RULES
from lepton_jit.passes.rewriting.rules_windows import WINDOW_RULES

__all__ = ["CANONICAL_RULES", "Canonicalize"]


CANONICAL_RULES: Mapping[str, Sequence[Rule]] = {
    op: (*ELEMENTWISE_RULES.get(op, ()), *MOVEMENT_RULES.get(op, ()), *WINDOW_RULES.get(op, ()))
    for op in sorted({*ELEMENTWISE_RULES, *MOVEMENT_RULES, *WINDOW_RULES})
}


@dataclass(frozen=True)
class Canonicalize(Pass):
    """Bring every node into the one form that later passes look for.

    Constants stand on the right of commutative operations; what is one number everywhere is a broadcast of a scalar
    constant; movements that move nothing are gone, and those that follow each other are one.

    Every law holds for floats bit for bit, NaN and infinities included, with three exceptions: `x + 0 == x` (a sum of
    one number too) keeps the sign of a zero that an addition loses, the larger or smaller one of two zeros may have the
    sign of either, and a reduction of a reduction or of a transpose adds in its own order. The gradients are the same
    too, but for how equal extremes share one.
    """

    name: ClassVar[str] = "canonicalize"

    def apply(self, graph: Graph) -> Graph:
        return rewrite(graph, CANONICAL_RULES)
