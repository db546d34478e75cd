"""Merge groups of a fusion that read the same values or each other, which placing node after node cannot see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import Family, get_op, traits_of
from lepton_jit.ir.traits import Cost
from lepton_jit.ir.types import Shape, typical
from lepton_jit.passes.winograd import gains_by_blocks

# Kinds of groups that combine many elements into each of their results.
REDUCING = ("reduce", "scatter_add")
# The most nodes of one kernel; each is an operation of a few instructions, or of dozens.
MOST_MEMBERS = 100
# The elements of a row that a kernel keeps while it reduces it.
KEPT_ROW_MOST = 512

# Why two groups do not become one kernel, as `fuse_reasons` says it.
FULL = f"a kernel has at most {MOST_MEMBERS} operations, so that it is compiled in reasonable time"
AROUND = "a path leads from the one to the other through a third kernel, which would have to run in between"
OTHER_SHAPE = "the kernel's loops cover another shape than the result's"
MOVES = "elements are read at other positions than those that are written"
KINDS_APART = "only maps and rows over the same elements, or a reduction and elementwise work on its result, merge"
LONG_ROWS = f"a row of more than {KEPT_ROW_MOST} elements would be computed again for each round of its reductions"
SPARED = "an expensive epilogue of what is in memory already is a map of its own, since a tile would wait for it"


@dataclass
class FusedGroup:
    """The nodes of one kernel. `domain` is the shape that its loops cover."""

    number: int
    # "map", "parts", "rows", "reduce", "scatter_add", "moments", "contraction", "window", "scatter", "single"
    kind: str
    domain: Shape
    members: set[int] = field(default_factory=set)
    before: int | None = None  # the node whose place in the order it takes, if not its last one's

    def has_room(self, more: int = 1) -> bool:
        """Tell whether a kernel of that many more nodes still compiles in reasonable time."""
        return len(self.members) + more <= MOST_MEMBERS

    @property
    def place(self) -> int:
        return max(self.members) if self.before is None else self.before


class Grouping(Protocol):
    """The part of a fusion that merging uses: its nodes with their readers and groups, and the values that leave."""

    nodes: tuple[Node, ...]
    readers: list[frozenset[int]]
    groups: dict[int, FusedGroup]
    group_of: list[int]
    outputs: set[Value]
    duplicated: list[bool]
    position: dict[Value, int]

    def refused(self, nodes: set[int], group: FusedGroup, reason: str) -> None: ...


def merge_groups(f: Grouping) -> None:
    """Do all merges; each keeps the groups free of cycles."""
    _merge_readers(f)
    _merge_reductions(f)
    _merge_convolutions(f)


def spare_epilogue(f: Grouping, group: FusedGroup, contraction: int) -> None:
    """Take out of an epilogue what it computes from memory alone, where that is expensive and ends in one tensor.

    A tile waits for its epilogue, while a map has registers and neighbours to work on; and a kernel of the forward pass
    may have most of it already. gelu's derivative is an example.
    """
    below = _dependent(f, group, contraction)
    apart = group.members - below
    if not any(_is_expensive(f.nodes[j]) for j in apart):
        return
    if sum(1 for j in apart if f.readers[j] & below) != 1:
        return
    group.members -= apart
    made = FusedGroup(max(apart), "map", group.domain)
    f.groups[made.number] = made
    _move(f, made, apart)
    f.refused(apart, group, SPARED)


def _merge_convolutions(f: Grouping) -> None:
    """Merge transforms and products of Winograd's algorithm into one kernel that goes by blocks, where that gains."""
    for group in list(f.groups.values()):
        for output in list(_members(f, group, "winograd_output")):
            product = f.position.get(output.operands[0], -1)
            tiles = f.position.get(f.nodes[product].operands[0], -1) if product >= 0 else -1
            if tiles < 0 or (f.nodes[product].op, f.nodes[tiles].op) != ("affine_contraction", "winograd_input"):
                continue
            private = f.outputs.isdisjoint({f.nodes[product].result, f.nodes[tiles].result})
            private = private and len(f.readers[product]) == len(f.readers[tiles]) == 1
            types = (f.nodes[n].result.type for n in (tiles, product))
            if private and gains_by_blocks(*types, trained=f.nodes[product].operands[1] in f.position):
                group.kind = "window"
                _absorb(f, group, f.groups[f.group_of[product]])
                _absorb(f, group, f.groups[f.group_of[tiles]])


def _dependent(f: Grouping, group: FusedGroup, first: int) -> set[int]:
    """The members that are computed from a node, itself included."""
    found = {first}
    for j in sorted(group.members):
        if found & {k for k in group.members if j in f.readers[k]}:
            found.add(j)
    return found


