"""Schedule maps: every element of the results is computed from its index, in one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lepton_jit.codegen.kernels.cluster import (
    Cluster,
    accesses_of,
    is_long_chain,
    is_whole,
    merge_dimensions,
    side_by_side,
    slice_count,
    split_index,
    spread,
    store_at,
    vector_loop,
)
from lepton_jit.codegen.kernels.evaluate import linear
from lepton_jit.codegen.kernels.turns import batch_of_turns
from lepton_jit.codegen.loops.ir import Affine, Buffer, CeilDiv, Extent, Kernel, Slices
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import Shape, element_count, row_major

# A long one-dimensional map is cut into blocks of this many elements, 16 KB of float32.
MAP_BLOCK = 4096


def schedule_map(cluster: Cluster, target: Target, extra: Sequence[Buffer] = ()) -> Kernel:
    """Schedule loops over the merged dimensions of the results, which have one shape; the innermost goes in vectors."""
    stores = _stores(cluster)
    results = [store.value for store in stores]
    shape = results[0].type.shape
    written = [tuple(row_major(store.shape)) for store in stores]
    accesses = [*accesses_of(cluster, results, len(shape), extra), *dict.fromkeys(written)]
    apart = [d == 1 for d in range(len(shape))] if batch_of_turns(shape) is not None else None
    axes = merge_dimensions(shape, accesses, apart)
    lanes = cluster.lanes(target)
    if axes and is_long_chain(cluster, results, len(shape), extra):
        lanes = side_by_side(lanes, axes[-1].extent)
    kernel = cluster.builder()
    kernel.buffers |= {b.name: b for b in extra}
    work = len(cluster.region.nodes)

    def block(outer: list[Affine], start: Affine, stop: Affine) -> None:
        for inner, mask in vector_loop(kernel, start, stop, lanes, is_whole(axes[-1].extent, lanes)):
            evaluator = cluster.evaluator(kernel, lanes, mask)
            indices = spread(axes, [*outer, inner], len(shape))
            values = [evaluator.value(v, indices) for v in results]
            for value, store in zip(values, stores, strict=True):
                store_at(kernel, store.buffer, linear(indices, store.shape) + store.start, value, lanes, mask)

    if not axes:
        _scalar(cluster, kernel, stores)
        return cluster.kernel(kernel, 1, work, extra=extra)
    inner = axes[-1].extent
    if len(axes) == 1:
        extent: Extent = CeilDiv(inner, MAP_BLOCK) if inner != 0 else 0
        start = Affine.var("t") * MAP_BLOCK
        end = kernel.apply("minimum", kernel.index(start + MAP_BLOCK), kernel.index(Affine.of(inner)))
        if isinstance(inner, int) and inner <= MAP_BLOCK:
            extent = 1
            block([], Affine(), Affine.of(inner))
        else:
            block([], start, Affine.var(end.name))
        size = min(MAP_BLOCK, inner) if isinstance(inner, int) else MAP_BLOCK
        return cluster.kernel(kernel, extent, size * work, extra=extra)
    nested = len(axes) > 2 and not apart
    outer = axes[:-2] if nested else axes[:-1]
    order = sorted(outer, key=lambda a: a.dimensions != (1,)) if apart else outer  # the batch first
    at = dict(zip(order, split_index(kernel, Affine.var("t"), [a.extent for a in order]), strict=True))
    digits = [at[a] for a in outer]
    if nested:
        with kernel.loop(0, axes[-2].extent) as i:
            block([*digits, i], Affine(), Affine.of(inner))
    else:
        block(digits, Affine(), Affine.of(inner))
    total = element_count(a.extent for a in axes[len(outer) :])
    extent = element_count(a.extent for a in outer)
    whole = len(stores) == len(cluster.outputs)
    count = slice_count(extent, shape) if whole and outer[0].dimensions[0] == 0 else 0
    slices = Slices(count, cluster.local_inputs(shape[0])) if count and not extra else None
    return cluster.kernel(kernel, extent, total * work, extra=extra, slices=slices)


@dataclass(frozen=True)
class _Store:
    """The destination of a value: a buffer of `shape`, from column `start` on."""

    value: Value
    buffer: str
    shape: Shape
    start: int = 0


def _stores(cluster: Cluster) -> list[_Store]:
    """The destinations of all results; operands of a `concatenate` go side by side into its buffer."""
    producers = cluster.region.producers()
    stores: list[_Store] = []
    for result, buffer in cluster.outputs.items():
        node = producers.get(result)
        if node is None or node.op != "concatenate":
            stores.append(_Store(result, buffer, result.type.shape))
            continue
        for i, part in enumerate(node.operands):
            width = part.type.shape[-1]
            assert isinstance(width, int)
            stores.append(_Store(part, buffer, result.type.shape, i * width))
    return stores


def _scalar(cluster: Cluster, kernel: KernelBuilder, stores: Sequence[_Store]) -> None:
    evaluator = cluster.evaluator(kernel)
    values = [evaluator.value(store.value, (Affine(),) * store.value.type.rank) for store in stores]
    for value, store in zip(values, stores, strict=True):
        kernel.store(store.buffer, Affine.of(store.start), value)
