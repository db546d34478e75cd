"""Fuse operations that one kernel can compute in one pass over memory into one `fusion` node."""

from __future__ import annotations

import heapq
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lepton_jit.ir.graph import Graph, Input, Node, Output, Value, users
from lepton_jit.ir.op import Family, get_op, traits_of
from lepton_jit.ir.traits import Storage
from lepton_jit.ir.types import Shape, element_count, typical
from lepton_jit.passes.base import Pass
from lepton_jit.passes.fuse_merge import (
    AROUND,
    FULL,
    MOVES,
    OTHER_SHAPE,
    REDUCING,
    FusedGroup,
    merge_groups,
    spare_epilogue,
)

__all__ = ["Fuse", "Fusion"]

Joined = tuple[str, Shape]  # a group's kind and domain
# Why a node does not join a group, as `fuse_reasons` says it.
ALONE = "the first has a kernel of its own"
READER_ALONE = "the second has a kernel of its own"
ONLY_ELEMENTWISE = "only elementwise work is done on its result before that is stored"
READ_ELSEWHERE = "others read the result too, and the kernel would not store it"
NO_PROLOGUE = "contractions, windows and scatters read their operands from memory"
SEVERAL_RESULTS = "an epilogue has one result, and others read what is before it too"
OTHER_DTYPE = "a tile is stored as the dtype that it adds up"
REDUCES_APART = (
    "a reduction shares a kernel with elementwise work on its result, with a reduction of the same shape over the same "
    "dimensions, or, over rows, with maps of its operand's shape that move nothing"
)

# A reduction over few and long rows is left to the general schedule, which can split a row.
SPLIT_ROW_LEAST = 4096
FEW_ROWS = 16


@dataclass(frozen=True)
class Fuse(Pass):
    """Merge nodes into groups, from the results backwards; each group of several nodes becomes a `fusion`.

    law: a fusion computes what its region says; nothing is computed differently, only stored less often. A node
    joins the group of its users if no other path leads from it to the group, and if the kernel of the group can
    compute it:

    - maps: elementwise operations and movements of one shape; a value that others read too becomes one more result
    - rows: maps with reductions over the last dimension
    - reduce: reductions over the same dimensions of one shape, what feeds them, and elementwise operations on the
      results; two such groups that read the same tensor become one
    - scatter_add: what feeds it, and elementwise operations on the result; like reduce with any number of results
    - moments: elementwise operations on mean and variance
    - parts: maps of one shape, some of whose results stand side by side in one tensor (concatenate)
    - contraction, window, scatter: elementwise operations on the result; of Winograd's algorithm all, where it gains

    Contractions and windows are never computed twice; constants, broadcasts and random bits always are.

    With `siblings`, as in the regions of loops, a map that joins no user's group joins one that reads a value of the
    same shape, or whose result is concatenated with its own: an iteration computes all from the same few values.
    """

    name: ClassVar[str] = "fuse"

    siblings: bool = False

    def inside(self, loop: Node) -> Fuse:
        return Fuse(siblings=True)

    def apply(self, graph: Graph) -> Graph:
        return Fusion(graph, self.siblings).run()


