"""Chains: kernels that run strip by strip, one after the other, while a cache holds what they pass on.

A turn of a chain is one strip: some rows of the last kernel, and what they need of the others. Of each intermediate
result, a thread keeps only a window of rows, which moves on from turn to turn. The arithmetic is written once, for
Python's integers and for native values alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple

from lepton_jit.codegen.kernels.cluster import is_whole
from lepton_jit.codegen.loops.ir import CeilDiv, Extent, Progress, Reach
from lepton_jit.codegen.program.lowered import Launch, ProgramBuffer
from lepton_jit.codegen.target import LINE_BYTES
from lepton_jit.ir.types import ratio, typical

# What the kernels of a chain pass on in one turn: a fifth of an L2 cache of 2 MB (192 to 768 KB measure alike).
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
    """List, for each launch, the later ones that read its result, and which rows of it they read."""
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
    return {number for buffer, number in names if buffer.role != "operand"}


def read_by(launch: Launch) -> set[int]:
    """The buffers of a launch's operands."""
    names = zip(launch.kernel.buffers, launch.buffers, strict=True)
    return {number for buffer, number in names if buffer.role == "operand"}


def window_elements(launch: Launch, rows: int, itemsize: int) -> int:
    """The elements of a window: the rows of a result that one turn needs, and what precedes them in a cache line."""
    line = LINE_BYTES // itemsize
    return (-(-rows * progress_of(launch).width // line) + 1) * line


def turn_of(launches: Sequence[Launch], buffers: Sequence[ProgramBuffer]) -> int:
    """The groups of the last launch in one turn: as many as let a cache hold what all launches pass on in it.

    It is a multiple of what one group of each other launch amounts to, so that threads compute as little as possible of
    the halo at their boundaries twice; and at least one of these, as no less is computed at once anyway.
    """
    last = progress_of(launches[-1])
    between = {number for launch in launches[:-1] for number in written_by(launch)}
    total = sum(typical(buffers[number].bytes) for number in between)
    groups = typical_extent(launches[-1].kernel.extent) // last.each
    wanted = TURN_BYTES * groups // max(total, 1)
    groups_of_rows = [group_rows(x) for x in launches]
    own = groups_of_rows[-1].most
    each = [Fraction(g.most, own) / rate for g, rate in zip(groups_of_rows, _rates(launches), strict=True) if g.even]
    period = math.lcm(*(f.numerator for f in each))
    return max(1, wanted // period) * period


def in_step(launches: Sequence[Launch]) -> bool:
    """Tell whether every launch goes through its images as fast as those that read them, whatever the batch is."""
    return all(units_a_group(launch) is not None for launch in launches) and all(
        ratio(progress_of(launch).count, progress_of(launches[c]).count) == _rows_a_row(launch, reach)
        for launch, readers in zip(launches, links(launches), strict=True)
        for c, reach in readers
    )


def rows_in_a_turn(launches: Sequence[Launch], turn: int) -> list[int]:
    """List, for each launch, the most rows of its result between the first one that a turn reads and the last it makes.

    r rows into the last result, launch j starts from rate*r - behind or later, and has to reach rate*r + ahead at most.
    These follow from those of its readers. Rates are ratios of all rows, so they hold across images.
    """
    behind, ahead = ([Fraction(0)] * len(launches) for _ in range(2))
    multiples = [1] * len(launches)  # at boundaries rows are multiples of this
    for j, readers in reversed(list(enumerate(links(launches)))):
        width, group = progress_of(launches[j]).width, group_rows(launches[j])
        places = [reach.width * (multiples[c] if row_by_row(reach) else 1) for c, reach in readers]
        cut = Fraction(group.most * width - (math.gcd(group.most * width, *places) if group.even else 1), width)
        for c, reach in readers:
            step = _rows_a_row(launches[j], reach)
            above, below = (Fraction(reach.width, width) * lines for lines in _lines_apart(reach))
            behind[j] = max(behind[j], step * behind[c] + above + cut)
            ahead[j] = max(ahead[j], step * ahead[c] + below + cut)
        multiples[j] = group.most * (1 if readers else turn) if group.even else 1
    last = group_rows(launches[-1]).most * turn
    return [math.ceil(rate * last + b + a) for rate, b, a in zip(_rates(launches), behind, ahead, strict=True)]


def _rates(launches: Sequence[Launch]) -> list[Fraction]:
    """The rows of each launch for one row of the last; all launches go in step."""
    rates = [Fraction(1)] * len(launches)
    for j, readers in reversed(list(enumerate(links(launches)))):
        for c, reach in readers:
            rates[j] = _rows_a_row(launches[j], reach) * rates[c]
    return rates


def _rows_a_row(launch: Launch, reach: Reach) -> Fraction:
    """The rows of a launch for one row of a reader."""
    return Fraction(reach.size * reach.width, reach.per * reach.lines * progress_of(launch).width)


def first_line(reach: Reach, y: Number, clip: Clip) -> Number:
    """The first line of an image that belongs to line y of a result: those that it reads, and those unread above."""
    unread = max(0, reach.stride - reach.taps)
    return clip(y * reach.stride - (reach.low + unread), reach.size)


def end_line(reach: Reach, y: Number, clip: Clip) -> Number:
    """The last line + 1 of an image that belongs to line y of a result; the last y has the image to its end."""
    unread = max(0, reach.size - ((reach.lines - 1) * reach.stride + reach.taps - reach.low))
    end = y * reach.stride + (reach.taps - reach.low)
    return clip(end + (y + 1) // reach.lines * unread if unread else end, reach.size)


def row_by_row(reach: Reach) -> bool:
    """Tell whether each row reads the operand's row of the same number, and no other."""
    return reach.per == reach.lines == reach.size == 1


def _lines_apart(reach: Reach) -> tuple[Fraction, Fraction]:
    """How far above, and below, the operand's line at the same height of the image rows read: the halo."""
    height, row = Fraction(reach.size, reach.lines), Fraction(1, reach.per)
    above = below = Fraction(0)
    for y in range(reach.lines):
        top, bottom = first_line(reach, y, clip), end_line(reach, y, clip)
        above = max(above, (y + 1 - row) * height - top)
        below = max(below, bottom - (y + row) * height)
    return above, below


class RowGroup(NamedTuple):
    """The most rows that a group of iterations finishes; with `even`, each finishes so many, whatever the batch."""

    most: int
    even: bool


def group_rows(launch: Launch) -> RowGroup:
    """The rows that a group of iterations of a launch finishes."""
    progress, extent = progress_of(launch), launch.kernel.extent
    even = is_whole(progress.count, progress.unit)
    if isinstance(extent, CeilDiv):
        even = even and is_whole(extent.dividend, extent.divisor)
    units = units_a_group(launch)
    assert units is not None
    return RowGroup(math.ceil(units) * progress.unit, even and units.denominator == 1)


def units_a_group(launch: Launch) -> Fraction | None:
    """The units of rows that a group of iterations of a launch finishes, or None if batches differ."""
    progress, extent = progress_of(launch), launch.kernel.extent
    if isinstance(extent, CeilDiv):  # not rounded up: as if groups were fewer and larger
        iterations, parts = extent.dividend * extent.factor, extent.divisor
    else:
        iterations, parts = extent, 1
    return ratio(progress.count * (parts * progress.each), iterations * progress.unit)


def progress_of(launch: Launch) -> Progress:
    """The progress of a launch of a chain."""
    assert launch.kernel.progress is not None
    return launch.kernel.progress


@dataclass
class Walk:
    """Computes how far each launch of a chain has to be for the last one to begin, or to have ended, an iteration.

    `groups` and `counts` (of rows) are those of each launch's progress. Rows that no result needs belong to the results
    around them, so that every result is whole where others read it too.
    """

    launches: Sequence[Launch]
    groups: Sequence[Number]
    counts: Sequence[Number]
    clip: Clip = clip
    least: Choose = min
    most: Choose = max

    def starts(self, first: Number) -> list[Number]:
        """The iterations from which launches have to run so that the last one can run from `first` on."""

        def start(j: int, rows: list[tuple[Reach, Number]]) -> Number:
            progress = progress_of(self.launches[j])
            places = [self._begin(reach, row) for reach, row in rows]
            unit = self._fold(self.least, places) // progress.width // progress.unit
            return (self._ceiling((unit + 1) * self.groups[j], self._units(j)) - 1) * progress.each

        return self._backwards(first, start)

    def goals(self, last: Number) -> list[Number]:
        """The iterations that launches must have done before the last one can end iteration `last - 1`."""

        def goal(j: int, rows: list[tuple[Reach, Number]]) -> Number:
            progress = progress_of(self.launches[j])
            places = [self._end(reach, row) for reach, row in rows]
            unit = self._ceiling(self._fold(self.most, places), progress.width * progress.unit)
            return self._ceiling(unit * self.groups[j], self._units(j)) * progress.each

        return self._backwards(last, goal)

    def _backwards(self, final: Number, solve: Callable[[int, list[tuple[Reach, Number]]], Number]) -> list[Number]:
        readers = links(self.launches)
        at = [final] * len(self.launches)
        for j in reversed(range(len(self.launches) - 1)):
            at[j] = solve(j, [(reach, self.rows(c, at[c])) for c, reach in readers[j]])
        return at

    def rows(self, j: int, iteration: Number) -> Number:
        """The rows of launch j's result that iterations before this one finish."""
        progress = progress_of(self.launches[j])
        units = iteration // progress.each * self._units(j) // self.groups[j]
        return self.least(units * progress.unit, self.counts[j])

    def _units(self, j: int) -> Number:
        return self._ceiling(self.counts[j], progress_of(self.launches[j]).unit)

    def _begin(self, reach: Reach, row: Number) -> Number:
        """The first element that the results from `row` on read."""
        line = row // reach.per
        top = first_line(reach, line % reach.lines, self.clip)
        return (line // reach.lines * reach.size + top) * reach.width

    def _end(self, reach: Reach, row: Number) -> Number:
        """The last element + 1 that the results before `row` read; `row` is not 0."""
        line = (row - 1) // reach.per
        bottom = end_line(reach, line % reach.lines, self.clip)
        return (line // reach.lines * reach.size + bottom) * reach.width

    def _ceiling(self, dividend: Number, divisor: Number) -> Number:
        return (dividend + (divisor - 1)) // divisor

    def _fold(self, choose: Choose, values: Sequence[Number]) -> Number:
        chosen = values[0]
        for value in values[1:]:
            chosen = choose(chosen, value)
        return chosen
