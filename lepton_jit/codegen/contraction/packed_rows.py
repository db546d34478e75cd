"""Contractions whose A is packed into panels of rows that all taps of a window share: gradients of kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from lepton_jit.codegen.contraction.plan import ContractionDim, Plan
from lepton_jit.codegen.contraction.tiles import Tiles
from lepton_jit.codegen.kernels.cluster import SPLITS, store_at, vector_loop
from lepton_jit.codegen.loops.ir import I64, Affine, Atom, CeilDiv, Const, Var
from lepton_jit.ir.types import Dim, element_count, typical

# What all taps of a tile read of A and B before they go on, about an L1 cache: 32 to 256 KB measure the same.
TAPS_L1_BYTES = 64 << 10
# The panels of B that a panel of rows meets before the next one does: half of an L2 cache.
GROUP_BYTES = 1 << 20


def panel_bytes(plan: Plan) -> int:
    """The bytes of one panel of B."""
    return typical(element_count(x.extent for x in plan.sums)) * plan.width * plan.dtype.bytes


def splits(plan: Plan) -> bool:
    """Tell whether K is split, all rows and columns of a part before the next: else each tile would read DRAM."""
    return panel_bytes(plan) > GROUP_BYTES // 2


@dataclass
class PackedRows(Tiles):
    """Writes the tiles of such a contraction: an iteration is one panel of rows in one panel of columns, for all taps.

    K goes in blocks whose A and B stay in L1 while all taps use them; the results of all taps stay in a cache as well.
    """

    looks_ahead: ClassVar[bool] = False

    def sum_block(self) -> int | None:
        return None

    def _blocks(self) -> tuple[Atom | int, CeilDiv | int]:
        tiles = -(-typical(self.plan.inner.extent) // self.plan.row_panel)
        return tiles, tiles

    def _walk(self) -> list[tuple[Dim | Atom, ContractionDim | str]]:
        around: list[tuple[Dim | Atom, ContractionDim | str]] = [(x.extent, x) for x in self._around()]
        group = self._group()
        return [*around, (self.plan.panels // group, "group"), (self._blocks()[0], "block"), (group, "panel")]

    def _group(self) -> int:
        """The number of panels of columns that a panel of rows meets before the next one does."""
        plan = self.plan
        size = panel_bytes(plan) // (SPLITS if splits(plan) else 1)
        fits = (n for n in range(plan.panels, 0, -1) if plan.panels % n == 0 and n * size <= GROUP_BYTES)
        return next(fits, 1)

    def _panel_at(self, at: dict) -> Affine:
        return at["group"] * self._group() + at["panel"]

    def _together(self) -> list[ContractionDim]:
        return [x for x in self.plan.around if x.kind == "row" and isinstance(x.extent, int)]

    def _sum_blocks(self, located: list, block: Affine, blocks: Atom | int, panel: Affine) -> None:
        self._panel(located, block, blocks, panel)

    def _rows(self, located: list, block: Affine, blocks: Atom | int, panel: Affine, columns: int) -> None:
        """Write the tiles of all taps; the last panel may have fewer rows."""
        plan, k = self.plan, self.kernel
        rows, height = typical(plan.inner.extent), plan.row_panel
        lowest = rows - (rows - 1) // height * height
        here: int | Var = height
        if lowest < height:
            here = k.apply("minimum", k.index(Affine.of(rows) - block * height), Const(height, I64))
        heights = tuple(sorted({lowest, height}))

        def taps() -> None:
            self._each(located, lambda at: self._contract(at, panel, columns, block * height, here, heights, block))

        blocked = self._blocked_sum()
        self._sum_so_far = False
        if blocked is None or self.epilogue is not None:
            taps()
            return
        self._each(located, lambda at: self._zeros(at, panel, columns, block * height, here))
        self._sum_so_far = True
        self._walk_sums(0, *blocked, taps)

    def _blocked_sum(self) -> tuple[int, int] | None:
        """The loop over K that goes in blocks, and their size; None where not even one product a tap stays in L1."""
        plan = self.plan
        for i, loop in enumerate(plan.sums):
            inner = typical(element_count(x.extent for x in plan.sums[i + 1 :]))
            size = (abs(typical(loop.lhs)) + inner * plan.width) * plan.dtype.bytes
            if size <= TAPS_L1_BYTES:
                return i, 1 << (TAPS_L1_BYTES // size).bit_length() - 1  # an even part of most extents
        return None

    def _walk_sums(self, depth: int, blocked: int, size: int, taps: Callable[[], None]) -> None:
        """Walk the loops over K: those outside of the blocked one step by step, that one block by block."""
        k, sums, shifts = self.kernel, self._sums, self._shifts
        extent, lhs, rhs = sums[depth]
        step = 1 if depth < blocked else size
        with k.loop(0, extent, step) as start:
            length = Affine.of(step)
            if extent.terms or not isinstance(extent.constant, int) or extent.constant % step:
                length = Affine.var(k.apply("minimum", k.index(extent - start), Const(step, I64)).name)
            self._sums = [*sums[:depth], (length, lhs, rhs), *sums[depth + 1 :]]
            self._shifts = (shifts[0] + start * lhs, shifts[1] + start * rhs, shifts[2])
            if depth < blocked:
                self._walk_sums(depth + 1, blocked, size, taps)
            else:
                taps()
        self._sums, self._shifts = sums, shifts

    def _each(self, located: list, body: Callable[[list], None]) -> None:
        """Write `body` at every tap."""

        def walk(loops: list[ContractionDim], located: list) -> None:
            if not loops:
                body(located)
                return
            with self.kernel.loop(0, loops[0].extent) as i:
                walk(loops[1:], [*located, (loops[0], i)])

        walk(self._together(), located)

    def _zeros(self, located: list, panel: Affine, columns: int, row: Affine, height: int | Var) -> None:
        plan, k = self.plan, self.kernel
        out = self._shifts[2] + panel * plan.width
        for loop, position in located:
            out = out + position * loop.out
        with k.loop(0, height if isinstance(height, int) else Affine.var(height.name)) as i:
            for j, mask in vector_loop(k, Affine(), Affine.of(columns), plan.lanes):
                store_at(k, self.out, out + (row + i) * plan.inner.out + j, Const(0, plan.dtype), plan.lanes, mask)
