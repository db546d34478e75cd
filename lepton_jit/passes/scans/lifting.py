"""Compute values of a loop's region outside of it: for all iterations (rounds) at once, as leading dimension."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.loops import ScanLoop, Stacked
from lepton_jit.ir.op import Family, get_op
from lepton_jit.ir.types import Dim
from lepton_jit.passes.rewriting.rewrite import Rewriter

__all__ = ["Lifted", "Outside", "can_lift", "product_over_rounds"]


@dataclass(frozen=True)
class Lifted:
    """The value outside of a loop for one inside: the same in every round, or `stacked` along dimension 0."""

    value: Value
    stacked: bool


Rule = Callable[[Builder, Sequence[Lifted], Any, Dim], Value]


def can_lift(node: Node) -> bool:
    """Tell whether an operation can be done for all rounds at once."""
    return len(node.results) == 1 and (get_op(node.op).family is Family.ELEMENTWISE or node.op in _RULES)


class Outside:
    """Maps values of a loop's region to values outside, which it computes with `rewriter` where there are none.

    law: stack(f(x_0, w), f(x_1, w), ...) == lifted f(stack(x_0, x_1, ...), w); f(w) is the same in every round.
    Values that are neither `computable` nor operands of the loop are stacked by it: it gets one more result.
    """

    def __init__(self, rewriter: Rewriter, loop: ScanLoop, computable: Iterable[Value]) -> None:
        self._rewriter = rewriter
        self._loop = loop
        self._computable = set(computable)
        self._producers = {value: node for node in loop.nodes for value in node.results}
        self._known = {captured.inner: Lifted(captured.outer, stacked=False) for captured in loop.captured}
        self._known |= {scanned.inner: Lifted(scanned.array, stacked=True) for scanned in loop.scanned}

    def of(self, value: Value) -> Lifted:
        """The value outside for one inside, the same in every round or stacked."""
        if value not in self._known:
            if value in self._computable:
                self._compute(self._producers[value])
            else:
                self._known[value] = Lifted(self._stacked_by_the_loop(value), stacked=True)
        return self._known[value]

    def knows(self, value: Value) -> bool:
        """Tell whether the value can be had without one more result of the loop."""
        return value in self._known or value in self._computable or any(s.step == value for s in self._loop.stacked)

    def stacked(self, value: Value) -> Value:
        """The values of all rounds, stacked."""
        return _rounds(self._rewriter, self.of(value), self._loop.length)

    def _compute(self, node: Node) -> None:
        operands = [self.of(operand) for operand in node.operands]
        b = self._rewriter
        with b.layer(node.layer, absolute=True):
            if not any(operand.stacked for operand in operands):
                found = b.emit(node.op, *(o.value for o in operands), regions=node.regions, **node.attributes)
                self._known.update(zip(node.results, (Lifted(v, stacked=False) for v in found), strict=True))
                return
            rule = _RULES.get(node.op, _elementwise)
            attributes = {"op": node.op, **node.attributes}
            self._known[node.result] = Lifted(rule(b, operands, attributes, self._loop.length), stacked=True)

    def _stacked_by_the_loop(self, value: Value) -> Value:
        for stacked in self._loop.stacked:
            if stacked.step == value:
                return stacked.stack
        stack = self._rewriter.fresh(value.type.with_shape((self._loop.length, *value.type.shape)))
        self._loop.stacked.append(Stacked(value, stack))
        return stack


def product_over_rounds(b: Builder, node: Node, lhs: Value, rhs: Value) -> Value:
    """law: sum over t of dot(a_t, b_t) is one dot over t too; both operands are stacked"""
    a: Any = node.attributes
    with b.layer(node.layer, absolute=True):
        return b(
            "dot_general",
            lhs,
            rhs,
            lhs_batching=_later(a["lhs_batching"]),
            rhs_batching=_later(a["rhs_batching"]),
            lhs_contracting=(0, *_later(a["lhs_contracting"])),
            rhs_contracting=(0, *_later(a["rhs_contracting"])),
        )


def _later(dimensions: Sequence[int]) -> tuple[int, ...]:
    return tuple(d + 1 for d in dimensions)


def _rounds(b: Builder, operand: Lifted, length: Dim) -> Value:
    """Give an operand a leading dimension for the rounds; one that is the same in all is repeated."""
    if operand.stacked:
        return operand.value
    shape = operand.value.type.shape
    return b.broadcast(operand.value, (length, *shape), _later(range(len(shape))))


def _elementwise(b: Builder, operands: Sequence[Lifted], a: Any, length: Dim) -> Value:
    attributes = {name: value for name, value in a.items() if name != "op"}
    return b(a["op"], *(_rounds(b, operand, length) for operand in operands), **attributes)


def _broadcast(b: Builder, operands: Sequence[Lifted], a: Any, length: Dim) -> Value:
    (x,) = operands
    return b.broadcast(x.value, (length, *a["shape"]), (0, *_later(a["dimensions"])))


def _reshape(b: Builder, operands: Sequence[Lifted], a: Any, length: Dim) -> Value:
    return b("reshape", operands[0].value, shape=(length, *a["shape"]))


def _transpose(b: Builder, operands: Sequence[Lifted], a: Any, _: Dim) -> Value:
    return b("transpose", operands[0].value, permutation=(0, *_later(a["permutation"])))


def _slice(b: Builder, operands: Sequence[Lifted], a: Any, length: Dim) -> Value:
    start, limit, strides = (0, *a["start"]), (length, *a["limit"]), (1, *a["strides"])
    return b("slice", operands[0].value, start=start, limit=limit, strides=strides)


def _reduce(b: Builder, operands: Sequence[Lifted], a: Any, _: Dim) -> Value:
    return b("reduce", operands[0].value, dimensions=_later(a["dimensions"]), kind=a["kind"])


def _concatenate(b: Builder, operands: Sequence[Lifted], a: Any, length: Dim) -> Value:
    return b("concatenate", *(_rounds(b, x, length) for x in operands), dimension=a["dimension"] + 1)


def _dot_general(b: Builder, operands: Sequence[Lifted], a: Any, length: Dim) -> Value:
    """Lift a product. Where both operands are stacked, rounds are a batch; where one is, they are rows or columns.

    Rows of the left operand lead already, unless there are batches; columns have to be moved there.
    """
    lhs, rhs = operands
    lhs_batching, lhs_contracting = _side(a, "lhs", lhs.stacked)
    rhs_batching, rhs_contracting = _side(a, "rhs", rhs.stacked)
    if lhs.stacked and rhs.stacked:
        lhs_batching, rhs_batching = (0, *lhs_batching), (0, *rhs_batching)
    product = b(
        "dot_general",
        lhs.value,
        rhs.value,
        lhs_batching=lhs_batching,
        rhs_batching=rhs_batching,
        lhs_contracting=lhs_contracting,
        rhs_contracting=rhs_contracting,
    )
    if lhs.stacked and rhs.stacked:
        return product
    rank = product.type.rank
    at = len(lhs_batching) if lhs.stacked else lhs.value.type.rank - len(lhs_contracting)
    order = (at, *(d for d in range(rank) if d != at))
    return product if at == 0 else b("transpose", product, permutation=order)


def _side(attributes: Any, side: str, stacked: bool) -> tuple[tuple[int, ...], tuple[int, ...]]:
    batching, contracting = attributes[f"{side}_batching"], attributes[f"{side}_contracting"]
    return (_later(batching), _later(contracting)) if stacked else (tuple(batching), tuple(contracting))


_RULES: dict[str, Rule] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "transpose": _transpose,
    "slice": _slice,
    "reduce": _reduce,
    "concatenate": _concatenate,
    "dot_general": _dot_general,
}
