"""Rewrite what takes a look beyond one node: batch normalization, log of softmax, movements that cancel."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.passes.base import Pass
from lepton_jit.passes.rewriting.algebra_batch_norm import fold_batch_norm
from lepton_jit.passes.rewriting.algebra_movement import pull_movement
from lepton_jit.passes.rewriting.facts import Facts
from lepton_jit.passes.rewriting.matching import producer_of
from lepton_jit.passes.rewriting.rewrite import Rewriter, rewrite

__all__ = ["Algebra"]


@dataclass(frozen=True)
class Algebra(Pass):
    """Fold batch normalization of inference into the weights before it, use log-softmax, cancel movements.

    The laws stand with the rules. Those of batch normalization and log-softmax hold for real numbers; in floating
    point the results differ by rounding. Movements are exact. Canonicalize afterwards: it joins the movements that
    have come to stand one after the other.
    """

    name: ClassVar[str] = "algebra"

    def apply(self, graph: Graph) -> Graph:
        facts = Facts.of(graph)
        return rewrite(
            graph,
            {
                "batch_norm_inference": (partial(fold_batch_norm, facts),),
                "log": (log_of_softmax,),
                "transpose": (partial(pull_movement, facts),),
                "reshape": (partial(pull_movement, facts),),
            },
        )


def log_of_softmax(rewriter: Rewriter, node: Node) -> Value | None:
    """law: log(softmax(x)) == log_softmax(x), which does not underflow"""
    softmax = producer_of(rewriter, node.operands[0], "softmax")
    return rewriter("log_softmax", softmax.operands[0], **softmax.attributes) if softmax else None
