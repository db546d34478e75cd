"""Schedules of reductions: rows that are read, reduced and written in one go, and sums over any dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lepton_jit.codegen.cluster import (
    SPLITS,
    Axis,
    Cluster,
    Planned,
    accesses_of,
    combined_parts,
    merge_dimensions,
    part_of,
    split_index,
    spread,
    store_at,
    vector_loop,
)
from lepton_jit.codegen.evaluate import LANE, Evaluator, Indices, linear, tail_mask
from lepton_jit.codegen.kernel_builder import KernelBuilder, identity_of
from lepton_jit.codegen.loop_ir import Affine, Atom, Buffer, Kernel
from lepton_jit.codegen.schedule_map import schedule_map
from lepton_jit.codegen.target import Target
from lepton_jit.errors import UnsupportedError
from lepton_jit.ir.graph import Node
from lepton_jit.ir.types import Dim, DType, element_count, typical

# Rows of up to this many vectors are held in registers: read once, however often they are reduced.
HELD_VECTORS = 4
# Accumulators that a sum over rows keeps side by side.
COLUMN_VECTORS = 4
# A sum is cut into SPLITS parts, by its shape alone, where it is this long and few results could run in parallel.
LONG_SUM = 4096
FEW_RESULTS = 16

Located = list[tuple[Axis, Affine]]
Ranges = dict[Axis, tuple[Affine, Affine]]
Element = Callable[[Affine, Atom | None], Atom]  # (index with lanes, mask) -> value
Store = Callable[[Atom, Located, int, Atom | None], None]  # (value, where, lanes, mask)


def schedule_reduce(cluster: Cluster, target: Target) -> Planned:
    """The kernels of a cluster with reductions."""
    reduces = [n for n in cluster.region.nodes if n.op == "reduce"]
    if is_row_cluster(cluster):
        return (_rows(cluster, reduces, target),), ()
    if len(reduces) > 1:
        raise UnsupportedError(f"layer {cluster.layer!r}: a kernel holds one reduction that is not over rows")
    return _Reduction(cluster, reduces[0], target).planned()


def is_row_cluster(cluster: Cluster) -> bool:
    """All reductions run over the last dimension of the same shape, and results have that shape or that of its rows."""
    reduces = [n for n in cluster.region.nodes if n.op == "reduce"]
    full = reduces[0].operands[0].type.shape
    if any(n.operands[0].type.shape != full or n.attributes["dimensions"] != (len(full) - 1,) for n in reduces):
        return False
    shapes = [v.type.shape for v in cluster.outputs]
    if len(reduces) == 1 and all(shape != full for shape in shapes):
        return False  # a plain sum: the general schedule knows how to split it
    return all(shape in (full, full[:-1]) for shape in shapes)


def _rows(cluster: Cluster, reduces: Sequence[Node], target: Target) -> Kernel:
    """For each row: the reductions in order, each a pass over the row, then a pass that writes the results."""
    full = reduces[0].operands[0].type.shape
    length = full[-1]
    lanes = cluster.lanes(target)
    k = cluster.builder()
    row = tuple(split_index(k, Affine.var("t"), full[:-1]))
    bound: dict[Any, Atom] = {}

    def evaluator(mask: Atom | None) -> Evaluator:
        made = cluster.evaluator(k, lanes, mask)
        made.bound = bound
        return made

    held = isinstance(length, int) and length <= HELD_VECTORS * lanes
    for node in reduces:
        (operand,) = node.operands
        kind = str(node.attributes["kind"])

        def element(inner: Affine, mask: Atom | None, value=operand) -> Atom:
            return evaluator(mask).value(value, (*row, inner))

        total = fold_vector(k, kind, operand.type.dtype, length, lanes, element, held)
        bound[node.result] = k.horizontal(kind, total)
    for value, buffer in cluster.outputs.items():
        if value.type.rank < len(full):
            scalar = cluster.evaluator(k)
            scalar.bound = bound
            k.store(buffer, linear(row, full[:-1]), scalar.value(value, row))
    wide = [(v, b) for v, b in cluster.outputs.items() if v.type.rank == len(full)]
    if wide:
        blocks = _held_blocks(k, length, lanes) if held else vector_loop(k, Affine(), Affine.of(length), lanes)
        for inner, mask in blocks:
            values = [evaluator(mask).value(v, (*row, inner)) for v, _ in wide]
            for value, (_, buffer) in zip(values, wide, strict=True):
                store_at(k, buffer, linear((*row, inner), full), value, lanes, mask)
    work = typical(length) * len(cluster.region.nodes)
    return cluster.kernel(k, element_count(full[:-1]), work)


def _held_blocks(k: KernelBuilder, length: Dim, lanes: int) -> list[tuple[Affine, Atom | None]]:
    """The vectors of a short row, written out."""
    assert isinstance(length, int)
    blocks: list[tuple[Affine, Atom | None]] = []
    for start in range(0, length, lanes):
        left = length - start
        mask = tail_mask(k, left, lanes) if left < lanes else None
        blocks.append((Affine.of(start) + Affine.var(LANE), mask))
    return blocks


def fold_vector(
    k: KernelBuilder,
    kind: str,
    dtype: DType,
    length: Affine | Dim,
    lanes: int,
    element: Element,
    held: bool,
    init: Atom | None = None,
) -> Atom:
    """Combine `element(inner, mask)` over 0..length, lane by lane."""
    neutral = identity_of(kind, dtype)
    total: Atom = init or replace(neutral, lanes=lanes)
    count = Affine.of(length)
    static = count.constant if not count.terms and isinstance(count.constant, int) else None

    def masked(inner: Affine, mask: Atom, total: Atom) -> Atom:
        return k.apply(kind, total, k.select(mask, element(inner, mask), neutral))

    if held and static is not None:
        for inner, mask in _held_blocks(k, static, lanes):
            total = k.apply(kind, total, element(inner, None)) if mask is None else masked(inner, mask, total)
        return total
    if static is not None:
        rest = Affine.of(static % lanes)
    else:
        rest = Affine.var(k.apply("modulo", k.index(count), k.index(Affine.of(lanes))).name)
    full = count - rest
    if full != Affine():
        with k.carried_loop(Affine(), full, lanes, [total]) as (i, (carried,), following):
            following[0] = k.apply(kind, carried, element(i + Affine.var(LANE), None))
        total = carried
    if rest == Affine():
        return total
    return masked(full + Affine.var(LANE), tail_mask(k, rest, lanes), total)


@dataclass
class _Reduction:
    """One reduction over any dimensions, with the operations around it."""

    cluster: Cluster
    node: Node
    target: Target

    def planned(self) -> Planned:
        node, cluster = self.node, self.cluster
        (self.operand,) = node.operands
        self.shape = self.operand.type.shape
        self.kind = str(node.attributes["kind"])
        self.dtype = self.operand.type.dtype
        reduced: Any = node.attributes["dimensions"]
        self.reduced_dims = set(reduced)
        apart = [d in self.reduced_dims for d in range(len(self.shape))]
        accesses = accesses_of(cluster, [self.operand], len(self.shape))
        self.axes = merge_dimensions(self.shape, accesses, apart)
        self.kept = [a for a in self.axes if a.dimensions[0] not in self.reduced_dims]
        self.reduced = [a for a in self.axes if a.dimensions[0] in self.reduced_dims]
        self.lanes = cluster.lanes(self.target)
        # columns: the innermost dimension stays, so its vectors are summed side by side
        self.columns = self.kept[-1] if self.axes and self.axes[-1] in self.kept else None
        around = [a for a in self.kept if a is not self.columns]
        self.around = around
        results = typical(element_count(a.extent for a in around))
        length = typical(element_count(a.extent for a in self.reduced))
        if self.reduced and length >= LONG_SUM and results < FEW_RESULTS:
            return self._split()
        k = cluster.builder()
        positions = split_index(k, Affine.var("t"), [a.extent for a in around])
        located = list(zip(around, positions, strict=True))
        whole = {a: (Affine(), Affine.of(a.extent)) for a in self.reduced}
        self._results(k, located, whole, self._store_outputs(k))
        return (cluster.kernel(k, element_count(a.extent for a in around), self._work()),), ()

    def _work(self) -> Dim:
        length = typical(element_count(a.extent for a in self.reduced))
        width = typical(self.columns.extent) if self.columns else 1
        return length * width * len(self.cluster.region.nodes) // 4

    def _indices(self, located: Sequence[tuple[Axis, Affine]]) -> Indices:
        return spread([a for a, _ in located], [p for _, p in located], len(self.shape))

    def _result_indices(self, located: Sequence[tuple[Axis, Affine]]) -> Indices:
        indices = self._indices(located)
        return tuple(i for d, i in enumerate(indices) if d not in self.reduced_dims)

    def _results(self, k: KernelBuilder, located: Located, ranges: Ranges, store: Store) -> None:
        """Compute the reduction at the located results; `store(value, located, lanes, mask)` writes them."""
        if self.columns is None:
            value = k.horizontal(self.kind, self._row(k, located, ranges))
            store(value, located, 1, None)
            return
        extent = self.columns.extent
        step = self.lanes * COLUMN_VECTORS
        if isinstance(extent, int):
            whole = extent - extent % step
            if whole:
                with k.loop(0, whole, step) as i:
                    self._column_group(
                        k, located, ranges, [i + v * self.lanes for v in range(COLUMN_VECTORS)], None, store
                    )
            rest = [whole + v for v in range(0, extent % step, self.lanes)]
            if rest:
                left = extent - rest[-1]
                mask = tail_mask(k, left, self.lanes) if left < self.lanes else None
                self._column_group(k, located, ranges, [Affine.of(s) for s in rest], mask, store)
            return
        for inner, mask in vector_loop(k, Affine(), Affine.of(extent), self.lanes):
            self._column_group(k, located, ranges, [inner - Affine.var(LANE)], mask, store)

    def _column_group(
        self,
        k: KernelBuilder,
        located: Located,
        ranges: Ranges,
        starts: list[Affine],
        mask: Atom | None,
        store: Store,
    ) -> None:
        """Neighbouring vectors of results, summed in one walk over the reduced dimensions; `mask` is the last one's."""
        assert self.columns is not None
        init: Atom = replace(identity_of(self.kind, self.dtype), lanes=self.lanes)
        masks = [None] * (len(starts) - 1) + [mask]

        def level(depth: int, totals: list[Atom], inner: Located) -> list[Atom]:
            if depth == len(self.reduced):
                values = []
                for start, own, total in zip(starts, masks, totals, strict=True):
                    assert self.columns is not None
                    where = [*located, *inner, (self.columns, start + Affine.var(LANE))]
                    value = self.cluster.evaluator(k, self.lanes, own).value(self.operand, self._indices(where))
                    values.append(k.apply(self.kind, total, value))
                return values
            axis = self.reduced[depth]
            with k.carried_loop(*ranges[axis], 1, totals) as (i, carried, following):
                following[:] = level(depth + 1, list(carried), [*inner, (axis, i)])
            return list(carried)

        for start, own, total in zip(starts, masks, level(0, [init] * len(starts), []), strict=True):
            store(total, [*located, (self.columns, start + Affine.var(LANE))], self.lanes, own)

    def _row(self, k: KernelBuilder, located: Located, ranges: Ranges) -> Atom:
        """Lane-wise sums along the innermost dimension, over all reduced ones."""
        if not self.reduced:
            return self.cluster.evaluator(k).value(self.operand, self._indices(located))
        *outer, last = self.reduced
        init: Atom = replace(identity_of(self.kind, self.dtype), lanes=self.lanes)

        def level(depth: int, total: Atom, inner: Located) -> Atom:
            if depth < len(outer):
                axis = outer[depth]
                with k.carried_loop(*ranges[axis], 1, [total]) as (i, (carried,), following):
                    following[0] = level(depth + 1, carried, [*inner, (axis, i)])
                return carried
            start, stop = ranges[last]

            def element(i: Affine, mask: Atom | None) -> Atom:
                where = self._indices([*located, *inner, (last, start + i)])
                return self.cluster.evaluator(k, self.lanes, mask).value(self.operand, where)

            return fold_vector(k, self.kind, self.dtype, stop - start, self.lanes, element, False, total)

        return level(0, init, [])

    def _store_outputs(self, k: KernelBuilder) -> Store:
        """Writes what the region makes of a reduced value."""

        def store(value: Atom, located: Located, lanes: int, mask: Atom | None) -> None:
            evaluator = self.cluster.evaluator(k, lanes, mask)
            evaluator.bound[self.node.result] = value
            indices = self._result_indices(located)
            results = [evaluator.value(v, indices) for v in self.cluster.outputs]
            for result, (v, buffer) in zip(results, self.cluster.outputs.items(), strict=True):
                _put(k, buffer, linear(indices, v.type.shape), result, lanes, mask)

        return store

    def _split(self) -> Planned:
        """Parts of the outermost reduced dimension side by side; a second kernel combines them in order."""
        cluster, node = self.cluster, self.node
        elements = node.result.type.elements
        scratch = Buffer("s0", self.dtype, elements * SPLITS)
        k = cluster.builder()
        k.buffers["s0"] = scratch
        part, *positions = split_index(k, Affine.var("t"), [SPLITS, *(a.extent for a in self.around)])
        located = list(zip(self.around, positions, strict=True))
        first = self.reduced[0]
        begin, end = part_of(k, part, first.extent)
        ranges = {a: (Affine(), Affine.of(a.extent)) for a in self.reduced}
        ranges[first] = (Affine.var(begin.name), Affine.var(end.name))

        def store(value: Atom, located: Located, lanes: int, mask: Atom | None) -> None:
            position = linear(self._result_indices(located), node.result.type.shape)
            _put(k, "s0", position + part * elements, value, lanes, mask)

        self._results(k, located, ranges, store)
        extent = element_count(a.extent for a in self.around) * SPLITS
        parts = cluster.kernel(k, extent, self._work() // SPLITS, extra=[scratch])

        combined = replace(cluster, providers={node.result: combined_parts(node.result, self.kind)})
        return (parts, schedule_map(combined, self.target, [scratch])), ((self.dtype, elements * SPLITS),)


def _put(k: KernelBuilder, buffer: str, position: Affine, value: Atom, lanes: int, mask: Atom | None) -> None:
    """Store a vector where the position has lanes, else a scalar."""
    if position.coefficient(LANE) == 0:
        k.store(buffer, position, value)
    else:
        store_at(k, buffer, position, value, lanes, mask)
