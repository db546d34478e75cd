"""Schedules of movements that write parts of their result: concatenation, padding between elements, packing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lepton_jit.codegen.cluster import Cluster, Planned, split_index, store_at, vector_loop
from lepton_jit.codegen.evaluate import LANE, linear
from lepton_jit.codegen.loop_ir import Affine, Const, Kernel
from lepton_jit.codegen.schedule_map import schedule_map
from lepton_jit.codegen.target import Target
from lepton_jit.ir.types import Dim, Shape, element_count, row_major


def schedule_concatenate(cluster: Cluster, target: Target) -> Planned:
    """One kernel an operand, into its part of the result; what is computed for parts of one shape is one map."""
    if len(cluster.region.nodes) > 1:
        return (schedule_map(cluster, target),), ()
    node = next(n for n in cluster.region.nodes if n.op == "concatenate")
    dimension: Any = node.attributes["dimension"]
    kernels = []
    start: Dim = 0
    for operand in node.operands:
        kernels.append(_copy_into(cluster, target, operand, start, dimension))
        start = start + operand.type.shape[dimension]
    return tuple(kernels), ()


def _copy_into(cluster: Cluster, target: Target, operand, start: Dim, dimension: int) -> Kernel:
    """Rows of everything from `dimension` inwards lie together in the operand and in the result."""
    shape = operand.type.shape
    inner = element_count(shape[dimension:])
    (result,) = cluster.outputs
    pitch = element_count(result.type.shape[dimension:])
    offset = element_count(shape[dimension + 1 :]) * start
    k = cluster.builder()
    lanes = target.lanes(8 * operand.type.dtype.bytes)
    outer = element_count(shape[:dimension])
    t = Affine.var("t")
    for i, mask in vector_loop(k, Affine(), Affine.of(inner), lanes):
        source = t * inner + i
        value = k.load(cluster.inputs[operand], source - Affine.var(LANE), lanes, 1, mask)
        store_at(k, "o0", t * pitch + offset + i, value, lanes, mask)
    return cluster.kernel(k, outer, inner)


def schedule_pad(cluster: Cluster, target: Target) -> Planned:
    """Padding around is a map; between elements, or with elements cut off, it is a fill and a scattered copy."""
    node = next(n for n in cluster.region.nodes if n.op == "pad")
    interior: Any = node.attributes["interior"]
    if not any(interior):
        return (schedule_map(cluster, target),), ()
    operand, padding = node.operands
    shape = node.result.type.shape
    low: Any = node.attributes["low"]
    high: Any = node.attributes["high"]
    fill = replace(cluster, providers={node.result: lambda e, i: e.value(padding, ())})
    k = cluster.builder()
    digits = split_index(k, Affine.var("t"), operand.type.shape[:-1])
    inside = None
    where: list[Affine] = []
    for d, digit in enumerate(digits):
        where.append(digit * (interior[d] + 1) + low[d])
        inside = _within(k, inside, where[d], shape[d], low[d], high[d])
    value_of = cluster.evaluator(k)
    with k.loop(0, operand.type.shape[-1]) if operand.type.rank else k.loop(0, 1) as i:
        last = i * (interior[-1] + 1) + low[-1]
        guard = _within(k, inside, last, shape[-1], low[-1], high[-1])
        value = value_of.value(operand, (*digits, i))
        k.store("o0", linear((*where, last), shape), value, mask=guard)
    copy = cluster.kernel(k, element_count(operand.type.shape[:-1]), operand.type.shape[-1])
    return (schedule_map(fill, target), copy), ()


def _within(k, inside, index: Affine, size: Dim, low: int, high: int):
    """`inside` and 0 <= index < size, as far as negative padding leaves a doubt."""
    checks = []
    if low < 0:
        checks.append(k.compare(k.index(index), Const(0, k.index(index).dtype), "GE"))
    if high < 0:
        checks.append(k.compare(k.index(index), k.index(Affine.of(size)), "LT"))
    for check in checks:
        inside = check if inside is None else k.apply("and", inside, check)
    return inside


def schedule_pack(cluster: Cluster, target: Target) -> Planned:
    """Panels of a contraction's right side: [batches...][panel][sums...][column], zeros behind the last column."""
    (node,) = cluster.region.nodes
    a: Any = node.attributes
    (operand,) = node.operands
    panel, columns = a["panel"], a["columns"]
    panels = -(-columns // panel)
    batches, sums = a["extents"][: a["batches"]], a["extents"][a["batches"] :]
    shape: Shape = node.result.type.shape
    strides = row_major(shape)
    k = cluster.builder()
    lanes = target.lanes(8 * operand.type.dtype.bytes)
    outer = [*batches, panels, *sums[:-1]]
    digits = split_index(k, Affine.var("t"), outer)
    inner = sums[-1] if sums else 1
    slices, which, places = digits[: len(batches)], digits[len(batches)], digits[len(batches) + 1 :]

    def fill(count: int) -> None:
        with k.loop(0, inner) as i:
            index = [*slices, *places, i] if sums else slices
            source = Affine.of(a["offset"]) + which * panel * a["column_stride"]
            target_index = which * strides[len(batches)]
            steps = [*strides[: len(batches)], *strides[len(batches) + 1 : -1]]
            for position, step, stride in zip(index, a["strides"], steps, strict=True):
                source, target_index = source + position * step, target_index + position * stride
            for j, mask in vector_loop(k, Affine(), Affine.of(count), lanes):
                at = source + (j - Affine.var(LANE)) * a["column_stride"]
                value = k.load("a0", at, lanes, a["column_stride"], mask)
                store_at(k, "o0", target_index + j, value, lanes, mask)
            if count < panel:
                for j, mask in vector_loop(k, Affine.of(count), Affine.of(panel), lanes):
                    store_at(k, "o0", target_index + j, Const(0, operand.type.dtype), lanes, mask)

    last = columns - (panels - 1) * panel
    if last == panel or panels == 1:
        fill(last)
    else:
        with k.when(k.compare(k.index(which), Const(panels - 1, k.index(which).dtype), "LT")):
            fill(panel)
        with k.otherwise():
            fill(last)
    return (cluster.kernel(k, element_count(outer), inner * panel),), ()
