"""Read an affine contraction: its loops, joined where all operands step over them as one, and its epilogue."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from lepton_jit.codegen.kernels.cluster import Cluster, accesses_of, is_whole, slice_count
from lepton_jit.codegen.kernels.evaluate import LANE, Indices
from lepton_jit.codegen.kernels.turns import batch_of_turns
from lepton_jit.codegen.loops.ir import Affine, Const, Epilogue, Extent, Extra, Let, Load, Progress, Reach, Slices, Var
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.codegen.target import Target
from lepton_jit.ir.types import Dim, Poly, element_count, row_major, typical

# Split-K applies only where there are fewer tiles than this and K is long: in the gradient of a weight.
FEW_TILES = 16
SPLIT_K_LEAST = 2048
# The longest table of offsets of flattened rows: 8 KB of constants.
LONGEST_TABLE = 1024
# The rows of one iteration, counted in register tiles, where there are many rows.
BLOCK_TILES = 4


@dataclass(frozen=True)
class ContractionDim:
    """A loop of an affine contraction, with its step in each operand; `dims` are the result's dimensions it walks."""

    kind: str
    extent: Dim
    lhs: Dim
    rhs: Dim
    out: Dim
    dims: tuple[int, ...]


ONE_ROW = ContractionDim("row", 1, 0, 0, 0, ())


