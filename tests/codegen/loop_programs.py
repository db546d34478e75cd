"""A whole program in the interpreter of the loop IR: steps, pairs slice by slice, scans turn by turn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lepton_jit.codegen.loops.interpreter import iteration_count, run_kernel
from lepton_jit.codegen.program.chain import Walk, progress_of, written_by
from lepton_jit.codegen.program.lowered import Alternate, Except, Launch, Lowered, ProgramBuffer, Scan, Slot, Step
from lepton_jit.codegen.target import LINE_BYTES
from lepton_jit.ir.types import THREADS_NAME, dim_value

Arrays = Mapping[str, np.ndarray]
Symbols = Mapping[str, int]


def run_loops(
    lowered: Lowered, arrays: Arrays, symbols: Symbols, fused: bool = True, by_rows: bool = True, threads: int = 2
) -> dict[str, np.ndarray]:
    """All outputs by name. `by_rows`: scans run block after block of independent rows where they have them.

    Iterations run in any order, one after the other, as if shared by so many `threads`.
    """
    machine = _Machine(lowered, arrays, {**symbols, THREADS_NAME: threads}, fused, by_rows)
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
        for number, launch in _windows(lowered.steps, lowered.buffers):  # as large as the whole result
            progress, item = progress_of(launch), lowered.buffers[number].dtype
            self.memory[number] = _empty(dim_value(progress.count, symbols) * progress.width, item.numpy)
        kinds = [b.kind for b in lowered.buffers]
        self.defined = [
            np.full(m.size, kind not in ("arena", "output")) for m, kind in zip(self.memory, kinds, strict=True)
        ]
        self.turns: dict[int, tuple[int, int, bool]] = {}
        self.rows: tuple[str, int, int, int] | None = None  # of a block: symbol, its number, first row, count

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
            self.rows = (scan.rows.symbol, block, first, last - first)
            self._turns(scan)
            self.rows = None

    def _turns(self, scan: Scan) -> None:
        length = dim_value(scan.length, self.symbols)
        for i in range(length):
            self.turns[scan.number] = (i, length - 1, scan.reverse)
            ends = {"first": i == 0, "last": i == length - 1}
            self.run(s for s in scan.body if isinstance(s, Scan) or ends.get(s.when, True))

    def _step(self, step: Step) -> None:
        symbols = {**self.symbols, self.rows[0]: self.rows[3], THREADS_NAME: 1} if self.rows else self.symbols
        if step.turn:
            self._chain(step, symbols)
            return
        for launch, iterations in _order(step, symbols):
            self._launch(launch, iterations, symbols)

    def _launch(self, launch: Launch, iterations: range | None, symbols: Symbols) -> None:
        names = [b.name for b in launch.kernel.buffers]
        frame = {name: self._view(self.memory, n) for name, n in zip(names, launch.buffers, strict=True)}
        known = {name: self._view(self.defined, n) for name, n in zip(names, launch.buffers, strict=True)}
        for b in launch.kernel.buffers:
            if b.name.startswith("s"):  # which may be larger than these rows need
                size = dim_value(b.size, symbols)
                frame[b.name], known[b.name] = frame[b.name][:size], known[b.name][:size]
        undefined = [name for name in names if not known[name].all()]
        run_kernel(launch.kernel, frame, symbols, undefined=undefined, fused=self.fused, iterations=iterations)
        for name in names:
            if name.startswith(("o", "s")):
                known[name][:] = True

    def _chain(self, step: Step, symbols: Symbols) -> None:
        """In two parts where there are turns enough, the second one first; of a window only what it has room for."""
        launches = step.launches
        walk = walk_of(launches, symbols)
        windows = {n: launches.index(launch) for n, launch in _windows([step], self.buffers)}
        parts = min(2, -(-walk.groups[-1] // step.turn))
        for part in reversed(range(parts)):
            origins = dict.fromkeys(windows, -1)
            for turn in chain_turns(walk, step.turn, part, parts):
                for number, j in windows.items():
                    self._move(origins, number, walk, j, turn)
                for launch, done, goal in zip(launches, turn.done, turn.goals, strict=True):
                    if goal > done:
                        self._launch(launch, range(done, goal), symbols)
                for number, origin in origins.items():
                    outside = self.memory[number].copy()
                    outside[origin : origin + dim_value(self.buffers[number].elements, {})] = _empty(1, outside.dtype)
                    assert outside.tobytes() == _empty(outside.size, outside.dtype).tobytes()

    def _move(self, origins: dict[int, int], number: int, walk: Walk, j: int, turn: Turn) -> None:
        """Forget what native code does: all before the rows of this turn, where the others do not fit behind them."""
        buffer, width = self.buffers[number], progress_of(walk.launches[j]).width
        lines = LINE_BYTES // buffer.dtype.bytes
        begin, end = walk.rows(j, turn.begins[j]) * width // lines * lines, walk.rows(j, turn.goals[j]) * width
        capacity, memory = dim_value(buffer.elements, {}), self.memory[number]
        if origins[number] < 0:  # a thread that begins has nothing
            memory[:] = _empty(1, memory.dtype)
        if origins[number] < 0 or end - origins[number] > capacity:
            origins[number] = begin
            memory[:begin] = _empty(1, memory.dtype)
        assert end - origins[number] <= capacity

    def _view(self, arrays: Sequence[np.ndarray], number: int) -> np.ndarray:
        """What a kernel sees of a buffer."""
        whole = self._place(arrays, number)
        if self.rows is None:
            return whole
        symbol, block, first, count = self.rows
        elements, own = self.buffers[number].elements, dim_value(self.buffers[number].block, self.symbols)
        if own:
            return whole[block * own : (block + 1) * own]
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
    if len(step.launches) == 1 or first.slices is None:
        yield from ((launch, None) for launch in step.launches)
        return
    for n in np.random.default_rng(0).permutation(iteration_count(first, symbols) // first.slices.count).tolist():
        for launch in step.launches:
            assert launch.kernel.slices is not None
            count = launch.kernel.slices.count
            yield launch, range(n * count, (n + 1) * count)


@dataclass(frozen=True)
class Turn:
    """Of a chain: each launch does iterations `done` ... `goals` - 1; windows have what it reads from `begins` on."""

    begins: list[int]
    done: list[int]
    goals: list[int]


def walk_of(launches: Sequence[Launch], symbols: Symbols) -> Walk:
    """The arithmetic of a chain for given symbols."""
    groups = [iteration_count(x.kernel, symbols) // progress_of(x).each for x in launches]
    return Walk(launches, groups, [dim_value(progress_of(x).count, symbols) for x in launches])


def chain_turns(walk: Walk, turn: int, part: int, parts: int) -> Iterator[Turn]:
    """The turns of one of the parts of a chain, of `turn` groups each."""
    turns = -(-walk.groups[-1] // turn)
    each = progress_of(walk.launches[-1]).each

    def first(number: int) -> int:
        return min(number * turn, walk.groups[-1]) * each

    numbers = range(part * turns // parts, (part + 1) * turns // parts)
    done = walk.starts(first(numbers.start)) if numbers else []
    for number in numbers:
        begins, goals = walk.starts(first(number)), walk.goals(first(number + 1))
        assert all(b <= d <= g for b, d, g in zip(begins, done, goals, strict=True))
        yield Turn(begins, done, goals)
        done = goals


def _windows(steps: Iterable[Step | Scan], buffers: Sequence[ProgramBuffer]) -> Iterator[tuple[int, Launch]]:
    """The buffers of which each thread has its own, and what writes them."""
    for step in steps:
        if isinstance(step, Step) and step.turn:
            yield from ((n, x) for x in step.launches for n in written_by(x) if buffers[n].per_thread)


def _memory(buffer: ProgramBuffer, arrays: Arrays, symbols: Symbols) -> np.ndarray:
    if buffer.kind in ("input", "parameter", "state"):
        return np.array(arrays[buffer.name]).reshape(-1)
    if buffer.kind == "constant":
        return np.array(buffer.value, buffer.dtype.numpy).reshape(-1)
    count = 0 if buffer.kind == "view" else dim_value(buffer.elements, symbols)
    count *= symbols[THREADS_NAME] if buffer.per_thread else 1
    return _empty(count, buffer.dtype.numpy)


def _empty(count: int, dtype: np.dtype) -> np.ndarray:
    """NaN: the interpreter refuses to read it, but from a buffer that a chain has filled in part."""
    return np.frombuffer(b"\xff" * (count * dtype.itemsize), dtype).copy()
