"""Order the nodes so that each weight's update follows its gradient, and fewer gradients are kept."""

from __future__ import annotations

import heapq
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from lepton_jit.ir.graph import Graph, Node
from lepton_jit.ir.op import Family, get_op, traits_of
from lepton_jit.ir.types import typical_rows
from lepton_jit.passes.base import Pass
from lepton_jit.passes.liveness import Liveness

__all__ = ["ScheduleUpdates"]


@dataclass(frozen=True)
class ScheduleUpdates(Pass):
    """List scheduling: the order stays, except that what does not raise the memory in use comes first.

    Nodes run in units: an optimizer's update of one weight (the elementwise nodes whose results end up in that weight
    and its slots alone) is one unit, every other node is one of its own. At each step, in this order:

    1. of the units that are ready and whose results need no more bytes than they set free, the one that frees most
       (scalars weigh nothing);
    2. else the next unit in the given order.

    Constants, broadcasts and reshapes come right before their first reader. A unit is ready when its operands are
    there, and, where it writes a state in place, when every other reader of the old value has run. Scalar states are
    exempt from that, since to copy a step count is cheaper than to hold back every update that reads it; and so is a
    write that could never come last.

    law: any order that respects the data dependences computes the same. The new order is taken where its peak of live
    bytes, with `batch` (else `typical_rows()`) for every symbolic dimension, is not above the given one's.
    """

    name: ClassVar[str] = "schedule-updates"

    batch: int | None = None

    def inside(self, loop: Node) -> None:
        """Leave regions alone: they write no state."""

    def apply(self, graph: Graph) -> Graph:
        liveness = Liveness(graph, typical_rows() if self.batch is None else self.batch)
        order = _Schedule(graph, liveness).run()
        if all(map(operator.is_, order, graph.nodes)) or liveness.peak(order) > liveness.peak(graph.nodes):
            return graph
        return replace(graph, nodes=tuple(order))


class _Schedule:
    """The state of one scheduling: units, what each waits for, and how many units still read each buffer."""

    def __init__(self, graph: Graph, liveness: Liveness) -> None:
        self._liveness = liveness
        self._nodes = graph.nodes
        self._producer = {value.name: i for i, node in enumerate(graph.nodes) for value in node.results}
        self._unit_of = _units(graph)
        self._members: dict[int, list[int]] = {}
        for i, unit in enumerate(self._unit_of):
            if unit is not None:
                self._members.setdefault(unit, []).append(i)
        self._reads = {unit: self._buffers_read(members) for unit, members in self._members.items()}
        self._readers: dict[str, set[int]] = {}
        for unit, buffers in self._reads.items():
            for buffer in buffers:
                self._readers.setdefault(buffer, set()).add(unit)
        self._needs = {unit: self._producers_of(unit) for unit in self._members}
        self._writes_after = self._donation_order(graph)
        self._order: list[Node] = []
        self._emitted = [False] * len(graph.nodes)

    def run(self) -> list[Node]:
        waiting = {unit: len(self._needs[unit] | self._writes_after[unit]) for unit in self._members}
        followers: dict[int, list[int]] = {unit: [] for unit in self._members}
        for unit in self._members:
            for needed in self._needs[unit] | self._writes_after[unit]:
                followers[needed].append(unit)
        left = {buffer: len(readers) for buffer, readers in self._readers.items()}
        done: set[int] = set()
        ready = [unit for unit, count in waiting.items() if not count]
        heapq.heapify(ready)
        cheap: list[tuple[int, int]] = []
        fresh: Iterable[int] = tuple(ready)
        while len(done) < len(self._members):
            for unit in fresh:
                self._consider(unit, left, cheap)
            unit = self._next(cheap, ready, done)
            done.add(unit)
            self._emit_unit(unit)
            arrived = []
            for follower in followers[unit]:
                waiting[follower] -= 1
                if not waiting[follower] and follower not in done:
                    arrived.append(follower)
                    heapq.heappush(ready, follower)
            fresh = [*arrived, *self._last_readers(unit, left, waiting, done)]
        for i in range(len(self._nodes)):
            self._emit_node(i)
        return self._order

    def _next(self, cheap: list[tuple[int, int]], ready: list[int], done: set[int]) -> int:
        while cheap:
            _, unit = heapq.heappop(cheap)
            if unit not in done:
                return unit
        while ready:
            unit = heapq.heappop(ready)
            if unit not in done:
                return unit
        # Only writes that wait for each other are left: the first of them whose operands are there needs a copy.
        return next(u for u in sorted(self._members) if u not in done and self._needs[u] <= done)

    def _consider(self, unit: int, left: dict[str, int], cheap: list[tuple[int, int]]) -> None:
        """Put a ready unit among the cheap ones where it sets free as much as it needs."""
        made = self._made(unit)
        freed = sum(self._liveness.size[buffer] for buffer in self._reads[unit] if left[buffer] == 1)
        if made <= freed:
            heapq.heappush(cheap, (made - freed, unit))

    def _made(self, unit: int) -> int:
        """The bytes of a unit's results that are read outside of it, or leave the program."""
        total = 0
        for i in self._members[unit]:
            for value in self._nodes[i].results:
                buffer = self._liveness.buffer[value.name]
                if self._readers.get(buffer, set()) - {unit} or buffer in self._liveness.kept:
                    total += self._liveness.size[buffer]
        return total

    def _last_readers(self, unit: int, left: dict[str, int], waiting: dict[int, int], done: set[int]) -> Iterable[int]:
        """Yield the ready units that have become the only ones to read some buffer."""
        for buffer in self._reads[unit]:
            left[buffer] -= 1
            if left[buffer] == 1:
                yield from (r for r in self._readers[buffer] if r not in done and not waiting[r])

    def _emit_unit(self, unit: int) -> None:
        for i in self._members[unit]:
            self._emit_node(i)

    def _emit_node(self, i: int) -> None:
        """Append a node, after those of its operands that cost nothing and were left until now."""
        stack = [i]
        while stack:
            top = stack[-1]
            missing = [] if self._emitted[top] else self._unemitted_producers(top)
            if missing:
                stack.extend(missing)
                continue
            stack.pop()
            if not self._emitted[top]:
                self._emitted[top] = True
                self._order.append(self._nodes[top])

    def _unemitted_producers(self, i: int) -> list[int]:
        producers = (self._producer.get(v.name) for v in reversed(self._nodes[i].operands))
        return [p for p in producers if p is not None and not self._emitted[p]]

    def _buffers_read(self, members: Sequence[int]) -> set[str]:
        """The buffers that a unit reads from outside itself."""
        inside = {value.name for i in members for value in self._nodes[i].results}
        names = {value.name for i in members for value in self._nodes[i].operands}
        return {b for b in (self._liveness.buffer[name] for name in names) if b not in inside}

    def _producers_of(self, unit: int) -> set[int]:
        """The units that produce what a unit reads, seen through nodes that cost nothing."""
        found: set[int] = set()
        stack, seen = list(self._members[unit]), set(self._members[unit])
        while stack:
            for value in self._nodes[stack.pop()].operands:
                i = self._producer.get(value.name)
                if i is None or i in seen:
                    continue
                seen.add(i)
                made_by = self._unit_of[i]
                if made_by is None:
                    stack.append(i)
                elif made_by != unit:
                    found.add(made_by)
        return found

    def _donation_order(self, graph: Graph) -> dict[int, set[int]]:
        """Map each unit that writes a state to the other units that read the old value."""
        states = {entry.name: entry.value for entry in graph.inputs}
        result: dict[int, set[int]] = {unit: set() for unit in self._members}
        for output in graph.outputs:
            writer = self._unit_of[self._producer[output.value.name]] if output.value.name in self._producer else None
            if output.donates is None or writer is None:
                continue
            state = states[output.donates]
            if state.type.rank:
                result[writer] |= self._readers.get(self._liveness.buffer[state.name], set()) - {writer}
        return result


