"""Loops: a `scan` from a Python function, and a `scan` taken apart, for what rewrites loops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lepton_jit.errors import GraphError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Input, Node, Output, Value
from lepton_jit.ir.types import Dim

__all__ = ["Body", "Captured", "ScanCarry", "ScanLoop", "Scanned", "Stacked", "scan"]

# body(builder, carries, slices, captured) -> new carries, values to stack
Body = Callable[[Builder, Sequence[Value], Sequence[Value], Sequence[Value]], tuple[Sequence[Value], Sequence[Value]]]


def scan(
    b: Builder,
    body: Body,
    carries: Sequence[Value],
    scanned: Sequence[Value] = (),
    captured: Sequence[Value] = (),
    *,
    length: Dim | None = None,
    reverse: bool = False,
) -> tuple[Sequence[Value], Sequence[Value]]:
    """The final carries and the stacked values of a loop over the leading dimension of the `scanned` arrays.

    A region reads nothing but its inputs: what `body` needs from outside is `captured`. `length` is only needed where
    nothing is scanned. With `reverse` the loop runs from the last index to the first, and stacks at the same indices.

    >>> from lepton_jit.ir.types import TensorType
    >>> b = Builder()
    >>> x = b.input("x", TensorType.of("f32", 5, "N"))
    >>> zero = b.full(0.0, TensorType.of("f32", "N"))
    >>> def running_sum(b, carries, slices, captured):
    ...     total = b("add", carries[0], slices[0])
    ...     return [total], [total]
    >>> scan(b, running_sum, [zero], [x])
    ([%2: f32[N]], [%3: f32[5,N]])
    """
    if length is None:
        if not scanned or not scanned[0].type.rank:
            raise GraphError("scan: expected a length, or a scanned array with a leading dimension")
        length = scanned[0].type.shape[0]
    inner = Builder("region")
    with inner.layer(b.current_layer, absolute=True):
        carried = [inner.input(f"carry{i}", value.type) for i, value in enumerate(carries)]
        slices = [
            inner.input(f"slice{i}", value.type.with_shape(value.type.shape[1:])) for i, value in enumerate(scanned)
        ]
        outside = [inner.input(f"captured{i}", value.type) for i, value in enumerate(captured)]
        new, stacked = body(inner, carried, slices, outside)
    for i, value in enumerate(new):
        inner.output(value, f"carry{i}")
    for i, value in enumerate(stacked):
        inner.output(value, f"stacked{i}")
    results = b.emit(
        "scan",
        *carries,
        *scanned,
        *captured,
        regions=(inner.build(),),
        length=length,
        carries=len(carries),
        scanned=len(scanned),
        reverse=reverse,
    )
    return list(results[: len(carries)]), list(results[len(carries) :])


@dataclass(frozen=True)
class ScanCarry:
    """A value that the region reads as `inner` and returns as `new`: `initial` in the first round, `final` at last."""

    inner: Value
    initial: Value
    new: Value
    final: Value


@dataclass(frozen=True)
class Scanned:
    """An array outside, and its slice inside."""

    inner: Value
    array: Value


@dataclass(frozen=True)
class Captured:
    """A value outside, and the name that the region knows it by."""

    inner: Value
    outer: Value


@dataclass(frozen=True)
class Stacked:
    """A result of every round, and the array outside that collects it."""

    step: Value
    stack: Value


@dataclass
class ScanLoop:
    """A `scan` taken apart; `Loop.of(node).node() == node` but for the names of the region's inputs and outputs."""

    carries: list[ScanCarry]
    scanned: list[Scanned]
    captured: list[Captured]
    stacked: list[Stacked]
    nodes: list[Node]
    length: Dim
    reverse: bool
    layer: str = ""

    @staticmethod
    def of(node: Node) -> ScanLoop:
        """The parts of a `scan`."""
        attributes: Any = node.attributes
        (region,) = node.regions
        carries, arrays = attributes["carries"], attributes["carries"] + attributes["scanned"]
        inner = [entry.value for entry in region.inputs]
        returned = [output.value for output in region.outputs]
        outer, results = node.operands, node.results
        return ScanLoop(
            [ScanCarry(inner[i], outer[i], returned[i], results[i]) for i in range(carries)],
            [Scanned(inner[i], outer[i]) for i in range(carries, arrays)],
            [Captured(inner[i], outer[i]) for i in range(arrays, len(outer))],
            [Stacked(returned[i], results[i]) for i in range(carries, len(results))],
            list(region.nodes),
            attributes["length"],
            attributes["reverse"],
            node.layer,
        )

    def invariant(self) -> set[Value]:
        """The values that are the same in every round: captured ones, constants, and what depends on these alone."""
        found = {captured.inner for captured in self.captured}
        for node in self.nodes:
            if all(operand in found for operand in node.operands):
                found.update(node.results)
        return found

    def read(self) -> set[Value]:
        """The values that a node reads or a round returns."""
        inside = {value for node in self.nodes for value in node.operands}
        return inside | {carry.new for carry in self.carries} | {stacked.step for stacked in self.stacked}

    def node(self) -> Node:
        """The `scan` of the parts."""
        outputs = [("carry", [carry.new for carry in self.carries]), ("stacked", [s.step for s in self.stacked])]
        region = Graph(
            "region",
            tuple(
                Input(part.inner, f"{name}{i}")
                for name, parts in (("carry", self.carries), ("slice", self.scanned), ("captured", self.captured))
                for i, part in enumerate(parts)
            ),
            tuple(self.nodes),
            tuple(Output(value, f"{name}{i}") for name, values in outputs for i, value in enumerate(values)),
        )
        return Node(
            "scan",
            (*(c.initial for c in self.carries), *(s.array for s in self.scanned), *(c.outer for c in self.captured)),
            (*(carry.final for carry in self.carries), *(stacked.stack for stacked in self.stacked)),
            {
                "carries": len(self.carries),
                "length": self.length,
                "reverse": self.reverse,
                "scanned": len(self.scanned),
            },
            self.layer,
            (region,),
        )
