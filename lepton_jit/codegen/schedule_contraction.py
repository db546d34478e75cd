"""Schedules of contractions: register tiles with a fused epilogue, or plain vectors where no tile fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lepton_jit.codegen.cluster import (
    Cluster,
    accesses_of,
    slice_count,
    split_index,
    store_at,
    typical,
    vector_loop,
)
from lepton_jit.codegen.evaluate import LANE, Evaluator, Indices, row_major
from lepton_jit.codegen.kernel_builder import KernelBuilder
from lepton_jit.codegen.loop_ir import (
    I64,
    Affine,
    Atom,
    Buffer,
    CeilDiv,
    Const,
    Contract,
    Epilogue,
    Extent,
    Extra,
    Kernel,
    Let,
    Load,
    Slices,
    Tile,
    Var,
)
from lepton_jit.codegen.schedule_map import schedule_map
from lepton_jit.codegen.target import Target
from lepton_jit.ir.types import Dim, DType, element_count

# A summed index is split only where there are fewer tiles than this and the sum is long: a weight gradient.
FEW_TILES = 16
LONG_SUM = 2048
SPLITS = 8
# A right side larger than this is walked panel by panel, so that far memory is read once; half of an L2 cache.
RESIDENT_BYTES = 1 << 20
# The rows of one iteration, in tiles, where there are many rows.
BLOCK_TILES = 4
# Heights of tiles where the number of rows is known at run time only; 8 and 11 are even splits of 16 and of 32 rows.
FEW_HEIGHTS = (1, 2, 3, 4, 6, 8, 11)
SHORT_TILE = 8
PANELS_OF_A_ROW = 4
# Offset tables of flattened rows are not longer than this: 8 KB of constants.
LONGEST_TABLE = 1024
# What the tiles of one iteration read of both sides per block of a long sum: a quarter of an L2 cache.
SUM_BLOCK_BYTES = 1 << 18

Planned = tuple[tuple[Kernel, ...], tuple[tuple[DType, Dim], ...]]
Sums = Sequence[tuple[Affine, Dim, Dim]]


@dataclass(frozen=True)
class LoopDim:
    """A loop of an affine contraction; `dims` are the result's dimensions that it walks, joined."""

    kind: str
    extent: Dim
    lhs: Dim
    rhs: Dim
    out: Dim
    dims: tuple[int, ...]


ONE_ROW = LoopDim("row", 1, 0, 0, 0, ())


def schedule_contraction(cluster: Cluster, target: Target) -> Planned:
    """The kernels of a cluster around one `affine_contraction`."""
    plan = _Plan(cluster, target)
    if not plan.tileable():
        return _vectors(plan)
    if plan.few_tiles():
        return _split_sum(plan)
    kernel = cluster.builder()
    tiles = _Tiles(plan, kernel, "o0", plan.epilogue if plan.has_epilogue else None)
    extent = tiles.emit([], plan.sums_whole(), Affine(), Affine(), Affine())
    leads = bool(plan.around) and plan.around[0].dims[0] == 0 and not tiles.panel_first()
    count = slice_count(extent, plan.shape) if leads else 0
    slices = Slices(count, frozenset()) if count else None
    return (cluster.kernel(kernel, extent, tiles.work(), plan.flops, slices=slices),), ()