def _units(graph: Graph) -> list[int | None]:
    """List, for each node, the number of its unit, that of its last node; None for nodes that cost nothing.

    What leaves the program is a unit even so: nothing would say when it has to read the state that it repeats.
    """
    leaving = {output.value for output in graph.outputs}
    groups = _update_of_node(graph)
    last = {group: i for i, group in enumerate(groups) if group is not None}
    return [
        None
        if traits_of(node).weightless and leaving.isdisjoint(node.results)
        else i
        if (group := groups[i]) is None
        else last[group]
        for i, node in enumerate(graph.nodes)
    ]


def _update_of_node(graph: Graph) -> list[int | None]:
    """List, for each node, the update that it belongs to, a set of states as bits, or None.

    An update begins where only elementwise work leads to states any more. States belong together where such work has
    a tensor in common: the new values of a weight's slots are computed on the way to its own.
    """
    users: dict[str, list[int]] = {}
    for i, node in enumerate(graph.nodes):
        for value in node.operands:
            users.setdefault(value.name, []).append(i)
    states, elsewhere = _bits_of_outputs(graph)
    reached = [0] * len(graph.nodes)
    updates = [False] * len(graph.nodes)
    for i in reversed(range(len(graph.nodes))):
        node = graph.nodes[i]
        following = [user for value in node.results for user in users.get(value.name, ())]
        for value in node.results:
            reached[i] |= states.get(value.name, 0)
        for user in following:
            reached[i] |= reached[user]
        updates[i] = _is_light(node) and not reached[i] & elsewhere and all(updates[user] for user in following)
    # a repeated scalar, as the learning rate is, joins nothing
    tensors = [
        u and not traits_of(n).weightless and n.result.type.rank > 0 for u, n in zip(updates, graph.nodes, strict=True)
    ]
    families = _merged(bits for bits, tensor in zip(reached, tensors, strict=True) if tensor)
    family_of = {bit: family for family in families for bit in _single_bits(family)}
    found = [family_of.get(bits & -bits, 0) if update else 0 for bits, update in zip(reached, updates, strict=True)]
    return [family if family and not bits & ~family else None for bits, family in zip(reached, found, strict=True)]


def _bits_of_outputs(graph: Graph) -> tuple[dict[str, int], int]:
    """A bit for each output that donates, all bits for the others, and the bit that only these have."""
    bits: dict[str, int] = {}
    for number, output in enumerate(graph.outputs):
        own = -1 if output.donates is None else 1 << number
        before = bits.get(output.value.name, 0)
        bits[output.value.name] = -1 if -1 in (own, before) else before | own
    return bits, 1 << len(graph.outputs)


def _merged(sets: Iterable[int]) -> list[int]:
    """Unite the sets of bits that overlap."""
    merged: list[int] = []
    for bits in sets:
        touching = [m for m in merged if m & bits]
        for m in touching:
            merged.remove(m)
            bits |= m
        merged.append(bits)
    return merged


def _single_bits(bits: int) -> Iterator[int]:
    while bits:
        yield bits & -bits
        bits &= bits - 1


def _is_light(node: Node) -> bool:
    return get_op(node.op).family in (Family.ELEMENTWISE, Family.MOVEMENT)
