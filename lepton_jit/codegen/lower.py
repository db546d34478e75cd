"""Graph to kernels: which kernel runs when, on which buffers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from lepton_jit.codegen.loop_ir import Kernel
from lepton_jit.codegen.schedule import copy_kernel, reads_in_place, schedule
from lepton_jit.codegen.schedule_indexing import schedule_check
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Graph, Input, Node, Output, Value
from lepton_jit.ir.types import TYPICAL, Dim, DType, symbols_of, typical

# A slice that is read back from an L2 cache; larger ones leave it before they are read.
SLICE_BYTES = 1 << 19
# Operations whose result is their operand's memory.
ALIASES = frozenset({"reshape", "check_indices"})
# A program has this many error codes (docs/runtime.md).
CODES = 127

BufferKind = Literal["input", "parameter", "state", "output", "arena", "constant"]


@dataclass(frozen=True)
class ProgramBuffer:
    """Memory that steps read and write. `first` and `last` are the steps between which an arena buffer is needed."""

    kind: BufferKind
    name: str
    dtype: DType
    elements: Dim
    index: int = 0  # the position among buffers of its kind
    first: int = 0
    last: int = 0
    layer: str = ""
    value: tuple = ()  # of a constant: its elements

    @property
    def bytes(self) -> Dim:
        return self.elements * self.dtype.bytes


@dataclass(frozen=True)
class Launch:
    """A kernel on the buffers of its frame, by number."""

    kernel: Kernel
    buffers: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One launch, or a launch and its reader that run slice by slice of the batch while the slice is in cache."""

    launches: tuple[Launch, ...]
    layer: str
    op: str
    checked: str = ""  # the input whose elements a check reads

    @property
    def buffers(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(b for launch in self.launches for b in launch.buffers))

    @property
    def flops(self) -> Dim:
        total: Dim = 0
        for launch in self.launches:
            total = launch.kernel.flops + total
        return total


