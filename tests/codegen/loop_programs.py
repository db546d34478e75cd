"""A whole program in the interpreter of the loop IR: steps, pairs slice by slice, scans turn by turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from lepton_jit.codegen.chain import Walk, least_turns
from lepton_jit.codegen.loop_interpreter import iteration_count, run_kernel
from lepton_jit.codegen.lowered import Alternate, Except, Launch, Lowered, ProgramBuffer, Scan, Slot, Step
from lepton_jit.ir.types import dim_value

Arrays = Mapping[str, np.ndarray]
Symbols = Mapping[str, int]


def run_loops(
    lowered: Lowered, arrays: Arrays, symbols: Symbols, fused: bool = True, by_rows: bool = True
) -> dict[str, np.ndarray]:
    """All outputs by name. `by_rows`: scans run block after block of independent rows where they have them."""
    machine = _Machine(lowered, arrays, symbols, fused, by_rows)
    machine.run(lowered.steps)
    found = {(b.kind, b.name): machine.memory[i] for i, b in enumerate(lowered.buffers)}
    return {
        o.name: (found["output", o.name] if o.donates is None else found["state", o.donates]).reshape(
            [dim_value(d, symbols) for d in o.value.type.shape]
        )
        for o in lowered.outputs
    }


class _Machine:
    """Memory, and which of its elements hold something."""

    def __init__(self, lowered: Lowered, arrays: Arrays, symbols: Symbols, fused: bool, by_rows: bool) -> None:
        self.buffers, self.symbols, self.fused, self.by_rows = lowered.buffers, symbols, fused, by_rows
        self.memory = [_memory(b, arrays, symbols) for b in lowered.buffers]
        kinds = [b.kind for b in lowered.buffers]
        self.defined = [
            np.full(m.size, kind not in ("arena", "output")) for m, kind in zip(self.memory, kinds, strict=True)
        ]
        self.turns: dict[int, tuple[int, int, bool]] = {}
        self.rows: tuple[str, int, int] | None = None  # of a block: symbol, first row, count

    def run(self, steps: Iterable[Step | Scan]) -> None:
        for step in steps:
            if isinstance(step, Scan):
                self._scan(step)
            else:
                self._step(step)

    def _scan(self, scan: Scan) -> None:
        if scan.rows is None or not self.by_rows:
            self._turns(scan)
            return
        count = self.symbols[scan.rows.symbol]
        blocks = -(-count // scan.rows.block)
        for block in np.random.default_rng(0).permutation(blocks).tolist():
            first, last = (count * (block + i) // blocks for i in (0, 1))
            self.rows = (scan.rows.symbol, first, last - first)
            self._turns(scan)
            self.rows = None

    def _turns(self, scan: Scan) -> None:
        length = dim_value(scan.length, self.symbols)
        for i in range(length):
            self.turns[scan.number] = (i, length - 1, scan.reverse)
            ends = {"first": i == 0, "last": i == length - 1}
            self.run(s for s in scan.body if isinstance(s, Scan) or ends.get(s.when, True))

    def _step(self, step: Step) -> None:
        symbols = {**self.symbols, self.rows[0]: self.rows[2]} if self.rows else self.symbols
        for launch, iterations in _order(step, symbols):
            names = [b.name for b in launch.kernel.buffers]
            frame = {name: self._view(self.memory, n) for name, n in zip(names, launch.buffers, strict=True)}
            known = {name: self._view(self.defined, n) for name, n in zip(names, launch.buffers, strict=True)}
            undefined = [name for name in names if not known[name].all()]
            run_kernel(launch.kernel, frame, symbols, undefined=undefined, fused=self.fused, iterations=iterations)
            for name in names:
                if name.startswith(("o", "s")):
                    known[name][:] = True

    def _view(self, arrays: Sequence[np.ndarray], number: int) -> np.ndarray:
        """What a kernel sees of a buffer."""
        whole = self._place(arrays, number)
        if self.rows is None:
            return whole
        symbol, first, count = self.rows
        elements = self.buffers[number].elements
        row = dim_value(elements, {**self.symbols, symbol: 1}) - dim_value(elements, {**self.symbols, symbol: 0})
        return whole[first * row : (first + count) * row] if row else whole

    def _place(self, arrays: Sequence[np.ndarray], number: int) -> np.ndarray:
        view = self.buffers[number].view
        if view is None:
            return arrays[number]
        index, last, reverse = self.turns[view.scan]
        match view:
            case Slot(_, array, shift):
                size = dim_value(self.buffers[number].elements, self.symbols)
                at = last - index - shift if reverse else index + shift
                return self._place(arrays, array)[at * size : (at + 1) * size]
            case Alternate(_, final, other):
                return self._place(arrays, final if (last - index) % 2 == 0 else other)
            case Except(_, when, chosen, otherwise):
                here = index == (0 if when == "first" else last)
                return self._place(arrays, chosen if here else otherwise)


def _order(step: Step, symbols: Symbols) -> Iterator[tuple[Launch, range | None]]:
    """A pair runs slice by slice, in any order of the slices."""
    first = step.launches[0].kernel
    if step.turn:
        yield from _turns(step, symbols)
        return
    if len(step.launches) == 1 or first.slices is None:
        yield from ((launch, None) for launch in step.launches)
        return
    for n in np.random.default_rng(0).permutation(iteration_count(first, symbols) // first.slices.count).tolist():
        for launch in step.launches:
            assert launch.kernel.slices is not None
            count = launch.kernel.slices.count
            yield launch, range(n * count, (n + 1) * count)


def _turns(step: Step, symbols: Symbols) -> Iterator[tuple[Launch, range]]:
    """A chain in two parts where they have turns enough: what both need, then the second one first."""
    turns = -(-_groups(step.launches[-1], symbols) // step.turn)
    spans = chain_spans(step, symbols, 2 if 2 * least_turns(step.launches, step.turn) <= turns else 1)
    for launch, span in (*spans[0], *(x for part in reversed(spans[1:]) for x in part)):
        if span:
            yield launch, span


def chain_spans(step: Step, symbols: Symbols, parts: int) -> list[list[tuple[Launch, range]]]:
    """Which iterations run, in order: at the boundaries between the parts of a chain, then in each part."""
    launches = step.launches
    groups = [_groups(launch, symbols) for launch in launches]
    progresses = [launch.kernel.progress for launch in launches]
    walk = Walk(launches, groups, [dim_value(p.count, symbols) for p in progresses if p])
    turns = -(-groups[-1] // step.turn)
    bounds = [p * turns // parts for p in range(parts + 1)]

    def first(turn: int) -> int:
        return min(turn * step.turn, groups[-1]) * (progresses[-1].each if progresses[-1] else 0)

    starts = [walk.starts(first(turn)) for turn in bounds]
    goals = [[0] * len(launches), *(walk.goals(first(turn)) for turn in bounds[1:])]
    whole = [iteration_count(launch.kernel, symbols) for launch in launches]
    spans = [[(x, range(s, g)) for b in range(1, parts) for x, s, g in zip(launches, starts[b], goals[b], strict=True)]]
    for part in range(parts):
        state, limits = goals[part], starts[part + 1] if part + 1 < parts else whole
        spans.append([])
        for turn in range(bounds[part], bounds[part + 1]):
            wanted = walk.goals(first(turn + 1))
            reached = [max(s, min(w, limit)) for s, w, limit in zip(state, wanted, limits, strict=True)]
            spans[-1] += [(x, range(s, r)) for x, s, r in zip(launches, state, reached, strict=True)]
            state = reached
    return spans


def _groups(launch: Launch, symbols: Symbols) -> int:
    assert launch.kernel.progress is not None
    return iteration_count(launch.kernel, symbols) // launch.kernel.progress.each


def _memory(buffer: ProgramBuffer, arrays: Arrays, symbols: Symbols) -> np.ndarray:
    if buffer.kind in ("input", "parameter", "state"):
        return np.array(arrays[buffer.name]).reshape(-1)
    if buffer.kind == "constant":
        return np.array(buffer.value, buffer.dtype.numpy).reshape(-1)
    count = 0 if buffer.kind == "view" else dim_value(buffer.elements, symbols)
    # NaN: the interpreter refuses to read it, but from a buffer that a chain has filled in part
    return np.frombuffer(b"\xff" * (count * buffer.dtype.bytes), buffer.dtype.numpy).copy()
