"""What the tiles of a contraction ask memory for before it is due; no value depends on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lepton_jit.codegen.contraction.plan import LoopDim, Plan
from lepton_jit.codegen.kernels.cluster import LEAST_SLICES, ceil_divide
from lepton_jit.codegen.loops.ir import I64, Affine, Const, Var
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.codegen.target import FAR_ELEMENTS, LINE_BYTES
from lepton_jit.ir.types import Dim, element_count, typical

# Tiles that look ahead sum so many products between; with more tiles of a panel than this they need not look for the
# next one. The loop around 8 products costs 5 % of a tile, around 16 nothing.
AHEAD_PRODUCTS = 16
MOST_TILES_AHEAD = 32
# Rows that tiles of more columns than this read are packed, or have time to arrive.
MOST_STREAMED = 96
# Lines that a kernel that looks `ahead` asks for after each innermost sum.
LINES_AHEAD = 8
# Nearer rows of a result (in elements) a processor foresees.
ROWS_APART = 256

Sums = Sequence[tuple[Affine, Dim, Dim]]
Located = Sequence[tuple[LoopDim, Affine]]  # loops around a tile, and where it is in them
Ahead = tuple[str, Affine, Affine]  # a buffer, a place in it, and the step to the lines after the next sum


@dataclass(frozen=True)
class RowRange:
    """The rows that a thread computes of all panels."""

    begin: Affine
    count: Var


@dataclass(frozen=True)
class Requests:
    """Decides for the tiles of a plan, whose sums are `sums` and go on from the result where it `carries` one.

    `panel_first` and `sum_block` are how the loops around the tiles run: see `Tiles`.
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
        """A tile stores to rows far apart, which no processor foresees.

        16 products of 256 x 256 x 256 gain 4 %, other sums of so many products nothing.
        """
        apart = self.plan.inner.out
        return not self.carries and isinstance(apart, int) and apart >= ROWS_APART

    def ahead(
        self, located: Located, panel: Affine, row: Affine, lhs: Affine, rhs: Affine
    ) -> Sequence[tuple[range, Ahead]]:
        """What the tiles of some panels, whose sides begin at `lhs` and `rhs`, ask far memory for, for later ones."""
        panels = range(self.plan.panels)
        if self._looks_for_products(located):
            return self._next_product(located, panel, row)
        if self._looks_for_panels():
            return [(panels, self._next_panel(located, row, rhs))]
        return [(panels, self._next_rows(panel, lhs))] if self._looks_for_rows() else []

    def _looks_for_products(self, located: Located) -> bool:
        """Each sample's product has a left side of its own, whose rows follow each other, and packs it.

        A known number may be few, packed all at once, or have right sides that are there already, as the positions of
        Winograd's algorithm: these come from far memory, and their next panel is worth more (convolutions of
        28 x 28 x 128 and 14 x 14 x 256 take 2.5 and 4 % longer without).
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
        """Each tile asks for its part of a side of the next product, which is packed in one go when its turn comes.

        On Zen 4, products of 256 x 256 x 256 go from 354 to 336 us by the left side (AVX2: 369 to 342), and by the
        right side, another day, from 347 to 333 (348 to 339), transposed from 358 to 338 (359 to 326); near ones lose
        0 to 2 %. A burst of requests between tiles gains nothing: a core waits for 24 lines at most.
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
        """The number of the tile that begins at a row, or a little before: tiles can be lower than the target's."""
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
        """Each panel's tiles ask for their part of the rows of the next iteration, which lie one behind the other.

        A processor does not foresee 14 rows at a time. 8192 x 128 x 64 went from 1,880 to 1,350 us on Zen 4, 71 to 97 %
        of peak (AVX2: 2,040 to 1,470), 3136 x 256 x 64 from 911 to 886; rows that are near lose 1 %.
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
        """Each tile of a panel asks for its part of the next panel: far memory then has the time of all of them.

        Otherwise the first tile of a panel waits for memory alone: ResNet-50 took 49 ms and takes 44. With panels in
        the second cache already it costs 6 %. Blocks of a long sum follow each other in a panel, and are asked for in
        the same way: 7 x 7 x 512, 3 x 3, in ResNet-18 went from 1,750 to 1,400 us.
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
    """Sums whose innermost has the products between two requests."""
    extent, lhs, rhs = sums[-1]
    assert isinstance(extent.constant, int)
    count = Affine.of(extent.constant // AHEAD_PRODUCTS)
    return [*sums[:-1], (count, lhs * AHEAD_PRODUCTS, rhs * AHEAD_PRODUCTS), (Affine.of(AHEAD_PRODUCTS), lhs, rhs)]
