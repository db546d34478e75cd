"""Packed A: what the rows of a register tile need for one product lies side by side."""

from __future__ import annotations

from dataclasses import dataclass

from lepton_jit.codegen.contraction.plan import ContractionDim, Plan
from lepton_jit.codegen.kernels.cluster import ceil_divide, lowest_covering, split_index, transposed, vector_loop
from lepton_jit.codegen.kernels.evaluate import LANE
from lepton_jit.codegen.loops.ir import I64, THREADS, Affine, Atom, Buffer, CeilDiv, Const, Extent, Kernel, Var
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.ir.types import Dim, element_count, least, typical

# With fewer panels of B or products than these, packing A costs more than the faster tiles gain.
LEAST_PANELS = 4
LEAST_PRODUCTS = 64

# Tiles that one iteration copies, so that what lies side by side in A is read together.
TILES_COPIED = 4

# Threads share rows if each has so many, and then each reads all panels; otherwise they share panels.
LEAST_ROWS_OF_A_THREAD = 32

# The heights that are compiled for even splits of more than 14 rows; a split takes the next higher one.
EVEN_HEIGHTS = (8, 10, 11, 12, 13)

PACKED_A = "s0"


@dataclass(frozen=True)
class PackedLeft:
    """The layout of packed A: [around...][tile][K...][row of the tile], `height` rows and what fills up `pitch`.

    Where only run time knows the number of rows, the last tile is full as well: it begins further back. Rows of A that
    lie 2 or 4 KB apart push each other out of L1; packed, a tile of 14 x 32 reaches 0.9 of peak (docs/measurements.md,
    packed A).
    """

    plan: Plan
    height: int
    pitch: int

    @property
    def around(self) -> list[ContractionDim]:
        """The outer loops each of whose positions has an A of its own."""
        return [x for x in self.plan.around if x.lhs != 0]

    @property
    def by_rows(self) -> bool:
        """Tell whether K is contiguous in A; otherwise neighbouring rows are."""
        return self.plan.sums[-1].lhs == 1

    @property
    def buffer(self) -> Buffer:
        """The buffer of packed A, which has room for whole tiles."""
        if isinstance(self.tiles, int):
            count = element_count((*(x.extent for x in self.around), self.room))
            return Buffer(PACKED_A, self.plan.dtype, self.tile_stride * count)
        one = typical(self.tile_stride)  # a constant where the number of rows is not
        return Buffer(PACKED_A, self.plan.dtype, (self.plan.inner.extent + self.lowest) * -(-one // self.lowest))

    @property
    def tiles(self) -> int | CeilDiv:
        """The most tiles that the rows make."""
        rows = self.plan.inner.extent
        return -(-rows // self.height) if isinstance(rows, int) else CeilDiv(rows, self.lowest)

    @property
    def together(self) -> int:
        """The number of tiles that one iteration packs."""
        return 1 if self.by_rows else TILES_COPIED

    @property
    def room(self) -> int:
        """The number of tiles of one A, rounded up to what iterations pack."""
        assert isinstance(self.tiles, int)
        return -(-self.tiles // self.together) * self.together

    @property
    def lowest(self) -> int:
        """The lowest height of a tile where there are several.

        The rows of several threads, split evenly, have lower tiles than those of one.
        """
        if least(self.plan.inner.extent) >= self.height:
            return self.height
        return -(-LEAST_ROWS_OF_A_THREAD // -(-LEAST_ROWS_OF_A_THREAD // self.height))

    @property
    def tile_stride(self) -> Dim:
        *outer, inner = (x.extent for x in self.plan.sums)
        padded = -(-inner // self.plan.lanes) * self.plan.lanes if isinstance(inner, int) and self.by_rows else inner
        return element_count([*outer, padded]) * self.pitch

    def step(self, loop: ContractionDim) -> Dim:
        """The step of an outer loop in packed A."""
        if loop not in self.around:
            return 0
        inside = self.around[self.around.index(loop) + 1 :]
        return element_count([*(x.extent for x in inside), self.room]) * self.tile_stride

    def sums(self) -> list[tuple[Affine, Dim, Dim]]:
        """The loops over K, with their steps in packed A and in B."""
        steps: list[tuple[Affine, Dim, Dim]] = []
        step: Dim = self.pitch
        for loop in reversed(self.plan.sums):
            steps.append((Affine.of(loop.extent), step, loop.rhs))
            step = loop.extent * step
        return steps[::-1]

    def kernel(self) -> Kernel:
        """The kernel that packs; an iteration packs `together` tiles."""
        plan, k = self.plan, self.plan.cluster.builder()
        k.buffers[PACKED_A] = self.buffer
        tiles, together = self.tiles, self.together
        groups = self.room // together if isinstance(tiles, int) else tiles
        dims = [x.extent for x in self.around]
        *places, group = split_index(k, Affine.var("t"), [*dims, groups if isinstance(groups, int) else 0])
        tile = group * together
        source, out = Affine.of(plan.attributes["lhs_offset"]), tile * self.tile_stride
        for loop, place in zip(self.around, places, strict=True):
            source, out = source + place * loop.lhs, out + place * self.step(loop)
        if self.by_rows and isinstance(tiles, CeilDiv):
            height, _ = self.tile_height(k)
            with k.when(k.compare(k.index(tile), ceil_divide(k, k.index(Affine.of(tiles.dividend)), height), "LT")):
                self._transpose(k, source, self._rows(k, tile), out)
        elif self.by_rows:
            self._transpose(k, source, self._rows(k, tile), out)
        else:
            self._copy(k, source, tile, out)
        extent: Extent = element_count([*dims, groups]) if isinstance(groups, int) else groups
        work = together * self.height * typical(element_count(x.extent for x in plan.sums))
        slices = plan.slices(extent) if self.around[:1] == plan.around[:1] else None
        return plan.cluster.kernel(k, extent, work, extra=[self.buffer], slices=slices)

    def _transpose(self, k: KernelBuilder, source: Affine, rows: list[Affine], out: Affine) -> None:
        plan = self.plan
        for i, mask in vector_loop(k, Affine(), Affine.of(plan.sums[0].extent), plan.lanes):
            at = i - Affine.var(LANE)
            for first in range(0, self.pitch, plan.lanes):
                values: list[Atom] = [
                    k.load(plan.lhs, source + row * plan.inner.lhs + at, plan.lanes, 1, mask)
                    for row in rows[first : first + plan.lanes]
                ]
                for j, value in enumerate(transposed(k, values)):
                    k.store(PACKED_A, out + (at + j) * self.pitch + first, value, plan.lanes)

    def _rows(self, k: KernelBuilder, tile: Affine) -> list[Affine]:
        """The rows of a tile; the last row stands for those that do not exist."""
        extent, most = self.plan.inner.extent, self.height
        if isinstance(extent, int) and extent % most == 0:
            return [tile * most + i for i in range(most)]
        first = tile * most
        if not isinstance(extent, int):
            height, _ = self.tile_height(k)
            latest = k.apply("maximum", k.apply("subtract", k.index(Affine.of(extent)), height), Const(0, I64))
            first = Affine.var(k.apply("minimum", k.apply("multiply", k.index(tile), height), latest).name)
        last = k.index(Affine.of(extent - 1))
        return [Affine.var(k.apply("minimum", k.index(first + i), last).name) for i in range(most)]

    def by_threads(self, k: KernelBuilder) -> Atom:
        """A condition of the kernel: every thread has rows enough of its own."""
        rows = k.index(Affine.of(self.plan.inner.extent))
        return k.compare(rows, k.index(Affine.of(THREADS * LEAST_ROWS_OF_A_THREAD)), "GE")

    def tile_height(self, k: KernelBuilder) -> tuple[Atom, tuple[int, ...]]:
        """The height of all tiles where only run time knows the rows, and the few heights that it can be.

        Rows are split evenly: 64 are 4 x 13 + 12, not 5 x 14, and on two threads each half is 2 x 11 + 10.
        """
        most, extent = self.height, self.plan.inner.extent
        if least(extent) >= most:
            return Const(most, I64), (most,)
        heights = (*(h for h in EVEN_HEIGHTS if h < most), most)
        rows, threads = (k.index(Affine.of(of)) for of in (extent, THREADS))
        rows = k.apply("select", self.by_threads(k), ceil_divide(k, rows, threads), rows, dtype=I64)
        even = ceil_divide(k, rows, ceil_divide(k, rows, Const(most, I64)))
        return lowest_covering(k, even, heights), heights

    def _copy(self, k: KernelBuilder, source: Affine, tile: Affine, out: Affine) -> None:
        """Copy TILES_COPIED tiles side by side, line by line; of the last tile, the rows that exist."""
        rows, height = self.plan.inner.extent, self.height
        assert isinstance(rows, int)
        masks = []
        for first in (tile * height + i * height for i in range(TILES_COPIED)):
            size = k.apply("minimum", k.index(Affine.of(rows) - first), Const(height, I64))
            places = [k.index(Affine.of(start), self.plan.lanes, 1) for start in range(0, self.pitch, self.plan.lanes)]
            masks.append([k.compare(place, size, "LT") for place in places])
        self._copy_sums(k, source + tile * height, out, 0, masks)

    def _copy_sums(self, k: KernelBuilder, source: Affine, out: Affine, level: int, masks: list[list[Var]]) -> None:
        lanes, (extent, step, _) = self.plan.lanes, self.sums()[level]
        with k.loop(0, extent) as i:
            source, out = source + i * self.plan.sums[level].lhs, out + i * step
            if level + 1 < len(self.plan.sums):
                self._copy_sums(k, source, out, level + 1, masks)
                return
            for tile, parts in enumerate(masks):
                for part, mask in enumerate(parts):
                    value = k.load(self.plan.lhs, source + (tile * self.height + part * lanes), lanes, 1, mask)
                    k.store(PACKED_A, out + self.tile_stride * tile + part * lanes, value, lanes)


def pack_left(plan: Plan) -> PackedLeft | None:
    """The layout of packed A where packing pays, else None: several panels read it, and its memory does not grow."""
    rows, most = plan.inner.extent, plan.target.tile_rows
    if plan.table is not None or plan.inner.kind != "row" or plan.panels < LEAST_PANELS or not plan.sums:
        return None
    products = typical(element_count(x.extent for x in plan.sums))
    lines = typical(element_count(x.extent for x in plan.around if x.lhs != 0 and x.kind == "row"))
    if typical(rows) * lines <= most or products < LEAST_PRODUCTS:
        return None
    if any(x.lhs != 0 and not isinstance(rows, int) for x in plan.around):
        return None  # the distance of two packed A is known at run time only
    by_rows = len(plan.sums) == 1 and plan.sums[0].lhs == 1 and isinstance(plan.sums[0].extent, int)
    if lines > 1 and not (by_rows and typical(plan.inner.lhs) >= products):
        return None  # windows share factors
    by_columns = plan.inner.lhs == 1 and plan.sums[-1].lhs != 1 and isinstance(rows, int)
    if not by_rows and not by_columns:
        return None
    even = least(rows) if least(rows) >= 2 * most else most
    height = -(-even // -(-even // most))
    return PackedLeft(plan, height, -(-height // plan.lanes) * plan.lanes)
