"""Schedule operations on row numbers: the check of their range, and sums into rows (`scatter_add`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from lepton_jit.codegen.kernels.blocked_fold import first_totals
from lepton_jit.codegen.kernels.cluster import (
    Axis,
    Cluster,
    accesses_of,
    merge_dimensions,
    part_of,
    split_index,
    spread,
    store_at,
    vector_loop,
)
from lepton_jit.codegen.kernels.evaluate import LANE, Indices, linear, tail_mask
from lepton_jit.codegen.kernels.fold import finished, fold_row
from lepton_jit.codegen.kernels.schedule_reduce import COLUMN_VECTORS, Planned
from lepton_jit.codegen.loops.ir import I64, Affine, Atom, Buffer, CeilDiv, Const, Kernel
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.codegen.target import Target
from lepton_jit.errors import UnsupportedError
from lepton_jit.ir.graph import Node
from lepton_jit.ir.types import DTYPES, Dim, element_count, typical

I32 = DTYPES["i32"]
# The parts of the numbers, which are sorted side by side.
PARTS = 2
_PART = Affine.var("t")
# Positions of updates are i32: half the memory, and a fifth less time.
MOST_UPDATES = 2**31 - 1
TOO_MANY, TOO_MANY_TEXT = 127, f"expected at most {MOST_UPDATES} indices"
# Numbers that one iteration of a check reads, 64 KB of i32.
CHECK_BLOCK = 16384


def schedule_check(node: Node, code: int, target: Target) -> Kernel:
    """A kernel that reports numbers outside of low ... high with `code`; it reads each once, and writes nothing.

    x is outside if x - low, read without sign, is more than high - low; only a block that has such a number is read
    again to find it.
    """
    low, high = node.attributes["low"], node.attributes["high"]
    dtype = DTYPES[f"u{8 * node.result.type.dtype.bytes}"]
    elements = node.result.type.elements
    lanes = target.lanes(8 * dtype.bytes)
    k = KernelBuilder()
    k.buffers = {"a0": Buffer("a0", node.result.type.dtype, elements)}
    start = Affine.var("t") * CHECK_BLOCK
    end = k.apply("minimum", k.index(start + CHECK_BLOCK), k.index(Affine.of(elements)))

    def distance(position: Affine, lanes: int, mask: Atom | None) -> Atom:
        number = k.load("a0", position - Affine.var(LANE) * position.coefficient(LANE), lanes, mask=mask)
        bits = number if number.dtype == dtype else k.bitcast_convert(number, dtype)
        return k.apply("subtract", bits, Const(low, dtype)) if low else bits

    def farthest(inner: Affine, mask: Atom | None) -> list[Atom]:
        return [distance(start + inner, lanes, mask)]

    count = Affine.var(end.name) - start
    kinds = [("maximum", dtype)]
    (worst,) = finished(k, kinds, fold_row(k, kinds, count, lanes, farthest, first_totals(kinds, lanes)))
    allowed = Const(high - low, dtype)
    with k.when(k.compare(worst, allowed, "GT")), k.loop(start, Affine.var(end.name)) as i:
        bad = k.compare(distance(i, 1, None), allowed, "GT")
        with k.when(bad):
            k.report(code, i)
    extent = CeilDiv(elements, CHECK_BLOCK)
    return Kernel("kernel", tuple(k.buffers.values()), extent, 1, k.statements, node.layer)


def schedule_scatter_add(cluster: Cluster, target: Target) -> Planned:
    """Sort the updates by their rows, then sum those of each row."""
    made = _ScatterAdd(cluster, target)
    scratch = tuple((b.dtype, b.size) for b in made.scratch)
    return (made.counting(), made.starting(), made.placing(), made.summing()), scratch


@dataclass
class _ScatterAdd:
    """Writes `result[row] = sum of the updates whose number is row`, in order, and what a region makes of that.

    It sorts by counting, and keeps the order of equal rows. The scratch s1, s2, ... holds the updates' positions along
    those axes of the numbers on which they depend, s0 counters: PARTS of the numbers are sorted side by side, each with
    `size + 1` of them. In the end the last part's counters r and r + 1 are where the updates of row r start and end.

    So each element of the result is one sum in a fixed order on any number of threads, is finished when it is written,
    and updates are computed where they are added.
    """

    cluster: Cluster
    target: Target

    def __post_init__(self) -> None:
        (self.node,) = (n for n in self.cluster.region.nodes if n.op == "scatter_add")
        self.updates, self.numbers = self.node.operands
        attributes: Any = self.node.attributes
        self.axis: int = attributes["axis"]
        self.size: int = attributes["size"]
        self.shape = self.updates.type.shape
        self.sorted = range(self.axis, self.axis + self.numbers.type.rank)
        self.axes = self._axes()
        counters = Buffer("s0", I32, (self.size + 1) * PARTS)
        count = self.numbers.type.elements
        if isinstance(count, int) and count > MOST_UPDATES:
            raise UnsupportedError(f"layer {self.cluster.layer!r}: scatter_add: {TOO_MANY_TEXT}, got {count}")
        self.scratch = (counters, *(Buffer(f"s{i}", I32, count) for i in range(1, len(self.axes) + 1)))

    def _axes(self) -> list[Axis]:
        """The axes of the numbers on which the updates depend; often one, since what is walked alike is merged."""
        accesses = accesses_of(self.cluster, [self.updates], len(self.shape))
        apart = [-1 if d in self.sorted else d for d in range(len(self.shape))]
        axes = [a for a in merge_dimensions(self.shape, accesses, apart) if a.dimensions[0] in self.sorted]
        return [a for a in axes if any(steps[a.dimensions[-1]] != 0 for steps in accesses)]

    def _builder(self) -> KernelBuilder:
        k = self.cluster.builder()
        k.buffers |= {b.name: b for b in self.scratch}
        return k

    def counting(self) -> Kernel:
        """The first kernel: each part counts its updates of every row."""
        k = self._builder()
        count = self.numbers.type.elements
        if not isinstance(count, int):
            with k.when(k.compare(k.index(Affine.of(count)), Const(MOST_UPDATES, I64), "GT")):
                k.report(TOO_MANY, Affine())
        lanes = self.target.lanes(32)
        for i, mask in vector_loop(k, Affine(), Affine.of(self.size + 1), lanes):
            store_at(k, "s0", self._counter(_PART, i), Const(0, I32), lanes, mask)
        with self._numbers_of_part(k) as (row, _):
            at = self._counter(_PART, row + 1)
            k.store("s0", at, k.apply("add", k.load("s0", at), Const(1, I32)))
        return self.cluster.kernel(k, PARTS, self._part_work(), extra=self.scratch)

    def starting(self) -> Kernel:
        """The second kernel, one iteration: sum the counts to where the updates of each row and part start."""
        k = self._builder()
        with k.carried_loop(1, self.size + 1, 1, [Const(0, I32)]) as (i, (total,), following):
            counts = [k.load("s0", self._counter(Affine.of(part), i)) for part in range(PARTS)]
            start: Atom = total
            before: Atom | None = None  # added up apart from the total, on which the next row waits
            for part, count in enumerate(counts):
                k.store("s0", self._counter(Affine.of(part), i), start)
                before = count if before is None else k.apply("add", before, count)
                start = k.apply("add", total, before)
            following[0] = start
        return self.cluster.kernel(k, 1, 1, extra=self.scratch)

    def placing(self) -> Kernel:
        """The third kernel: each part writes its updates' positions; a counter ends where the row's updates end."""
        k = self._builder()
        with self._numbers_of_part(k) as (row, digits):
            at = self._counter(_PART, row + 1)
            place = k.load("s0", at)
            for n, axis in enumerate(self.axes, 1):
                k.store(f"s{n}", _index(k, place), k.convert(k.index(self._along(axis, digits)), I32))
            k.store("s0", at, k.apply("add", place, Const(1, I32)))
        return self.cluster.kernel(k, PARTS, self._part_work(), extra=self.scratch)

    def _counter(self, part: Affine, i: Affine) -> Affine:
        return part * (self.size + 1) + i

    def _part_work(self) -> int:
        return typical(self.numbers.type.elements) // PARTS * 8

    @contextmanager
    def _numbers_of_part(self, k: KernelBuilder) -> Iterator[tuple[Affine, Indices]]:
        """Loop over a part of the numbers, in their order; yields the row and the number's indices.

        Parts are cut along the first dimension that is not 1.
        """
        shape = self.numbers.type.shape
        first = next((d for d, extent in enumerate(shape) if extent != 1), 0)
        ranges = [(Affine(), Affine.of(extent)) for extent in shape or (1,)]
        begin, end = part_of(k, _PART, shape[first] if shape else 1, PARTS)
        ranges[first] = Affine.var(begin.name), Affine.var(end.name)
        with ExitStack() as loops:
            digits = tuple(loops.enter_context(k.loop(*r)) for r in ranges)[: len(shape)]
            number = self.cluster.evaluator(k).value(self.numbers, digits)
            yield self.cluster.evaluator(k).look_up(number, self.size), digits

    def _along(self, axis: Axis, digits: Indices) -> Affine:
        """The position along an axis of merged dimensions."""
        shape = tuple(self.shape[d] for d in axis.dimensions)
        return linear(tuple(digits[d - self.axis] for d in axis.dimensions), shape)

    def summing(self) -> Kernel:
        """The last kernel: an iteration finishes one row."""
        k = self._builder()
        result = self.node.result.type.shape
        last = len(result) - 1
        columns = None if last == self.axis or result[last] == 1 else last
        around = [d for d in range(len(result)) if d != columns]
        digits = split_index(k, Affine.var("t"), [result[d] for d in around])
        located = dict(zip(around, digits, strict=True))
        begin, end = (k.load("s0", self._counter(Affine.of(PARTS - 1), located[self.axis] + i)) for i in (0, 1))
        walk = _index(k, begin), _index(k, end)
        if columns is None:
            self._group(k, located, [{}], walk, 1, None)
        else:
            lanes = self.cluster.lanes(self.target)
            for starts, mask in column_groups(k, result[columns], lanes):
                self._group(k, located, [{columns: s + Affine.var(LANE)} for s in starts], walk, lanes, mask)
        per_row = typical(self.numbers.type.elements) // self.size + 1
        width = 1 if columns is None else typical(result[columns])
        work = per_row * width * len(self.cluster.region.nodes) // 4
        return self.cluster.kernel(k, element_count(result[d] for d in around), work, extra=self.scratch)

    def _group(
        self,
        k: KernelBuilder,
        located: dict[int, Affine],
        parts: list[dict[int, Affine]],
        walk: tuple[Affine, Affine],
        lanes: int,
        mask: Atom | None,
    ) -> None:
        """Sum neighbouring vectors of a row in one walk over its updates; `mask` is the last one's."""
        zero = Const(0, self.updates.type.dtype, lanes)
        masks = [None] * (len(parts) - 1) + [mask]
        rank = self.node.result.type.rank
        places = [tuple((located | part)[d] for d in range(rank)) for part in parts]
        with k.carried_loop(*walk, 1, [zero] * len(parts)) as (i, totals, following):
            found = [_index(k, k.load(f"s{n}", i)) for n in range(1, len(self.axes) + 1)]
            numbers = spread(self.axes, found, len(self.shape))[self.sorted.start : self.sorted.stop]
            for n, (place, own) in enumerate(zip(places, masks, strict=True)):
                indices = (*place[: self.axis], *numbers, *place[self.axis + 1 :])
                update = self.cluster.evaluator(k, lanes, own).value(self.updates, indices)
                following[n] = k.apply("add", totals[n], update)
        for place, own, total in zip(places, masks, totals, strict=True):
            evaluator = self.cluster.evaluator(k, lanes, own)
            evaluator.bound[self.node.result] = total
            values = [evaluator.value(v, place) for v in self.cluster.outputs]
            for value, (v, buffer) in zip(values, self.cluster.outputs.items(), strict=True):
                position = linear(place, v.type.shape)
                k.store(buffer, position - Affine.var(LANE) * position.coefficient(LANE), value, lanes, own)


def _index(k: KernelBuilder, number: Atom) -> Affine:
    return Affine.var(k.apply("convert", number, dtype=I64).name)


def column_groups(k: KernelBuilder, extent: Dim, lanes: int) -> Iterator[tuple[list[Affine], Atom | None]]:
    """Yield where COLUMN_VECTORS neighbouring vectors start, and the mask of the last, until they cover the extent."""
    if not isinstance(extent, int):
        for inner, mask in vector_loop(k, Affine(), Affine.of(extent), lanes):
            yield [inner - Affine.var(LANE)], mask
        return
    step = lanes * COLUMN_VECTORS
    whole = extent - extent % step
    if whole:
        with k.loop(0, whole, step) as i:
            yield [i + v * lanes for v in range(COLUMN_VECTORS)], None
    rest = [Affine.of(start) for start in range(whole, extent, lanes)]
    if rest:
        left = extent % lanes
        yield rest, tail_mask(k, left, lanes) if left else None
