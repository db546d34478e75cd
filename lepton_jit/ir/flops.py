"""How many floating-point operations a node stands for."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lepton_jit.ir.graph import Node
from lepton_jit.ir.types import Dim, element_count

__all__ = ["flops_of"]


def flops_of(node: Node) -> Dim:
    """Two for each product that a contraction or a convolution adds up, as the steps of a program count them.

    Other operations count nothing: memory bounds them.
    """
    a: Any = node.attributes
    match node.op:
        case "dot_general":
            return _twice(node, (node.operands[0].type.shape[d] for d in a["lhs_contracting"]))
        case "convolution":
            features = a["rhs_spec"][0]  # the kernel's other dimensions are taps, and the channels of one group
            return _twice(node, (n for d, n in enumerate(node.operands[1].type.shape) if d != features))
        case "affine_contraction":
            return element_count(a["extents"]) * 2
    total: Dim = 0
    for region in node.regions:
        for inner in region.nodes:
            total = flops_of(inner) + total
    return a["length"] * total if node.op == "scan" else total


def _twice(node: Node, summed: Iterable[Dim]) -> Dim:
    return element_count(node.result.type.shape) * element_count(summed) * 2