class _Plan:
    """What the attributes of the contraction say, as loops."""

    def __init__(self, cluster: Cluster, target: Target) -> None:
        self.cluster = cluster
        self.target = target
        (self.node,) = (n for n in cluster.region.nodes if n.op == "affine_contraction")
        self.attributes: Any = self.node.attributes
        self.shape = cluster.region.outputs[0].value.type.shape
        self.dtype = self.node.result.type.dtype
        self.lanes = target.lanes(8 * self.dtype.bytes)
        provided = replace(cluster, providers={self.node.result: lambda e, i: Const(0, self.dtype)})
        self.accesses = accesses_of(provided, [o.value for o in cluster.region.outputs], len(self.shape))
        loops = self._loops()
        self.sums = [x for x in loops if x.kind == "sum"]
        self.columns = [x for x in loops if x.kind == "column"]
        self.outer = [x for x in loops if x.kind in ("row", "batch")]
        rows = [x for x in self.outer if x.kind == "row"]
        self.inner = rows[-1] if rows else ONE_ROW
        self.around = [x for x in self.outer if x is not self.inner]
        self.table: tuple[int, ...] | None = None
        if len(rows) > 1:
            self._flatten(rows[-2])
        self.flops = element_count(x.extent for x in loops) * 2
        # the buffers of the two sides
        self.lhs, self.rhs = (cluster.inputs[v] for v in self.node.operands)

    def _loops(self) -> list[LoopDim]:
        a = self.attributes
        joined: list[LoopDim] = []
        for kind, extent, lhs, rhs, out, out_dim in zip(
            a["kinds"], a["extents"], a["lhs"], a["rhs"], a["out"], a["out_dims"], strict=True
        ):
            loop = LoopDim(kind, extent, lhs, rhs, out, (out_dim,))
            if joined and kind in ("row", "batch") and self._joins(joined[-1], loop):
                last = joined.pop()
                loop = replace(loop, extent=last.extent * extent, dims=last.dims + loop.dims)
            joined.append(loop)
        return joined

    def _joins(self, outer: LoopDim, inner: LoopDim) -> bool:
        """Every operand, the result and the epilogue's operands step over the whole inner loop."""
        if outer.kind != inner.kind:
            return False
        steps = [(outer.lhs, inner.lhs), (outer.rhs, inner.rhs), (outer.out, inner.out)]
        a, b = outer.dims[-1], inner.dims[0]
        if a != b:
            steps += [(access[a], access[b]) for access in self.accesses]
        return all(x == y * inner.extent for x, y in steps)

    def _flatten(self, outer: LoopDim) -> None:
        """Rows of short lines (3 taps, 7 pixels) become one dimension with a table of offsets, so tiles fill up."""
        inner = self.inner
        if not isinstance(inner.extent, int) or not isinstance(outer.extent, int):
            return
        if inner.extent * 2 > self.target.tile_rows or inner.extent * outer.extent > LONGEST_TABLE:
            return
        if outer.out != inner.out * inner.extent or not isinstance(inner.lhs, int) or not isinstance(outer.lhs, int):
            return
        a, b = outer.dims[-1], inner.dims[0]
        if outer.rhs or inner.rhs or any(access[a] != access[b] * inner.extent for access in self.accesses):
            return
        self.table = tuple(i * outer.lhs + j * inner.lhs for i in range(outer.extent) for j in range(inner.extent))
        self.around.remove(outer)
        self.inner = replace(inner, extent=inner.extent * outer.extent, lhs=0, dims=outer.dims + inner.dims)

    def tileable(self) -> bool:
        """One column loop, its columns side by side in the result and in the right side, and at most three sums."""
        if len(self.columns) != 1 or len(self.sums) > 3 or not self.dtype.is_float:
            return False
        if any(x.extent == 0 for x in self.sums):
            return False
        (column,) = self.columns
        beside = self.attributes["panel"] > 0 or column.rhs == 1 or column.extent == 1
        return isinstance(column.extent, int) and column.out == 1 and beside

    @property
    def has_epilogue(self) -> bool:
        return len(self.cluster.region.nodes) > 1

    @property
    def column(self) -> LoopDim:
        return self.columns[0]

    @property
    def width(self) -> int:
        return self.attributes["panel"] or self.lanes * self.target.tile_vectors

    @property
    def panels(self) -> int:
        assert isinstance(self.column.extent, int)
        return -(-self.column.extent // self.width)

    def few_tiles(self) -> bool:
        tiles = typical(element_count(x.extent for x in self.around)) * self.panels
        tiles *= -(-typical(self.inner.extent) // self.target.tile_rows)
        return tiles < FEW_TILES and typical(element_count(x.extent for x in self.sums)) >= LONG_SUM

    def sums_whole(self) -> list[tuple[Affine, Dim, Dim]]:
        return [(Affine.of(x.extent), x.lhs, x.rhs) for x in self.sums]

    def indices(self, positions: Sequence[tuple[LoopDim, Affine]]) -> Indices:
        """Indices of the result for positions of loops; a joined loop counts in its last dimension."""
        strides = row_major(self.shape)
        indices = [Affine()] * len(self.shape)
        for loop, position in positions:
            if loop.dims:
                d = loop.dims[-1]
                indices[d] = indices[d] + position * (loop.out // strides[d])
        return tuple(indices)

    def epilogue(
        self, positions: Sequence[tuple[LoopDim, Affine]], column: Affine
    ) -> tuple[Epilogue | None, tuple[Extra, ...]]:
        """The rest of the region, from an accumulator to the result, at row `row` of a tile."""
        k = KernelBuilder()
        k.buffers = {b.name: b for b in self.cluster.buffers}
        accumulator = Var("accumulator", self.dtype, self.lanes)
        evaluator = self.cluster.evaluator(k, self.lanes)
        evaluator.bound[self.node.result] = accumulator
        indices = self.indices([*positions, (self.inner, Affine.var("row")), (self.column, column + Affine.var(LANE))])
        (output,) = self.cluster.outputs
        result = evaluator.value(output, indices)
        extras, names, body = [], [accumulator], []
        for stmt in k.statements:
            assert isinstance(stmt, Let)
            if not isinstance(stmt.expr, Load):
                body.append(stmt)
                continue
            load = stmt.expr
            step = load.index.coefficient("row")
            index = load.index - Affine.var("row") * step
            extras.append(Extra(load.buffer, index, step, 1 if stmt.var.lanes > 1 else 0))
            names.append(stmt.var)
        return Epilogue(tuple(names), tuple(body), result), tuple(extras)


@dataclass
class _Tiles:
    """Writes the loops over all register tiles of a plan into a kernel."""

    plan: _Plan
    kernel: KernelBuilder
    out: str
    epilogue: Any  # (positions around, column) -> (Epilogue, extras), or None
    _accumulate: bool = False

    def work(self) -> Dim:
        """Scalar operations of one iteration, a vector of multiply-adds counted as one."""
        plan = self.plan
        rows = min(typical(plan.inner.extent), plan.target.tile_rows * BLOCK_TILES)
        return rows * typical(element_count(x.extent for x in plan.sums)) * plan.width // plan.lanes

    def panel_first(self) -> bool:
        """The right side is too large to stay in cache while rows go by."""
        plan = self.plan
        length = typical(element_count(x.extent for x in plan.sums))
        return length * plan.width * plan.panels * plan.dtype.bytes > RESIDENT_BYTES

    def emit(
        self,
        leading: Sequence[Dim],
        sums: Sums,
        lhs_shift: Affine,
        rhs_shift: Affine,
        out_shift: Affine,
        checked: bool = False,
    ) -> Extent:
        """All tiles; an iteration is a block of rows in one panel. `leading` digits of t come before everything."""
        plan, k = self.plan, self.kernel
        around = [x.extent for x in plan.around]
        blocks, count = self._blocks()
        if self.panel_first():
            digits = split_index(k, Affine.var("t"), [*leading, plan.panels, *around, blocks])
            panel, *rest = digits[len(leading) :]
        else:
            digits = split_index(k, Affine.var("t"), [*leading, *around, blocks, plan.panels])
            *rest, panel = digits[len(leading) :]
        *positions, block = rest
        self._sums, self._shifts = sums, (lhs_shift, rhs_shift, out_shift)
        located = list(zip(plan.around, positions, strict=True))
        symbolic = element_count(x.extent for x in plan.sums)
        if checked or isinstance(symbolic, int):
            self._sum_blocks(located, block, blocks, panel)
        else:  # a register tile sums at least one product
            with k.when(k.compare(k.index(Affine.of(symbolic)), Const(0, I64), "GT")):
                self._sum_blocks(located, block, blocks, panel)
            with k.otherwise(), k.when(k.compare(k.index(Affine.var("t")), Const(0, I64), "EQ")):
                self._empty_sum([*plan.around, plan.inner])
        factor = element_count([*leading, *around, plan.panels])
        return replace(count, factor=factor) if isinstance(count, CeilDiv) else count * factor

    def _sum_blocks(self, located: list, block: Affine, blocks: Atom | int, panel: Affine) -> None:
        """A long sum in blocks whose two sides stay in cache while all tiles of the iteration use them.

        The result carries the sum from block to block; the order of additions, and so each bit, stays what it was. The
        kernel gradient of a 3 x 3 convolution, 64 x 13 x 13 x 32 -> 64, ran at 24 % of peak in one block.
        """
        k = self.kernel
        self._accumulate = False
        size = self._sum_block()
        if size is None:
            self._panel(located, block, blocks, panel)
            return
        whole, shifts = list(self._sums), self._shifts
        extent, lhs, rhs = whole[0]
        count = k.apply("minimum", k.index(extent), k.index(Affine.of(size)))
        self._sums = [(Affine.var(count.name), lhs, rhs), *whole[1:]]
        self._panel(located, block, blocks, panel)
        self._accumulate = True
        with k.loop(size, extent, size) as start:
            left = k.apply("minimum", k.index(extent - start), k.index(Affine.of(size)))
            self._sums = [(Affine.var(left.name), lhs, rhs), *whole[1:]]
            self._shifts = (shifts[0] + start * lhs, shifts[1] + start * rhs, shifts[2])
            self._panel(located, block, blocks, panel)

    def _sum_block(self) -> int | None:
        """How much of the outermost sum makes one block; None where all of it fits, or nothing is used twice."""
        plan = self.plan
        rows = typical(plan.inner.extent)
        if self.epilogue is not None or rows <= plan.target.tile_rows or not plan.sums:
            return None
        first, *rest = plan.sums
        inner = typical(element_count(x.extent for x in rest))
        left = min(abs(typical(first.lhs)) or rows * inner, rows * inner)
        size = max(1, SUM_BLOCK_BYTES // ((left + plan.width * inner) * plan.dtype.bytes))
        return size if typical(first.extent) > size + size // 2 else None

    def _empty_sum(self, loops: Sequence[LoopDim], located: tuple[tuple[LoopDim, Affine], ...] = ()) -> None:
        """The whole result, from sums of nothing."""
        plan, k = self.plan, self.kernel
        if loops:
            with k.loop(0, loops[0].extent) as i:
                self._empty_sum(loops[1:], (*located, (loops[0], i)))
            return
        for j, mask in vector_loop(k, Affine(), Affine.of(plan.column.extent), plan.lanes, None):
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
        """How many blocks the inner rows are cut into: as a value in the kernel and as an extent."""
        extent = self.plan.inner.extent
        size = self.plan.target.tile_rows * BLOCK_TILES
        if isinstance(extent, int) and extent <= 2 * size:
            return 1, 1
        if isinstance(extent, int):
            return -(-extent // size), -(-extent // size)
        k = self.kernel
        raised = k.index(Affine.of(extent + (size - 1)))
        return k.apply("floor_divide", raised, k.index(Affine.of(size))), CeilDiv(extent, size)

    def _panel(self, located: list, block: Affine, blocks: Atom | int, panel: Affine) -> None:
        """Full panels share one tile; the last one may be narrower."""
        plan, k = self.plan, self.kernel
        assert isinstance(plan.column.extent, int)
        last = plan.column.extent - (plan.panels - 1) * plan.width
        full = plan.panels if last == plan.width else plan.panels - 1
        several = min(PANELS_OF_A_ROW, full)
        rows = plan.inner.extent
        if several < 2 or self._accumulate or (isinstance(rows, int) and rows != 1):
            self._panel_of_rows(located, block, blocks, panel, last)
            return
        with k.when(k.compare(k.index(Affine.of(rows)), Const(1, I64), "EQ")):
            self._single_row(located, panel, several, full - full % several)
        with k.otherwise():
            self._panel_of_rows(located, block, blocks, panel, last)

    def _single_row(self, located: list, panel: Affine, several: int, grouped: int) -> None:
        """With one row in all, tiles of several panels have enough sums under way to hide their latency.

        1 x 1600 times 1600 x 128 took 8.3 microseconds panel by panel, four cycles for each product.
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
        """Rows split evenly into tiles: heights differ by one at most."""
        plan, k = self.plan, self.kernel
        most, rows = plan.target.tile_rows, plan.inner.extent
        if blocks == 1:
            assert isinstance(rows, int)
            tiles = -(-rows // most)
            low, higher = divmod(rows, tiles)
            self._run_of_tiles(located, panel, columns, Affine(), low + 1, higher)
            self._run_of_tiles(located, panel, columns, Affine.of(higher * (low + 1)), low, tiles - higher)
            return
        count = blocks if not isinstance(blocks, int) else k.index(Affine.of(blocks))
        begin, end = (
            k.apply("floor_divide", k.apply("multiply", k.index(block + i), k.index(Affine.of(rows))), count)
            for i in (0, 1)
        )
        size = k.apply("subtract", end, begin)
        if self._accumulate:
            self._even_tiles(located, panel, columns, begin, size)
        else:
            self._overlapping_tiles(located, panel, columns, begin, size)

    def _even_tiles(self, located: list, panel: Affine, columns: int, begin: Var, size: Var) -> None:
        """Every row once, in tiles whose heights differ by one at most."""
        k, most = self.kernel, self.plan.target.tile_rows
        tiles = self._ceiling(size, Const(most, I64))
        with k.loop(0, Affine.var(tiles.name)) as j:
            first, last = (k.apply("floor_divide", k.apply("multiply", k.index(j + i), size), tiles) for i in (0, 1))
            height = k.apply("subtract", last, first)
            row = Affine.var(begin.name) + Affine.var(first.name)
            self._contract(located, panel, columns, row, height, self._heights())

    def _overlapping_tiles(self, located: list, panel: Affine, columns: int, begin: Var, size: Var) -> None:
        """Tiles of one height out of few; the last one moves back over rows already computed: the same bits again.

        A program with a dense layer then has 8 micro-kernels for any batch instead of 14.
        """
        k, heights = self.kernel, self._heights()
        tiles = self._ceiling(size, Const(heights[-1], I64))
        even = self._ceiling(size, tiles)
        above: Atom = Const(heights[-1], I64)
        for height in reversed(heights):
            above = k.select(k.compare(even, Const(height, I64), "LE"), Const(height, I64), above)
        below: Atom = Const(1, I64)
        for height in heights:
            below = k.select(k.compare(size, Const(height, I64), "GE"), Const(height, I64), below)
        height = k.apply("minimum", above, below)
        count = self._ceiling(size, height)
        last = k.apply("subtract", size, height)
        with k.loop(0, Affine.var(count.name)) as j:
            first = k.apply("minimum", k.apply("multiply", k.index(j), height), last)
            row = Affine.var(begin.name) + Affine.var(first.name)
            self._contract(located, panel, columns, row, height, heights)

    def _ceiling(self, dividend: Var, divisor: Atom) -> Var:
        k = self.kernel
        raised = k.apply("subtract", k.apply("add", dividend, divisor), Const(1, I64))
        return k.apply("floor_divide", raised, divisor)

    def _heights(self) -> tuple[int, ...]:
        most = self.plan.target.tile_rows
        if self._accumulate or most <= SHORT_TILE:
            return tuple(range(1, most + 1))
        return (*(h for h in FEW_HEIGHTS if h < most), most)

    def _run_of_tiles(self, located: list, panel: Affine, columns: int, row: Affine, height: int, count: int) -> None:
        if count == 1:
            self._contract(located, panel, columns, row, height, (height,))
        elif count > 1:
            with self.kernel.loop(0, count) as j:
                self._contract(located, panel, columns, row + j * height, height, (height,))

    def _contract(
        self,
        located: list[tuple[LoopDim, Affine]],
        panel: Affine,
        columns: int,
        row: Affine,
        height: int | Var,
        heights: tuple[int, ...],
    ) -> None:
        plan = self.plan
        a = plan.attributes
        lhs_shift, rhs_shift, out_shift = self._shifts
        inner, column = plan.inner, panel * plan.width
        lhs = lhs_shift + a["lhs_offset"] + row * inner.lhs
        rhs = rhs_shift + a["rhs_offset"] + panel * (a["panel_stride"] or plan.width)
        out = out_shift + row * inner.out + column
        for loop, position in located:
            lhs, rhs, out = lhs + position * loop.lhs, rhs + position * loop.rhs, out + position * loop.out
        epilogue, extras = self.epilogue(located, column) if self.epilogue else (None, ())
        extras = tuple(replace(e, index=e.index + row * e.row_step) for e in extras)
        vectors = -(-columns // plan.lanes)
        masked = columns % plan.lanes != 0
        tile = Tile(
            plan.dtype,
            vectors,
            plan.target.tile_vectors,
            masked,
            masked and not a["panel"],
            epilogue,
            tuple(e.column_step for e in extras),
        )
        sums = tuple(self._sums) or ((Affine.of(1), 0, 0),)
        self.kernel.append(
            Contract(
                tile,
                height,
                heights,
                Affine.of(columns),
                (plan.lhs, lhs),
                (plan.rhs, rhs),
                (self.out, out),
                inner.out,
                sums,
                inner.lhs if plan.table is None else plan.table,
                row,
                self._accumulate,
                a["panel_stride"] or plan.width,
                extras,
            )
        )


def _split_sum(plan: _Plan) -> Planned:
    """A long sum in SPLITS parts, by the shape alone; a second kernel adds the parts in order."""
    cluster = plan.cluster
    k = cluster.builder()
    elements = element_count(plan.shape)
    scratch = Buffer("s0", plan.dtype, elements * SPLITS)
    k.buffers["s0"] = scratch
    first = plan.sums[0]
    tiles = _Tiles(plan, k, "s0", None)
    count = tiles_count(plan)
    part, _ = split_index(k, Affine.var("t"), [SPLITS, count])
    begin, end = (
        k.apply(
            "floor_divide",
            k.apply("multiply", k.index(part + i), k.index(Affine.of(first.extent))),
            k.index(Affine.of(SPLITS)),
        )
        for i in (0, 1)
    )
    size = k.apply("subtract", end, begin)
    start = Affine.var(begin.name)
    sums = [(Affine.var(size.name), first.lhs, first.rhs), *plan.sums_whole()[1:]]
    with k.when(k.compare(size, Const(0, I64), "GT")):
        extent = tiles.emit([SPLITS], sums, start * first.lhs, start * first.rhs, part * elements, checked=True)
    with k.otherwise():  # fewer samples than parts: this part is empty
        lead, _ = split_index(k, Affine.var("t"), [SPLITS, count])
        which = k.apply("modulo", k.index(Affine.var("t")), k.index(Affine.of(count)))
        with k.when(k.compare(which, Const(0, I64), "EQ")):
            for i, mask in vector_loop(k, Affine(), Affine.of(elements), plan.lanes, None):
                store_at(k, "s0", lead * elements + i, Const(0, plan.dtype), plan.lanes, mask)
    partial = cluster.kernel(k, extent, tiles.work(), plan.flops, [scratch])

    def total(evaluator: Evaluator, indices: Indices) -> Atom:
        position = Affine()
        for index, stride in zip(indices, row_major(plan.shape), strict=True):
            position = position + index * stride
        value: Atom = evaluator.load_at("s0", position)
        for p in range(1, SPLITS):
            value = evaluator.kernel.apply("add", value, evaluator.load_at("s0", position + elements * p))
        return value

    combined = replace(cluster, providers={plan.node.result: total})
    return (partial, schedule_map(combined, plan.target, [scratch])), ((plan.dtype, elements * SPLITS),)


def tiles_count(plan: _Plan) -> Dim:
    """Iterations of one part of a split sum; its rows are few, so they are one block."""
    return element_count([*(x.extent for x in plan.around), plan.panels])


def _vectors(plan: _Plan) -> Planned:
    """One vector of results at a time, summed in order: depthwise convolutions, integers, odd strides."""
    cluster = plan.cluster
    a = plan.attributes
    loops = [*plan.outer, *plan.columns]
    vector = next((x for x in reversed(loops) if x.out == 1), None)
    around = [x for x in loops if x is not vector]
    k = cluster.builder()
    positions = list(zip(around, split_index(k, Affine.var("t"), [x.extent for x in around]), strict=True))

    def at(evaluator: Evaluator, located: list[tuple[LoopDim, Affine]]) -> list[Atom]:
        kernel = evaluator.kernel

        def level(depth: int, total: Atom, lhs: Affine, rhs: Affine) -> Atom:
            if depth == len(plan.sums):
                x, y = evaluator.load_at(plan.lhs, lhs), evaluator.load_at(plan.rhs, rhs)
                if plan.dtype.is_float:
                    return kernel.apply("fma", x, y, total)
                return kernel.apply("add", kernel.apply("multiply", x, y), total)
            loop = plan.sums[depth]
            with kernel.carried_loop(0, loop.extent, 1, [total]) as (i, (carried,), following):
                following[0] = level(depth + 1, carried, lhs + i * loop.lhs, rhs + i * loop.rhs)
            return carried

        lhs, rhs = Affine.of(a["lhs_offset"]), Affine.of(a["rhs_offset"])
        for loop, position in located:
            lhs, rhs = lhs + position * loop.lhs, rhs + position * loop.rhs
        evaluator.bound[plan.node.result] = level(0, Const(0, plan.dtype, evaluator.lanes), lhs, rhs)
        indices = plan.indices(located)
        return [evaluator.value(v, indices) for v in cluster.outputs]

    def store(values: list[Atom], located: list[tuple[LoopDim, Affine]], lanes: int, mask: Atom | None) -> None:
        position = Affine()
        for loop, where in located:
            position = position + where * loop.out
        for value, buffer in zip(values, cluster.outputs.values(), strict=True):
            if lanes > 1:
                store_at(k, buffer, position, value, lanes, mask)
            else:
                k.store(buffer, position, value)

    if vector is None:
        store(at(cluster.evaluator(k), positions), positions, 1, None)
    else:
        lanes = cluster.lanes(plan.target)
        for inner, mask in vector_loop(k, Affine(), Affine.of(vector.extent), lanes, None):
            located = [*positions, (vector, inner)]
            store(at(cluster.evaluator(k, lanes, mask), located), located, lanes, mask)
    length = typical(element_count(x.extent for x in plan.sums)) * (typical(vector.extent) if vector else 1)
    extent = element_count(x.extent for x in around)
    return (cluster.kernel(k, extent, length, plan.flops),), ()
