"""Schedule reductions over any dimensions, several at once where they read the same."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lepton_jit.codegen.kernels.blocked_fold import Kinds, combined, first_totals, fold_loop
from lepton_jit.codegen.kernels.cluster import (
    SPLITS,
    Axis,
    Cluster,
    Planned,
    accesses_of,
    combined_parts,
    merge_dimensions,
    part_of,
    side_by_side,
    split_index,
    spread,
    store_at,
    vector_loop,
)
from lepton_jit.codegen.kernels.evaluate import LANE, Indices, Provider, linear, tail_mask
from lepton_jit.codegen.kernels.fold import finished, fold_row
from lepton_jit.codegen.kernels.schedule_map import schedule_map
from lepton_jit.codegen.kernels.schedule_rows import is_row_cluster, schedule_rows
from lepton_jit.codegen.loops.ir import Affine, Atom, Buffer, Const
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.codegen.target import Target
from lepton_jit.errors import UnsupportedError
from lepton_jit.ir.graph import Node
from lepton_jit.ir.types import Dim, element_count, typical

# Vectors of results that a sum over rows computes side by side.
COLUMN_VECTORS = 4
# A sum is split into SPLITS parts, by its shape alone, where it is this long and few results could run in parallel.
SPLIT_SUM_LEAST = 4096
FEW_RESULTS = 16

Located = list[tuple[Axis, Affine]]
Ranges = dict[Axis, tuple[Affine, Affine]]
Store = Callable[[Sequence[Atom], Located, int, Atom | None], None]  # (values, where, lanes, mask)


def schedule_reduce(cluster: Cluster, target: Target) -> Planned:
    """Schedule a cluster with reductions."""
    if is_row_cluster(cluster):
        return (schedule_rows(cluster, target),), ()
    reduces = [n for n in cluster.region.nodes if n.op == "reduce"]
    if len({(n.operands[0].type.shape, n.attributes["dimensions"]) for n in reduces}) > 1:
        raise UnsupportedError(f"layer {cluster.layer!r}: a kernel reduces one shape, over the same dimensions")
    return _Reduction(cluster, reduces, target).planned()


def _zero(node: Node) -> Provider:
    dtype = node.result.type.dtype
    return lambda evaluator, indices: Const(0, dtype)


@dataclass
class _Reduction:
    """Writes reductions of one shape over the same dimensions, with the operations around them."""

    cluster: Cluster
    nodes: Sequence[Node]
    target: Target

    def planned(self) -> Planned:
        cluster, first = self.cluster, self.nodes[0]
        self.operands = [n.operands[0] for n in self.nodes]
        self.shape = self.operands[0].type.shape
        self.kinds = [(str(n.attributes["kind"]), n.result.type.dtype) for n in self.nodes]
        reduced: Any = first.attributes["dimensions"]
        self.reduced_dims = set(reduced)
        apart = [d in self.reduced_dims for d in range(len(self.shape))]
        self.axes = merge_dimensions(self.shape, self._accesses(), apart)
        self.kept = [a for a in self.axes if a.dimensions[0] not in self.reduced_dims]
        self.reduced = [a for a in self.axes if a.dimensions[0] in self.reduced_dims]
        self.lanes = cluster.lanes(self.target)
        # columns: the innermost dimension stays, so its vectors are summed side by side
        self.columns = self.kept[-1] if self.axes and self.axes[-1] in self.kept else None
        around = [a for a in self.kept if a is not self.columns]
        self.around = around
        results = typical(element_count(a.extent for a in around))
        length = typical(element_count(a.extent for a in self.reduced))
        if self.reduced and length >= SPLIT_SUM_LEAST and results < FEW_RESULTS:
            return self._split()
        k = cluster.builder()
        positions = split_index(k, Affine.var("t"), [a.extent for a in around])
        located = list(zip(around, positions, strict=True))
        whole = {a: (Affine(), Affine.of(a.extent)) for a in self.reduced}
        self._results(k, located, whole, self._store_outputs(k))
        return (cluster.kernel(k, element_count(a.extent for a in around), self._work()),), ()

    def _accesses(self) -> list[tuple[Dim, ...]]:
        """The steps in every dimension of what is reduced, for reads before the sums and for those after them."""
        rank = len(self.shape)
        sums = {n.result: _zero(n) for n in self.nodes}
        outputs = [o.value for o in self.cluster.region.outputs]
        after = accesses_of(replace(self.cluster, providers=sums), outputs, rank - len(self.reduced_dims))
        kept = [d for d in range(rank) if d not in self.reduced_dims]
        spread_out = [dict(zip(kept, steps, strict=True)) for steps in after]
        before = accesses_of(self.cluster, self.operands, rank)
        return [*before, *(tuple(steps.get(d, 0) for d in range(rank)) for steps in spread_out)]

    def _work(self) -> Dim:
        length = typical(element_count(a.extent for a in self.reduced))
        width = typical(self.columns.extent) if self.columns else 1
        return length * width * len(self.cluster.region.nodes) // 4

    def _indices(self, located: Sequence[tuple[Axis, Affine]]) -> Indices:
        return spread([a for a, _ in located], [p for _, p in located], len(self.shape))

    def _result_indices(self, located: Sequence[tuple[Axis, Affine]]) -> Indices:
        indices = self._indices(located)
        return tuple(i for d, i in enumerate(indices) if d not in self.reduced_dims)

    def _values(self, k: KernelBuilder, located: Located, lanes: int = 1, mask: Atom | None = None) -> list[Atom]:
        """Compute one element of each operand."""
        evaluator, indices = self.cluster.evaluator(k, lanes, mask), self._indices(located)
        return [evaluator.value(v, indices) for v in self.operands]

    def _results(self, k: KernelBuilder, located: Located, ranges: Ranges, store: Store) -> None:
        """Compute the reductions at some results; `store(values, located, lanes, mask)` writes them."""
        if self.columns is None:
            store(self._row(k, located, ranges), located, 1, None)
            return
        extent = self.columns.extent
        step = self.lanes * COLUMN_VECTORS
        if isinstance(extent, int):
            whole = extent - extent % step
            if whole:
                with k.loop(0, whole, step) as i:
                    starts = [i + v * self.lanes for v in range(COLUMN_VECTORS)]
                    self._column_group(k, located, ranges, starts, None, store)
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
        """Sum neighbouring vectors of results in one walk over the reduced dimensions; `mask` is the last one's."""
        assert self.columns is not None
        columns = [(self.columns, start + Affine.var(LANE)) for start in starts]
        masks = [None] * (len(starts) - 1) + [mask]
        kinds = list(self.kinds) * len(columns)

        def add_element(totals: list[Atom], inner: Located) -> list[Atom]:
            values = []
            for column, own in zip(columns, masks, strict=True):
                values += self._values(k, [*located, *inner, column], self.lanes, own)
            return combined(k, kinds, totals, values)

        totals = self._nested(k, kinds, self.reduced, ranges, first_totals(kinds, self.lanes), add_element)
        count = len(self.kinds)
        for i, (column, own) in enumerate(zip(columns, masks, strict=True)):
            store(totals[i * count : (i + 1) * count], [*located, column], self.lanes, own)

    def _row(self, k: KernelBuilder, located: Located, ranges: Ranges) -> list[Atom]:
        """Reduce along the innermost dimension, and over all other reduced ones."""
        if not self.reduced:
            return self._values(k, located)
        *outer, last = self.reduced
        lanes = side_by_side(self.lanes, last.extent)
        start, stop = ranges[last]

        def add_row(totals: list[Atom], inner: Located) -> list[Atom]:
            def elements(i: Affine, mask: Atom | None) -> list[Atom]:
                return self._values(k, [*located, *inner, (last, start + i)], lanes, mask)

            return fold_row(k, self.kinds, stop - start, lanes, elements, totals, most=last.extent)

        terms = -(-typical(last.extent) // lanes)
        totals = self._nested(k, self.kinds, outer, ranges, first_totals(self.kinds, lanes), add_row, terms)
        return finished(k, self.kinds, totals)

    def _nested(
        self,
        k: KernelBuilder,
        kinds: Kinds,
        axes: Sequence[Axis],
        ranges: Ranges,
        totals: list[Atom],
        add: Callable[[list[Atom], Located], list[Atom]],
        terms: int = 1,
    ) -> list[Atom]:
        """Fold `add(totals, inner)` over some axes; it adds `terms` numbers to a total, one after the other."""

        def level(axes: Sequence[Axis], totals: list[Atom], inner: Located) -> list[Atom]:
            if not axes:
                return add(totals, inner)
            axis, *rest = axes
            each = terms * typical(element_count(a.extent for a in rest))
            return fold_loop(
                k, kinds, ranges[axis], 1, axis.extent, totals, lambda i, t: level(rest, t, [*inner, (axis, i)]), each
            )

        return level(axes, totals, [])

    def _store_outputs(self, k: KernelBuilder) -> Store:
        """A function that writes what the region makes of the reduced values."""

        def store(values: Sequence[Atom], located: Located, lanes: int, mask: Atom | None) -> None:
            evaluator = self.cluster.evaluator(k, lanes, mask)
            evaluator.bound.update({n.result: v for n, v in zip(self.nodes, values, strict=True)})
            indices = self._result_indices(located)
            results = [evaluator.value(v, indices) for v in self.cluster.outputs]
            for result, (v, buffer) in zip(results, self.cluster.outputs.items(), strict=True):
                _put(k, buffer, linear(indices, v.type.shape), result, lanes, mask)

        return store

    def _split(self) -> Planned:
        """Split the outermost reduced dimension into parts, side by side; a second kernel combines them in order."""
        cluster, result = self.cluster, self.nodes[0].result
        elements = result.type.elements
        scratch = [Buffer(f"s{i}", dtype, elements * SPLITS) for i, (_, dtype) in enumerate(self.kinds)]
        k = cluster.builder()
        k.buffers |= {b.name: b for b in scratch}
        part, *positions = split_index(k, Affine.var("t"), [SPLITS, *(a.extent for a in self.around)])
        located = list(zip(self.around, positions, strict=True))
        first = self.reduced[0]
        begin, end = part_of(k, part, first.extent)
        ranges = {a: (Affine(), Affine.of(a.extent)) for a in self.reduced}
        ranges[first] = (Affine.var(begin.name), Affine.var(end.name))

        def store(values: Sequence[Atom], located: Located, lanes: int, mask: Atom | None) -> None:
            position = linear(self._result_indices(located), result.type.shape)
            for value, buffer in zip(values, scratch, strict=True):
                _put(k, buffer.name, position + part * elements, value, lanes, mask)

        self._results(k, located, ranges, store)
        extent = element_count(a.extent for a in self.around) * SPLITS
        parts = cluster.kernel(k, extent, self._work() // SPLITS, extra=scratch)

        providers = {
            n.result: combined_parts(n.result, kind, b.name)
            for n, (kind, _), b in zip(self.nodes, self.kinds, scratch, strict=True)
        }
        combined = schedule_map(replace(cluster, providers=providers), self.target, scratch)
        return (parts, combined), tuple((b.dtype, b.size) for b in scratch)


def _put(k: KernelBuilder, buffer: str, position: Affine, value: Atom, lanes: int, mask: Atom | None) -> None:
    """Store a vector where the position has lanes, else a scalar."""
    if position.coefficient(LANE) == 0:
        k.store(buffer, position, value)
    else:
        store_at(k, buffer, position, value, lanes, mask)
