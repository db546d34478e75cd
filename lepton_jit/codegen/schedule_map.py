"""Schedule of a map: every element of the results is computed from its index, one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_jit.codegen.cluster import (
    Cluster,
    accesses_of,
    is_whole,
    merge_dimensions,
    slice_count,
    split_index,
    spread,
    store_at,
    vector_loop,
)
from lepton_jit.codegen.evaluate import linear
from lepton_jit.codegen.kernel_builder import KernelBuilder
from lepton_jit.codegen.loop_ir import Affine, Buffer, CeilDiv, Extent, Kernel, Slices
from lepton_jit.codegen.target import Target
from lepton_jit.ir.types import element_count, row_major

# A long one-dimensional map is cut into blocks of this many elements, 16 KB of float32.
BLOCK = 4096


def schedule_map(cluster: Cluster, target: Target, extra: Sequence[Buffer] = ()) -> Kernel:
    """Loops over the merged dimensions of the (equally shaped) results, the innermost in vectors."""
    shape = cluster.region.outputs[0].value.type.shape
    results = list(cluster.outputs)
    accesses = [*accesses_of(cluster, results, len(shape), extra), tuple(row_major(shape))]
    axes = merge_dimensions(shape, accesses)
    lanes = cluster.lanes(target)
    kernel = cluster.builder()
    kernel.buffers |= {b.name: b for b in extra}
    work = len(cluster.region.nodes)

    def block(outer: list[Affine], start: Affine, stop: Affine) -> None:
        for inner, mask in vector_loop(kernel, start, stop, lanes, is_whole(axes[-1].extent, lanes)):
            evaluator = cluster.evaluator(kernel, lanes, mask)
            indices = spread(axes, [*outer, inner], len(shape))
            values = [evaluator.value(v, indices) for v in results]
            for value, (result, buffer) in zip(values, cluster.outputs.items(), strict=True):
                store_at(kernel, buffer, linear(indices, result.type.shape), value, lanes, mask)

    if not axes:
        _scalar(cluster, kernel, len(shape))
        return cluster.kernel(kernel, 1, work, extra=extra)
    inner = axes[-1].extent
    if len(axes) == 1:
        extent: Extent = CeilDiv(inner, BLOCK) if inner != 0 else 0
        start = Affine.var("t") * BLOCK
        end = kernel.apply("minimum", kernel.index(start + BLOCK), kernel.index(Affine.of(inner)))
        if isinstance(inner, int) and inner <= BLOCK:
            extent = 1
            block([], Affine(), Affine.of(inner))
        else:
            block([], start, Affine.var(end.name))
        size = min(BLOCK, inner) if isinstance(inner, int) else BLOCK
        return cluster.kernel(kernel, extent, size * work, extra=extra)
    outer = axes[:-2] if len(axes) > 2 else axes[:1]
    digits = split_index(kernel, Affine.var("t"), [a.extent for a in outer])
    if len(axes) > 2:
        with kernel.loop(0, axes[-2].extent) as i:
            block([*digits, i], Affine(), Affine.of(inner))
    else:
        block(digits, Affine(), Affine.of(inner))
    total = element_count(a.extent for a in axes[len(outer) :])
    extent = element_count(a.extent for a in outer)
    count = slice_count(extent, shape) if outer[0].dimensions[0] == 0 else 0
    slices = Slices(count, cluster.local_inputs(shape[0])) if count and not extra else None
    return cluster.kernel(kernel, extent, total * work, extra=extra, slices=slices)


def _scalar(cluster: Cluster, kernel: KernelBuilder, rank: int) -> None:
    evaluator = cluster.evaluator(kernel)
    values = [evaluator.value(v, (Affine(),) * rank) for v in cluster.outputs]
    for value, buffer in zip(values, cluster.outputs.values(), strict=True):
        kernel.store(buffer, Affine(), value)
