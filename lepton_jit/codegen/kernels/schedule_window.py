"""Schedule windows that slide over images, channel by channel: depthwise convolutions and pooling."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lepton_jit.codegen.kernels.blocked_fold import FOLD_BLOCK, combined, first_totals, fold_loop
from lepton_jit.codegen.kernels.cluster import (
    Cluster,
    Planned,
    is_whole,
    slice_count,
    split_index,
    store_at,
    vector_loop,
)
from lepton_jit.codegen.kernels.evaluate import Evaluator, Indices, linear
from lepton_jit.codegen.kernels.schedule_map import schedule_map
from lepton_jit.codegen.loops.ir import I64, Affine, Atom, Const, Kernel, Progress, Reach, Slices
from lepton_jit.codegen.target import Target
from lepton_jit.errors import UnsupportedError
from lepton_jit.ir.graph import Node
from lepton_jit.ir.types import Dim, element_count, typical
from lepton_jit.ir.windows import Window, channel_windows, pooling_windows

# Lines of results of one iteration.
LINES = 4
# Where L2 holds an image, an iteration has few vectors of channels, whose weights and lines stay in L1. Larger images
# are walked as they lie in memory (docs/measurements.md, windows).
CACHED_IMAGE = 1 << 18
FEW_VECTORS = 4

# Windows of up to this many taps are summed in one chain, larger ones in blocks.
FEW_TAPS = 64

Accumulate = Callable[[Evaluator, Atom, Atom, Indices], Atom]  # (.., total, element, indices of the tap) -> total


def schedule_depthwise(cluster: Cluster, target: Target) -> Planned:
    """Schedule a convolution of each channel by itself, and elementwise operations on its result."""
    (node,) = (n for n in cluster.region.nodes if n.op == "convolution")
    windows = channel_windows(node)
    if windows is None:
        raise UnsupportedError(f"layer {node.layer!r}: a convolution across channels is computed as a contraction")
    a: Any = node.attributes
    kernel = node.operands[1]
    spatial = a["rhs_spec"][2:]

    def accumulate(evaluator: Evaluator, total: Atom, element: Atom, taps: Indices) -> Atom:
        *space, channel = taps
        where = [Affine()] * kernel.type.rank
        where[a["rhs_spec"][0]] = channel
        for d, size, tap, flipped in zip(spatial, windows, space, a["window_reversal"], strict=True):
            where[d] = Affine.of(size.taps - 1) - tap if flipped else tap
        return evaluator.kernel.apply("fma", element, evaluator.value(kernel, tuple(where)), total)

    written = _Windows(cluster, target, node, windows, "add", accumulate)
    return (written.kernel(flops=2),), ()


def schedule_pooling(cluster: Cluster, target: Target) -> Planned:
    """Schedule a `reduce_window` and elementwise operations on its result."""
    (node,) = (n for n in cluster.region.nodes if n.op == "reduce_window")
    windows = pooling_windows(node)
    if windows is None:
        return (schedule_map(cluster, target),), ()
    kind = str(node.attributes["kind"])

    def accumulate(evaluator: Evaluator, total: Atom, element: Atom, taps: Indices) -> Atom:
        return evaluator.kernel.apply(kind, total, element)

    return (_Windows(cluster, target, node, windows, kind, accumulate).kernel(),), ()


@dataclass(frozen=True)
class _Block:
    """Neighbouring results of a line: (result, tap, element), counted from the block's first result and element."""

    width: int
    reads: tuple[tuple[int, int, int], ...]

    def in_chains(self, taps: int) -> Iterator[list[tuple[int, int, int]]]:
        """Yield the reads in groups, each with the next few taps of every result."""
        for first in range(0, max(tap for _, tap, _ in self.reads) + 1, taps):
            yield [read for read in self.reads if first <= read[1] < first + taps]


@dataclass(frozen=True)
class _Run:
    """Blocks that follow each other and read in the same way."""

    block: _Block
    first: int
    count: int


