"""Lower a graph to steps: decide which kernel runs when, on which buffers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from lepton_jit.codegen.contraction.schedule_pack import packed_sides
from lepton_jit.codegen.kernels.schedule_indexing import TOO_MANY, TOO_MANY_TEXT, schedule_check
from lepton_jit.codegen.loops.ir import THREADS, Contract, Kernel, Let, Load, Report, Store, slices_of, walk
from lepton_jit.codegen.program.chain import (
    in_step,
    progress_of,
    read_by,
    rows_in_a_turn,
    turn_of,
    window_elements,
    written_by,
)
from lepton_jit.codegen.program.lower_scan import give_blocks_scratch, lower_scan
from lepton_jit.codegen.program.lowered import BufferKind, Launch, Lowered, ProgramBuffer, Scan, Step, When, memory_of
from lepton_jit.codegen.program.parts import Parts, parts_of
from lepton_jit.codegen.program.residuals import over_residuals
from lepton_jit.codegen.program.schedule import Schedule, copy_kernel, reads_in_place, schedule
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.op import traits_of
from lepton_jit.ir.traits import Storage
from lepton_jit.ir.types import THREADS_NAME, Dim, DType, Poly, symbols_of, typical, typical_rows

# What kernels of a slice may pass on, so that it is read back from a core's L2 or its share of L3: 512 KB cost large
# batched products 5 to 9 %, 4 MB gain nothing (docs/measurements.md, slices).
SLICE_BYTES = 1 << 21
# Kernels are chained where one passes on more than this for one sample. Caches hold less, and chains of it neither gain
# nor lose (docs/measurements.md, chains).
CHAINED_BYTES = 3 << 18
# And where the two compute less than this for each byte between them; with more, DRAM keeps pace.
CHAINED_FLOPS = 32
# Packed A is kept for readers at most so many steps away: the projections to queries, keys and values share one.
NEAR_STEPS = 8
# Each range of checked indices has an error code, up to this many ranges.
RANGES = 100


def lower(graph: Graph, target: Target, scheduled: Callable[[Kernel], object] = lambda kernel: None) -> Lowered:
    """Schedule every node of a graph of fusions and contractions, and decide where each value lives.

    `scheduled` is told of each kernel of a node when it is made.
    """
    return Lowering(replace(graph, nodes=checks_first(graph.nodes)), target, scheduled=scheduled).run()


def symbols_of_graph(graph: Graph) -> tuple[str, ...]:
    """The symbols that a program reads, in order."""
    return tuple(sorted(_symbols(graph)))


def checks_first(nodes: Sequence[Node]) -> tuple[Node, ...]:
    """Move checks and what they read to the front: bad data then leaves the weights as they were."""
    producers = {v: node for node in nodes for v in node.results}
    early: set[Value] = set()
    pending = [node for node in nodes if node.op == "check_indices"]
    while pending:
        node = pending.pop()
        early.update(node.results)
        pending += [producers[v] for v in node.operands if v in producers and v not in early]
    return tuple(sorted(nodes, key=lambda node: node.results[0] not in early))


@dataclass(frozen=True)
class _Copy:
    """Scratch that the first kernel of `planned` filled, the buffer `number`, and the last step that read it."""

    planned: Schedule
    number: int
    step: int

    def is_made_by(self, planned: Schedule) -> bool:
        """Tell whether the first kernel of `planned` would write the same."""
        old, new = self.planned.kernels[0], planned.kernels[0]
        same = (old.extent, self.planned.scratch) == (new.extent, planned.scratch)
        return same and old.body == new.body


@dataclass
class Lowering:
    """Lowers one graph: a program, or the body of a scan, which shares the buffers of the program around it."""

    graph: Graph
    target: Target
    buffers: list[ProgramBuffer] = field(default_factory=list)
    steps: list[Step | Scan] = field(default_factory=list)
    home: dict[Value, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    claimed: dict[Value, int] = field(default_factory=dict)  # values that are computed where they belong in the end
    scheduled: Callable[[Kernel], object] = lambda kernel: None

    def __post_init__(self) -> None:
        self._aliases = {n.result: n.operands[0] for n in self.graph.nodes if _is_alias(n)}
        self._last_use = self._last_uses()
        self._made: set[int] = set()  # arena buffers of values that are computed here
        self._launched: list[tuple[Node, tuple[Launch, ...]]] = []
        self.sources: dict[int, Node] = {}  # the node of a kernel, by its id, and of a scan, by its number
        self._copies: dict[Value, _Copy] = {}  # the last one made of each operand
        self._unpacked: dict[Value, Value] = {}  # the tensors that packed B of batched products were packed from
        self._parts = Parts({}, frozenset())

    def run(self) -> Lowered:
        graph = self.graph
        for kind in ("input", "parameter", "state"):
            for index, entry in enumerate(graph.inputs_of(kind)):
                self.home[entry.value] = self.buffer(kind, entry.name, entry.value, index)
        self._claim_outputs()
        held = {v for v, n in self.claimed.items() if self.buffers[n].kind == "state"}
        self._parts = parts_of(graph, self.target, held)
        self.run_nodes()
        self._finish_outputs()
        self._chain_steps()
        self.steps = over_residuals(self.steps, self._launched, self.buffers, self.target)
        self._join_slices()
        for step in self.steps:
            if isinstance(step, Scan):
                give_blocks_scratch(step, self.buffers)
        steps, errors = tuple(self.steps), tuple((code, text) for text, code in self.errors.items())
        symbols, sources = symbols_of_graph(graph), _results(steps, self.sources, self._parts)
        return Lowered(graph.name, symbols, steps, self._lifetimes(), graph.inputs, graph.outputs, errors, sources)

    def run_nodes(self) -> None:
        for position, node in enumerate(self.graph.nodes):
            self._node(position, node)

    def buffer(self, kind: BufferKind, name: str, value: Value, index: int = 0, layer: str = "") -> int:
        self.buffers.append(ProgramBuffer(kind, name, value.type.dtype, value.type.elements, index, layer=layer))
        return len(self.buffers) - 1

    def root(self, value: Value) -> Value:
        while value in self._aliases:
            value = self._aliases[value]
        return value

    def _last_uses(self) -> dict[Value, int]:
        last: dict[Value, int] = {}
        for position, node in enumerate(self.graph.nodes):
            for operand in node.operands:
                last[self.root(operand)] = position
        # what leaves the program is read once more, after the last node
        return last | {self.root(o.value): len(self.graph.nodes) for o in self.graph.outputs}

    def produced(self) -> dict[Value, tuple[int, Node]]:
        """Position and node of every value that has memory of its own."""
        return {v: (i, n) for i, n in enumerate(self.graph.nodes) for v in n.results if not _is_alias(n)}

    def is_read(self, value: Value) -> bool:
        """Tell whether a node reads the value, or it leaves the graph."""
        return self.root(value) in self._last_use

    def _claim_outputs(self) -> None:
        """Claim the buffers of outputs for the values that leave through them, so that these are written there."""
        produced = self.produced()
        self._output_buffers: dict[str, int] = {}
        for index, output in enumerate(self.graph.outputs):
            if output.donates is not None:
                continue
            self._output_buffers[output.name] = self.buffer("output", output.name, output.value, index)
            root = self.root(output.value)
            if root in produced and root not in self.claimed:
                self.claimed[root] = self._output_buffers[output.name]
        for output in self.graph.outputs:
            if output.donates is None:
                continue
            state = self.graph.input_named(output.donates).value
            self._output_buffers[output.name] = self.home[state]
            root = self.root(output.value)
            if root in produced and root not in self.claimed and self.may_overwrite(state, *produced[root]):
                self.claimed[root] = self.home[state]

    def may_overwrite(self, state: Value, position: int, node: Node) -> bool:
        """Tell whether no later node reads the old value, and this one reads each element before it writes it."""
        last = self._last_use.get(state, -1)
        if last == position:
            readers = {v for v in node.operands if self.root(v) == state}
            return readers == {state} and reads_in_place(node, state)
        return last < position

    def _node(self, position: int, node: Node) -> None:
        if _is_alias(node):
            self.home[node.result] = self.home[node.operands[0]]
            if node.op == "check_indices":
                self._check(node)
            return
        if node.op == "constant" and node.result.type.rank:
            self.home[node.result] = self._constant(node)
            return
        if not self._parts.inside.isdisjoint(node.results):
            self._part(position, node)
            return
        for value in node.results:
            if value in self.home:
                continue  # the whole of parts that are there already
            self.home[value] = self.claimed.get(value, -1)
            if self.home[value] < 0:
                self.home[value] = self._reusable(position, node, value)
            if self.home[value] < 0 and (node.op != "scan" or self.is_read(value)):
                self.home[value] = self.buffer("arena", value.name, value, layer=node.layer)
                self._made.add(self.home[value])
        if node.op == "scan":
            body = Lowering(node.regions[0], self.target, self.buffers, errors=self.errors, scheduled=self.scheduled)
            lower_scan(self, node, body)
        else:
            self._schedule(node)

    def _part(self, position: int, node: Node) -> None:
        """Lower a node of a tensor in parts: a contraction computes its part, and a concatenation has nothing to do."""
        placed = self._parts.computed.get(node.result)
        if placed is None:
            self.home[node.result] = self.home[node.operands[0]]
            return
        self._node(position, placed)
        self.home[node.result] = self.home[placed.result]

    def _check(self, node: Node) -> None:
        number = self.home[node.result]
        text = f"expected integers from {node.attributes['low']} to {node.attributes['high']}"
        if text not in self.errors and len(self.errors) >= RANGES:
            text = "expected an integer in the range that the layer allows"
        code = self.errors.setdefault(text, len(self.errors) + 1)
        launch = Launch(schedule_check(node, code, self.target), (number,))
        self.steps.append(Step((launch,), node.layer, node.op, self._input_behind(node.operands[0])))
        self.sources[id(launch.kernel)] = node

    def _input_behind(self, value: Value) -> str:
        """The input with the same elements in the same order, however converted; "" if there is none."""
        nodes = [n for node in self.graph.nodes for n in (node.regions[0].nodes if node.op == "fusion" else (node,))]
        producers = {v: n for n in nodes for v in n.results}
        while value in producers:
            node = producers[value]
            if traits_of(node).keeps_order:
                (value,) = node.operands
            elif node.op == "select" and _is_nan(producers.get(node.operands[0]), node.operands[2]):
                value = node.operands[2]
            else:
                break
        buffer = self.buffers[self.home[value]] if value in self.home else None
        return buffer.name if buffer and buffer.kind == "input" else ""

    def _constant(self, node: Node) -> int:
        value = node.attributes["value"]
        index = sum(b.kind == "constant" for b in self.buffers)
        number = self.buffer("constant", node.result.name, node.result, index)
        self.buffers[number] = replace(self.buffers[number], value=value)
        return number

    def _reusable(self, position: int, node: Node, value: Value) -> int:
        """The arena buffer of an operand that dies here, read element by element: the result replaces it. Else -1."""
        taken = {self.home.get(v, -1) for v in node.results}
        for operand in node.operands:
            root = self.root(operand)
            number = self.home[root]
            same = number in self._made and root.type.elements == value.type.elements
            if not same or root.type.dtype != value.type.dtype or number in taken:
                continue
            dies = self._last_use[root] == position
            others = [v for v in node.operands if v != operand and self.home[v] == number]
            if dies and not others and reads_in_place(node, operand):
                return number
        return -1

    def _schedule(self, node: Node) -> None:
        if node.op == "pack" and (source := packed_sides(node)):
            self._unpacked[node.result] = source
        planned = self._without_parts(node, schedule(node, self.target, self._unpacked))
        frame = [self.home[v] for v in (*planned.operands, *node.results)]
        first = len(self.steps)
        kernels, copied = planned.kernels, self._copied(planned)
        known = self._copies.get(copied) if copied else None
        if known and first - known.step <= NEAR_STEPS and known.is_made_by(planned):
            frame.append(known.number)
            kernels = kernels[1:]
        else:
            frame += [self.scratch(dtype, count, node.layer) for dtype, count in planned.scratch]
        if copied:
            self._copies[copied] = _Copy(planned, frame[-1], first)
        if any(isinstance(s, Report) and s.code == TOO_MANY for k in kernels for s in walk(k.body)):
            self.errors[TOO_MANY_TEXT] = TOO_MANY
        self.steps += [Step((Launch(kernel, tuple(frame)),), node.layer, planned.op) for kernel in kernels]
        self.sources |= {id(kernel): node for kernel in kernels}
        for kernel in kernels:
            self.scheduled(kernel)
        self._launched.append((node, tuple(x for step in self.steps[first:] for x in step.launches)))

    def _without_parts(self, node: Node, planned: Schedule) -> Schedule:
        """Drop the kernels of a concatenation whose operands were computed in their place."""
        there = self._parts.inside.intersection(node.operands) if node.op == "concatenate" else ()
        if not there:
            return planned
        missing = {v: f"a{i}" for i, v in enumerate(planned.operands) if v not in there}
        kernels = tuple(
            replace(kernel, buffers=tuple(b for b in kernel.buffers if b.name in (*missing.values(), "o0")))
            for kernel, v in zip(planned.kernels, node.operands, strict=True)
            if v in missing
        )
        return replace(planned, operands=tuple(missing), kernels=kernels)

    def _copied(self, planned: Schedule) -> Value | None:
        """The operand from which alone the first of two kernels fills their scratch (packed A, mostly), or None."""
        if len(planned.kernels) != 2 or len(planned.scratch) != 1:
            return None
        first = planned.kernels[0]
        statements = list(walk(first.body))
        read = {s.expr.buffer for s in statements if isinstance(s, Let) and isinstance(s.expr, Load)}
        written = {s.buffer for s in statements if isinstance(s, Store)}
        if len(read) != 1 or written != {first.buffers[-1].name} or any(isinstance(s, Contract) for s in statements):
            return None
        place = [b.name for b in first.buffers].index(next(iter(read)))
        return self.root(planned.operands[place]) if place < len(planned.operands) else None

    def scratch(self, dtype: DType, count: Dim, layer: str) -> int:
        """Add a scratch buffer; a size that is a multiple of the number of threads gives each of them a part."""
        each = count // THREADS if isinstance(count, Poly) and THREADS_NAME in symbols_of((count,)) else count
        self.buffers.append(ProgramBuffer("arena", "scratch", dtype, each, layer=layer, per_thread=each != count))
        return len(self.buffers) - 1

    def _finish_outputs(self) -> None:
        """Copy outputs that could not be written in place; states that move to other states go through the arena."""
        moves = [(self.home[o.value], self._output_buffers[o.name], o) for o in self.graph.outputs]
        overwritten = {target for _, target, output in moves if output.donates is not None}
        pending = []
        for source, target, output in moves:
            if source == target:
                continue
            if source in overwritten:
                held = self.buffer("arena", output.value.name, output.value)
                self.copy(output.value, source, held)
                source = held
            pending.append((output.value, source, target))
        for value, source, target in pending:
            self.copy(value, source, target)

    def copy(self, value: Value, source: int, target: int, when: When = "always", layer: str = "") -> None:
        launch = Launch(copy_kernel(value, self.target), (source, target))
        self.steps.append(Step((launch,), layer, "copy", when=when))

    def _chain_steps(self) -> None:
        """Join kernels into chains where one reads by rows what the one before writes, more than caches hold."""
        chains: list[Step | Scan] = []
        for step in self.steps:
            last = chains[-1] if chains else None
            if isinstance(last, Step) and isinstance(step, Step) and self._continues(last.launches, step):
                launches = (*last.launches, *step.launches)
                turn = turn_of(launches, self.buffers)
                step = Step(launches, last.layer, f"{last.op} | {step.op}", turn=turn)
                chains.pop()
            chains.append(step)
        self.steps = chains
        for number, step in enumerate(chains):
            if isinstance(step, Step) and step.turn:
                self._make_windows(step, {b for i, s in enumerate(chains) if i != number for b in s.buffers})

    def _make_windows(self, chain: Step, elsewhere: set[int]) -> None:
        """Shrink results that only a chain's kernels read to windows: the rows of one turn, once for each thread."""
        most, kept = rows_in_a_turn(chain.launches, chain.turn), memory_of(self.buffers, elsewhere)
        for launch, rows in zip(chain.launches[:-1], most, strict=False):
            progress = progress_of(launch)
            for number in written_by(launch).difference(kept):
                buffer = self.buffers[number]
                if buffer.kind == "arena" and buffer.elements == progress.count * progress.width:
                    elements = window_elements(launch, rows, buffer.dtype.bytes)
                    self.buffers[number] = replace(buffer, elements=elements, per_thread=True)

    def _continues(self, chain: Sequence[Launch], step: Step) -> bool:
        """Tell whether `step` continues a chain: it reads a large result of it by rows, and replaces none."""
        (launch,) = step.launches
        if launch.kernel.progress is None or any(x.kernel.progress is None for x in chain) or step.when != "always":
            return False
        written = [written_by(x) for x in chain]
        if any(w & read_by(x) for w, x in zip(written, chain, strict=True)):
            return False  # threads compute the rows around their boundaries twice
        touched = {number for x in chain for number in x.buffers}
        by_rows = {name for name, _ in launch.kernel.progress.reads}
        frame = [(b.name, n) for b, n in zip(launch.kernel.buffers, launch.buffers, strict=True)]
        if written_by(launch) & touched or not all(
            name in by_rows for name, number in frame if number in set().union(*written)
        ):
            return False
        flops = typical(chain[-1].kernel.flops) + typical(launch.kernel.flops)
        between = [self.buffers[n].bytes for n in written[-1] & read_by(launch)]
        large = any(typical(b) > max(CHAINED_BYTES * _samples(b), flops // CHAINED_FLOPS) for b in between)
        return large and in_step((*chain, launch))  # windows move as fast as what reads them

    def _join_slices(self) -> None:
        """Join kernels into slices where one reads by samples what those before write, and caches hold a sample."""
        joined: list[Step | Scan] = []
        for step in self.steps:
            before = joined[-1] if joined else None
            if isinstance(before, Step) and isinstance(step, Step) and self._follows(before, step):
                joined.pop()
                step = Step((*before.launches, *step.launches), before.layer, f"{before.op} | {step.op}")
            joined.append(step)
        self.steps = joined

    def _follows(self, before: Step, step: Step) -> bool:
        """Tell whether `step` reads only the same sample of what `before` writes, and caches hold a sample of it."""
        (launch, *_), slices = step.launches, step.launches[0].kernel.slices
        first = before.launches[0].kernel
        if before.turn or step.turn or not slices or not first.slices or slices_of(first) != slices_of(launch.kernel):
            return False
        written = set().union(*(written_by(x) for x in before.launches))
        frame = zip(launch.kernel.buffers, launch.buffers, strict=True)
        shared = [(buffer, n) for buffer, n in frame if n in written]
        # a later slice of `before` would read or write again what `step` has overwritten
        if not shared or (written_by(launch) & set(before.buffers)) - written:
            return False
        most = SLICE_BYTES * typical(slices_of(launch.kernel))
        small = all(typical(self.buffers[n].bytes) <= most for _, n in shared)
        return small and all(buffer.name in slices.local for buffer, _ in shared if buffer.role != "result")

    def _lifetimes(self) -> tuple[ProgramBuffer, ...]:
        used: dict[int, list[int]] = {}
        for index, step in enumerate(self.steps):
            for number in memory_of(self.buffers, step.buffers):
                used.setdefault(number, []).append(index)
        return tuple(
            replace(b, first=used[i][0], last=used[i][-1]) if i in used else b for i, b in enumerate(self.buffers)
        )


def _results(steps: Sequence[Step | Scan], sources: Mapping[int, Node], parts: Parts) -> tuple[frozenset[str], ...]:
    """The names of the values that each step computes; a part of a tensor is called what it was before."""
    before = {id(node): (value,) for value, node in parts.computed.items()}
    made = ([s.number] if isinstance(s, Scan) else [id(x.kernel) for x in s.launches] for s in steps)
    nodes = ([sources[key] for key in keys if key in sources] for keys in made)
    return tuple(frozenset(v.name for n in ns for v in before.get(id(n), n.results)) for ns in nodes)


def _samples(size: Dim) -> int:
    """The number of samples in a size at the heuristic batch."""
    return 1 if isinstance(size, int) else typical_rows()


def _symbols(graph: Graph) -> set[str]:
    inner = (_symbols(region) for node in graph.nodes for region in node.regions)
    return symbols_of(d for v in graph.values() for d in v.type.shape).union(*inner)


def _is_alias(node: Node) -> bool:
    """The result is the operand's memory."""
    return traits_of(node).storage is Storage.ALIAS


def _is_nan(test: Node | None, value: Value) -> bool:
    """Tell whether `test` asks for each element of `value` whether it is NaN."""
    return (
        test is not None
        and test.op == "compare"
        and test.attributes["direction"] == "NE"
        and test.operands == (value, value)
    )
