"""Write the loops around the register tiles of a contraction."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lepton_jit.codegen.contraction.packed_left import PACKED_A, PackedLeft
from lepton_jit.codegen.contraction.plan import ContractionDim, Plan
from lepton_jit.codegen.contraction.requests import Ahead, Requests, RowRange, Sums, split_for_ahead
from lepton_jit.codegen.contraction.tile_rows import RowTiles
from lepton_jit.codegen.kernels.cluster import is_whole, part_of, split_index, store_at, vector_loop
from lepton_jit.codegen.loops.ir import I64, THREADS, Affine, Atom, CeilDiv, Const, Contract, Extent, TileShape, Var
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.ir.types import Dim, element_count, least, typical

# A larger B is walked panel by panel, so that DRAM is read once: a quarter of an L2 cache of 2 MB.
PACKED_B_L2_BYTES = 1 << 19
# Panels of one tile where there is one row: 8 sums under way hide the latency of each.
PANELS_OF_A_ROW = 4
# What the tiles of one iteration read of A and B in a block of K: a quarter of an L2 cache of 1 MB.
SUM_BLOCK_BYTES = 1 << 18
# With fewer products, loading and storing C for the block of K costs more than the block saves.
LEAST_SUM_BLOCK = 256


@dataclass
class Tiles:
    """Writes the loops over all register tiles of a plan into a kernel."""

    looks_ahead: ClassVar[bool] = True
    plan: Plan
    kernel: KernelBuilder
    out: str
    epilogue: Any  # (positions around, column) -> (Epilogue, extras), or None
    left: PackedLeft | None = None
    _rows_here: RowRange | None = None  # those of this thread
    _sum_so_far: bool = False  # C holds the sum of the blocks of K before
    _sum_ends: bool = True  # no block of K comes after

    def work(self) -> Dim:
        """The operations of one iteration, a vector of multiply-adds counted as one."""
        plan = self.plan
        rows = min(typical(plan.inner.extent), plan.block_rows)
        return rows * typical(element_count(x.extent for x in plan.sums)) * plan.width // plan.lanes

    def panel_first(self) -> bool:
        """Tell whether B is too large to stay in a cache while rows go by: panels are then the outer loop."""
        plan = self.plan
        length = typical(element_count(x.extent for x in (*plan.sums, *self.plan.right_sides())))
        return length * plan.width * plan.panels * plan.dtype.bytes > PACKED_B_L2_BYTES

    def extents(self) -> list[Dim | Atom]:
        """The digits of an iteration, slowest first: outer loops, block of rows, panel; or the panel before rows."""
        return [extent for extent, _ in self._walk()]

    def by_samples(self) -> bool:
        """Tell whether the first outer loop is the slowest digit."""
        return self._walk()[0][1] is self.plan.around[0] if self._around() == self.plan.around != [] else False

    def whole_slices(self) -> bool:
        """Tell whether an iteration has all rows of one of several products.

        The positions of Winograd's algorithm are such products. They are iterations enough, and each panel is read
        once; blocks of rows, or rows that stay with the thread that transforms them, gain nothing.
        """
        several = [x.kind == "batch" and isinstance(x.extent, int) and x.lhs != 0 != x.rhs for x in self.plan.around]
        symbolic = not isinstance(self.plan.inner.extent, int)
        return several == [True] and symbolic and self.left is None and self.sum_block() is None

    def each_row_once(self) -> bool:
        """Tell whether no tile moves back over rows that are done already."""
        rows = self.plan.inner.extent
        if self.left is not None:
            return isinstance(rows, int) or is_whole(rows, self.left.height)
        return (isinstance(rows, int) and self._blocks()[0] == 1) or self.plan.whole_tiles()

    def iterations(self) -> int:
        """The number of iterations, roughly."""
        blocks = self._blocks()[1]
        rows = -(-typical(blocks.dividend) // blocks.divisor) if isinstance(blocks, CeilDiv) else blocks
        return rows * typical(element_count((*(x.extent for x in self._around()), self.plan.panels)))

    def _around(self) -> list[ContractionDim]:
        """The outer loops each of whose positions is an iteration."""
        together = self._together()
        return [x for x in self.plan.around if x not in together]

    def _together(self) -> list[ContractionDim]:
        """The outer loops over rows that an iteration walks in each block of K, which then comes from DRAM once."""
        if self.sum_block() is None:
            return []
        return [x for x in self.plan.around if x.kind == "row" and x.rhs == 0 and isinstance(x.extent, int)]

    def _walk(self) -> list[tuple[Dim | Atom, ContractionDim | str]]:
        blocks: tuple[Dim | Atom, str] = (self._blocks()[0], "block")
        panel = (self.plan.panels, "panel")
        around = [(x.extent, x) for x in self._around()]
        if not self.panel_first():
            return [*around, blocks, panel]
        slices = [x for x in around if x[1].rhs != 0]
        return [*slices, panel, *(x for x in around if x not in slices), blocks]

    def emit(
        self,
        leading: Sequence[Dim],
        sums: Sums,
        lhs_shift: Affine,
        rhs_shift: Affine,
        out_shift: Affine,
        checked: bool = False,
    ) -> Extent:
        """Write all tiles; an iteration is a block of rows in one panel. `leading` digits of t come first."""
        plan, k = self.plan, self.kernel
        around = [x.extent for x in self._around()]
        blocks, count = self._blocks()
        shared = not leading and self._shares_rows()
        leading = [THREADS] if shared else leading
        walk = self._walk()
        digits = split_index(k, Affine.var("t"), [*leading, *(extent for extent, _ in walk)])
        at = dict(zip((what for _, what in walk), digits[len(leading) :], strict=True))
        panel, block = self._panel_at(at), at["block"]
        self._sums, self._shifts = sums, (lhs_shift, rhs_shift, out_shift)
        located = [(loop, at[loop]) for loop in self._around()]
        if shared:
            with self._share(digits[0], panel, block, blocks) as (panel, block, blocks):
                self._some_products(located, block, blocks, panel, checked)
        else:
            self._some_products(located, block, blocks, panel, checked)
        factor = element_count([*leading, *around, plan.panels])
        return replace(count, factor=factor) if isinstance(count, CeilDiv) else count * factor

    def _some_products(self, located: list, block: Affine, blocks: Atom | int, panel: Affine, checked: bool) -> None:
        """Write the tiles where there is a product to sum, which a register tile needs, and else a sum of nothing."""
        plan, k = self.plan, self.kernel
        symbolic = element_count(x.extent for x in plan.sums)
        if checked or isinstance(symbolic, int):
            self._sum_blocks(located, block, blocks, panel)
            return
        with k.when(k.compare(k.index(Affine.of(symbolic)), Const(0, I64), "GT")):
            self._sum_blocks(located, block, blocks, panel)
        with k.otherwise(), k.when(k.compare(k.index(Affine.var("t")), Const(0, I64), "EQ")):
            self._empty_sum([*plan.around, plan.inner])

    def _shares_rows(self) -> bool:
        return self.left is not None and not self.plan.around

    @contextmanager
    def _share(
        self, thread: Affine, panel: Affine, block: Affine, blocks: Atom | int
    ) -> Iterator[tuple[Affine, Affine, Atom]]:
        """Yield panel, block and number of blocks of a thread's iteration: of its rows, or panels if rows are few.

        Rows stay with the thread that packs them, and in its cache.
        """
        assert self.left is not None
        k, panels, rows = self.kernel, Const(self.plan.panels, I64), self.plan.inner.extent
        threads, count = k.index(Affine.of(THREADS)), blocks if not isinstance(blocks, int) else Const(blocks, I64)
        by_rows = self.left.by_threads(k)

        def choose(a: Atom, b: Atom) -> Var:
            return k.apply("select", by_rows, a, b, dtype=I64)

        first, past = part_of(k, thread, self.plan.panels, THREADS)
        last = choose(k.apply("add", first, panels), past)
        earlier = choose(k.apply("multiply", k.index(thread), count), Const(0, I64))
        own = part_of(k, thread, rows, THREADS)
        begin, end = (choose(a, b) for a, b in zip(own, (Const(0, I64), k.index(Affine.of(rows))), strict=True))
        self._rows_here = RowRange(Affine.var(begin.name), k.apply("subtract", end, begin))
        here = k.apply("add", k.index(panel), first)
        with k.when(k.compare(here, last, "LT")):
            yield (
                Affine.var(k.apply("modulo", here, panels).name),
                block + Affine.var(earlier.name),
                choose(k.apply("multiply", threads, count), count),
            )

    def _panel_at(self, at: dict) -> Affine:
        return at["panel"]

    def _sum_blocks(self, located: list, block: Affine, blocks: Atom | int, panel: Affine) -> None:
        """Write a long sum in blocks of K whose A and B stay in a cache while all tiles of the iteration use them.

        C carries the sum from block to block; the order of additions, and so each bit, stays what it was.
        """
        size = self.sum_block()
        self._sum_so_far, self._sum_ends = False, True
        if size is None:
            self._block_of_sum(located, block, blocks, panel)
            return
        k, (extent, *_) = self.kernel, self._sums[0]

        def one(start: Affine, length: Affine, so_far: bool, ends: bool) -> None:
            self._sum_so_far, self._sum_ends = so_far, ends
            self._part_of_sum(start, length, located, block, blocks, panel)

        if isinstance(extent.constant, int) and not extent.terms:
            last = (extent.constant - 1) // size * size
            one(Affine(), Affine.of(size), False, False)
            if last > size:
                with k.loop(size, last, size) as start:
                    one(start, Affine.of(size), True, False)
            one(Affine.of(last), extent - last, True, True)
            return
        count = k.apply("minimum", k.index(extent), k.index(Affine.of(size)))
        one(Affine(), Affine.var(count.name), False, True)
        with k.loop(size, extent, size) as start:
            left = k.apply("minimum", k.index(extent - start), k.index(Affine.of(size)))
            one(start, Affine.var(left.name), True, True)

    def _part_of_sum(self, start: Affine, length: Affine, *where: Any) -> None:
        whole, shifts = self._sums, self._shifts
        (_, lhs, rhs), *rest = whole
        self._sums = [*([] if length == Affine.of(1) and rest else [(length, lhs, rhs)]), *rest]
        self._shifts = (shifts[0] + start * lhs, shifts[1] + start * rhs, shifts[2])
        self._block_of_sum(*where)
        self._sums, self._shifts = whole, shifts

    def _block_of_sum(self, located: list, block: Affine, blocks: Atom | int, panel: Affine) -> None:
        """Write all rows of the iteration for one block of K."""

        def walk(loops: list[ContractionDim], located: list) -> None:
            if not loops:
                self._panel(located, block, blocks, panel)
                return
            with self.kernel.loop(0, loops[0].extent) as i:
                walk(loops[1:], [*located, (loops[0], i)])

        walk(self._together(), located)

    def sum_block(self) -> int | None:
        """The size of a block of the outermost loop over K; None where all of it fits, or nothing is used twice."""
        plan = self.plan
        rows = typical(plan.inner.extent)
        if rows <= plan.target.tile_rows or not plan.sums:
            return None
        first, *rest = plan.sums
        if self.epilogue is not None and not (isinstance(plan.inner.extent, int) and isinstance(first.extent, int)):
            return None  # some rows would be finished twice, or the last block is not known
        inner = typical(element_count(x.extent for x in rest))
        left = min(abs(typical(first.lhs)) or rows * inner, rows * inner)
        size = max(1, SUM_BLOCK_BYTES // ((left + plan.width * inner) * plan.dtype.bytes), -(-LEAST_SUM_BLOCK // inner))
        return size if typical(first.extent) > size + size // 2 else None

    def _empty_sum(
        self, loops: Sequence[ContractionDim], located: tuple[tuple[ContractionDim, Affine], ...] = ()
    ) -> None:
        """Write the whole result from sums of nothing."""
        plan, k = self.plan, self.kernel
        if loops:
            with k.loop(0, loops[0].extent) as i:
                self._empty_sum(loops[1:], (*located, (loops[0], i)))
            return
        for j, mask in vector_loop(k, Affine(), Affine.of(plan.column.extent), plan.lanes):
            where = (*located, (plan.column, j))
            evaluator = plan.cluster.evaluator(k, plan.lanes, mask)
            evaluator.bound[plan.node.result] = Const(0, plan.dtype)
            (output,) = plan.cluster.outputs
            value = evaluator.value(output, plan.indices(where))
            position = Affine()
            for loop, at in where:
                position = position + at * loop.out
            store_at(k, self.out, position, value, plan.lanes, mask)

    def _blocks(self) -> tuple[Atom | int, CeilDiv | int]:
        """The number of blocks that the inner rows are cut into: as a value in the kernel, and as an extent."""
        extent = self.plan.inner.extent
        size = self.plan.block_rows
        if self.whole_slices():
            return 1, 1
        if isinstance(extent, int) and (extent <= 2 * size or self.sum_block() is not None):
            return 1, 1
        if isinstance(extent, int):
            return -(-extent // size), -(-extent // size)
        k = self.kernel
        raised = k.index(Affine.of(extent + (size - 1)))
        return k.apply("floor_divide", raised, k.index(Affine.of(size))), CeilDiv(extent, size)

    def _panel(self, located: list, block: Affine, blocks: Atom | int, panel: Affine) -> None:
        """Write one panel; the last may be narrower, and a single row takes several panels at once."""
        plan, k = self.plan, self.kernel
        assert isinstance(plan.column.extent, int)
        last = plan.column.extent - (plan.panels - 1) * plan.width
        full = plan.panels if last == plan.width else plan.panels - 1
        several = min(PANELS_OF_A_ROW, full)
        rows = plan.inner.extent
        if several < 2 or self._sum_so_far or least(rows) > 1:
            self._panel_of_rows(located, block, blocks, panel, last)
            return
        with k.when(k.compare(k.index(Affine.of(rows)), Const(1, I64), "EQ")):
            left, self.left, sums = self.left, None, self._sums
            if left:
                self._sums = plan.sums_whole()
            self._single_row(located, panel, several, full - full % several)
            self.left, self._sums = left, sums
        with k.otherwise():
            self._panel_of_rows(located, block, blocks, panel, last)

    def _single_row(self, located: list, panel: Affine, several: int, grouped: int) -> None:
        """Write one row in tiles of several panels, which have enough sums under way to hide their latency.

        Panel by panel, each product would take the four cycles of a multiply-add.
        """
        plan, k = self.plan, self.kernel
        assert isinstance(plan.column.extent, int)
        with k.when(k.compare(k.index(panel), Const(grouped, I64), "LT")):
            turn = k.apply("modulo", k.index(panel), Const(several, I64))
            with k.when(k.compare(turn, Const(0, I64), "EQ")):
                self._contract(located, panel, several * plan.width, Affine(), 1, (1,))
        if grouped < plan.panels:
            with k.otherwise():
                for last in range(grouped, plan.panels):
                    columns = min(plan.width, plan.column.extent - last * plan.width)
                    with k.when(k.compare(k.index(panel), Const(last, I64), "EQ")):
                        self._contract(located, panel, columns, Affine(), 1, (1,))

    def _panel_of_rows(self, located: list, block: Affine, blocks: Atom | int, panel: Affine, last: int) -> None:
        plan, k = self.plan, self.kernel
        if last == plan.width:
            self._rows(located, block, blocks, panel, plan.width)
        elif plan.panels == 1:
            self._rows(located, block, blocks, panel, last)
        else:
            with k.when(k.compare(k.index(panel), Const(plan.panels - 1, I64), "LT")):
                self._rows(located, block, blocks, panel, plan.width)
            with k.otherwise():
                self._rows(located, block, blocks, panel, last)

    def _rows(self, located: list, block: Affine, blocks: Atom | int, panel: Affine, columns: int) -> None:
        def tile(row: Affine, height: int | Var, heights: tuple[int, ...], packed: Affine | None = None) -> None:
            self._contract(located, panel, columns, row, height, heights, packed=packed)

        RowTiles(self.plan, self.kernel, tile, self.left, self._sum_so_far).emit(block, blocks)

    def _contract(
        self,
        located: list[tuple[ContractionDim, Affine]],
        panel: Affine,
        columns: int,
        row: Affine,
        height: int | Var,
        heights: tuple[int, ...],
        row_panel: Affine | None = None,
        packed: Affine | None = None,
    ) -> None:
        plan = self.plan
        a = plan.attributes
        lhs_shift, rhs_shift, out_shift = self._shifts
        inner, column = plan.inner, panel * plan.width
        left = self.left
        if row_panel is not None:
            lhs = lhs_shift + a["lhs_offset"] + row_panel * a["row_panel_stride"]
        elif left:
            lhs = lhs_shift + (row if packed is None else packed)
        else:
            lhs = lhs_shift + row * inner.lhs + a["lhs_offset"]
        rhs = rhs_shift + a["rhs_offset"] + panel * (a["panel_stride"] or plan.width)
        out = out_shift + row * inner.out + column
        for loop, position in located:
            lhs, rhs, out = (
                lhs + position * (left.step(loop) if left else loop.lhs),
                rhs + position * loop.rhs,
                out + position * loop.out,
            )
        epilogue, extras = self.epilogue(located, column) if self.epilogue and self._sum_ends else (None, ())
        extras = tuple(replace(e, index=e.index + row * e.row_step) for e in extras)
        vectors = -(-columns // plan.lanes)
        masked = columns % plan.lanes != 0
        tile = TileShape(
            plan.dtype,
            vectors,
            plan.target.tile_vectors,
            masked,
            masked and not a["panel"],
            epilogue,
            tuple(e.column_step for e in extras),
        )
        requests = self._requests()
        looks = self.looks_ahead and columns <= plan.width
        aheads = requests.ahead(located, panel, row, lhs, rhs) if looks else ()
        sums = tuple(split_for_ahead(self._sums) if aheads else self._sums) or ((Affine.of(1), 0, 0),)
        contract = Contract(
            tile,
            height,
            heights,
            Affine.of(columns),
            (PACKED_A if left else plan.lhs, lhs),
            (plan.rhs, rhs),
            (self.out, out),
            inner.out,
            sums,
            1 if left else inner.lhs if plan.table is None else plan.table,
            row,
            self._sum_so_far,
            a["panel_stride"] or plan.width,
            extras,
            fetch=requests.fetch(),
        )
        self._append(contract, aheads, panel)

    def _append(self, contract: Contract, aheads: Sequence[tuple[range, Ahead]], panel: Affine) -> None:
        """Append a call of the micro-kernel, with the prefetches that are the panel's share."""
        k = self.kernel
        if not aheads:
            k.append(contract)
            return
        (panels, ahead), *others = aheads
        contract = replace(contract, ahead=ahead)
        if not others:
            k.append(contract)
            return
        with k.when(k.compare(k.index(panel), Const(panels.stop, I64), "LT")):
            k.append(contract)
        with k.otherwise():
            self._append(contract, others, panel)

    def _requests(self) -> Requests:
        """The prefetches of these tiles."""
        return Requests(
            self.plan,
            self.kernel,
            self._sums,
            packed=self.left is not None,
            carries=self._sum_so_far,
            panel_first=self.panel_first(),
            sum_block=self.sum_block(),
            rows_here=self._rows_here,
        )
