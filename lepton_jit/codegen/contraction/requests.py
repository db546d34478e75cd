"""Prefetches of a contraction: which cache lines its tiles ask for before they are due. No value depends on them.

docs/measurements.md has what each gains.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lepton_jit.codegen.contraction.plan import ContractionDim, Plan
from lepton_jit.codegen.kernels.cluster import LEAST_SLICES, ceil_divide
from lepton_jit.codegen.loops.ir import I64, Affine, Const, Var
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.codegen.target import FAR_ELEMENTS, LINE_BYTES
from lepton_jit.ir.types import Dim, element_count, typical

# A tile that prefetches for later tiles does so after every so many products (a loop around 8 costs 5 % of a tile, one
# around 16 nothing). The next panel is prefetched where a panel has at most so many tiles: of more, the wait of the
# first one is small.
AHEAD_PRODUCTS = 16
MOST_TILES_AHEAD = 32
# Rows of A are prefetched where C has at most so many columns: with more, A is packed, or has time to arrive.
MOST_STREAMED = 96
# Lines that a micro-kernel with `ahead` prefetches after each innermost sum.
LINES_AHEAD = 8
# The hardware prefetches rows of C that are nearer to each other than this, in elements.
ROWS_APART = 256

Sums = Sequence[tuple[Affine, Dim, Dim]]
Located = Sequence[tuple[ContractionDim, Affine]]  # loops around a tile, and where it is in them
Ahead = tuple[str, Affine, Affine]  # a buffer, a place in it, and the step to the lines after the next sum


@dataclass(frozen=True)
class RowRange:
    """The rows of which one thread computes all panels."""

    begin: Affine
    count: Var


@dataclass(frozen=True)
class Requests:
    """Decides what the tiles of a plan prefetch. `sums` are their loops over K; with `carries` they go on from C.

    `panel_first` and `sum_block` say how the loops around the tiles run: see `Tiles`.
    """

    plan: Plan
    kernel: KernelBuilder
    sums: Sums
    packed: bool
    carries: bool
    panel_first: bool
    sum_block: int | None
    rows_here: RowRange | None = None

    def fetch(self) -> bool:
        """Tell whether a tile prefetches its lines of C: its rows are too far apart for the hardware to do so."""
        apart = self.plan.inner.out
        return not self.carries and isinstance(apart, int) and apart >= ROWS_APART

    def ahead(
        self, located: Located, panel: Affine, row: Affine, lhs: Affine, rhs: Affine
    ) -> Sequence[tuple[range, Ahead]]:
        """List what tiles with operands at `lhs` and `rhs` prefetch for later tiles, by ranges of panels."""
        panels = range(self.plan.panels)
        if self._looks_for_products(located):
            return self._next_product(located, panel, row)
        if self._looks_for_panels():
            return [(panels, self._next_panel(located, row, rhs))]
        return [(panels, self._next_rows(panel, lhs))] if self._looks_for_rows() else []

    def _looks_for_products(self, located: Located) -> bool:
        """Tell whether the operands of the next product of a batch are to be prefetched.

        That takes an A for each sample, dense and packed before its product. A known number of products must be at
        least LEAST_SLICES, and pack B as well: where B is packed already, as at the positions of Winograd's algorithm,
        it comes from DRAM, and its next panel is worth more.
        """
        if not self.packed or len(located) != 1 or len(self.sums) != 1:
            return False
        ((loop, _),), (extent, *_), rows = located, self.sums[0], self.plan.inner
        products, apart = extent.constant, loop.lhs
        if not isinstance(products, int) or extent.terms or products % AHEAD_PRODUCTS:
            return False
        if isinstance(loop.extent, int) and (loop.extent < LEAST_SLICES or not self.plan.unpacked):
            return False
        return loop.kind == "batch" and isinstance(rows.extent, int) and apart == rows.extent * products

    def _next_product(self, located: Located, panel: Affine, row: Affine) -> list[tuple[range, Ahead]]:
        """Prefetch the operands of the next product, which are packed in one go later: each tile has its share.

        Tiles of the first half of the panels have A, the others B as it lies unpacked. A burst of prefetches between
        tiles would gain nothing: a core has 24 lines under way at most.
        """
        plan = self.plan
        ((_, at),), (extent, *_), height = located, self.sums[0], plan.target.tile_rows
        rows, products, columns = (typical(x) for x in (plan.inner.extent, extent.constant, plan.column.extent))
        sides = {plan.lhs: (rows * products, plan.attributes["lhs_offset"])}
        if plan.unpacked:
            sides[plan.unpacked] = (columns * products, 0)
        requests, line, tile = products // AHEAD_PRODUCTS, LINE_BYTES // plan.dtype.bytes, self._tile_at(row)
        found: list[tuple[range, Ahead]] = []
        for i, (buffer, (size, offset)) in enumerate(sides.items()):
            own = range(plan.panels * i // len(sides), plan.panels * (i + 1) // len(sides))
            tiles = -(-rows // height) * len(own)
            step = -(-size // (line * tiles * requests)) * line
            share = step * requests
            start = (at + 1) * size + Affine.var(tile.name) * (share * len(own)) + (panel - own.start) * share
            found.append((own, (buffer, start + offset, Affine.of(step))))
        return found

    def _tile_at(self, row: Affine) -> Var:
        """The number of the tile that begins at a row, or a little before it: tiles can be lower than the target's."""
        height = self.plan.target.tile_rows
        return self.kernel.apply("floor_divide", self.kernel.index(row + height // 2), Const(height, I64))

    def _looks_for_rows(self) -> bool:
        plan = self.plan
        if self.packed or plan.table is not None or self.panel_first:
            return False
        if plan.panels == 1 or typical(plan.column.extent) > MOST_STREAMED:
            return False
        (extent, lhs, _), *more = self.sums[::-1] or [(Affine(), 0, 0)]
        if more or extent.terms or not isinstance(extent.constant, int):
            return False
        return lhs == 1 and plan.inner.lhs == extent.constant and extent.constant % AHEAD_PRODUCTS == 0

    def _next_rows(self, panel: Affine, lhs: Affine) -> Ahead:
        """Prefetch the rows of A of the next iteration, which lie one behind the other: each panel has its share.

        The hardware does not prefetch 14 rows at a time. For an A that a cache holds, the step is 0, which asks for
        one line again and again.
        """
        plan, k = self.plan, self.kernel
        assert isinstance(plan.inner.lhs, int)
        height, line = plan.target.tile_rows, LINE_BYTES // plan.dtype.bytes
        size = element_count((*(x.extent for x in plan.around), plan.inner.extent, plan.inner.lhs))
        far = k.compare(k.index(Affine.of(size)), Const(FAR_ELEMENTS, I64), "GE")
        step = k.apply("select", far, Const(-(-height // plan.panels) * line, I64), Const(0, I64), dtype=I64)
        share = height // plan.panels * plan.inner.lhs
        return plan.lhs, lhs + panel * share + plan.block_rows * plan.inner.lhs, Affine.var(step.name)

    def _looks_for_panels(self) -> bool:
        plan = self.plan
        if not plan.attributes["panel_stride"] or not self.panel_first:
            return False
        if len(plan.sums) > 2 or (self.sum_block is not None and plan.right_sides()):
            return False
        extents = [extent.constant for extent, *_ in self.sums if not extent.terms]
        known = [extent for extent in extents if isinstance(extent, int)]
        return len(known) == len(self.sums) and known[-1] % AHEAD_PRODUCTS == 0

    def _next_panel(self, located: Located, row: Affine, rhs: Affine) -> Ahead:
        """Prefetch the next panel of B, or its next block of K: each tile of a panel has its share.

        DRAM then has the time of all tiles; otherwise the first tile of a panel waits for it alone.
        """
        plan, k = self.plan, self.kernel
        height, line = plan.target.tile_rows, LINE_BYTES // plan.dtype.bytes
        located = [(loop, at) for loop, at in located if loop.rhs == 0]
        rows = k.index(Affine.of(element_count((*(loop.extent for loop, _ in located), plan.inner.extent))))
        position, inside = Affine(), plan.inner.extent
        for loop, at in reversed(located):
            position, inside = position + at * inside, inside * loop.extent
        if self.rows_here:
            rows, position = self.rows_here.count, position - self.rows_here.begin
        tiles = ceil_divide(k, rows, Const(height, I64))
        tile = self._tile_at(position + row)
        due = plan.width // line * AHEAD_PRODUCTS  # lines of a panel per innermost sum
        lines = k.apply("minimum", ceil_divide(k, k.index(Affine.of(due)), tiles), Const(LINES_AHEAD, I64))
        near = k.compare(tiles, Const(MOST_TILES_AHEAD, I64), "LE")
        step = k.apply("select", near, k.apply("multiply", lines, Const(line, I64)), Const(0, I64), dtype=I64)
        products = element_count(extent.constant for extent, *_ in self.sums)
        start = k.apply("multiply", tile, k.apply("multiply", step, k.index(Affine.of(products // AHEAD_PRODUCTS))))
        distance = plan.attributes["panel_stride"] if self.sum_block is None else products * plan.width
        return plan.rhs, rhs + Affine.var(start.name) + distance, Affine.var(step.name)


def split_for_ahead(sums: Sums) -> Sums:
    """Cut the innermost loop over K into runs of the products between two prefetches."""
    extent, lhs, rhs = sums[-1]
    assert isinstance(extent.constant, int)
    count = Affine.of(extent.constant // AHEAD_PRODUCTS)
    return [*sums[:-1], (count, lhs * AHEAD_PRODUCTS, rhs * AHEAD_PRODUCTS), (Affine.of(AHEAD_PRODUCTS), lhs, rhs)]
