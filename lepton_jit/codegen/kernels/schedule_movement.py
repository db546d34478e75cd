"""Schedule movements that write parts of their result: concatenation, padding between elements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lepton_jit.codegen.kernels.cluster import Cluster, Planned, slice_count, split_index, store_at, vector_loop
from lepton_jit.codegen.kernels.evaluate import LANE, linear
from lepton_jit.codegen.kernels.schedule_map import schedule_map
from lepton_jit.codegen.loops.ir import Affine, Const, Kernel, Slices
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Node
from lepton_jit.ir.types import Dim, element_count


def schedule_concatenate(cluster: Cluster, target: Target) -> Planned:
    """Schedule one kernel an operand, into its part of the result; fused with their producers, it is one map."""
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
    """A kernel that copies rows: everything from `dimension` inwards is contiguous in the operand and in the result."""
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
    """Schedule a pad: around a tensor, by rows or as a map; between its elements, as a fill and a scattered copy."""
    node = next(n for n in cluster.region.nodes if n.op == "pad")
    interior: Any = node.attributes["interior"]
    if not any(interior):
        rows = _padded_rows(cluster, target, node)
        return (rows or schedule_map(cluster, target),), ()
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
    with k.loop(0, operand.type.shape[-1]) as i:
        last = i * (interior[-1] + 1) + low[-1]
        guard = _within(k, inside, last, shape[-1], low[-1], high[-1])
        value = value_of.value(operand, (*digits, i))
        k.store("o0", linear((*where, last), shape), value, mask=guard)
    copy = cluster.kernel(k, element_count(operand.type.shape[:-1]), operand.type.shape[-1])
    return (schedule_map(fill, target), copy), ()


def _padded_rows(cluster: Cluster, target: Target, node: Node) -> Kernel | None:
    """The kernel of a pad by itself, with rows from the last padded dimension inwards, or None where that fails.

    A row is a fill, a copy and a fill, or all fill, and takes half the time of a map with a guard for each element.
    """
    (operand, padding), shape = node.operands, node.result.type.shape
    low: Any = node.attributes["low"]
    high: Any = node.attributes["high"]
    alone = operand in cluster.inputs and list(cluster.outputs) == [node.result]
    if not alone or not all(isinstance(n, int) and n >= 0 for n in (*low, *high)) or not any((*low, *high)):
        return None
    last = max(d for d in range(len(shape)) if low[d] or high[d])
    if not all(isinstance(n, int) for n in shape[last:]):
        return None
    k = cluster.builder()
    lanes = cluster.lanes(target)
    step = element_count(shape[last + 1 :])
    row, begin, size = step * shape[last], step * low[last], step * operand.type.shape[last]
    outer = split_index(k, Affine.var("t"), shape[:last])
    places = [i - n for i, n in zip(outer, low, strict=False)]
    source = linear((*places, *[Affine()] * (len(shape) - last)), operand.type.shape)

    def fill(start: Dim, stop: Dim) -> None:
        for i, mask in vector_loop(k, Affine.of(start), Affine.of(stop), lanes):
            value = cluster.evaluator(k, lanes, mask).value(padding, ())
            store_at(k, "o0", Affine.var("t") * row + i, value, lanes, mask)

    def copy() -> None:
        fill(0, begin)
        for i, mask in vector_loop(k, Affine(), Affine.of(size), lanes):
            value = k.load(cluster.inputs[operand], source + i - Affine.var(LANE), lanes, 1, mask)
            store_at(k, "o0", Affine.var("t") * row + begin + i, value, lanes, mask)
        fill(begin + size, row)

    inside = None
    for place, extent, lo, hi in zip(places, operand.type.shape, low, high, strict=False):
        for bound, relation, present in ((0, "GE", lo), (extent, "LT", hi)):
            if present:
                check = k.compare(k.index(place), k.index(Affine.of(bound)), relation)
                inside = check if inside is None else k.apply("and", inside, check)
    if inside is None:
        copy()
    else:
        with k.when(inside):
            copy()
        with k.otherwise():
            fill(0, row)
    extent = element_count(shape[:last])
    count = slice_count(extent, shape) if low[0] == high[0] == 0 else 0
    slices = Slices(count, cluster.local_inputs(shape[0])) if count else None
    return cluster.kernel(k, extent, row, slices=slices)


def _within(k, inside, index: Affine, size: Dim, low: int, high: int):
    """The condition `inside` and 0 <= index < size, as far as negative padding leaves a doubt."""
    checks = []
    if low < 0:
        checks.append(k.compare(k.index(index), Const(0, k.index(index).dtype), "GE"))
    if high < 0:
        checks.append(k.compare(k.index(index), k.index(Affine.of(size)), "LT"))
    for check in checks:
        inside = check if inside is None else k.apply("and", inside, check)
    return inside
