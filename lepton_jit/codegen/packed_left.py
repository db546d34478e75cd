"""The left side of a product, packed: what the rows of a tile need for one product lies in one line."""

from __future__ import annotations

from dataclasses import dataclass

from lepton_jit.codegen.cluster import split_index, transposed, vector_loop
from lepton_jit.codegen.contraction_plan import LoopDim, Plan
from lepton_jit.codegen.evaluate import LANE
from lepton_jit.codegen.kernel_builder import KernelBuilder
from lepton_jit.codegen.loop_ir import I64, Affine, Atom, Buffer, CeilDiv, Const, Extent, Kernel
from lepton_jit.ir.types import Dim, element_count, least, typical

# With fewer panels or products than these, packing costs more than the faster tiles gain.
LEAST_PANELS = 4
LEAST_PRODUCTS = 64

NAME = "s0"


@dataclass(frozen=True)
class PackedLeft:
    """[around...][tile][product][row of the tile]: `height` rows, and what fills `pitch`. Tiles are full: the last one
    holds rows of the one before again.

    A tile of 14 x 32 whose left side stands in 14 rows reaches 0.88 to 0.91 of peak, and 0.6 to 0.7 where these are
    2 or 4 KB apart and push each other out of the first cache; packed it reaches 0.97.
    """

    plan: Plan
    height: int
    pitch: int
    tile_stride: int

    @property
    def around(self) -> list[LoopDim]:
        """The loops around that have a left side each."""
        return [x for x in self.plan.around if x.lhs != 0]

    @property
    def buffer(self) -> Buffer:
        """Of whole tiles."""
        rows, tiles = self.plan.inner.extent, self.tiles
        if isinstance(tiles, int):
            count = element_count([*(x.extent for x in self.around), tiles])
            return Buffer(NAME, self.plan.dtype, count * self.tile_stride)
        return Buffer(NAME, self.plan.dtype, (rows + self.height) * -(-self.tile_stride // self.height))

    @property
    def tiles(self) -> int | CeilDiv:
        """How many tiles the rows are."""
        rows = self.plan.inner.extent
        return -(-rows // self.height) if isinstance(rows, int) else CeilDiv(rows, self.height)

    def step(self, loop: LoopDim) -> Dim:
        """What a loop around steps in the packed left side."""
        if loop not in self.around:
            return 0
        assert isinstance(self.tiles, int)
        inside = self.around[self.around.index(loop) + 1 :]
        return element_count([x.extent for x in inside]) * (self.tiles * self.tile_stride)

    def sums(self) -> list[tuple[Affine, Dim, Dim]]:
        """The loop of products over the packed left side."""
        return [(extent, self.pitch, rhs) for extent, _, rhs in self.plan.sums_whole()]

    def kernel(self) -> Kernel:
        """An iteration packs one tile."""
        plan, k = self.plan, self.plan.cluster.builder()
        k.buffers[NAME] = self.buffer
        (products,) = (x.extent for x in plan.sums)
        tiles = self.tiles
        dims = [*(x.extent for x in self.around)]
        *places, tile = split_index(k, Affine.var("t"), [*dims, tiles if isinstance(tiles, int) else 0])
        source, out = Affine.of(plan.attributes["lhs_offset"]), tile * self.tile_stride
        for loop, place in zip(self.around, places, strict=True):
            source, out = source + place * loop.lhs, out + place * self.step(loop)
        rows = [source + row * plan.inner.lhs for row in self._rows(k, tile)]
        for i, mask in vector_loop(k, Affine(), Affine.of(products), plan.lanes):
            for first in range(0, self.pitch, plan.lanes):
                group = rows[first : first + plan.lanes]
                values: list[Atom] = [
                    k.load(plan.lhs, row + i - Affine.var(LANE), plan.lanes, 1, mask) for row in group
                ]
                values += [Const(0.0, plan.dtype, plan.lanes)] * (plan.lanes - len(values))
                for j, value in enumerate(transposed(k, values)):
                    at = out + (i - Affine.var(LANE) + j) * self.pitch + first
                    k.store(NAME, at, value, plan.lanes)
        extent: Extent = element_count([*dims, tiles]) if isinstance(tiles, int) else tiles
        return plan.cluster.kernel(k, extent, self.height * typical(products), extra=[self.buffer])

    def _rows(self, k: KernelBuilder, tile: Affine) -> list[Affine]:
        """The rows of a tile: the last one begins so far back that it is full, if there are so many rows."""
        extent, first = self.plan.inner.extent, tile * self.height
        if not isinstance(extent, int) or extent % self.height:
            latest = k.index(Affine.of(extent - self.height))
            latest = latest if least(extent) >= self.height else k.apply("maximum", latest, Const(0, I64))
            first = Affine.var(k.apply("minimum", k.index(first), latest).name)
        rows = [first + i for i in range(self.height)]
        if least(extent) >= self.height:
            return rows
        last = k.index(Affine.of(extent - 1))
        return [Affine.var(k.apply("minimum", k.index(row), last).name) for row in rows]


def pack_left(plan: Plan) -> PackedLeft | None:
    """How to pack the left side where that pays: several panels read rows of neighbouring factors."""
    rows, most = plan.inner.extent, plan.target.tile_rows
    if plan.table is not None or plan.inner.kind != "row" or len(plan.sums) != 1 or plan.panels < LEAST_PANELS:
        return None
    (products,) = plan.sums
    if products.lhs != 1 or not isinstance(products.extent, int) or products.extent < LEAST_PRODUCTS:
        return None
    if typical(rows) <= most:
        return None
    if not isinstance(rows, int) and any(x.lhs != 0 for x in plan.around):
        return None  # the number of tiles between two left sides is known at run time only
    even = least(rows) if least(rows) >= 2 * most else most
    height = -(-even // -(-even // most))
    pitch = -(-height // plan.lanes) * plan.lanes
    return PackedLeft(plan, height, pitch, -(-products.extent // plan.lanes) * plan.lanes * pitch)
