"""Pack B: panels of columns, [batches...][panel][K...][column]. Packed rows of A have the same form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lepton_jit.codegen.kernels.cluster import (
    Cluster,
    Planned,
    slice_count,
    split_index,
    store_at,
    transposed,
    vector_loop,
)
from lepton_jit.codegen.kernels.evaluate import LANE, tail_mask
from lepton_jit.codegen.loops.ir import Affine, Atom, CeilDiv, Const, Kernel, Slices
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.types import Dim, element_count, row_major

# Positions of K that one iteration packs where nothing else divides the work.
PLACES = 16


def schedule_pack(cluster: Cluster, target: Target) -> Planned:
    """Schedule the kernel that packs; behind the last column stand zeros."""
    return (_Pack(cluster, target).kernel(),), ()


def packed_sides(node: Node) -> Value | None:
    """The operand of a pack, where it consists of several B one behind the other; else None."""
    a: Any = node.attributes
    batches, sums = a["extents"][: a["batches"]], a["extents"][a["batches"] :]
    if not batches or a["offset"] != 0:
        return None
    *apart, _ = row_major((*batches, element_count((*sums, a["columns"]))))
    return node.operands[0] if list(a["strides"][: a["batches"]]) == apart else None


class _Pack:
    def __init__(self, cluster: Cluster, target: Target) -> None:
        (self.node,) = cluster.region.nodes
        (operand,) = self.node.operands
        a: Any = self.node.attributes
        self.cluster, self.k = cluster, cluster.builder()
        self.dtype = operand.type.dtype
        self.lanes = target.lanes(8 * self.dtype.bytes)
        self.panel, self.column_stride, self.steps, self.offset = (
            a["panel"],
            a["column_stride"],
            a["strides"],
            a["offset"],
        )
        self.batches, self.sums = a["extents"][: a["batches"]], a["extents"][a["batches"] :]
        self.strides = row_major(self.node.result.type.shape)
        self.inner = self.sums[-1] if self.sums else 1
        # full panels, and the columns of one that is not
        self.full, self.rest = divmod(a["columns"], self.panel)
        self.panels = self.full + (self.rest > 0)

    def kernel(self) -> Kernel:
        if self.column_stride == 1 and self.sums:
            return self._by_places()
        outer = [*self.batches, *self.sums[:-1], self.panels]
        *self.places, which = split_index(self.k, Affine.var("t"), outer)
        self._panel(which, self._transpose if self._in_squares() else self._copy)
        extent = element_count(outer)
        return self.cluster.kernel(self.k, extent, self.inner * self.panel, slices=self._slices(extent))

    def _by_places(self) -> Kernel:
        """Pack all columns of one position of K before the next: what lies side by side is read in order."""
        outer = [*self.batches, *self.sums[:-1]]
        t, inner = Affine.var("t"), self.inner
        self.places = split_index(self.k, t, outer)
        if outer:
            self._lines(Affine(), Affine.of(inner))
            extent, work = element_count(outer), inner * self.panel * self.panels
            return self.cluster.kernel(self.k, extent, work, slices=self._slices(extent))
        last = self.k.apply("minimum", self.k.index(t * PLACES + PLACES), self.k.index(Affine.of(inner)))
        self._lines(t * PLACES, Affine.var(last.name))
        extent = -(-inner // PLACES) if isinstance(inner, int) else CeilDiv(inner, PLACES)
        return self.cluster.kernel(self.k, extent, PLACES * self.panel * self.panels)

    def _slices(self, extent: Dim) -> Slices | None:
        """The batch slices, where each sample has a B of its own; else None."""
        (operand,), shape = self.node.operands, self.node.result.type.shape
        count = slice_count(extent, shape, products=True) if self.batches else 0
        if not count:
            return None
        alone = operand.type.shape[0] == shape[0] and self.steps[0] == element_count(operand.type.shape[1:])
        return Slices(count, frozenset({"a0"}) if alone else frozenset())

    def _lines(self, start: Affine, stop: Affine) -> None:
        with self.k.loop(start, stop) as place:
            if self.full:
                with self.k.loop(0, self.full) as which:
                    self._line(which, place, self.panel)
            if self.rest:
                self._line(Affine.of(self.full), place, self.rest)

    def _in_squares(self) -> bool:
        """Tell whether K is contiguous in the operand, and columns are not."""
        dense = self.sums and self.steps[-1] == 1 and self.column_stride != 1 and isinstance(self.inner, int)
        return bool(dense) and self.panel % self.lanes == 0 and self.dtype.is_float

    def _panel(self, which: Affine, fill: Callable[[Affine, int], None]) -> None:
        k = self.k
        if not self.rest or not self.full:
            fill(which, self.rest or self.panel)
            return
        number = k.index(which)
        with k.when(k.compare(number, Const(self.full, number.dtype), "LT")):
            fill(which, self.panel)
        with k.otherwise():
            fill(which, self.rest)

    def _begin(self, which: Affine, place: Affine) -> tuple[Affine, Affine]:
        """Where a panel's first column lies at one position of K, in the operand and in the result."""
        source = which * self.panel * self.column_stride + self.offset
        target = which * self.strides[len(self.batches)]
        strides = [*self.strides[: len(self.batches)], *self.strides[len(self.batches) + 1 : -1]]
        index = [*self.places, place] if self.sums else self.places
        for at, step, stride in zip(index, self.steps, strides, strict=True):
            source, target = source + at * step, target + at * stride
        return source, target

    def _zeros(self, target: Affine, first: int) -> None:
        """Write zeros behind the last column."""
        if first < self.panel:
            for j, mask in vector_loop(self.k, Affine.of(first), Affine.of(self.panel), self.lanes):
                store_at(self.k, "o0", target + j, Const(0, self.dtype), self.lanes, mask)

    def _copy(self, which: Affine, columns: int) -> None:
        with self.k.loop(0, self.inner) as place:
            self._line(which, place, columns)

    def _line(self, which: Affine, place: Affine, columns: int) -> None:
        """Copy the columns of one panel at one position of K."""
        source, target = self._begin(which, place)
        for j, mask in vector_loop(self.k, Affine(), Affine.of(columns), self.lanes):
            at = source + (j - Affine.var(LANE)) * self.column_stride
            value = self.k.load("a0", at, self.lanes, self.column_stride, mask)
            store_at(self.k, "o0", target + j, value, self.lanes, mask)
        self._zeros(target, columns)

    def _transpose(self, which: Affine, columns: int) -> None:
        """Transpose in squares of registers, which takes an eighth of the time of gathers."""
        assert isinstance(self.inner, int)
        rest = self.inner % self.lanes
        if self.inner > rest:
            with self.k.loop(0, self.inner - rest, self.lanes) as place:
                self._squares(which, place, self.lanes, columns)
        if rest:
            self._squares(which, Affine.of(self.inner - rest), rest, columns)

    def _squares(self, which: Affine, place: Affine, depth: int, columns: int) -> None:
        """Transpose `depth` positions of K of all columns of a panel."""
        begin = self._begin(which, place)
        whole = columns - columns % self.lanes
        if whole:
            with self.k.loop(0, whole, self.lanes) as first:
                self._square(begin, first, self.lanes, depth)
        if columns > whole:
            self._square(begin, Affine.of(whole), columns - whole, depth)
        for i in range(depth):
            self._zeros(begin[1] + self.strides[-2] * i, -(-columns // self.lanes) * self.lanes)

    def _square(self, begin: tuple[Affine, Affine], first: Affine, columns: int, depth: int) -> None:
        k, (source, target) = self.k, begin
        mask = tail_mask(k, Affine.of(depth), self.lanes) if depth < self.lanes else None
        values: list[Atom] = [
            k.load("a0", source + (first + c) * self.column_stride, self.lanes, 1, mask) for c in range(columns)
        ]
        for i, value in enumerate(transposed(k, values)[:depth]):
            k.store("o0", target + self.strides[-2] * i + first, value, self.lanes)
