"""Schedule `select_and_scatter`, the gradient of max pooling: walk the windows of one image, in order."""

from __future__ import annotations

import itertools
from typing import Any

from lepton_jit.codegen.kernels.cluster import Cluster, Planned, split_index, store_at, vector_loop
from lepton_jit.codegen.kernels.evaluate import LANE, Evaluator, inside_bounds, linear
from lepton_jit.codegen.loops.ir import I64, Affine, Atom, Const, Kernel
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder, identity_of
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Node
from lepton_jit.ir.types import DTYPES, DType, element_count, typical


def schedule_scatter(cluster: Cluster, target: Target) -> Planned:
    """Schedule windows that tile their operand to write each element once; others add to a cleared result."""
    plan = _Scatter(cluster, target)
    return (plan.tiling() if tiles_operand(plan.node) else plan.adding(),), ()


def tiles_operand(node: Node) -> bool:
    """Tell whether no element lies in two windows, and no window reaches into padding."""
    a: Any = node.attributes
    return a["window"] == a["strides"] and not any(low or high for low, high in a["padding"])


class _Scatter:
    def __init__(self, cluster: Cluster, target: Target) -> None:
        self.cluster = cluster
        (self.node,) = (n for n in cluster.region.nodes if n.op == "select_and_scatter")
        self.operand, self.source = self.node.operands
        self.shape = self.operand.type.shape
        self.windows = self.source.type.shape
        a: Any = self.node.attributes
        self.window, self.strides, self.padding = a["window"], a["strides"], a["padding"]
        rank = len(self.shape)
        trivial = [self.window[d] == 1 and self.strides[d] == 1 and self.padding[d] == (0, 0) for d in range(rank)]
        self.vector = rank - 1 if rank and trivial[-1] else None
        self.outer = list(itertools.takewhile(lambda d: trivial[d] and d != self.vector, range(rank)))
        self.inner = [d for d in range(rank) if d not in self.outer and d != self.vector]
        self.lanes = cluster.lanes(target) if self.vector is not None else 1

    def tiling(self) -> Kernel:
        """The kernel for windows that tile: an iteration has one index of the outer dimensions.

        It writes the windows first, then what no window covers.
        """
        k = self.cluster.builder()
        outer = dict(zip(self.outer, split_index(k, Affine.var("t"), [self.shape[d] for d in self.outer]), strict=True))
        whole = {d: (Affine(), Affine.of(self.windows[d])) for d in self.inner}
        self._over(k, self.inner, whole, outer, self._tile)
        for n, d in enumerate(self.inner):
            covered = [self.windows[e] * self.strides[e] for e in self.inner]
            if covered[n] == self.shape[d]:
                continue
            ranges = {e: (Affine(), Affine.of(covered[m])) for m, e in enumerate(self.inner) if m < n}
            ranges |= {d: (Affine.of(covered[n]), Affine.of(self.shape[d]))}
            ranges |= {e: (Affine(), Affine.of(self.shape[e])) for m, e in enumerate(self.inner) if m > n}
            self._over(k, self.inner, ranges, outer, self._uncovered)
        work = typical(element_count(self.shape[len(self.outer) :]))
        return self.cluster.kernel(k, element_count(self.shape[d] for d in self.outer), work)

    def _over(self, k: KernelBuilder, dims: list[int], ranges: Any, position: dict[int, Affine], body: Any) -> None:
        """Write `body` at every position of the ranges, in vectors along the last dimension if windows leave it."""
        if dims:
            with k.loop(*ranges[dims[0]]) as i:
                self._over(k, dims[1:], ranges, {**position, dims[0]: i}, body)
            return
        if self.vector is None:
            body(k, position, None)
            return
        for i, mask in vector_loop(k, Affine(), Affine.of(self.shape[self.vector]), self.lanes):
            body(k, {**position, self.vector: i}, mask)

    def _tile(self, k: KernelBuilder, position: dict[int, Affine], mask: Atom | None) -> None:
        """Give the first maximum of one window the source, and the other elements zero."""
        evaluator = self.cluster.evaluator(k, self.lanes, mask)
        rank = range(len(self.shape))
        source = evaluator.value(self.source, tuple(position[d] for d in rank))
        where, places = self._argmax(evaluator, position)
        for indices, _, number in places:
            zero = Const(0, source.dtype)
            value = k.select(k.compare(where, number, "EQ"), source, zero)
            self._put(k, indices, value, mask)

    def _uncovered(self, k: KernelBuilder, position: dict[int, Affine], mask: Atom | None) -> None:
        indices = tuple(position[d] for d in range(len(self.shape)))
        self._put(k, indices, Const(0, self.node.result.type.dtype), mask)

    def _put(self, k: KernelBuilder, indices: tuple[Affine, ...], value: Atom, mask: Atom | None) -> None:
        """Store what the region makes of the scattered value."""
        evaluator = self.cluster.evaluator(k, self.lanes, mask)
        evaluator.bound[self.node.result] = value
        ((output, buffer),) = self.cluster.outputs.items()
        at = linear(indices, self.shape)
        base = at - Affine.var(LANE) * at.coefficient(LANE)
        k.store(buffer, base, evaluator.value(output, indices), self.lanes, mask)

    def adding(self) -> Kernel:
        """The kernel for windows that overlap: an iteration has one index of the outer dimensions.

        It clears the result, then adds each window's value in order.
        """
        k = self.cluster.builder()
        outer = split_index(k, Affine.var("t"), [self.shape[d] for d in self.outer])
        slab = element_count(self.shape[len(self.outer) :])
        base = linear((*outer, *([Affine()] * (len(self.shape) - len(outer)))), self.shape)
        for i, mask in vector_loop(k, Affine(), Affine.of(slab), max(self.lanes, 2)):
            store_at(k, "o0", base + i, Const(0, self.operand.type.dtype), max(self.lanes, 2), mask)

        whole = {d: (Affine(), Affine.of(self.windows[d])) for d in self.inner}
        self._over(k, self.inner, whole, dict(zip(self.outer, outer, strict=True)), self._window)
        work = typical(slab) * 4
        return self.cluster.kernel(k, element_count(self.shape[d] for d in self.outer), work)

    def _window(self, k: KernelBuilder, position: dict[int, Affine], mask: Atom | None) -> None:
        """Find the first maximum of one window and add the source there."""
        evaluator = self.cluster.evaluator(k, self.lanes, mask)
        value = evaluator.value(self.source, tuple(position[d] for d in range(len(self.shape))))
        where, places = self._argmax(evaluator, position)
        for indices, guard, number in places:
            self._add(k, indices, guard, k.compare(where, number, "EQ"), value, mask)

    def _argmax(
        self, evaluator: Evaluator, position: dict[int, Affine]
    ) -> tuple[Atom, list[tuple[tuple[Affine, ...], Atom | None, Const]]]:
        """The number of the tap with the first maximum, and all taps: indices, whether they exist, number."""
        k = evaluator.kernel
        rank = len(self.shape)
        places: list[tuple[tuple[Affine, ...], Atom | None, Const]] = []
        best: Atom = identity_of("maximum", self.operand.type.dtype)
        where: Atom = Const(-1, I64 if self.lanes == 1 else self._tap_dtype())
        none = Const(-1, where.dtype)
        for number, tap in enumerate(itertools.product(*(range(w) for w in self.window))):
            indices = tuple(position[d] * self.strides[d] + (tap[d] - self.padding[d][0]) for d in range(rank))
            guard = inside_bounds(evaluator, indices, self.shape, self.padding, None)
            x = evaluator.value(self.operand, indices, guard)
            better: Atom | None = guard  # the first tap that exists, however small
            if number:
                better = self._exceeds(k, x, best)
                if guard is not None:
                    better = k.apply("or", better, k.compare(where, none, "EQ"))
                    better = k.apply("and", better, guard)
            tap_number = Const(number, where.dtype)
            best = x if better is None else k.select(better, x, best)
            where = tap_number if better is None else k.select(better, tap_number, where)
            places.append((indices, guard, tap_number))
        return where, places

    def _exceeds(self, k: KernelBuilder, x: Atom, best: Atom) -> Atom:
        """The condition x > best, where NaN exceeds all but NaN."""
        if not self.operand.type.dtype.is_float:
            return k.compare(x, best, "GT")
        not_below = k.apply("not", k.compare(x, best, "LE"))
        return k.apply("and", not_below, k.compare(best, best, "EQ"))

    def _tap_dtype(self) -> DType:
        return DTYPES["i32"] if self.operand.type.dtype.bytes == 4 else DTYPES["i64"]

    def _add(
        self,
        k: KernelBuilder,
        indices: tuple[Affine, ...],
        guard: Atom | None,
        chosen: Atom,
        value: Atom,
        mask: Atom | None,
    ) -> None:
        at = linear(indices, self.shape)
        base = at - Affine.var(LANE) * at.coefficient(LANE)
        write = chosen
        for other in (guard, mask):
            write = write if other is None else k.apply("and", write, other)
        old = k.load("o0", base, self.lanes, mask=write)
        k.store("o0", base, k.apply("add", old, value), self.lanes, write)
