"""Cut the rows of a block into register tiles: where each begins, and how high it is."""

from __future__ import annotations

import itertools
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

from lepton_jit.codegen.contraction.packed_left import PackedLeft
from lepton_jit.codegen.contraction.plan import Plan
from lepton_jit.codegen.kernels.cluster import ceil_divide, lowest_covering, number_of, part_of
from lepton_jit.codegen.kernels.turns import ROW_BLOCK
from lepton_jit.codegen.loops.ir import I64, THREADS, Affine, Atom, Const, Var
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.ir.types import Dim, Poly, least

# Heights of tiles where the number of rows is known at run time only; 8 and 11 are even splits of 16 and of 32 rows.
FEW_HEIGHTS = (1, 2, 3, 4, 6, 8, 11)
SHORT_TILE = 8


class WriteTile(Protocol):
    """Writes a tile of `height` rows from `row` on; with `packed`, it reads them there in packed A."""

    def __call__(
        self, row: Affine, height: int | Var, heights: tuple[int, ...], packed: Affine | None = None, /
    ) -> None: ...


@dataclass(frozen=True)
class RowTiles:
    """Writes the tiles of a block of a plan's rows; with `carries`, C holds the sum of the blocks of K before."""

    plan: Plan
    kernel: KernelBuilder
    tile: WriteTile
    left: PackedLeft | None
    carries: bool

    def emit(self, block: Affine, blocks: Atom | int) -> None:
        """Write the tiles of one block of rows; where their number is known, heights differ by one at most."""
        plan, k = self.plan, self.kernel
        most, rows = plan.target.tile_rows, plan.inner.extent
        if self.left is not None:
            self._packed_tiles(self.left, block, blocks)
            return
        if blocks == 1 and isinstance(rows, int):
            tiles = -(-rows // most)
            low, higher = divmod(rows, tiles)
            self._run_of_tiles(Affine(), low + 1, higher)
            self._run_of_tiles(Affine.of(higher * (low + 1)), low, tiles - higher)
            return
        if plan.samples is None:
            self._tiles_of_rows(block, blocks)
            return
        with k.when(self._by_samples(plan.samples, blocks)):
            self._tiles_of_samples(plan.samples, block, blocks)
        with k.otherwise():
            self._tiles_of_rows(block, blocks)

    def _tiles_of_rows(self, block: Affine, blocks: Atom | int) -> None:
        plan, k, most = self.plan, self.kernel, self.plan.target.tile_rows
        begin, end = self._rows_of_block(block, blocks)
        size = k.index(end - begin)
        if plan.whole_tiles():
            count = k.apply("floor_divide", size, Const(most, I64))
            with k.loop(0, Affine.var(count.name)) as j:
                self.tile(begin + j * most, most, (most,))
        elif self.carries:
            self.even_tiles(begin, size, self._heights())
        elif isinstance(blocks, int):  # there is an iteration even where there are no rows
            with k.when(k.compare(size, Const(0, I64), "GT")):
                self._overlapping_tiles(begin, size)
        else:
            self._overlapping_tiles(begin, size)

    def _by_samples(self, batch: Poly, blocks: Atom | int) -> Atom:
        """A condition of the kernel: threads share samples, as in the scan that reads or writes the rows (see `Rows`).

        So no thread reads what another one wrote.
        """
        k = self.kernel
        threads, groups = k.index(Affine.of(THREADS)), self._groups(batch)
        several = k.compare(k.apply("minimum", threads, groups), Const(1, I64), "GT")
        return k.apply("and", several, k.compare(groups, number_of(k, blocks), "LE"))

    def _groups(self, batch: Poly) -> Var:
        return ceil_divide(self.kernel, self.kernel.index(Affine.of(batch)), Const(ROW_BLOCK, I64))

    def _tiles_of_samples(self, batch: Poly, block: Affine, blocks: Atom | int) -> None:
        """Write the tiles of a block: those of a group of samples, in the block's share of the scan's iterations."""
        k = self.kernel
        groups, count = self._groups(batch), number_of(k, blocks)
        reached = k.apply("subtract", k.apply("multiply", k.index(block + 1), groups), Const(1, I64))
        group = Affine.var(k.apply("floor_divide", reached, count).name)
        begin, end = part_of(k, group, batch, groups)
        first, past = part_of(k, group, count, groups)
        own = block - Affine.var(first.name)
        turns = part_of(k, own, self.plan.inner.extent // batch, k.apply("subtract", past, first))
        self._overlapping_tiles(Affine.var(begin.name), k.apply("subtract", end, begin), (*turns, batch))

    def _packed_tiles(self, left: PackedLeft, block: Affine, blocks: Atom | int) -> None:
        """Write tiles as they were packed; rows fewer than a tile's are tiles of lower heights within the first."""
        k, rows, most = self.kernel, self.plan.inner.extent, left.height
        if isinstance(rows, int):
            self._exact_tiles(left, part_of(k, block, -(-rows // most), blocks))
            return
        if least(rows) >= most:
            self._moved_tiles(left, block, blocks)
            return
        with k.when(k.compare(k.index(Affine.of(rows)), Const(most, I64), "GE")):
            self._moved_tiles(left, block, blocks)
        with k.otherwise():
            self._overlapping_tiles(Affine(), k.index(Affine.of(rows)))

    def _exact_tiles(self, left: PackedLeft, share: tuple[Var, Var]) -> None:
        """Write tiles of a known number of rows; the last one has the rows that are left."""
        k, rows, height = self.kernel, self.plan.inner.extent, left.height
        assert isinstance(rows, int)
        with k.loop(Affine.var(share[0].name), Affine.var(share[1].name)) as tile:
            packed, rest = tile * left.tile_stride, rows % height
            if not rest:
                self.tile(tile * height, height, (height,), packed)
                return
            with k.when(k.compare(k.index(tile), Const(rows // height, I64), "LT")):
                self.tile(tile * height, height, (height,), packed)
            with k.otherwise():
                self.tile(tile * height, rest, (rest,), packed)

    def _moved_tiles(self, left: PackedLeft, block: Affine, blocks: Atom | int) -> None:
        """Write tiles of one height; the last may be lower, or begin further back, in the block of the one before."""
        k = self.kernel
        rows = k.index(Affine.of(self.plan.inner.extent))
        height, heights = left.tile_height(k)
        full = k.apply("floor_divide", rows, height)
        tiles, before = ceil_divide(k, rows, height), k.apply("subtract", full, Const(1, I64))
        begin, end = (
            k.apply("select", k.compare(at, tiles, "EQ"), tiles, k.apply("minimum", at, before), dtype=I64)
            for at in part_of(k, block, tiles, blocks)
        )
        latest = k.apply("subtract", rows, height)
        with k.loop(Affine.var(begin.name), Affine.var(end.name)) as tile:
            place = k.apply("multiply", k.index(tile), height)
            first, packed = k.apply("minimum", place, latest), tile * left.tile_stride
            if not isinstance(height, Var):
                self.tile(Affine.var(first.name), heights[0], heights, packed)
                return
            left_over = k.apply("subtract", rows, place)
            size = k.apply("minimum", lowest_covering(k, left_over, heights), height)
            row = k.apply("minimum", place, k.apply("subtract", rows, size))
            inside = k.apply("subtract", row, first)
            self.tile(Affine.var(row.name), size, heights, packed + Affine.var(inside.name))

    def even_tiles(self, begin: Affine, size: Var, heights: tuple[int, ...]) -> None:
        """Write tiles that have every row once, and whose heights differ by one at most."""
        k, most = self.kernel, self.plan.target.tile_rows
        tiles = ceil_divide(k, size, Const(most, I64))
        with k.loop(0, Affine.var(tiles.name)) as j:
            first, last = (k.apply("floor_divide", k.apply("multiply", k.index(j + i), size), tiles) for i in (0, 1))
            height = k.apply("subtract", last, first)
            self.tile(begin + Affine.var(first.name), height, heights)

    def _overlapping_tiles(self, begin: Affine, size: Var, turns: tuple[Var, Var, Dim] | None = None) -> None:
        """Write tiles of one height out of few, then some of the next lower one.

        The last one moves back over rows that are done, which get the same bits again. A program with a dense layer has
        8 micro-kernels that way for any batch, and not 14; 49 rows are 14 + 14 + 11 + 11, one of them computed twice.
        """
        k, heights = self.kernel, self._heights(turns is not None)
        tiles = ceil_divide(k, size, Const(heights[-1], I64))
        even = ceil_divide(k, size, tiles)
        above: Atom = Const(heights[-1], I64)
        for height in reversed(heights):
            above = k.select(k.compare(even, Const(height, I64), "LE"), Const(height, I64), above)
        below: Atom = Const(1, I64)
        for height in heights:
            below = k.select(k.compare(size, Const(height, I64), "GE"), Const(height, I64), below)
        high = k.apply("minimum", above, below)
        low: Atom = Const(heights[0], I64)
        for lower, height in itertools.pairwise(heights):
            low = k.select(k.compare(high, Const(height, I64), "EQ"), Const(lower, I64), low)
        count = ceil_divide(k, size, high)
        step = k.apply("subtract", high, low)
        spare = k.apply("subtract", k.apply("multiply", count, high), size)
        lowered = k.apply("floor_divide", spare, k.apply("maximum", step, Const(1, I64)))
        full = k.apply("maximum", k.apply("subtract", count, lowered), Const(0, I64))
        with ExitStack() as loops:
            if turns is not None:
                turn = loops.enter_context(k.loop(Affine.var(turns[0].name), Affine.var(turns[1].name)))
                begin = begin + turn * turns[2]
            j = loops.enter_context(k.loop(0, Affine.var(count.name)))
            behind = k.apply("maximum", k.apply("subtract", k.index(j), full), Const(0, I64))
            height = k.apply("select", k.compare(k.index(j), full, "LT"), high, low, dtype=I64)
            place = k.apply("subtract", k.apply("multiply", k.index(j), high), k.apply("multiply", behind, step))
            first = k.apply("minimum", place, k.apply("subtract", size, height))
            self.tile(begin + Affine.var(first.name), height, heights)

    def _heights(self, of_samples: bool = False) -> tuple[int, ...]:
        most = self.plan.target.tile_rows
        every = range(1, most + 1) if self.carries or most <= SHORT_TILE else (*FEW_HEIGHTS, most)
        # an even split of two tiles' rows or more has none lower than two thirds
        low = -(-2 * most // 3) if least(self.plan.inner.extent) >= 2 * most else 1
        low = min(low, ROW_BLOCK // 2) if of_samples else low
        return tuple(h for h in every if low <= h <= most)

    def _run_of_tiles(self, row: Affine, height: int, count: int) -> None:
        if count == 1:
            self.tile(row, height, (height,))
        elif count > 1:
            with self.kernel.loop(0, count) as j:
                self.tile(row + j * height, height, (height,))

    def _rows_of_block(self, block: Affine, blocks: Atom | int) -> tuple[Affine, Affine]:
        """Begin and end of a block; blocks have the same number of tiles, so that only the last has lower ones.

        196 rows are 14 tiles of 14 that way; four blocks of 49 rows, in tiles of 14, computed 28 rows twice.
        """
        k, unit = self.kernel, Const(self.plan.block_unit(), I64)
        rows = k.index(Affine.of(self.plan.inner.extent))
        shares = part_of(k, block, ceil_divide(k, rows, unit), blocks)
        begin, end = (k.apply("multiply", share, unit) for share in shares)
        return Affine.var(begin.name), Affine.var(k.apply("minimum", end, rows).name)
