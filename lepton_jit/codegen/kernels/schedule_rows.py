"""Schedule row reductions, such as softmax: each row is read, reduced, and written in one go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lepton_jit.codegen.kernels.blocked_fold import first_totals
from lepton_jit.codegen.kernels.cluster import Cluster, side_by_side, split_index, store_at, vector_loop
from lepton_jit.codegen.kernels.evaluate import LANE, Evaluator, linear, tail_mask
from lepton_jit.codegen.kernels.fold import finished, fold_row
from lepton_jit.codegen.loops.ir import Affine, Atom, Kernel
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.types import Dim, element_count, typical

# Rows of up to this many vectors are unrolled: they are read once, and what is computed of them is computed once.
ROW_VECTORS = 32


def is_row_cluster(cluster: Cluster) -> bool:
    """Tell whether `schedule_rows` can compute it.

    All reductions have to run over the last dimension of one shape, and results to have that shape or that without its
    last dimension. A single reduction that gives no full row is left to the general schedule.
    """
    reduces = [n for n in cluster.region.nodes if n.op == "reduce"]
    full = reduces[0].operands[0].type.shape
    if any(n.operands[0].type.shape != full or n.attributes["dimensions"] != (len(full) - 1,) for n in reduces):
        return False
    shapes = [v.type.shape for v in cluster.outputs]
    if len(reduces) == 1 and all(shape != full for shape in shapes):
        return False  # a plain sum: the general schedule knows how to split it
    return all(shape in (full, full[:-1]) for shape in shapes)


def schedule_rows(cluster: Cluster, target: Target) -> Kernel:
    """Schedule, for each row, the reductions in order, those that need no other one together, and then the results."""
    rounds = _rounds(cluster.region)
    full = rounds[0][0].operands[0].type.shape
    length = full[-1]
    lanes = side_by_side(cluster.lanes(target), length)
    k = cluster.builder()
    row = tuple(split_index(k, Affine.var("t"), full[:-1]))
    bound: dict[Any, Atom] = {}

    def evaluator(mask: Atom | None) -> Evaluator:
        made = cluster.evaluator(k, lanes, mask)
        made.bound = bound
        return made

    held = isinstance(length, int) and length <= ROW_VECTORS * cluster.lanes(target)
    for nodes in rounds:
        operands = [n.operands[0] for n in nodes]
        kinds = [(str(n.attributes["kind"]), n.result.type.dtype) for n in nodes]

        def elements(inner: Affine, mask: Atom | None, wanted: Sequence[Value] = operands) -> list[Atom]:
            made = evaluator(mask)
            return [made.value(v, (*row, inner)) for v in wanted]

        totals = fold_row(k, kinds, length, lanes, elements, first_totals(kinds, lanes), held=held)
        bound |= zip((n.result for n in nodes), finished(k, kinds, totals), strict=True)
    scalar = cluster.evaluator(k)
    scalar.bound = bound
    narrow = [(scalar.value(v, row), buffer) for v, buffer in cluster.outputs.items() if v.type.rank < len(full)]
    for atom, buffer in narrow:  # behind all loads: one of them may read what lies where a result goes
        k.store(buffer, linear(row, full[:-1]), atom)
    wide = [(v, b) for v, b in cluster.outputs.items() if v.type.rank == len(full)]
    if wide:
        blocks = _written_out(k, length, lanes) if held else vector_loop(k, Affine(), Affine.of(length), lanes)
        for inner, mask in blocks:
            values = [evaluator(mask).value(v, (*row, inner)) for v, _ in wide]
            for value, (_, buffer) in zip(values, wide, strict=True):
                store_at(k, buffer, linear((*row, inner), full), value, lanes, mask)
    work = typical(length) * len(cluster.region.nodes)
    return cluster.kernel(k, element_count(full[:-1]), work)


def _rounds(region: Graph) -> list[list[Node]]:
    """The reductions in rounds, each in the first round behind those that its operand is computed from."""
    depth: dict[Value, int] = {}
    rounds: list[list[Node]] = []
    for node in region.nodes:
        needed = max((depth.get(v, 0) for v in node.operands), default=0)
        if node.op == "reduce":
            rounds += [[]] if needed == len(rounds) else []
            rounds[needed].append(node)
            needed += 1
        depth.update(dict.fromkeys(node.results, needed))
    return rounds


def _written_out(k: KernelBuilder, length: Dim, lanes: int) -> list[tuple[Affine, Atom | None]]:
    """The vectors of a short row: first index and mask."""
    assert isinstance(length, int)
    blocks: list[tuple[Affine, Atom | None]] = []
    for start in range(0, length, lanes):
        left = length - start
        mask = tail_mask(k, left, lanes) if left < lanes else None
        blocks.append((Affine.of(start) + Affine.var(LANE), mask))
    return blocks
