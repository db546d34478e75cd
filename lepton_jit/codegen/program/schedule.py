"""Choose the schedule of a node by what its region contains."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from lepton_jit.codegen.contraction.schedule_contraction import computes_parts, finishes_in_place, schedule_contraction
from lepton_jit.codegen.contraction.schedule_pack import schedule_pack
from lepton_jit.codegen.kernels.cluster import Cluster, Planned, cluster_of
from lepton_jit.codegen.kernels.evaluate import linear
from lepton_jit.codegen.kernels.schedule_indexing import schedule_scatter_add
from lepton_jit.codegen.kernels.schedule_map import schedule_map
from lepton_jit.codegen.kernels.schedule_moments import schedule_moments
from lepton_jit.codegen.kernels.schedule_movement import schedule_concatenate, schedule_pad
from lepton_jit.codegen.kernels.schedule_reduce import schedule_reduce
from lepton_jit.codegen.kernels.schedule_rows import is_row_cluster
from lepton_jit.codegen.kernels.schedule_scatter import schedule_scatter
from lepton_jit.codegen.kernels.schedule_window import schedule_depthwise, schedule_pooling
from lepton_jit.codegen.loops.ir import Affine, Atom, Const, Kernel, Let, Load, walk
from lepton_jit.codegen.target import Target
from lepton_jit.codegen.winograd.schedule_winograd import (
    schedule_winograd_input,
    schedule_winograd_kernel,
    schedule_winograd_output,
)
from lepton_jit.codegen.winograd.schedule_winograd_blocks import schedule_winograd_blocks
from lepton_jit.ir.graph import Graph, Input, Node, Output, Value
from lepton_jit.ir.op import traits_of
from lepton_jit.ir.types import Dim, DType


@dataclass(frozen=True)
class Schedule:
    """The kernels of one node, which have one frame: operands, results, scratch."""

    op: str
    operands: tuple[Value, ...]
    kernels: tuple[Kernel, ...]
    scratch: tuple[tuple[DType, Dim], ...] = ()


def schedule(node: Node, target: Target, unpacked: Mapping[Value, Value] | None = None) -> Schedule:
    """Schedule a node. `unpacked` maps packed B to the tensors that they were packed from."""
    cluster, operands = cluster_of(node)
    if unpacked:
        cluster, operands = _with_unpacked(cluster, operands, unpacked)
    ops = [n.op for n in cluster.region.nodes]
    op = "+".join(n.op for n in cluster.region.nodes if traits_of(n).named_in_steps) or node.op
    if {"winograd_input", "winograd_output"} <= {*ops}:
        return Schedule(op, operands, *schedule_winograd_blocks(cluster, target))
    for key, scheduler in _SCHEDULES.items():
        if key in ops:
            kernels, scratch = scheduler(cluster, target)
            return Schedule(op, operands, kernels, scratch)
    return Schedule(op, operands, (schedule_map(cluster, target),))


def _with_unpacked(
    cluster: Cluster, operands: tuple[Value, ...], unpacked: Mapping[Value, Value]
) -> tuple[Cluster, tuple[Value, ...]]:
    """Add B of a contraction, as it was before it was packed, to the inputs of its kernels, which prefetch it."""
    contracted = (v for n in cluster.region.nodes if n.op == "affine_contraction" for v in n.operands)
    source = next((unpacked[v] for v in contracted if v in unpacked), None)
    if source is None:
        return cluster, operands
    if source in operands:
        return replace(cluster, unpacked=source), operands
    region = replace(cluster.region, inputs=(*cluster.region.inputs, Input(source, source.name)))
    return replace(cluster, region=region, unpacked=source), (*operands, source)


Scheduler = Callable[[Cluster, Target], Planned]
_SCHEDULES: dict[str, Scheduler] = {
    "affine_contraction": schedule_contraction,
    "convolution": schedule_depthwise,
    "moments": schedule_moments,
    "reduce": schedule_reduce,
    "reduce_window": schedule_pooling,
    "select_and_scatter": schedule_scatter,
    "scatter_add": schedule_scatter_add,
    "concatenate": schedule_concatenate,
    "pack": schedule_pack,
    "winograd_input": schedule_winograd_input,
    "winograd_kernel": schedule_winograd_kernel,
    "winograd_output": schedule_winograd_output,
    "pad": schedule_pad,
}

# Whether the kernel loads what its epilogue adds only where it stores the result.
_FINISHES_IN_PLACE: dict[str, Callable[[Cluster, Target], bool]] = {
    "affine_contraction": finishes_in_place,
    "winograd_output": lambda cluster, target: True,
}


def replaces(node: Node, operand: Value, target: Target) -> bool:
    """Tell whether the result of a contraction may replace an operand of its epilogue, a residual."""
    cluster, operands = cluster_of(node)
    *before, inner = [n for n in cluster.region.nodes if n.op in _SCHEDULES] or [node]
    finishes = _FINISHES_IN_PLACE.get(inner.op)
    if finishes is None:
        return False
    read = {v for n in (*before, inner) for v in n.operands}.difference(*(n.results for n in before))
    entry = cluster.inputs[cluster.region.inputs[operands.index(operand)].value]
    (result,) = cluster.outputs
    after = _loads(cluster, (result,), entry, {inner.result: Const(0, inner.result.type.dtype)})
    if _loads(cluster, read, entry) or not _all_here(after, result):
        return False
    return finishes(cluster, target)


def writes_apart(node: Node, placed: Node, target: Target) -> bool:
    """Tell whether a contraction, and the same one as `placed`, may write into a part of a larger tensor."""
    return computes_parts(cluster_of(node)[0], target) and computes_parts(cluster_of(placed)[0], target)


def reads_in_place(node: Node, operand: Value) -> bool:
    """Tell whether each element of `operand` is read only before the same element of every result is written.

    Kernels of row reductions read a row to its end before they write it.
    """
    if node.op == "scan":
        return False
    cluster, operands = cluster_of(node)
    entry = cluster.inputs[cluster.region.inputs[operands.index(operand)].value]
    scheduled = [n for n in cluster.region.nodes if n.op in _SCHEDULES]
    by_rows = {n.op for n in scheduled} == {"reduce"} and is_row_cluster(cluster)
    bound: dict[Value, Atom] = {}
    for inner in scheduled:
        loads = _loads(cluster, inner.operands, entry, bound)
        if not (inner.op == "scatter_add" and not loads) and not (by_rows and _all_here(loads, inner.operands[0])):
            return False
        bound[inner.result] = Const(0, inner.result.type.dtype)  # each element is finished before it is written
    largest = max(cluster.outputs, key=lambda v: v.type.rank)
    return _all_here(_loads(cluster, cluster.outputs, entry, bound), largest)


def _all_here(loads: Iterable[Load], value: Value) -> bool:
    """Tell whether all loads read where the same element of `value` lies."""
    here = linear(tuple(Affine.var(f"d{i}") for i in range(value.type.rank)), value.type.shape)
    return all(load.index == here for load in loads)


def _loads(
    cluster: Cluster, values: Iterable[Value], buffer: str, bound: Mapping[Value, Atom] | None = None
) -> list[Load]:
    """The loads of a buffer that computing an element of each value takes."""
    builder = cluster.builder()
    evaluator = cluster.evaluator(builder)
    evaluator.bound |= bound or {}
    for value in values:
        evaluator.value(value, tuple(Affine.var(f"d{i}") for i in range(value.type.rank)))
    loads = [s.expr for s in walk(builder.statements) if isinstance(s, Let) and isinstance(s.expr, Load)]
    return [load for load in loads if load.buffer == buffer]


def copy_kernel(value: Value, target: Target) -> Kernel:
    """The kernel that copies one buffer into another."""
    region = Graph("copy", (Input(value, value.name),), (), (Output(value, value.name),))
    return schedule_map(Cluster(region), target)