class Fusion:
    """Groups of nodes, one for each kernel, found from the results backwards."""

    def __init__(self, graph: Graph, siblings: bool) -> None:
        self.graph = graph
        self.siblings = siblings
        self.nodes = graph.nodes
        self.position = {v: i for i, n in enumerate(self.nodes) for v in n.results}
        self.users = users(graph)
        self.index_of = {id(n): i for i, n in enumerate(self.nodes)}
        self.duplicated = [_is_duplicated(n) for n in self.nodes]
        self.outputs = self._read_outside()
        self.readers = self._readers()
        self.groups: dict[int, FusedGroup] = {}
        self.group_of: list[int] = [-1] * len(self.nodes)

    def run(self) -> Graph:
        for i in reversed(range(len(self.nodes))):
            if not self.duplicated[i]:
                self._place(i)
        merge_groups(self)
        nodes = self._emit()
        if len(nodes) == len(self.nodes) and all(map(operator.is_, nodes, self.nodes)):
            return self.graph
        return replace(self.graph, nodes=tuple(nodes))

    def _read_outside(self) -> set[Value]:
        """The values that have to be in memory: outputs, and what duplicated nodes among them are computed from."""
        pending = [o.value for o in self.graph.outputs]
        found: set[Value] = set()
        while pending:
            value = pending.pop()
            if value not in found:
                found.add(value)
                i = self.position.get(value, -1)
                pending += self.nodes[i].operands if i >= 0 and self.duplicated[i] else ()
        return found

    def _readers(self) -> list[frozenset[int]]:
        """The nodes that read each node's results, looking through duplicated ones."""
        readers: list[frozenset[int]] = [frozenset()] * len(self.nodes)
        for i in reversed(range(len(self.nodes))):
            found: set[int] = set()
            for value in self.nodes[i].results:
                for user in self.users[value]:
                    j = self.index_of[id(user)]
                    found |= readers[j] if self.duplicated[j] else {j}
            readers[i] = frozenset(found)
        return readers

    def _place(self, i: int) -> None:
        joinable = sorted({self.group_of[j] for j in self.readers[i]})
        for number in [*joinable, *self._sibling_groups(i)]:
            group = self.groups[number]
            joined = self._joined(i, group) if group.has_room() else FULL
            if not isinstance(joined, str) and self._cycle(i, group):
                joined = AROUND
            if isinstance(joined, str):
                self.refused({i}, group, joined)
                continue
            group.kind, group.domain = joined
            self._add(i, group)
            if group.kind == "contraction":
                spare_epilogue(self, group, i)
            return
        node = self.nodes[i]
        group = FusedGroup(i, _kind_alone(node), node.results[0].type.shape if node.results else ())
        if group.kind in ("rows", "reduce", "scatter_add", "parts"):
            group.domain = node.operands[0].type.shape
        self.groups[i] = group
        self._add(i, group)

    def refused(self, nodes: set[int], group: FusedGroup, reason: str) -> None:
        """Be told that nodes do not become part of a group, and why: `fuse_reasons` listens."""

    def _sibling_groups(self, i: int) -> list[int]:
        """The groups of maps that read what a map reads, or whose results are concatenated with its own."""
        node = self.nodes[i]
        if not self.siblings or not _is_map(node):
            return []
        shared = [v for v in node.operands if v.type.shape == node.result.type.shape]
        near = {self.index_of[id(user)] for value in shared for user in self.users[value]}
        joined = (n for n in self.users[node.result] if n.op == "concatenate")
        near |= {self.position[v] for n in joined for v in n.operands if v in self.position}
        found = {self.group_of[j] for j in near if j > i and not self.duplicated[j]}
        return sorted(number for number in found if self.groups[number].kind in ("map", "parts"))

    def _add(self, i: int, group: FusedGroup) -> None:
        group.members.add(i)
        self.group_of[i] = group.number

    def _joined(self, i: int, group: FusedGroup) -> Joined | str:
        """Kind and domain of the group with node i, or why no one kernel computes both."""
        node = self.nodes[i]
        if node.op == "moments" and self._reduces_into(node, group):
            return "moments", group.domain
        if len(node.results) != 1:
            return ALONE
        if group.kind == "single":
            return READER_ALONE
        shape = node.result.type.shape
        private = self.readers[i] <= group.members and node.result not in self.outputs
        if node.op == "reduce":
            return self._joined_reduce(i, group)
        if node.op == "scatter_add":
            fault = self._unfit_to_finish(node, group, private)
            return fault or ("scatter_add", node.operands[0].type.shape)
        epilogue = traits_of(node).epilogue
        if epilogue and _takes_epilogue(node):
            fault = self._unfit_to_finish(node, group, private) or self._unfit_as_epilogue(i, group)
            return fault or (epilogue, shape)
        if not _is_map(node):
            return ALONE
        if group.kind in ("map", "parts"):
            return (group.kind, shape) if shape == group.domain else OTHER_SHAPE
        if group.kind == "rows":
            return ("rows", group.domain) if shape in (group.domain, group.domain[:-1]) else OTHER_SHAPE
        if group.kind in REDUCING:
            if shape != group.domain:
                return OTHER_SHAPE
            return (group.kind, group.domain) if private else READ_ELSEWHERE
        return NO_PROLOGUE

    def _unfit_to_finish(self, node: Node, group: FusedGroup, private: bool) -> str | None:
        """Say why the group is not elementwise work that a kernel does on a node's result before it is stored."""
        if group.kind != "map" or not self._is_elementwise(group):
            return ONLY_ELEMENTWISE
        if node.result.type.shape != group.domain:
            return OTHER_SHAPE
        return None if private else READ_ELSEWHERE

    def _joined_reduce(self, i: int, group: FusedGroup) -> Joined | str:
        node = self.nodes[i]
        full = node.operands[0].type.shape
        result = node.result.type.shape
        # a movement may read another row than the one whose reductions are at hand
        if _is_row_reduction(node) and not any(traits_of(self.nodes[j]).fuses_as_map for j in group.members):
            if group.kind in ("map", "rows") and group.domain == full:
                return "rows", full
            if group.kind == "map" and group.domain == result and self._may_widen(group, full):
                return "rows", full
        if self._reduces_into(node, group):
            return "reduce", full
        if group.kind == "reduce" and self._reduces_beside(i, group):
            return "reduce", full
        return REDUCES_APART

    def _reduces_into(self, node: Node, group: FusedGroup) -> bool:
        """Tell whether the group is elementwise work on what the node reduces to."""
        return group.kind == "map" and group.domain == node.results[0].type.shape and self._is_elementwise(group)

    def _reduces_beside(self, i: int, group: FusedGroup) -> bool:
        """Tell whether the group reduces the same shape over the same dimensions, and reads node i only after that."""
        node, shape = self.nodes[i], self.nodes[i].operands[0].type.shape
        other = next(self.nodes[j] for j in sorted(group.members) if self.nodes[j].op == "reduce")
        if other.operands[0].type.shape != shape or other.attributes["dimensions"] != node.attributes["dimensions"]:
            return False
        return all(self.nodes[j].results[0].type.shape != shape for j in self.readers[i] & group.members)

    def _may_widen(self, group: FusedGroup, full: Shape) -> bool:
        """Tell whether members, of the reductions' shape, can be computed once a row; none may look like a row."""
        return full != group.domain and self._is_elementwise(group)

    def _is_elementwise(self, group: FusedGroup) -> bool:
        return all(get_op(self.nodes[j].op).family is Family.ELEMENTWISE for j in group.members)

    def _unfit_as_epilogue(self, i: int, group: FusedGroup) -> str | None:
        """Say why an elementwise group is no epilogue of node i: one result, all read where it is written."""
        results = [j for j in group.members if self._leaves(j, group)]
        if len(results) != 1:
            return SEVERAL_RESULTS
        same_dtype = self.nodes[results[0]].result.type.dtype == self.nodes[i].result.type.dtype
        if self.nodes[i].op == "affine_contraction" and not same_dtype:  # a tile is stored as what it accumulates
            return OTHER_DTYPE
        return None if all(_aligned(n) for n in self._feeding(group)) else MOVES

    def _feeding(self, group: FusedGroup) -> Iterator[Node]:
        """Yield the duplicated nodes that a group will contain."""
        pending = [v for j in group.members for v in self.nodes[j].operands]
        seen: set[Value] = set()
        while pending:
            value = pending.pop()
            if value in seen or value not in self.position or not self.duplicated[self.position[value]]:
                continue
            seen.add(value)
            node = self.nodes[self.position[value]]
            yield node
            pending += node.operands

    def _leaves(self, j: int, group: FusedGroup) -> bool:
        """Tell whether a node outside of the group reads node j, or it is an output."""
        return not self.readers[j] <= group.members or any(v in self.outputs for v in self.nodes[j].results)

    def _cycle(self, i: int, group: FusedGroup) -> bool:
        """Tell whether a path leads from node i through another group into this one."""
        last = max(group.members)
        pending = [j for j in self.readers[i] if self.group_of[j] != group.number]
        seen: set[int] = set()
        while pending:
            j = pending.pop()
            number = self.group_of[j]
            if number == group.number:
                return True
            if number in seen:
                continue
            seen.add(number)
            for member in self.groups[number].members:
                pending += [r for r in self.readers[member] if r <= last or self.group_of[r] == group.number]
        return False

    # Emission

    def _read_from_memory(self, j: int) -> Sequence[Value]:
        """The operands of node j that its kernel reads from memory alone: A and B of a tile, the rows of moments."""
        return self.nodes[j].operands if traits_of(self.nodes[j]).loads_operands else ()

    def _emit(self) -> list[Node]:
        """List the groups in an order in which they can run, as close to the old order as that allows."""
        made = {number: self._fused(group) for number, group in self.groups.items()}
        standalone = self._standalone({v for node in made.values() for v in node.operands})
        for i in standalone:
            made[i] = self.nodes[i]
        producer = {v: number for number, node in made.items() for v in node.results}
        waiting = {n: len({producer[v] for v in node.operands if v in producer}) for n, node in made.items()}
        dependents: dict[int, list[int]] = {n: [] for n in made}
        for number, node in made.items():
            for source in {producer[v] for v in node.operands if v in producer}:
                dependents[source].append(number)
        place = {n: self.groups[n].place if n in self.groups else n for n in made}
        ready = [(place[n], n) for n, count in waiting.items() if count == 0]
        heapq.heapify(ready)
        order: list[Node] = []
        while ready:
            _, number = heapq.heappop(ready)
            order.append(made[number])
            for later in dependents[number]:
                waiting[later] -= 1
                if waiting[later] == 0:
                    heapq.heappush(ready, (place[later], later))
        assert len(order) == len(made), "fusion made a cycle"
        return order

    def _standalone(self, read: Iterable[Value]) -> set[int]:
        """The duplicated nodes whose value has to be in memory."""
        pending = [v for v in (*read, *self.outputs) if v in self.position and self.duplicated[self.position[v]]]
        needed: set[int] = set()
        while pending:
            i = self.position[pending.pop()]
            if i not in needed:
                needed.add(i)
                operands = self.nodes[i].operands
                pending += [v for v in operands if v in self.position and self.duplicated[self.position[v]]]
        return needed

    def _fused(self, group: FusedGroup) -> Node:
        root = self.nodes[max(group.members)]
        if group.kind == "single":
            return root
        inside = set(group.members)
        stored = {v for j in group.members for v in self._read_from_memory(j)}
        pending = [v for j in group.members for v in self.nodes[j].operands]
        while pending:
            value = pending.pop()
            i = self.position.get(value, -1)
            if i >= 0 and self.duplicated[i] and i not in inside and value not in stored:
                inside.add(i)
                pending += self.nodes[i].operands
        nodes = [self.nodes[i] for i in sorted(inside)]
        if len(nodes) == 1:
            return root
        defined = {v for n in nodes for v in n.results}
        captured = tuple(dict.fromkeys(v for n in nodes for v in n.operands if v not in defined))
        results = tuple(v for j in sorted(group.members) if self._leaves(j, group) for v in self.nodes[j].results)
        region = Graph(
            "fusion",
            tuple(Input(v, v.name) for v in captured),
            tuple(nodes),
            tuple(Output(v, v.name) for v in results),
        )
        main = next((n for n in nodes if traits_of(n).epilogue or traits_of(n).accumulates), root)
        return Node("fusion", captured, results, {"kind": group.kind}, main.layer, (region,))


