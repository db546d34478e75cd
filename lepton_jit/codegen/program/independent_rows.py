"""Decide whether the rows of a batch go through the body of a scan independently of each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lepton_jit.codegen.kernels.turns import ROW_BLOCK
from lepton_jit.codegen.program.lowered import IndependentRows
from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.op import Family, get_op
from lepton_jit.ir.types import Dim, Poly, element_count, symbols_of, typical

# What one iteration reads besides its rows: more than this does not stay in a core's cache from one to the next.
SHARED_L2_BYTES = 3 << 19


def rows_of(region: Graph) -> IndependentRows | None:
    """The batch whose rows are independent in `region`, or None.

    Row n of every result then depends on row n of the operands alone, and does not know n: running the region on some
    rows is running it on all and taking these. Where no operand has a leading dimension that is a symbol, or something
    of the batch is read or made in another order, there is no such batch.
    """
    leading = [v.type.shape[0] for entry in region.inputs for v in [entry.value] if v.type.rank]
    batch = next((d for d in leading if isinstance(d, Poly) and repr(d).isidentifier()), None)
    if batch is None or not all(_has(v, batch) for n in region.nodes if n.op != "constant" for v in n.results):
        return None
    if not all(_has(o.value, batch) for o in region.outputs) or not independent(region, batch):
        return None
    shared = sum(
        typical(e.value.type.elements) * e.value.type.dtype.bytes for e in region.inputs if not _has(e.value, batch)
    )
    return IndependentRows(repr(batch), ROW_BLOCK, shared > SHARED_L2_BYTES)


def independent(region: Graph, batch: Poly) -> bool:
    """Tell whether every value with `batch` has it as leading dimension, and every node keeps its rows apart."""
    (symbol,) = symbols_of((batch,))
    for value in region.values():
        if symbol in symbols_of(value.type.shape[1:]) or (
            symbol in symbols_of(value.type.shape) and not _has(value, batch)
        ):
            return False
    return all(_keeps_apart(node, batch) for node in region.nodes)


def _has(value: Value, batch: Poly) -> bool:
    return value.type.rank > 0 and value.type.shape[0] == batch


def _keeps_apart(node: Node, batch: Poly) -> bool:
    if not any(_has(v, batch) for v in (*node.operands, *node.results)):
        return not any(batch_in(value, batch) for value in node.attributes.values())
    if not all(_has(v, batch) for v in node.results):
        return False  # a sum over the batch
    if node.op == "fusion":
        return independent(node.regions[0], batch)
    if get_op(node.op).family is Family.ELEMENTWISE:
        return True
    return node.op in _RULES and _RULES[node.op](node, node.attributes, batch)


def batch_in(value: object, batch: Poly) -> bool:
    """Tell whether an attribute depends on the batch."""
    if isinstance(value, tuple):
        return any(batch_in(v, batch) for v in value)
    return isinstance(value, Poly) and bool(symbols_of((value,)) & symbols_of((batch,)))


def _contraction(node: Node, a: Mapping[str, Any], batch: Poly) -> bool:
    """Tell whether one loop walks the batch in the result and in each operand that has it, a row at a time.

    Every index of an operand is then `n * row + rest`, where the rest does not depend on n; since no index leaves the
    operand, no rest leaves a row.
    """
    loops = list(zip(a["kinds"], a["extents"], a["lhs"], a["rhs"], a["out"], a["out_dims"], strict=True))
    walks = [loop for loop in loops if loop[1] == batch]
    if len(walks) != 1 or any(batch_in(loop[1:5], batch) for loop in loops if loop is not walks[0]):
        return False
    _, _, lhs, rhs, out, dim = walks[0]
    sides = [(v, step) for v, step in zip(node.operands, (lhs, rhs), strict=True) if _has(v, batch)]
    row = all(step == _row(v) for v, step in sides) and out == _row(node.result)
    return dim == 0 and row and not batch_in((a["lhs_offset"], a["rhs_offset"]), batch)


def _row(value: Value) -> Dim:
    return element_count(value.type.shape[1:])


def _slice(node: Node, a: Mapping[str, Any], batch: Poly) -> bool:
    return a["start"][0] == 0 and a["strides"][0] == 1


def _pad(node: Node, a: Mapping[str, Any], batch: Poly) -> bool:
    return not any((a["low"][0], a["high"][0], a["interior"][0]))


def _broadcast(node: Node, a: Mapping[str, Any], batch: Poly) -> bool:
    (operand,) = node.operands
    return not _has(operand, batch) or a["dimensions"][0] == 0


_RULES: dict[str, Callable[[Node, Mapping[str, Any], Poly], bool]] = {
    "affine_contraction": _contraction,
    "broadcast_in_dim": _broadcast,
    "concatenate": lambda node, a, batch: a["dimension"] != 0,
    "constant": lambda node, a, batch: True,
    "iota": lambda node, a, batch: a["dimension"] != 0,
    "pad": _pad,
    "reduce": lambda node, a, batch: 0 not in a["dimensions"],
    "reshape": lambda node, a, batch: True,
    "reverse": lambda node, a, batch: 0 not in a["dimensions"],
    "slice": _slice,
    "transpose": lambda node, a, batch: a["permutation"][0] == 0,
}
