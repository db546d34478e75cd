"""Schedule `moments`: mean and variance of every column in one pass over memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lepton_jit.codegen.kernels.blocked_fold import FOLD_BLOCK
from lepton_jit.codegen.kernels.cluster import SPLITS, Cluster, Planned, part_of, store_at, vector_loop
from lepton_jit.codegen.kernels.evaluate import LANE, Evaluator, Indices, Provider, tail_mask
from lepton_jit.codegen.kernels.schedule_map import schedule_map
from lepton_jit.codegen.loops.ir import I64, Affine, Atom, Buffer, Const, Var
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.codegen.target import Target
from lepton_jit.ir.types import Dim, DType, element_count, typical

Pair = tuple[Atom, Atom]  # a mean, and a sum of squares about it

# Rows of a block: more of them make merging rarer, and the bound on cancellation larger.
ROWS = 32
# Vectors of columns that are summed side by side.
COLUMN_VECTORS = 4


def schedule_moments(cluster: Cluster, target: Target) -> Planned:
    """Schedule parts of the rows side by side, each with a mean and a sum of squares; a second kernel merges them.

    Within a part, blocks of rows are merged in order as well, and so are blocks of blocks (Chan, Golub, LeVeque 1979,
    formulas 1.5a and 1.5b). A block squares distances to its own first row. That row is one of those whose spread is
    wanted, so the sum of squares is at most ROWS + 1 times the one about the mean, and subtracting loses no more than
    that, whatever the data.
    """
    (node,) = (n for n in cluster.region.nodes if n.op == "moments")
    (operand,) = node.operands
    *rows, columns = operand.type.shape
    plan = _Moments(cluster.inputs[operand], operand.type.dtype, element_count(rows), columns, cluster.lanes(target))
    scratch = [Buffer(name, plan.dtype, columns * SPLITS) for name in ("s0", "s1")]
    k = cluster.builder()
    k.buffers |= {b.name: b for b in scratch}
    plan.part(k)
    parts = cluster.kernel(k, SPLITS, typical(plan.rows) * typical(columns) // SPLITS, extra=scratch)
    providers = {v: plan.provider(i) for i, v in enumerate(node.results)}
    merged = schedule_map(replace(cluster, providers=providers), target, scratch)
    return (parts, merged), tuple((b.dtype, b.size) for b in scratch)


@dataclass(frozen=True)
class _Moments:
    """Writes the moments of a buffer of `rows` times `columns` elements."""

    buffer: str
    dtype: DType
    rows: Dim
    columns: Dim
    lanes: int

    def part(self, k: KernelBuilder) -> None:
        """Write mean and sum of squares of the rows of part t into s0 and s1."""
        part = Affine.var("t")
        begin, end = part_of(k, part, self.rows)
        if not isinstance(self.columns, int):
            for inner, mask in vector_loop(k, Affine(), Affine.of(self.columns), self.lanes):
                self._columns(k, part, begin, end, [inner - Affine.var(LANE)], mask)
            return
        step = COLUMN_VECTORS * self.lanes
        whole = self.columns - self.columns % step
        if whole:
            with k.loop(0, whole, step) as first:
                self._columns(k, part, begin, end, [first + i * self.lanes for i in range(COLUMN_VECTORS)], None)
        rest = [Affine.of(i) for i in range(whole, self.columns, self.lanes)]
        if rest:
            left = self.columns % self.lanes
            self._columns(k, part, begin, end, rest, tail_mask(k, left, self.lanes) if left else None)

    def _columns(
        self, k: KernelBuilder, part: Affine, begin: Var, end: Var, starts: Sequence[Affine], mask: Atom | None
    ) -> None:
        """Write those of neighbouring vectors of columns; `mask` is the last one's."""
        masks = [*([None] * (len(starts) - 1)), mask]
        zeros: list[Atom] = [Const(0, self.dtype, self.lanes)] * len(starts)

        def vectors(row: Affine) -> list[Atom]:
            where = [row * self.columns + start for start in starts]
            return [k.load(self.buffer, p, self.lanes, mask=m) for p, m in zip(where, masks, strict=True)]

        def block(row: Affine, stop: Affine, count: Atom) -> list[Pair]:
            origin = vectors(row)
            with k.carried_loop(row, stop, 1, [*zeros, *zeros]) as (i, totals, added):
                apart = [k.apply("subtract", x, o) for x, o in zip(vectors(i), origin, strict=True)]
                sums, squares = totals[: len(starts)], totals[len(starts) :]
                added[: len(starts)] = [k.apply("add", s, d) for s, d in zip(sums, apart, strict=True)]
                added[len(starts) :] = [k.apply("fma", d, d, s) for s, d in zip(squares, apart, strict=True)]
            sums = zip(origin, totals[: len(starts)], totals[len(starts) :], strict=True)
            return [_block(k, o, s, q, count) for o, s, q in sums]

        def merged(first: Affine, last: Affine, sizes: Sequence[int]) -> list[Pair]:
            """Merge the blocks of rows from `first` to `last`, those of the larger sizes from smaller ones."""
            *smaller, size = sizes
            with k.carried_loop(first, last, size, [*zeros, *zeros]) as (row, carried, following):
                stop = Affine.var(k.apply("minimum", k.index(row + size), k.index(last)).name)
                count, before = (k.convert(k.index(rows), self.dtype) for rows in (stop - row, row - first))
                found = merged(row, stop, smaller) if smaller else block(row, stop, count)
                old = zip(carried[: len(starts)], carried[len(starts) :], strict=True)
                pairs = [_merged(k, before, pair, count, new) for pair, new in zip(old, found, strict=True)]
                following[:] = [m for m, _ in pairs] + [s for _, s in pairs]
            return list(zip(carried[: len(starts)], carried[len(starts) :], strict=True))

        pairs = merged(Affine.var(begin.name), Affine.var(end.name), self._block_sizes())
        for pair, start, own in zip(pairs, starts, masks, strict=True):
            for buffer, value in zip(("s0", "s1"), pair, strict=True):
                store_at(k, buffer, part * self.columns + start + Affine.var(LANE), value, self.lanes, own)

    def _block_sizes(self) -> list[int]:
        """The rows of blocks, of blocks of blocks, and so on, so that few are merged one after the other."""
        sizes = [ROWS]
        while sizes[-1] * FOLD_BLOCK < typical(self.rows) // SPLITS:
            sizes.append(sizes[-1] * FOLD_BLOCK)
        return sizes

    def provider(self, result: int) -> Provider:
        """A provider of the mean (0) or the variance (1) of all rows, from the parts."""

        def total(evaluator: Evaluator, indices: Indices) -> Atom:
            k = evaluator.kernel
            bounds = [part_of(k, Affine.of(part), self.rows) for part in range(SPLITS)]
            position = indices[0]
            pair: Pair = (evaluator.load_at("s0", position), evaluator.load_at("s1", position))
            for part, (begin, end) in enumerate(bounds[1:], 1):
                before = k.convert(begin, self.dtype)
                count = k.convert(k.apply("subtract", end, begin), self.dtype)
                at = position + self.columns * part
                other = evaluator.load_at("s0", at), evaluator.load_at("s1", at)
                pair = _merged(k, before, pair, count, other)
            rows = k.index(Affine.of(self.rows))
            if result == 1:
                return k.apply("divide", pair[1], k.convert(rows, self.dtype))
            some = k.compare(rows, Const(0, I64), "GT")
            return k.select(some, pair[0], Const(math.nan, self.dtype))

        return total


def _block(k: KernelBuilder, origin: Atom, total: Atom, squares: Atom, count: Atom) -> Pair:
    """The mean and the sum of squares about it, from sums of distances to an origin, and of their squares."""
    mean = k.apply("divide", total, count)
    return k.apply("add", origin, mean), k.apply("subtract", squares, k.apply("multiply", total, mean))


def _merged(k: KernelBuilder, before: Atom, old: Pair, count: Atom, new: Pair) -> Pair:
    """Merge mean and sum of squares of `before` rows with those of `count` more; both may be 0."""
    mean, squares = old
    total = k.apply("maximum", k.apply("add", before, count), k.constant(1, count))
    weight = k.apply("divide", count, total)
    apart = k.apply("subtract", new[0], mean)
    merged = k.apply("fma", apart, weight, mean)
    spread = k.apply("multiply", k.apply("multiply", apart, apart), k.apply("multiply", before, weight))
    return merged, k.apply("add", k.apply("add", squares, new[1]), spread)