def _is_duplicated(node: Node) -> bool:
    if node.op == "constant":
        return node.result.type.rank == 0
    return traits_of(node).storage is Storage.RECOMPUTED


def _takes_epilogue(node: Node) -> bool:
    """Tell whether each element is finished when it is stored; windows of a scatter that overlap add to it later."""
    a: Any = node.attributes
    if node.op != "select_and_scatter":
        return True
    return a["window"] == a["strides"] and all(pair == (0, 0) for pair in a["padding"])


def _is_map(node: Node) -> bool:
    if node.op == "pad":
        interior = node.attributes["interior"]
        return isinstance(interior, tuple) and not any(interior)
    return get_op(node.op).family is Family.ELEMENTWISE or traits_of(node).fuses_as_map


def _kind_alone(node: Node) -> str:
    if _is_map(node):
        return "map"
    if node.op == "scatter_add":
        return "scatter_add"
    if node.op == "concatenate" and _has_equal_parts(node):
        return "parts"
    if node.op == "reduce":
        return "rows" if _is_row_reduction(node) else "reduce"
    return "single"


def _has_equal_parts(node: Node) -> bool:
    """Tell whether it joins tensors of one shape in their last dimension: one loop over that shape computes all."""
    shapes = {v.type.shape for v in node.operands}
    width = node.operands[0].type.shape[-1]
    last = node.attributes["dimension"] == node.result.type.rank - 1
    return last and len(shapes) == 1 and isinstance(width, int) and width > 1


def _is_row_reduction(node: Node) -> bool:
    shape = node.operands[0].type.shape
    if node.attributes["dimensions"] != (len(shape) - 1,):
        return False
    return typical(shape[-1]) < SPLIT_ROW_LEAST or typical(element_count(shape[:-1])) >= FEW_ROWS


def _aligned(node: Node) -> bool:
    """Tell whether an epilogue may contain it: a scalar, or a broadcast that keeps the order of dimensions."""
    if node.op == "broadcast_in_dim":
        dimensions: Any = node.attributes["dimensions"]
        return list(dimensions) == sorted(dimensions)
    return traits_of(node).scalar_source
