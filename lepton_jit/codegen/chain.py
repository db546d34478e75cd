"""Chains: kernels that run a few rows at a time, one after the other, while what lies between them is in a cache.

The arithmetic is written once, for Python's integers and for native values alike.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lepton_jit.codegen.loop_ir import CeilDiv, Extent, Progress, Reach
from lepton_jit.codegen.lowered import Launch, ProgramBuffer
from lepton_jit.ir.types import typical

# What lies between the kernels of a chain in one turn: a fifth of an L2 cache (192 to 768 KB measure alike).
TURN_BYTES = 3 << 17

Number = Any  # an int, or a value with the operators of one
Clip = Callable[[Number, int], Number]  # (x, most) -> x, not below 0 nor above `most`
Choose = Callable[[Number, Number], Number]


def typical_extent(extent: Extent) -> int:
    if isinstance(extent, CeilDiv):
        return -(-typical(extent.dividend) // extent.divisor) * typical(extent.factor)
    return typical(extent)


def clip(x: int, most: int) -> int:
    return max(0, min(x, most))


def links(launches: Sequence[Launch]) -> list[list[tuple[int, Reach]]]:
    """For each launch: the later ones that read its result, and which rows of it."""
    found: list[list[tuple[int, Reach]]] = []
    for i, launch in enumerate(launches):
        written = written_by(launch)
        readers = []
        for j, later in enumerate(launches[i + 1 :], i + 1):
            assert later.kernel.progress is not None
            numbers = dict(zip((b.name for b in later.kernel.buffers), later.buffers, strict=True))
            readers += [(j, reach) for name, reach in later.kernel.progress.reads if numbers[name] in written]
        found.append(readers)
    return found


def written_by(launch: Launch) -> set[int]:
    """The buffers of a launch's results."""
    names = zip(launch.kernel.buffers, launch.buffers, strict=True)
    return {number for buffer, number in names if not buffer.name.startswith("a")}


def turn_of(launches: Sequence[Launch], buffers: Sequence[ProgramBuffer]) -> int:
    """Groups of the last launch in one turn: as many as let a cache hold what all launches read and write in it."""
    last = launches[-1].kernel
    assert last.progress is not None
    between = {number for launch in launches[:-1] for number in written_by(launch)}
    total = sum(typical(buffers[number].bytes) for number in between)
    groups = typical_extent(last.extent) // last.progress.each
    return max(1, TURN_BYTES * groups // max(total, 1))


def least_turns(launches: Sequence[Launch], turn: int) -> int:
    """How many turns a part of a chain must have, so that no launch needs the same rows at both of its boundaries.

    A boundary at row r of the last launch splits each other launch at the rows that results before r need (its goal)
    and at those that results from r on need (its start, which comes before). `apart` has for each launch how many rows
    of its result the boundaries' places must be apart; a reader's follow from those of what it reads.
    """
    apart = [0] * len(launches)
    for j, readers in enumerate(links(launches)):
        progress = launches[j].kernel.progress
        assert progress is not None
        rows = apart[j] + 2 * _group_rows(launches[j]) + 1  # both places lie at whole groups
        for c, reach in readers:
            lines = -(-rows * progress.width // reach.width) + reach.taps + max(0, reach.low - reach.taps)
            # by which an image is smaller than the steps of its windows
            less = max(0, reach.lines * reach.stride - reach.size)
            images = lines // (reach.lines * reach.stride) + 2
            results = -(-(lines + less * images) // reach.stride)
            apart[c] = max(apart[c], (results + 1) * reach.per)
    return -(-(-(-apart[-1] // _group_rows(launches[-1])) + 1) // turn)


def _group_rows(launch: Launch) -> int:
    """The most rows that one group of iterations finishes."""
    progress = launch.kernel.progress
    assert progress is not None
    groups = max(typical_extent(launch.kernel.extent) // progress.each, 1)
    units = -(-typical(progress.count) // progress.unit)
    return -(-units // groups) * progress.unit


@dataclass
class Walk:
    """How far each launch of a chain has to be, for the last one to begin or to have ended an iteration.

    `groups` and `counts` (of rows) are those of each launch's progress.
    """

    launches: Sequence[Launch]
    groups: Sequence[Number]
    counts: Sequence[Number]
    clip: Clip = clip
    least: Choose = min
    most: Choose = max

    def starts(self, first: Number) -> list[Number]:
        """The iterations from which the launches have to run so that the last one can run from `first` on."""

        def start(j: int, rows: list[tuple[Reach, Number]]) -> Number:
            progress = self._progress(j)
            places = [self._begin(reach, row) for reach, row in rows]
            unit = self._fold(self.least, places) // progress.width // progress.unit
            return (self._ceiling((unit + 1) * self.groups[j], self._units(j)) - 1) * progress.each

        return self._backwards(first, start)

    def goals(self, last: Number) -> list[Number]:
        """The iterations that the launches have to have done before the last one can end iteration `last - 1`."""

        def goal(j: int, rows: list[tuple[Reach, Number]]) -> Number:
            progress = self._progress(j)
            places = [self._end(reach, row) for reach, row in rows]
            unit = self._ceiling(self._fold(self.most, places), progress.width * progress.unit)
            return self._ceiling(unit * self.groups[j], self._units(j)) * progress.each

        return self._backwards(last, goal)

    def _backwards(self, final: Number, solve: Callable[[int, list[tuple[Reach, Number]]], Number]) -> list[Number]:
        readers = links(self.launches)
        at = [final] * len(self.launches)
        for j in reversed(range(len(self.launches) - 1)):
            at[j] = solve(j, [(reach, self._rows(c, at[c])) for c, reach in readers[j]])
        return at

    def _progress(self, j: int) -> Progress:
        progress = self.launches[j].kernel.progress
        assert progress is not None
        return progress

    def _rows(self, j: int, iteration: Number) -> Number:
        """The rows of launch j's result that iterations before this one finish."""
        progress = self._progress(j)
        units = iteration // progress.each * self._units(j) // self.groups[j]
        return self.least(units * progress.unit, self.counts[j])

    def _units(self, j: int) -> Number:
        return self._ceiling(self.counts[j], self._progress(j).unit)

    def _begin(self, reach: Reach, row: Number) -> Number:
        """The first element that results from `row` on read."""
        line = row // reach.per
        top = self.clip(line % reach.lines * reach.stride - reach.low, reach.size)
        return (line // reach.lines * reach.size + top) * reach.width

    def _end(self, reach: Reach, row: Number) -> Number:
        """The last element + 1 that results before `row`, which is not 0, read."""
        line = (row - 1) // reach.per
        bottom = self.clip(line % reach.lines * reach.stride + (reach.taps - reach.low), reach.size)
        return (line // reach.lines * reach.size + bottom) * reach.width

    def _ceiling(self, dividend: Number, divisor: Number) -> Number:
        return (dividend + (divisor - 1)) // divisor

    def _fold(self, choose: Choose, values: Sequence[Number]) -> Number:
        chosen = values[0]
        for value in values[1:]:
            chosen = choose(chosen, value)
        return chosen
