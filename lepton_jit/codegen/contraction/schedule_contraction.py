"""Schedules of contractions: register tiles with a fused epilogue, or plain vectors where no tile fits."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

from lepton_jit.codegen.contraction.packed_left import PACKED_A, PackedLeft, pack_left
from lepton_jit.codegen.contraction.packed_rows import PackedRows, splits
from lepton_jit.codegen.contraction.plan import Plan
from lepton_jit.codegen.contraction.schedule_vectors import schedule_vectors
from lepton_jit.codegen.contraction.tiles import Tiles
from lepton_jit.codegen.kernels.cluster import (
    SPLITS,
    Cluster,
    Planned,
    combined_parts,
    part_of,
    split_index,
    store_at,
    vector_loop,
)
from lepton_jit.codegen.kernels.schedule_map import schedule_map
from lepton_jit.codegen.loops.ir import I64, Affine, Buffer, Const
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.codegen.target import Target
from lepton_jit.ir.types import Dim, element_count, least

# Split-K applies to a sum in blocks of K where fewer iterations than this would share it.
FEW_ITERATIONS = 4


def schedule_contraction(cluster: Cluster, target: Target) -> Planned:
    """Schedule a cluster around one `affine_contraction`: register tiles, split-K, or plain vectors."""
    plan = Plan(cluster, target)
    if 0 in plan.shape:
        return (cluster.kernel(cluster.builder(), 0, 0, 0),), ()
    if not plan.tileable():
        return schedule_vectors(plan)
    if plan.few_tiles() or _few_iterations(plan):
        return _split_sum(plan)
    kernel = cluster.builder()
    tiles = _tiles(plan, kernel, "o0", plan.epilogue if plan.has_epilogue else None)
    left = _packed_left(tiles)
    if left is not None:
        kernel.buffers[PACKED_A] = left.buffer
        tiles.left = left
        extent = tiles.emit([], left.sums(), Affine(), Affine(), plan.out_start)
        slices = plan.slices(extent) if tiles.by_samples() else None
        if slices and left.around[:1] == plan.around[:1]:
            slices = replace(slices, local=slices.local | {PACKED_A})
        main = cluster.kernel(kernel, extent, tiles.work(), plan.flops, [left.buffer], slices, None, _turning(plan))
        return (left.kernel(), main), ((left.buffer.dtype, left.buffer.size),)
    extent = tiles.emit([], plan.sums_whole(), Affine(), Affine(), plan.out_start)
    slices = plan.slices(extent) if tiles.by_samples() else None
    by_rows = not tiles.panel_first() and tiles.sum_block() is None and not tiles.whole_slices()
    progress = plan.progress() if by_rows else None
    turning = _turning(plan) if tiles.panel_first() else 0
    return (cluster.kernel(kernel, extent, tiles.work(), plan.flops, (), slices, progress, turning),), ()


def computes_parts(cluster: Cluster, target: Target) -> bool:
    """Tell whether the kernels write each element of the result by its own place, which may be in a larger tensor.

    Rows of short lines are joined only where they lie side by side in the result as well; they keep their copy.
    """
    plan = Plan(cluster, target)
    known = all(isinstance(x.extent, int) for x in plan.sums)
    if 0 in plan.shape or not plan.tileable() or plan.table is not None or not known:
        return False
    return not plan.few_tiles() and not _few_iterations(plan)


def finishes_in_place(cluster: Cluster, target: Target) -> bool:
    """Tell whether every element of the result is stored once, when it is finished.

    The result may then replace an operand of the epilogue. Tiles that move back over rows would read what they wrote.
    """
    plan = Plan(cluster, target)
    if 0 in plan.shape or not plan.tileable() or plan.row_panel:
        return False
    if plan.few_tiles() or _few_iterations(plan):
        return True
    tiles = Tiles(plan, plan.cluster.builder(), "", plan.epilogue)
    if tiles.sum_block() is not None:
        return False
    tiles.left = _packed_left(tiles)
    return tiles.each_row_once()


def _packed_left(tiles: Tiles) -> PackedLeft | None:
    """The packed A that these tiles read, or None if they read A as it lies."""
    plan = tiles.plan
    if plan.row_panel or not tiles.panel_first():
        return None
    return pack_left(plan) if isinstance(plan.inner.extent, int) or tiles.sum_block() is None else None


def _turning(plan: Plan) -> Dim:
    """`Kernel.turning`: the number of rows where that may be 1, else 0. One row has its iterations in serpentine order.

    It reads little but B. Read backwards at every other call, B is found in L2 as far as that holds it
    (docs/measurements.md, serpentine order).
    """
    return 0 if plan.around or least(plan.inner.extent) > 1 else plan.inner.extent


def _tiles(plan: Plan, kernel: KernelBuilder, out: str, epilogue: Any) -> Tiles:
    return (PackedRows if plan.row_panel else Tiles)(plan, kernel, out, epilogue)


def _few_iterations(plan: Plan) -> bool:
    """Tell whether a long sum in blocks of K leaves threads without work, or cannot end with its epilogue."""
    if plan.row_panel:
        return splits(plan)
    tiles = Tiles(plan, plan.cluster.builder(), "", None)
    finishing = Tiles(plan, plan.cluster.builder(), "", plan.epilogue if plan.has_epilogue else None)
    if not plan.long_sum() or tiles.sum_block() is None:
        return False
    return finishing.sum_block() is None or tiles.iterations() < FEW_ITERATIONS


def _split_sum(plan: Plan) -> Planned:
    """Split K into SPLITS parts, by the shape alone; a second kernel adds the parts in order."""
    cluster = plan.cluster
    k = cluster.builder()
    elements = element_count(plan.shape)
    scratch = Buffer("s0", plan.dtype, elements * SPLITS)
    k.buffers["s0"] = scratch
    first = plan.sums[0]
    tiles = _tiles(plan, k, "s0", None)
    part, *rest = split_index(k, Affine.var("t"), [SPLITS, *tiles.extents()])
    begin, end = part_of(k, part, first.extent)
    size = k.apply("subtract", end, begin)
    start = Affine.var(begin.name)
    sums = [(Affine.var(size.name), first.lhs, first.rhs), *plan.sums_whole()[1:]]
    inner = element_count(x.extent for x in plan.sums[1:])
    products = size if isinstance(inner, int) else k.apply("multiply", size, k.index(Affine.of(inner)))
    with k.when(k.compare(products, Const(0, I64), "GT")):
        extent = tiles.emit([SPLITS], sums, start * first.lhs, start * first.rhs, part * elements, checked=True)
    with k.otherwise():  # no samples, or fewer than parts: this part is empty
        others = functools.reduce(Affine.__add__, rest, Affine())
        with k.when(k.compare(k.index(others), Const(0, I64), "EQ")):
            for i, mask in vector_loop(k, Affine(), Affine.of(elements), plan.lanes):
                store_at(k, "s0", part * elements + i, Const(0, plan.dtype), plan.lanes, mask)
    partial = cluster.kernel(k, extent, tiles.work(), plan.flops, [scratch])

    combined = replace(cluster, providers={plan.node.result: combined_parts(plan.node.result, "add")})
    return (partial, schedule_map(combined, plan.target, [scratch])), ((plan.dtype, elements * SPLITS),)
