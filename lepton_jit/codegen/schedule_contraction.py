"""Schedules of contractions: register tiles with a fused epilogue, or plain vectors where no tile fits."""

from __future__ import annotations

import functools
from dataclasses import replace

from lepton_jit.codegen.cluster import (
    SPLITS,
    Cluster,
    Planned,
    combined_parts,
    part_of,
    slice_count,
    split_index,
    store_at,
    vector_loop,
)
from lepton_jit.codegen.contraction_plan import LoopDim, Plan
from lepton_jit.codegen.contraction_tiles import Tiles
from lepton_jit.codegen.evaluate import Evaluator
from lepton_jit.codegen.loop_ir import (
    I64,
    Affine,
    Atom,
    Buffer,
    Const,
    Slices,
)
from lepton_jit.codegen.schedule_map import schedule_map
from lepton_jit.codegen.target import Target
from lepton_jit.ir.types import element_count, typical

# A sum in blocks is split into parts where fewer iterations than this would share it.
FEW_ITERATIONS = 4


def schedule_contraction(cluster: Cluster, target: Target) -> Planned:
    """The kernels of a cluster around one `affine_contraction`."""
    plan = Plan(cluster, target)
    if not plan.tileable():
        return _vectors(plan)
    if plan.few_tiles() or _few_iterations(plan):
        return _split_sum(plan)
    kernel = cluster.builder()
    tiles = Tiles(plan, kernel, "o0", plan.epilogue if plan.has_epilogue else None)
    extent = tiles.emit([], plan.sums_whole(), Affine(), Affine(), Affine())
    leads = bool(plan.around) and plan.around[0].dims[0] == 0 and not tiles.panel_first()
    count = slice_count(extent, plan.shape) if leads else 0
    slices = Slices(count, frozenset()) if count else None
    progress = None if tiles.panel_first() else plan.progress()
    return (cluster.kernel(kernel, extent, tiles.work(), plan.flops, slices=slices, progress=progress),), ()


def _few_iterations(plan: Plan) -> bool:
    """A long sum in blocks leaves threads without work, or its epilogue is for the whole sum only."""
    tiles = Tiles(plan, plan.cluster.builder(), "", None)
    blocked = plan.long_sum() and tiles.sum_block() is not None
    return blocked and (plan.has_epilogue or tiles.iterations() < FEW_ITERATIONS)


def _split_sum(plan: Plan) -> Planned:
    """A long sum in SPLITS parts, by the shape alone; a second kernel adds the parts in order."""
    cluster = plan.cluster
    k = cluster.builder()
    elements = element_count(plan.shape)
    scratch = Buffer("s0", plan.dtype, elements * SPLITS)
    k.buffers["s0"] = scratch
    first = plan.sums[0]
    tiles = Tiles(plan, k, "s0", None)
    part, *rest = split_index(k, Affine.var("t"), [SPLITS, *tiles.extents()])
    begin, end = part_of(k, part, first.extent)
    size = k.apply("subtract", end, begin)
    start = Affine.var(begin.name)
    sums = [(Affine.var(size.name), first.lhs, first.rhs), *plan.sums_whole()[1:]]
    with k.when(k.compare(size, Const(0, I64), "GT")):
        extent = tiles.emit([SPLITS], sums, start * first.lhs, start * first.rhs, part * elements, checked=True)
    with k.otherwise():  # fewer samples than parts: this part is empty
        others = functools.reduce(Affine.__add__, rest, Affine())
        with k.when(k.compare(k.index(others), Const(0, I64), "EQ")):
            for i, mask in vector_loop(k, Affine(), Affine.of(elements), plan.lanes):
                store_at(k, "s0", part * elements + i, Const(0, plan.dtype), plan.lanes, mask)
    partial = cluster.kernel(k, extent, tiles.work(), plan.flops, [scratch])

    combined = replace(cluster, providers={plan.node.result: combined_parts(plan.node.result, "add")})
    return (partial, schedule_map(combined, plan.target, [scratch])), ((plan.dtype, elements * SPLITS),)


def _vectors(plan: Plan) -> Planned:
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
        for inner, mask in vector_loop(k, Affine(), Affine.of(vector.extent), lanes):
            located = [*positions, (vector, inner)]
            store(at(cluster.evaluator(k, lanes, mask), located), located, lanes, mask)
    length = typical(element_count(x.extent for x in plan.sums)) * (typical(vector.extent) if vector else 1)
    extent = element_count(x.extent for x in around)
    return (cluster.kernel(k, extent, length, plan.flops),), ()
