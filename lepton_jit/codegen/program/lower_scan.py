"""Lower a scan to steps of its iterations (turns); place its carried, scanned and stacked values."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from lepton_jit.codegen.program.independent_rows import rows_of
from lepton_jit.codegen.program.lowered import (
    Alternate,
    BufferKind,
    Except,
    ProgramBuffer,
    Scan,
    Slot,
    Step,
    View,
    When,
)
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.types import Dim, Poly, with_value


class BodyLowering(Protocol):
    """The part of lowering a graph that lowering a scan uses, for the graph around it and for its body."""

    graph: Graph
    target: Target
    buffers: list[ProgramBuffer]
    steps: list[Step | Scan]
    sources: dict[int, Node]
    home: dict[Value, int]
    claimed: dict[Value, int]

    def run_nodes(self) -> None: ...
    def root(self, value: Value) -> Value: ...
    def produced(self) -> dict[Value, tuple[int, Node]]: ...
    def is_read(self, value: Value) -> bool: ...
    def may_overwrite(self, state: Value, position: int, node: Node) -> bool: ...
    def buffer(self, kind: BufferKind, name: str, value: Value, index: int = 0, layer: str = "") -> int: ...
    def copy(self, value: Value, source: int, target: int, when: When = "always", layer: str = "") -> None: ...


def lower_scan(outer: BodyLowering, node: Node, body: BodyLowering) -> None:
    """Append the steps of a scan to `outer`; `body`, which shares its buffers, is to lower the region."""
    _ScanLowering(outer, node, body).run()


def give_blocks_scratch(scan: Scan, buffers: list[ProgramBuffer]) -> None:
    """Give each block of independent rows scratch of its own, one behind the other, as blocks run side by side.

    B = ceil(N / block) blocks of S elements are at most N * ceil(S / block) + S. All rows at once need no more.
    """
    if scan.rows is None:
        return
    symbol, most = scan.rows.symbol, scan.rows.block
    for number in scan.scratch:
        size = with_value(buffers[number].elements, symbol, most)
        each = -(-size // most) if isinstance(size, int) else size
        buffers[number] = replace(buffers[number], elements=Poly.symbol(symbol) * each + size, block=size)


class _ScanLowering:
    """Lowers one scan. Turn i reads a carried value where turn i - 1 wrote it, turn 0 where the initial value lies.

    It is written, in this order of preference: where it is stacked anyway; where the next turn would stack it as its
    old value; over its old value, if the kernel that computes it reads that element by element; else into two buffers
    in turns, of which the last turn has the one where the final value belongs.
    """

    def __init__(self, outer: BodyLowering, node: Node, body: BodyLowering) -> None:
        self.outer, self.node, self.body = outer, node, body
        self.number = len(outer.buffers)  # every scan makes buffers, so no other has this number
        self.length: Dim = node.attributes["length"]
        carries, scanned = node.attributes["carries"], node.attributes["scanned"]
        self.entries = [entry.value for entry in body.graph.inputs]
        exits = [output.value for output in body.graph.outputs]
        self.carried, self.values = exits[:carries], exits[carries:]
        operands = [outer.home[v] for v in node.operands]
        self.initial = operands[:carries]
        body.home |= dict(zip(self.entries[carries:], operands[carries:], strict=True))
        for entry in self.entries[carries : carries + scanned]:
            body.home[entry] = self._view(entry, Slot(self.number, body.home[entry]))
        self.arrays = [self._memory(result) for result in node.results[carries:]]
        self.slots = [self._view(v, Slot(self.number, a)) for v, a in zip(self.values, self.arrays, strict=True)]
        self.produced = body.produced()

    def run(self) -> None:
        body, node = self.body, self.node
        self._leave_empty()
        for value, slot in zip(self.values, self.slots, strict=True):
            if body.root(value) in self.produced:
                body.claimed.setdefault(body.root(value), slot)
        targets = [self._carry(k) for k in range(len(self.carried))]
        body.run_nodes()
        for value, target in zip((*self.values, *self.carried), (*self.slots, *targets), strict=True):
            if body.home[value] != target:
                body.copy(value, body.home[value], target, layer=node.layer)
        for k, target in enumerate(targets):
            result = node.results[k]
            if target in self.slots and self.outer.is_read(result):
                body.copy(self.carried[k], target, self._memory(result), "last", node.layer)
        steps = tuple(replace(s, rows=None) if isinstance(s, Scan) else s for s in body.steps)
        op = f"scan({', '.join(step.op for step in steps)})"
        reverse, rows = bool(node.attributes["reverse"]), rows_of(body.graph)
        self.outer.sources[self.number] = node
        self.outer.steps.append(Scan(self.number, self.length, reverse, steps, node.layer, op, rows))

    def _leave_empty(self) -> None:
        """Copy initial values to final ones, which stay where the scan has no turn."""
        if isinstance(self.length, int) and self.length > 0:
            return
        for result, initial in zip(self.node.results, self.initial, strict=False):
            if self.outer.is_read(result):
                self.outer.copy(result, initial, self._memory(result), layer=self.node.layer)

    def _carry(self, k: int) -> int:
        """Decide where carried value k is read, and return where it is to be written."""
        body = self.body
        entry, root = self.entries[k], body.root(self.carried[k])
        if body.claimed.get(root) in self.slots:
            return self._stacked_as_new(k, body.claimed[root])
        free = root in self.produced and root not in body.claimed
        if free and entry in self.values:
            target = self._stacked_as_old(k, self.values.index(entry))
        elif free and body.may_overwrite(entry, *self.produced[root]):
            target = self._memory(self.node.results[k])
            body.home[entry] = self._read(k, target)
        else:
            target = self._in_turns(k)
        if free:
            body.claimed[root] = target
        return target

    def _stacked_as_new(self, k: int, slot: int) -> int:
        view = self.body.buffers[slot].view
        assert isinstance(view, Slot)
        before = self._view(self.entries[k], replace(view, shift=-1))
        self.body.home[self.entries[k]] = self._read(k, before)
        return slot

    def _stacked_as_old(self, k: int, stacked: int) -> int:
        entry, slot = self.entries[k], self.slots[stacked]
        self.body.home[entry] = slot
        self.body.copy(entry, self.initial[k], slot, "first", self.node.layer)
        after = self._view(entry, Slot(self.number, self.arrays[stacked], 1))
        return self._view(entry, Except(self.number, "last", self._memory(self.node.results[k]), after))

    def _in_turns(self, k: int) -> int:
        entry = self.entries[k]
        final = self._memory(self.node.results[k])
        other = self.outer.buffer("arena", entry.name, entry, layer=self.node.layer)
        self.body.home[entry] = self._read(k, self._view(entry, Alternate(self.number, other, final)))
        return self._view(entry, Alternate(self.number, final, other))

    def _read(self, k: int, later: int) -> int:
        """A view of carried value k: the initial value at the first turn, then `later`."""
        return self._view(self.entries[k], Except(self.number, "first", self.initial[k], later))

    def _view(self, value: Value, view: View) -> int:
        number = self.outer.buffer("view", value.name, value, layer=self.node.layer)
        self.outer.buffers[number] = replace(self.outer.buffers[number], view=view)
        return number

    def _memory(self, result: Value) -> int:
        """The buffer of a result; a result that nobody reads gets one only here."""
        if self.outer.home[result] < 0:
            self.outer.home[result] = self.outer.buffer("arena", result.name, result, layer=self.node.layer)
        return self.outer.home[result]
