"""Find contractions that can write their results where these belong in a larger tensor, without a copy.

Among them are the phases of a strided gradient, which concatenations interleave: they would copy each element twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lepton_jit.codegen.program.schedule import writes_apart
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Graph, Node, Value, users
from lepton_jit.ir.types import Dim, row_major


@dataclass(frozen=True)
class Parts:
    """The contractions that write parts of larger tensors, and the values that need no copy.

    `computed` maps a result to its contraction, whose result is now the whole tensor. `inside` are operands of
    concatenations that stand in their place already.
    """

    computed: Mapping[Value, Node]
    inside: frozenset[Value]


def parts_of(graph: Graph, target: Target, held: Collection[Value] = ()) -> Parts:
    """Find what the concatenations of a graph need not copy; `held` are results whose buffers are in use till then."""
    finder = _Finder(graph, target)
    computed: dict[Value, Node] = {}
    inside: set[Value] = set()
    for node in reversed(graph.nodes):
        if node.op != "concatenate" or node.result in inside or node.result in held:
            continue
        strides = tuple(row_major(node.result.type.shape))
        for operand, offset in _operands(node, strides):
            found = finder.find(operand, _Place(node.result, strides, offset))
            if found is not None:
                computed |= found.computed
                inside |= found.inside
    return Parts(computed, frozenset(inside))


@dataclass(frozen=True)
class _Place:
    """The place of a value in `whole`: its step in each of its dimensions, and its first element."""

    whole: Value
    strides: tuple[Dim, ...]
    offset: Dim


def _operands(node: Node, strides: Sequence[Dim]) -> Iterator[tuple[Value, Dim]]:
    """Yield the operands of a concatenation, and where each begins."""
    dimension, start = node.attributes["dimension"], 0
    for operand in node.operands:
        yield operand, strides[dimension] * start
        start = start + operand.type.shape[dimension]


class _Finder:
    def __init__(self, graph: Graph, target: Target) -> None:
        self.target = target
        self.producers = {n.results[0]: n for n in graph.nodes}
        self.users = users(graph)
        self.outputs = {o.value for o in graph.outputs}

    def find(self, value: Value, place: _Place) -> Parts | None:
        """The contractions that `value` consists of, or None if it has other content, or another reader."""
        node = self.producers.get(value)
        if node is None or len(self.users[value]) != 1 or value in self.outputs:
            return None
        if self.users[value][0].operands.count(value) != 1:
            return None
        if node.op == "affine_contraction":
            placed = _placed(node, place)
            return Parts({value: placed}, frozenset({value})) if writes_apart(node, placed, self.target) else None
        parts = self._parts(node, place)
        if parts is None or any(p is None for p in parts):
            return None
        found = [p for p in parts if p is not None]
        computed = {v: n for p in found for v, n in p.computed.items()}
        return Parts(computed, frozenset({value}).union(*(p.inside for p in found)))

    def _parts(self, node: Node, place: _Place) -> list[Parts | None] | None:
        if node.op == "concatenate":
            places = ((v, replace(place, offset=place.offset + at)) for v, at in _operands(node, place.strides))
            return [self.find(v, place) for v, place in places]
        strides = _without_ones(node, place.strides) if node.op == "reshape" else None
        return None if strides is None else [self.find(node.operands[0], replace(place, strides=strides))]


def _without_ones(node: Node, strides: Sequence[Dim]) -> tuple[Dim, ...] | None:
    """The strides of the operand of a reshape that only adds or removes dimensions of 1; else None."""
    new, old = node.result.type.shape, node.operands[0].type.shape
    if [d for d in new if d != 1] != [d for d in old if d != 1]:
        return None
    real = iter([s for s, d in zip(strides, new, strict=True) if d != 1])
    return tuple(1 if d == 1 else next(real) for d in old)


def _placed(node: Node, place: _Place) -> Node:
    """The contraction with the whole tensor as its result; it writes its part of that."""
    a, shape = node.attributes, node.result.type.shape
    dense = row_major(shape)
    out = tuple(
        step if d < 0 or step == 0 else step // dense[d] * place.strides[d]
        for step, d in zip(a["out"], a["out_dims"], strict=True)
    )
    attributes = {**a, "out": out, "out_offset": a["out_offset"] + place.offset, "shape": place.whole.type.shape}
    return replace(node, attributes=attributes, results=(place.whole,))
