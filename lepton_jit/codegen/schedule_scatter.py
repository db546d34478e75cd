"""Schedule of select_and_scatter, the gradient of max pooling: walk the windows of one image, in order."""

from __future__ import annotations

import itertools
from typing import Any

from lepton_jit.codegen.cluster import Cluster, split_index, store_at, typical, vector_loop
from lepton_jit.codegen.evaluate import LANE, inside_bounds, linear
from lepton_jit.codegen.kernel_builder import KernelBuilder, identity_of
from lepton_jit.codegen.loop_ir import I64, Affine, Atom, Const, Kernel
from lepton_jit.codegen.target import Target
from lepton_jit.ir.types import DTYPES, Dim, DType, element_count

Planned = tuple[tuple[Kernel, ...], tuple[tuple[DType, Dim], ...]]


def schedule_scatter(cluster: Cluster, target: Target) -> Planned:
    """An iteration clears the result of the outer dimensions' one index, then adds each window's value to its maximum.

    Dimensions that no window spans are outer; windows over the others may overlap, so they stay on one thread.
    """
    plan = _Scatter(cluster, target)
    return (plan.kernel(),), ()


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

    def kernel(self) -> Kernel:
        k = self.cluster.builder()
        outer = split_index(k, Affine.var("t"), [self.shape[d] for d in self.outer])
        slab = element_count(self.shape[len(self.outer) :])
        base = linear((*outer, *([Affine()] * (len(self.shape) - len(outer)))), self.shape)
        for i, mask in vector_loop(k, Affine(), Affine.of(slab), max(self.lanes, 2), None):
            store_at(k, "o0", base + i, Const(0, self.operand.type.dtype), max(self.lanes, 2), mask)

        def walk(depth: int, position: dict[int, Affine]) -> None:
            if depth < len(self.inner):
                d = self.inner[depth]
                with k.loop(0, self.windows[d]) as i:
                    walk(depth + 1, {**position, d: i})
                return
            if self.vector is None:
                self._window(k, position, None)
                return
            for i, mask in vector_loop(k, Affine(), Affine.of(self.shape[self.vector]), self.lanes, None):
                self._window(k, {**position, self.vector: i}, mask)

        walk(0, dict(zip(self.outer, outer, strict=True)))
        work = typical(slab) * 4
        return self.cluster.kernel(k, element_count(self.shape[d] for d in self.outer), work)

    def _window(self, k: KernelBuilder, position: dict[int, Affine], mask: Atom | None) -> None:
        """Find the first maximum of one window and add the source there."""
        rank = len(self.shape)
        evaluator = self.cluster.evaluator(k, self.lanes, mask)
        value = evaluator.value(self.source, tuple(position[d] for d in range(rank)))
        taps = list(itertools.product(*(range(w) for w in self.window)))
        places = []
        best: Atom | None = None
        where: Atom = Const(-1, I64 if self.lanes == 1 else self._tap_dtype())
        for number, tap in enumerate(taps):
            indices = tuple(position[d] * self.strides[d] + (tap[d] - self.padding[d][0]) for d in range(rank))
            guard = inside_bounds(evaluator, indices, self.shape, self.padding, None)
            x = evaluator.value(self.operand, indices, guard)
            if best is None:
                best = identity_of("maximum", self.operand.type.dtype)
                better: Atom | None = guard
            else:
                better = k.compare(x, best, "GT")
                better = better if guard is None else k.apply("and", better, guard)
            first = k.compare(where, Const(-1, where.dtype), "EQ")
            if number:
                free = first if guard is None else k.apply("and", first, guard)
                better = k.apply("or", better, free)  # pyright: ignore[reportArgumentType]
            tap_number = Const(number, where.dtype)
            best = x if better is None else k.select(better, x, best)
            where = tap_number if better is None else k.select(better, tap_number, where)
            places.append((indices, guard, tap_number))
        for indices, guard, tap_number in places:
            self._add(k, indices, guard, k.compare(where, tap_number, "EQ"), value, mask)

    def _tap_dtype(self) -> DType:
        return DTYPES["i32"] if self.operand.type.dtype.bytes == 4 else DTYPES["i64"]

    def _add(
        self, k: KernelBuilder, indices: tuple[Affine, ...], guard: Atom | None, chosen: Atom, value: Atom, mask: Atom | None
    ) -> None:
        at = linear(indices, self.shape)
        base = at - Affine.var(LANE) * at.coefficient(LANE)
        write = chosen
        for other in (guard, mask):
            write = write if other is None else k.apply("and", write, other)
        old = k.load("o0", base, self.lanes, mask=write)
        k.store("o0", base, k.apply("add", old, value), self.lanes, write)