def blocks_of(window: Window, most: int) -> list[_Run]:
    """Cut a line of results into blocks of up to `most`, as even as can be; each reads elements in memory order.

    Where windows overlap, results of one block share what they read. All taps of one result come in order.
    """
    pieces = -(-window.results // most)
    width = -(-window.results // max(pieces, 1))
    width = max(-(-width // window.base), 1) * window.base
    runs: list[_Run] = []
    for first in range(0, window.results, width):
        count = min(width, window.results - first)
        start = first * window.stride // window.base
        reads = [(i, k, e - start) for i in range(count) for k, e in window.reads(first + i)]
        block = _Block(count, tuple(sorted(reads, key=lambda read: (read[2], read[0]))))
        if runs and runs[-1].block == block:
            runs[-1] = replace(runs[-1], count=runs[-1].count + 1)
        else:
            runs.append(_Run(block, first, 1))
    return runs


@dataclass
class _Windows:
    """Writes a kernel: a block of results along a line stays in registers while all taps go by."""

    cluster: Cluster
    target: Target
    node: Node
    windows: Sequence[Window]
    kind: str
    accumulate: Accumulate

    def kernel(self, flops: int = 0) -> Kernel:
        """An iteration has a block of lines, and all channels or a group of them; `flops` are those of one tap."""
        k = self.k = self.cluster.builder()
        self.x, self.shape = self.node.operands[0], self.node.result.type.shape
        self.lanes = self.cluster.lanes(self.target)
        leading = self.shape[: len(self.shape) - len(self.windows) - 1]
        *outer, self.line = self.windows
        *around, lines = [1, *(w.results for w in outer)]
        channels, group = self._channels(), self._group()
        blocks = -(-lines // LINES)
        extents = [*leading, *around[1:], blocks, -(-channels // group)]
        *digits, block, part = split_index(k, Affine.var("t"), extents)
        before, places = digits[: len(leading)], digits[len(leading) :]
        self.columns = self._clipped(part, group, channels)
        with k.loop(*self._even(block, blocks, lines)) as line:
            self._line(before, [*places, line] if outer else [])
        taps = element_count(w.taps for w in self.windows)
        work = LINES * self.line.results * -(-group // self.lanes) * typical(taps)
        extent = element_count(extents)
        slices = self._slices(extent) if leading else None
        total = element_count(self.shape) * taps * flops
        return self.cluster.kernel(
            k, extent, work, total, slices=slices, progress=self._progress(-(-channels // group))
        )

    def _progress(self, parts: int) -> Progress | None:
        """The progress that a chain goes by, with the lines of images that a line of results reads; None without."""
        *outer, line = self.windows
        if len(outer) != 1 or outer[0].base > 1 or outer[0].low < 0 or self.x not in self.cluster.inputs:
            return None
        (w,) = outer
        channels = self._channels()
        taps = (w.taps - 1) * w.dilation + 1
        reach = Reach(1, w.results, w.size, line.size * channels, w.stride, w.low, taps)
        count = element_count(self.shape[:-2])
        return Progress(parts, count, line.results * channels, ((self.cluster.inputs[self.x], reach),))

    def _channels(self) -> int:
        channels = self.shape[-1]
        assert isinstance(channels, int)
        return channels

    def _group(self) -> int:
        """The channels of one iteration."""
        channels, few = self._channels(), FEW_VECTORS * self.lanes
        image = element_count(w.size for w in self.windows) * channels * self.x.type.dtype.bytes
        return few if typical(image) <= CACHED_IMAGE else channels

    def _clipped(self, block: Affine, size: int, most: int) -> tuple[Affine, Affine]:
        """Begin and end of a block of `size` indices below `most`."""
        if size >= most:
            return Affine(), Affine.of(most)
        end = self.k.apply("minimum", self.k.index(block * size + size), self.k.index(Affine.of(most)))
        return block * size, Affine.var(end.name)

    def _even(self, block: Affine, blocks: int, extent: int) -> tuple[Affine, Affine]:
        """Begin and end of one of `blocks` parts of an extent."""
        if extent % max(blocks, 1) == 0:
            size = extent // max(blocks, 1)
            return block * size, block * size + size
        k, count = self.k, Const(blocks, I64)
        begin, end = (k.apply("floor_divide", k.index((block + i) * extent), count) for i in (0, 1))
        return Affine.var(begin.name), Affine.var(end.name)

    def _slices(self, extent: Dim) -> Slices | None:
        """The batch slices: each sample reads its own image; None if the batch is no slowest digit."""

        def first_of_image(evaluator: Evaluator, indices: Indices) -> Atom:
            return evaluator.value(self.x, (indices[0], *[Affine()] * (len(indices) - 1)))

        count = slice_count(extent, self.shape)
        read = replace(self.cluster, providers={self.node.result: first_of_image})
        return Slices(count, read.local_inputs(self.shape[0])) if count else None

    def _line(self, leading: Sequence[Affine], places: Sequence[Affine]) -> None:
        ranges = [self._range(w, o) for w, o in zip(self.windows, places, strict=False)]
        for run in blocks_of(self.line, self.target.tile_rows):
            if run.count == 1:
                self._vectors(leading, places, ranges, run.block, Affine.of(run.first))
                continue
            with self.k.loop(0, run.count) as i:
                self._vectors(leading, places, ranges, run.block, i * run.block.width + run.first)

    def _vectors(self, *block: Any) -> None:
        whole = is_whole(self._channels(), self.lanes)
        for channel, mask in vector_loop(self.k, *self.columns, self.lanes, whole):
            self.channel, self.mask = channel, mask
            self._block(*block)

    def _range(self, window: Window, result: Affine) -> tuple[Affine, Affine]:
        """First and last + 1 of the loop over an outer dimension's taps, or over elements where there is a base."""
        k, w = self.k, window
        if not w.is_padded:
            return Affine(), Affine.of(w.taps)
        zero = Const(0, I64)

        def clipped(value: Affine, divisor: int, most: int) -> Affine:
            """ceil(value / divisor), not below 0 nor above `most`."""
            raised = k.apply("maximum", k.index(value + (divisor - 1)), zero)
            quotient = k.apply("floor_divide", raised, Const(divisor, I64)) if divisor > 1 else raised
            return Affine.var(k.apply("minimum", quotient, Const(most, I64)).name)

        if w.base == 1:
            from_low = Affine.of(w.low) - result * w.stride
            return clipped(from_low, w.dilation, w.taps), clipped(from_low + w.size, w.dilation, w.taps)
        return clipped(result - w.low, w.base, w.size), clipped(result + (w.taps - w.low), w.base, w.size)

    def _block(
        self,
        leading: Sequence[Affine],
        places: Sequence[Affine],
        ranges: Sequence[tuple[Affine, Affine]],
        block: _Block,
        first: Affine,
    ) -> None:
        """Write the taps of the outer dimensions as loops, those of the line one by one, then the results."""
        k, w = self.k, self.line
        kinds = [(self.kind, self.node.result.type.dtype)] * block.width
        many = typical(element_count(w.taps for w in self.windows)) > FEW_TAPS
        start = Affine(tuple((n, c * w.stride // w.base) for n, c in first.terms), first.constant * w.stride // w.base)

        def level(depth: int, totals: list[Atom], taps: list[Affine], elements: list[Affine]) -> list[Atom]:
            if depth == len(ranges):
                return line(totals, taps, elements)
            window, place = self.windows[depth], places[depth]

            def turn(i: Affine, totals: list[Atom]) -> list[Atom]:
                if window.base == 1:
                    tap, element = i, place * window.stride + i * window.dilation - window.low
                else:
                    tap, element = i * window.base + window.low - place, i
                return level(depth + 1, totals, [*taps, tap], [*elements, element])

            each = typical(element_count(w.taps for w in self.windows[depth + 1 :]))
            return fold_loop(k, kinds, ranges[depth], 1, window.taps, totals, turn, each, blocks=many)

        def line(totals: list[Atom], taps: list[Affine], elements: list[Affine]) -> list[Atom]:
            evaluator = self.cluster.evaluator(k, self.lanes, self.mask)
            for reads in block.in_chains(FOLD_BLOCK) if many else (block.reads,):
                part = first_totals(kinds, self.lanes) if many else list(totals)
                for result, tap, element in reads:
                    value = evaluator.value(self.x, (*leading, *elements, start + element, self.channel))
                    where = (*taps, Affine.of(tap), self.channel)
                    part[result] = self.accumulate(evaluator, part[result], value, where)
                totals = combined(k, kinds, totals, part) if many else part
            return totals

        for i, total in enumerate(level(0, first_totals(kinds, self.lanes), [], [])):
            self._store(total, (*leading, *places, first + i, self.channel))

    def _store(self, total: Atom, indices: Indices) -> None:
        evaluator = self.cluster.evaluator(self.k, self.lanes, self.mask)
        evaluator.bound[self.node.result] = total
        values = [evaluator.value(v, indices) for v in self.cluster.outputs]
        for value, (result, buffer) in zip(values, self.cluster.outputs.items(), strict=True):
            store_at(self.k, buffer, linear(indices, result.type.shape), value, self.lanes, self.mask)