@dataclass(frozen=True)
class Lowered:
    """A program: steps in order on buffers."""

    name: str
    symbols: tuple[str, ...]
    steps: tuple[Step, ...]
    buffers: tuple[ProgramBuffer, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    errors: tuple[str, ...] = ()  # what the codes from 1 on mean

    def arena(self) -> list[int]:
        """The buffers that the memory plan places."""
        return [i for i, b in enumerate(self.buffers) if b.kind == "arena"]


def lower(graph: Graph, target: Target) -> Lowered:
    """Schedule every node of a graph of fusions and contractions, and decide where each value lives."""
    return _Lowering(replace(graph, nodes=checks_first(graph.nodes)), target).run()


def checks_first(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes with checks, and what they read, in front: bad data leaves the weights as they were."""
    producers = {v: node for node in nodes for v in node.results}
    early: set[Value] = set()
    pending = [node for node in nodes if node.op == "check_indices"]
    while pending:
        node = pending.pop()
        early.update(node.results)
        pending += [producers[v] for v in node.operands if v in producers and v not in early]
    return tuple(sorted(nodes, key=lambda node: node.results[0] not in early))


@dataclass
class _Lowering:
    graph: Graph
    target: Target
    buffers: list[ProgramBuffer] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    home: dict[Value, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)

    def run(self) -> Lowered:
        graph = self.graph
        for kind in ("input", "parameter", "state"):
            for index, entry in enumerate(graph.inputs_of(kind)):
                self.home[entry.value] = self._buffer(kind, entry.name, entry.value, index)
        self._aliases = {n.result: n.operands[0] for n in graph.nodes if n.op in ALIASES}
        self._last_use = self._last_uses()
        self._claim_outputs()
        for position, node in enumerate(graph.nodes):
            self._node(position, node)
        self._finish_outputs()
        self._pair_steps()
        symbols = sorted({s for v in graph.values() for s in symbols_of(v.type.shape)})
        steps, errors = tuple(self.steps), tuple(self.errors)
        return Lowered(graph.name, tuple(symbols), steps, self._lifetimes(), graph.inputs, graph.outputs, errors)

    def _buffer(self, kind: BufferKind, name: str, value: Value, index: int = 0, layer: str = "") -> int:
        self.buffers.append(ProgramBuffer(kind, name, value.type.dtype, value.type.elements, index, layer=layer))
        return len(self.buffers) - 1

    def _root(self, value: Value) -> Value:
        while value in self._aliases:
            value = self._aliases[value]
        return value

    def _last_uses(self) -> dict[Value, int]:
        last: dict[Value, int] = {}
        for position, node in enumerate(self.graph.nodes):
            for operand in node.operands:
                last[self._root(operand)] = position
        # what leaves the program is read once more, after the last node
        return last | {self._root(o.value): len(self.graph.nodes) for o in self.graph.outputs}

    def _claim_outputs(self) -> None:
        """A value that is computed here and leaves as one output is written where the output lies."""
        produced = {v: (i, n) for i, n in enumerate(self.graph.nodes) for v in n.results if n.op not in ALIASES}
        self._claimed: dict[Value, int] = {}
        self._output_buffers: dict[str, int] = {}
        for index, output in enumerate(self.graph.outputs):
            if output.donates is not None:
                continue
            self._output_buffers[output.name] = self._buffer("output", output.name, output.value, index)
            root = self._root(output.value)
            if root in produced and root not in self._claimed:
                self._claimed[root] = self._output_buffers[output.name]
        for output in self.graph.outputs:
            if output.donates is None:
                continue
            state = self.graph.input_named(output.donates).value
            self._output_buffers[output.name] = self.home[state]
            root = self._root(output.value)
            if root in produced and root not in self._claimed and self._may_overwrite(state, *produced[root]):
                self._claimed[root] = self.home[state]

    def _may_overwrite(self, state: Value, position: int, node: Node) -> bool:
        """No later node reads the old value, and this one reads each element before it writes it."""
        last = self._last_use.get(state, -1)
        return last < position or (last == position and reads_in_place(node, state))

    def _node(self, position: int, node: Node) -> None:
        if node.op in ALIASES:
            self.home[node.result] = self.home[node.operands[0]]
            if node.op == "check_indices":
                self._check(node)
            return
        if node.op == "constant" and node.result.type.rank:
            self.home[node.result] = self._constant(node)
            return
        for value in node.results:
            self.home[value] = self._claimed.get(value, -1)
            if self.home[value] < 0:
                self.home[value] = self._reusable(position, node, value)
            if self.home[value] < 0:
                self.home[value] = self._buffer("arena", value.name, value, layer=node.layer)
        self._schedule(node)

    def _check(self, node: Node) -> None:
        number = self.home[node.result]
        text = f"expected integers from {node.attributes['low']} to {node.attributes['high']}"
        if text not in self.errors and len(self.errors) >= CODES - 1:
            text = "an integer is outside of the range that its layer allows"
        code = self.errors.setdefault(text, len(self.errors) + 1)
        launch = Launch(schedule_check(node, code, self.target), (number,))
        buffer = self.buffers[number]
        checked = buffer.name if buffer.kind == "input" else ""
        self.steps.append(Step((launch,), node.layer, node.op, checked))

    def _constant(self, node: Node) -> int:
        value = node.attributes["value"]
        index = sum(b.kind == "constant" for b in self.buffers)
        number = self._buffer("constant", node.result.name, node.result, index)
        self.buffers[number] = replace(self.buffers[number], value=value)
        return number

    def _reusable(self, position: int, node: Node, value: Value) -> int:
        """The arena buffer of an operand that dies here and is read element by element: the result replaces it."""
        taken = {self.home.get(v, -1) for v in node.results}
        for operand in node.operands:
            root = self._root(operand)
            number = self.home[root]
            same = self.buffers[number].kind == "arena" and root.type.elements == value.type.elements
            if not same or root.type.dtype != value.type.dtype or number in taken:
                continue
            dies = self._last_use[root] == position
            others = [v for v in node.operands if v != operand and self.home[v] == number]
            if dies and not others and reads_in_place(node, operand):
                return number
        return -1

    def _schedule(self, node: Node) -> None:
        planned = schedule(node, self.target)
        frame = [self.home[v] for v in (*planned.operands, *node.results)]
        frame += [self._scratch(dtype, count, node.layer) for dtype, count in planned.scratch]
        self.steps += [Step((Launch(kernel, tuple(frame)),), node.layer, planned.op) for kernel in planned.kernels]

    def _scratch(self, dtype: DType, count: Dim, layer: str) -> int:
        self.buffers.append(ProgramBuffer("arena", "scratch", dtype, count, layer=layer))
        return len(self.buffers) - 1

    def _finish_outputs(self) -> None:
        """Copy what could not be written in place; states that move to other states go through the arena."""
        moves = [(self.home[o.value], self._output_buffers[o.name], o) for o in self.graph.outputs]
        overwritten = {target for _, target, output in moves if output.donates is not None}
        pending = []
        for source, target, output in moves:
            if source == target:
                continue
            if source in overwritten:
                held = self._buffer("arena", output.value.name, output.value)
                self._copy(output.value, source, held)
                source = held
            pending.append((output.value, source, target))
        for value, source, target in pending:
            self._copy(value, source, target)

    def _copy(self, value: Value, source: int, target: int) -> None:
        self.steps.append(Step((Launch(copy_kernel(value, self.target), (source, target)),), "", "copy"))

    def _pair_steps(self) -> None:
        """Join a producer of large slices and the reader that follows it."""
        paired: list[Step] = []
        for step in self.steps:
            if paired and len(paired[-1].launches) == 1 and self._sliced(paired[-1].launches[0], step.launches[0]):
                first = paired.pop()
                step = Step((*first.launches, *step.launches), first.layer, f"{first.op} | {step.op}")
            paired.append(step)
        self.steps = paired

    def _sliced(self, first: Launch, second: Launch) -> bool:
        """`second` reads of what `first` writes only the same index of the batch, and slices fit into a cache."""
        if not first.kernel.slices or not second.kernel.slices:
            return False
        written = {n for b, n in zip(first.kernel.buffers, first.buffers, strict=True) if b.name.startswith("o")}
        frame = [(b.name, n) for b, n in zip(second.kernel.buffers, second.buffers, strict=True)]
        read = [(name, n) for name, n in frame if name.startswith("a")]
        shared = written & {n for _, n in read}
        # a later slice of `first` would read or write again what `second` has overwritten
        overwritten = {n for name, n in frame if not name.startswith("a")}
        if not shared or overwritten & (set(first.buffers) - shared):
            return False
        small = all(typical(self.buffers[n].bytes) // TYPICAL <= SLICE_BYTES for n in shared)
        return small and all(name in second.kernel.slices.local for name, n in read if n in shared)

    def _lifetimes(self) -> tuple[ProgramBuffer, ...]:
        used: dict[int, list[int]] = {}
        for index, step in enumerate(self.steps):
            for number in step.buffers:
                used.setdefault(number, []).append(index)
        return tuple(
            replace(b, first=used[i][0], last=used[i][-1]) if i in used else b for i, b in enumerate(self.buffers)
        )
