"""Choose which values of a loop's forward region are kept for the backward one, and which are rematerialized."""

from __future__ import annotations

from collections.abc import Iterable

from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.loops import ScanLoop
from lepton_jit.ir.op import Family, get_op

__all__ = ["choose_residuals"]


def choose_residuals(loop: ScanLoop, needed: Iterable[Value]) -> tuple[list[Value], list[Node]]:
    """Choose the values to stack, and the forward nodes to repeat in the backward region, so that it has `needed`.

    Slices, captured values and what the loop stacks anyway cost nothing. Expensive values (contractions, reductions,
    exponentials, ...) and carries are stacked where they are needed; arithmetic and movements are computed again where
    all that they read is there, and else stacked as well: a broadcast by its operand.
    """
    return _Choice(loop).run(set(needed))


class _Choice:
    def __init__(self, loop: ScanLoop) -> None:
        nodes = self.nodes = loop.nodes
        self.producers = {value: node for node in nodes for value in node.results}
        self.given = {scanned.inner for scanned in loop.scanned} | {captured.inner for captured in loop.captured}
        self.at_no_cost = {stacked.step for stacked in loop.stacked}
        self.invariant = loop.invariant()
        self.saved: dict[Value, None] = {}

    def run(self, needed: set[Value]) -> tuple[list[Value], list[Node]]:
        carried = [value for value in needed if value not in self.producers and value not in self.given]
        computed = [value for node in self.nodes for value in node.results if value in needed]
        self.saved = dict.fromkeys(sorted(carried, key=lambda value: value.name))
        self.saved.update(dict.fromkeys(v for v in computed if v in self.at_no_cost or not self._is_cheap(v)))
        for value in computed:
            self._obtain(value)
        repeated: set[Value] = set()
        for value in computed:
            self._repeat(value, repeated)
        return list(self.saved), [node for node in self.nodes if any(v in repeated for v in node.results)]

    def _obtain(self, value: Value) -> None:
        """Stack what is missing for `value`."""
        if self._is_available(value):
            return
        node = self.producers.get(value)
        if node is not None and node.op == "broadcast_in_dim":
            self._obtain(node.operands[0])
        else:
            self.saved[value] = None

    def _is_available(self, value: Value) -> bool:
        if value in self.saved or value in self.given:
            return True
        node = self.producers.get(value)
        return node is not None and self._is_cheap(value) and all(map(self._is_available, node.operands))

    def _is_cheap(self, value: Value) -> bool:
        """Tell whether it is a machine primitive, a movement, or the same in every iteration and so hoisted anyway."""
        node = self.producers.get(value)
        if node is None:
            return False
        op = get_op(node.op)
        arithmetic = op.family is Family.ELEMENTWISE and op.native is None
        return arithmetic or op.family is Family.MOVEMENT or value in self.invariant

    def _repeat(self, value: Value, repeated: set[Value]) -> None:
        if value in self.saved or value in self.given or value in repeated:
            return
        repeated.add(value)
        for operand in self.producers[value].operands:
            self._repeat(operand, repeated)