def _merge_readers(f: Grouping) -> None:
    """Merge a map or rows with a group of either kind over the same elements that reads its results.

    Merge as well a reduction with an elementwise map of the shape that it reduces to, which reads its results.

    law: they are one kernel where all paths from the first to the second are direct.
    """
    for number in sorted(f.groups):
        group = f.groups.get(number)
        while group is not None:
            group = next((merged for other in _readers_of(f, group) if (merged := _joined(f, group, other))), None)


def _readers_of(f: Grouping, group: FusedGroup) -> list[FusedGroup]:
    numbers = {f.group_of[r] for j in group.members for r in f.readers[j]} - {group.number}
    return [f.groups[n] for n in sorted(numbers)]


def _joined(f: Grouping, group: FusedGroup, reader: FusedGroup) -> FusedGroup | None:
    """Join two groups, if one kernel can compute both; else None."""
    if why_apart(f, group, reader) is not None:
        return None
    # others may wait for the first; but what writes a state comes after whatever reads its old value
    if not any(v in f.outputs for g in (group, reader) for j in g.members for v in f.nodes[j].results):
        reader.before = group.place
    if group.kind != "map":
        reader.kind, reader.domain = group.kind, group.domain
    _absorb(f, reader, group)
    return reader


def why_apart(f: Grouping, group: FusedGroup, reader: FusedGroup) -> str | None:
    """Say why a group and one that reads its results stay two kernels; None where they may be one."""
    if not group.has_room(len(reader.members)):
        return FULL
    return _two_kernels(f, group, reader) or (AROUND if _leads(f, group, reader, aside=True) else None)


def _two_kernels(f: Grouping, group: FusedGroup, reader: FusedGroup) -> str | None:
    if group.kind in REDUCING:
        if reader.kind != "map":
            return KINDS_APART
        if reader.domain != next(_members(f, group, group.kind)).result.type.shape:
            return OTHER_SHAPE
        elementwise = all(get_op(f.nodes[j].op).family is Family.ELEMENTWISE for j in reader.members)
        return None if elementwise else MOVES
    if {group.kind, reader.kind} - {"map", "rows"}:
        return KINDS_APART
    if group.domain != reader.domain or not group.domain:
        return OTHER_SHAPE
    nodes = [f.nodes[j] for g in (group, reader) for j in g.members]
    if any(get_op(node.op).family is Family.MOVEMENT for node in nodes):
        return MOVES
    # a long row is computed again for each round of reductions
    long = reader.kind == "rows" and any(map(_is_expensive, nodes)) and typical(group.domain[-1]) > KEPT_ROW_MOST
    return LONG_ROWS if long else None


def _is_expensive(node: Node) -> bool:
    return traits_of(node).cost is Cost.EXPENSIVE


def _merge_reductions(f: Grouping) -> None:
    """Merge reductions alike that read the same tensor, where neither needs the other."""
    kept: list[tuple[FusedGroup, object, set[Value]]] = []
    for group in list(f.groups.values()):
        if group.kind != "reduce":
            continue
        kind = next((n.operands[0].type, n.attributes["dimensions"]) for n in _members(f, group, "reduce"))
        read = _read_whole(f, group)
        for other, other_kind, other_read in kept:
            alike = kind == other_kind and not read.isdisjoint(other_read) and other.has_room(len(group.members))
            if alike and not _leads(f, group, other) and not _leads(f, other, group):
                other_read |= read
                _absorb(f, other, group)
                break
        else:
            kept.append((group, kind, read))


def _members(f: Grouping, group: FusedGroup, op: str) -> Iterator[Node]:
    return (f.nodes[j] for j in sorted(group.members) if f.nodes[j].op == op)


def _read_whole(f: Grouping, group: FusedGroup) -> set[Value]:
    """The values of the reduced shape that come from outside, and from memory."""
    inside = {v for j in group.members for v in f.nodes[j].results}
    read = {v for j in group.members for v in f.nodes[j].operands if v.type.shape == group.domain} - inside
    return {v for v in read if v not in f.position or not f.duplicated[f.position[v]]}


def _leads(f: Grouping, first: FusedGroup, second: FusedGroup, aside: bool = False) -> bool:
    """Tell whether a path leads from the first group to the second; with `aside`, through another one."""
    start = {f.group_of[r] for j in first.members for r in f.readers[j]} - {first.number}
    pending = list(start - {second.number} if aside else start)
    seen: set[int] = set()
    while pending:
        number = pending.pop()
        if number == second.number:
            return True
        if number not in seen:
            seen.add(number)
            pending += {f.group_of[r] for j in f.groups[number].members for r in f.readers[j]}
    return False


def _absorb(f: Grouping, group: FusedGroup, other: FusedGroup) -> None:
    _move(f, group, other.members)
    del f.groups[other.number]


def _move(f: Grouping, group: FusedGroup, members: set[int]) -> None:
    group.members |= members
    for j in members:
        f.group_of[j] = group.number
