"""Estimate the bytes that are alive along an order of nodes, for passes that choose an order."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.op import Family, get_op, traits_of
from lepton_jit.ir.types import dim_value, symbols_of

__all__ = ["Liveness"]


class Liveness:
    """The buffers of a graph's values and their sizes, with `batch` for every symbolic dimension.

    A broadcast or a reshape shares its operand's buffer. Inputs, and the outputs that are written in their place, live
    outside; constants and scalars take nothing. `kept` buffers are outputs, alive to the end.
    """

    def __init__(self, graph: Graph, batch: int) -> None:
        self._batch = batch
        self.buffer: dict[str, str] = {value.name: value.name for value in graph.values()}
        self.size: dict[str, int] = {entry.value.name: 0 for entry in graph.inputs}
        for node in graph.nodes:
            weightless = traits_of(node).weightless
            for value in node.results:
                if weightless and node.operands:
                    self.buffer[value.name] = self.buffer[node.operands[0].name]
                self.size[value.name] = 0 if weightless or not value.type.rank else self.bytes_of(value)
        self.kept: set[str] = set()
        for output in graph.outputs:
            self.kept.add(self.buffer[output.value.name])
            if output.donates is not None:
                self.size[self.buffer[output.value.name]] = 0

    def bytes_of(self, value: Value) -> int:
        """The size of a tensor at the stated batch."""
        symbols = dict.fromkeys(symbols_of(value.type.shape), self._batch)
        return value.type.dtype.bytes * dim_value(value.type.elements, symbols)

    def peak(self, nodes: Sequence[Node]) -> int:
        """The largest number of bytes alive at once."""
        return max(self.alive(nodes), default=0)

    def alive(self, nodes: Sequence[Node]) -> list[int]:
        """The bytes alive while each node runs; an elementwise result may take over an operand's buffer."""
        last: dict[str, int] = {}
        for i, node in enumerate(nodes):
            for value in (*node.operands, *node.results):
                last[self.buffer[value.name]] = i
        found: list[int] = []
        alive = 0
        for i, node in enumerate(nodes):
            made = sum(self.size[b] for b in {self.buffer[v.name] for v in node.results} if b in self._own(node))
            dying = {self.buffer[v.name] for v in (*node.operands, *node.results)} - self.kept
            freed = sum(self.size[b] for b in dying if last[b] == i)
            in_place = get_op(node.op).family is Family.ELEMENTWISE
            found.append(alive + max(made - freed, 0) if in_place else alive + made)
            alive += made - freed
        return found

    def _own(self, node: Node) -> set[str]:
        return {value.name for value in node.results}