class Plan:
    """Holds the loops of one contraction, as its attributes state them, and answers what the schedules ask."""

    def __init__(self, cluster: Cluster, target: Target) -> None:
        self.cluster = cluster
        self.target = target
        (self.node,) = (n for n in cluster.region.nodes if n.op == "affine_contraction")
        self.attributes: Any = self.node.attributes
        self.shape = cluster.region.outputs[0].value.type.shape
        self.dtype = self.node.result.type.dtype
        self.lanes = target.lanes(8 * self.dtype.bytes)
        self._finish = replace(cluster, providers={self.node.result: lambda e, i: Const(0, self.dtype)})
        self.accesses = accesses_of(self._finish, [o.value for o in cluster.region.outputs], len(self.shape))
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
        # the buffers of A and B
        self.lhs, self.rhs = (cluster.inputs[v] for v in self.node.operands)
        self.unpacked = cluster.inputs[cluster.unpacked] if cluster.unpacked else None

    def _loops(self) -> list[ContractionDim]:
        a = self.attributes
        joined: list[ContractionDim] = []
        last_row = max((i for i, kind in enumerate(a["kinds"]) if kind == "row"), default=-1)
        in_panels = last_row if a["row_panel"] else -1
        for i, (kind, extent, lhs, rhs, out, out_dim) in enumerate(
            zip(a["kinds"], a["extents"], a["lhs"], a["rhs"], a["out"], a["out_dims"], strict=True)
        ):
            loop = ContractionDim(kind, extent, lhs, rhs, out, (out_dim,))
            if joined and kind in ("row", "batch") and i != in_panels and self._joins(joined[-1], loop):
                last = joined.pop()
                loop = replace(loop, extent=last.extent * extent, dims=last.dims + loop.dims)
            joined.append(loop)
        return joined

    def _joins(self, outer: ContractionDim, inner: ContractionDim) -> bool:
        """Tell whether one step of `outer` is a whole `inner` loop in A, B, C and every operand of the epilogue."""
        if outer.kind != inner.kind:
            return False
        steps = [(outer.lhs, inner.lhs), (outer.rhs, inner.rhs), (outer.out, inner.out)]
        a, b = outer.dims[-1], inner.dims[0]
        if a != b:
            steps += [(access[a], access[b]) for access in self.accesses]
        return all(x == y * inner.extent for x, y in steps)

    def _flatten(self, outer: ContractionDim) -> None:
        """Join rows of short lines (3 taps, 7 pixels) to one dimension with a table of offsets, to fill tiles."""
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
        """Tell whether a register tile can compute it.

        That takes one column loop of a known extent, whose columns lie side by side in C and in B, and at most three
        loops over K.
        """
        if len(self.columns) != 1 or len(self.sums) > 3 or not self.dtype.is_float:
            return False
        if any(x.extent == 0 for x in self.sums):
            return False
        (column,) = self.columns
        if column.extent == 1 and any(x.lhs == x.rhs == x.out == 1 for x in self.outer):
            return False  # each channel by itself: a vector has many of them, a tile one
        beside = self.attributes["panel"] > 0 or column.rhs == 1 or column.extent == 1
        return isinstance(column.extent, int) and column.out == 1 and beside

    @property
    def row_panel(self) -> int:
        """The rows of a panel of packed A; 0 where the contraction reads A as it lies."""
        return self.attributes["row_panel"]

    @property
    def out_start(self) -> Affine:
        """Where C begins in its buffer: not at 0 if it is a part of a larger tensor."""
        return Affine.of(self.attributes["out_offset"])

    @property
    def has_epilogue(self) -> bool:
        return len(self.cluster.region.nodes) > 1

    @property
    def column(self) -> ContractionDim:
        return self.columns[0]

    @property
    def width(self) -> int:
        return self.attributes["panel"] or self.lanes * self.target.tile_vectors

    @property
    def block_rows(self) -> int:
        """The most rows of one iteration."""
        return self.target.tile_rows * BLOCK_TILES

    @property
    def samples(self) -> Poly | None:
        """The batch, where the rows are [iterations of a scan][batch]; else None."""
        return batch_of_turns(self.shape) if self.inner.dims == (0, 1) and self.table is None else None

    @property
    def panels(self) -> int:
        assert isinstance(self.column.extent, int)
        return -(-self.column.extent // self.width)

    def few_tiles(self) -> bool:
        tiles = typical(element_count(x.extent for x in self.around)) * self.panels
        tiles *= -(-typical(self.inner.extent) // self.target.tile_rows)
        return tiles < FEW_TILES and self.long_sum()

    def long_sum(self) -> bool:
        return typical(element_count(x.extent for x in self.sums)) >= SPLIT_K_LEAST

    def right_sides(self) -> list[ContractionDim]:
        """The outer loops each of whose positions has a B of its own."""
        return [x for x in self.around if x.rhs != 0]

    def slices(self, extent: Extent) -> Slices | None:
        """The batch slices of a kernel of this extent whose slowest digits are the outer loops, or None."""
        first, *_ = self.around or [self.inner]
        count = slice_count(extent, self.shape, products=first.kind == "batch") if first.dims[:1] == (0,) else 0
        return Slices(count, self._local_buffers(first)) if count else None

    def _local_buffers(self, first: ContractionDim) -> frozenset[str]:
        """The buffers whose index n alone index n of the result reads; `first` is the loop that walks the batch.

        An operand is one of them if it has the batch as leading dimension and the loop steps by whole samples: then it
        is read at n * sample + rest, and since no read leaves the operand, no rest reaches another sample.
        """
        batch = self.shape[0]
        shared: set[str] = set()
        for value, step in zip(self.node.operands, (first.lhs, first.rhs), strict=True):
            alone = value.type.rank > 0 and value.type.shape[0] == batch
            if not alone or step * (first.extent // batch) != element_count(value.type.shape[1:]):
                shared.add(self.cluster.inputs[value])
        return self._finish.local_inputs(batch) - shared

    def sums_whole(self) -> list[tuple[Affine, Dim, Dim]]:
        return [(Affine.of(x.extent), x.lhs, x.rhs) for x in self.sums]

    def block_unit(self) -> int:
        """The number of rows that blocks of rows begin at multiples of.

        That is a whole tile, unless there are outer loops whose lines of rows end in the middle of a tile.
        """
        rows, extent = self.target.tile_rows, self.inner.extent
        return 1 if self.around and not (isinstance(extent, int) and extent % rows == 0) else rows

    def whole_tiles(self) -> bool:
        """Tell whether every block of rows consists of full tiles, whatever the batch is."""
        rows = self.target.tile_rows
        return self.block_unit() == rows and is_whole(self.inner.extent, rows)

    def progress(self) -> Progress | None:
        """The progress that a chain goes by: the rows of C that iterations finish, and the lines of A that these read.

        None where rows of C do not lie in the order of iterations.
        """
        if self.samples is not None:
            return None  # blocks go by samples
        width, loops = self.column.extent, [*self.around, self.inner]
        steps = zip(loops, row_major((*(x.extent for x in loops), width)), strict=False)
        reach = self._reach(loops)
        if reach is None or not isinstance(width, int) or any(loop.out != step for loop, step in steps):
            return None
        count = element_count(x.extent for x in loops)
        return Progress(self.panels, count, width, ((self.lhs, reach),), self.block_unit())

    def _reach(self, loops: Sequence[ContractionDim]) -> Reach | None:
        *around, inner = loops
        static = [*(x.lhs for x in (*loops, *self.sums)), *(x.extent for x in self.sums)]
        if (
            self.table
            or self.row_panel
            or self.attributes["lhs_offset"] != 0
            or not all(isinstance(s, int) and s >= 0 for s in static)
        ):
            return None
        span = typical(sum(((x.extent - 1) * x.lhs for x in self.sums), 1))
        apart = row_major((*(x.extent for x in loops), inner.lhs))[:-1]
        if span <= typical(inner.lhs) and all(x.lhs == step for x, step in zip(loops, apart, strict=True)):
            return Reach(1, 1, 1, typical(inner.lhs))  # row by row
        if len(around) != 2 or not isinstance(inner.extent, int) or not isinstance(around[1].extent, int):
            return None
        image, line = (typical(x.lhs) for x in around)
        width = math.gcd(image, line)
        taps = -(-(span + (inner.extent - 1) * typical(inner.lhs)) // width)
        return Reach(inner.extent, around[1].extent, image // width, width, line // width, 0, taps)

    def indices(self, positions: Sequence[tuple[ContractionDim, Affine]]) -> Indices:
        """The indices of C at some positions of loops; a joined loop counts in its last dimension."""
        strides = row_major(self.shape)
        indices = [Affine()] * len(self.shape)
        for loop, position in positions:
            if loop.dims:
                d = loop.dims[-1]
                indices[d] = indices[d] + position * (loop.out // strides[d])
        return tuple(indices)

    def epilogue(
        self, positions: Sequence[tuple[ContractionDim, Affine]], column: Affine
    ) -> tuple[Epilogue | None, tuple[Extra, ...]]:
        """The elementwise rest of the region, from an accumulator to the result, at row `row` of a tile."""
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
