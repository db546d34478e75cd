"""Match values in rewrite rules: what produces them, and whether they are constants."""

from __future__ import annotations

import math

from lepton_jit.ir.graph import Attribute, Node, Value
from lepton_jit.ir.types import Poly, symbols_of
from lepton_jit.passes.rewriting.rewrite import Rewriter

__all__ = ["constant_node", "flat_elements", "is_splat_of", "producer_of", "reads_symbols", "splat"]

Number = bool | int | float


def producer_of(rewriter: Rewriter, value: Value, op: str) -> Node | None:
    """The node that defines a value, where that is an `op`."""
    node = rewriter.producer(value)
    return node if node is not None and node.op == op else None


def constant_node(rewriter: Rewriter, value: Value) -> Node | None:
    """The constant that a value is, or that it repeats."""
    node = rewriter.producer(value)
    while node is not None and node.op == "broadcast_in_dim":
        node = rewriter.producer(node.operands[0])
    return node if node is not None and node.op == "constant" else None


def splat(rewriter: Rewriter, value: Value) -> Number | None:
    """The number that stands everywhere in a value, where that is known."""
    node = constant_node(rewriter, value)
    if node is None:
        return None
    number = node.attributes["value"]
    return number if isinstance(number, (bool, int, float)) else None


def is_splat_of(rewriter: Rewriter, value: Value, number: float) -> bool:
    """Tell whether a value is this number everywhere; `0.0` also stands for `-0.0`."""
    found = splat(rewriter, value)
    return found is not None and found == number and not (isinstance(found, float) and math.isnan(found))


def reads_symbols(node: Node) -> bool:
    """Tell whether a node's results, or their sizes, depend on the number of a symbolic dimension."""

    def symbolic(attribute: object) -> bool:
        return isinstance(attribute, Poly) or (isinstance(attribute, tuple) and any(map(symbolic, attribute)))

    return (
        any(map(symbolic, node.attributes.values()))
        or any(symbols_of(v.type.shape) for v in node.results)
        or any(reads_symbols(inner) for region in node.regions for inner in region.nodes)
    )


def flat_elements(value: Attribute) -> list[Number]:
    """The numbers of a constant's `value`, row-major."""
    if isinstance(value, tuple):
        return [number for part in value for number in flat_elements(part)]
    assert isinstance(value, (bool, int, float))
    return [value]
