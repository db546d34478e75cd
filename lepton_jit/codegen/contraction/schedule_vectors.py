"""Schedule contractions that fit no register tile in plain vectors: integers, odd strides, gradients by channel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lepton_jit.codegen.contraction.plan import ContractionDim, Plan
from lepton_jit.codegen.kernels.cluster import Planned, split_index, store_at, vector_loop
from lepton_jit.codegen.kernels.evaluate import LANE, Evaluator
from lepton_jit.codegen.loops.ir import Affine, Atom, Const
from lepton_jit.ir.types import element_count, typical

# Neighbouring rows and vectors that are summed side by side, since a single sum waits for its own additions.
ROWS_TOGETHER = 4
VECTORS_TOGETHER = 4

Located = list[tuple[ContractionDim, Affine]]


@dataclass(frozen=True)
class _Result:
    """One vector of results, or one result: the evaluator that has its lanes and mask, and its position."""

    evaluator: Evaluator
    located: Located


def schedule_vectors(plan: Plan) -> Planned:
    """Schedule a contraction in vectors: a few vectors of results at a time, each summed in order."""
    return _Vectors(plan).planned()


class _Vectors:
    def __init__(self, plan: Plan) -> None:
        self.plan, self.cluster = plan, plan.cluster
        self.k = plan.cluster.builder()
        loops = [x for x in (*plan.outer, *plan.columns) if x.extent != 1]
        self.vector = next((x for x in reversed(loops) if x.out == 1), None)
        rest = [x for x in loops if x is not self.vector]
        last = rest[-1] if rest and plan.sums else None
        held = last is not None and isinstance(last.extent, int) and 1 < last.extent <= ROWS_TOGETHER
        self.rows = last if held else None
        self.around = [x for x in rest if x is not self.rows]

    def planned(self) -> Planned:
        plan, k = self.plan, self.k
        extents = [x.extent for x in self.around]
        positions = list(zip(self.around, split_index(k, Affine.var("t"), extents), strict=True))
        rows: list[Located] = [positions]
        if self.rows is not None:
            assert isinstance(self.rows.extent, int)
            rows = [[*positions, (self.rows, Affine.of(i))] for i in range(self.rows.extent)]
        for columns in self._columns():
            results = [
                _Result(evaluator, [*row, *column]) for row, (evaluator, column) in itertools.product(rows, columns)
            ]
            sums = self._sums(results)
            for result, total in zip(results, sums, strict=True):
                self._store(result, total)
        held = [x for x in (self.vector, self.rows) if x is not None]
        work = typical(element_count(x.extent for x in (*plan.sums, *held)))
        return (self.cluster.kernel(k, element_count(extents), work, plan.flops),), ()

    def _columns(self) -> Iterator[list[tuple[Evaluator, Located]]]:
        """Yield the vectors that are summed together: several full ones, then one by one."""
        k, vector = self.k, self.vector
        if vector is None:
            yield [(self.cluster.evaluator(k), [])]
            return
        lanes = self.cluster.lanes(self.plan.target)
        whole = 0
        if isinstance(vector.extent, int) and self.plan.sums:
            step = VECTORS_TOGETHER * lanes
            whole = vector.extent - vector.extent % step
            if whole:
                evaluator = self.cluster.evaluator(k, lanes)
                with k.loop(0, whole, step) as i:
                    starts = [i + v * lanes + Affine.var(LANE) for v in range(VECTORS_TOGETHER)]
                    yield [(evaluator, [(vector, start)]) for start in starts]
        if whole == vector.extent:
            return
        for inner, mask in vector_loop(k, Affine.of(whole), Affine.of(vector.extent), lanes):
            yield [(self.cluster.evaluator(k, lanes, mask), [(vector, inner)])]

    def _sums(self, results: Sequence[_Result]) -> list[Atom]:
        """Compute the sums side by side; what two of them read in common is read once."""
        plan, k = self.plan, self.k
        starts = []
        for result in results:
            lhs, rhs = (Affine.of(plan.attributes[f"{side}_offset"]) for side in ("lhs", "rhs"))
            for loop, position in result.located:
                lhs, rhs = lhs + position * loop.lhs, rhs + position * loop.rhs
            starts.append((lhs, rhs))

        def level(depth: int, totals: list[Atom], lhs: Affine, rhs: Affine) -> list[Atom]:
            if depth == len(plan.sums):
                return [
                    self._product(result.evaluator, total, left + lhs, right + rhs)
                    for result, total, (left, right) in zip(results, totals, starts, strict=True)
                ]
            loop = plan.sums[depth]
            with k.carried_loop(0, loop.extent, 1, totals) as (i, carried, following):
                following[:] = level(depth + 1, list(carried), lhs + i * loop.lhs, rhs + i * loop.rhs)
            return list(carried)

        zeros: list[Atom] = [Const(0, plan.dtype, result.evaluator.lanes) for result in results]
        return level(0, zeros, Affine(), Affine())

    def _product(self, evaluator: Evaluator, total: Atom, lhs: Affine, rhs: Affine) -> Atom:
        x, y = evaluator.load_at(self.plan.lhs, lhs), evaluator.load_at(self.plan.rhs, rhs)
        if self.plan.dtype.is_float:
            return self.k.apply("fma", x, y, total)
        return self.k.apply("add", self.k.apply("multiply", x, y), total)

    def _store(self, result: _Result, total: Atom) -> None:
        lanes, mask = result.evaluator.lanes, result.evaluator.mask
        evaluator = self.cluster.evaluator(self.k, lanes, mask)
        evaluator.bound[self.plan.node.result] = total
        indices = self.plan.indices(result.located)
        values = [evaluator.value(v, indices) for v in self.cluster.outputs]
        position = Affine()
        for loop, where in result.located:
            position = position + where * loop.out
        for value, buffer in zip(values, self.cluster.outputs.values(), strict=True):
            if lanes > 1:
                store_at(self.k, buffer, position, value, lanes, mask)
            else:
                self.k.store(buffer, position, value)
