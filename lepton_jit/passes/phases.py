"""Turn the input gradients of strided convolutions into dense convolutions."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.windows import channel_windows
from lepton_jit.passes.base import Pass
from lepton_jit.passes.rewriting.rewrite import Rewriter, rewrite

__all__ = ["SplitStridedGradients"]


@dataclass(frozen=True)
class SplitStridedGradients(Pass):
    """Replace a convolution over an input dilated by `d` by `d` dense ones in each dilated dimension, interleaved.

    law: with y[o] = sum over k of x~[o + k - lo] w[k], where x~[d i] = x[i] and x~ is 0 elsewhere, only the terms with
    o + k - lo divisible by d count. For o = d q + p these are k = r + d j with r = (lo - p) mod d, so

        y[d q + p] = sum over j of x[q + j - (lo - p - r) / d] w[r + d j],

    a convolution of x with every d-th element of the kernel, padded by (lo - p - r) / d. Its results for
    p = 0 .. d - 1 are interleaved. A phase without kernel elements is 0. The terms left out are products with an
    inserted zero: the results are equal wherever the kernel is finite. They are d times fewer products. x is padded
    once, for the phase that needs most; others cut off what they do not need.

    Dimensions with a stride or a kernel dilation as well are left as they are.
    """

    name: ClassVar[str] = "split-strided-gradients"

    def apply(self, graph: Graph) -> Graph:
        return rewrite(graph, {"convolution": (_split,)})


@dataclass(frozen=True)
class _Phase:
    """The phase of one residue `p` of one dimension: its kernel elements (start, limit, step), and the padding of x."""

    start: int
    limit: int
    step: int
    padding: tuple[int, int]

    @property
    def is_empty(self) -> bool:
        return self.limit <= self.start

    def inside(self, border: tuple[int, ...]) -> _Phase:
        """The same phase on an x that has this border already; a negative padding cuts off what is too much."""
        return replace(self, padding=(self.padding[0] - border[0], self.padding[1] - border[1]))


def _split(rewriter: Rewriter, node: Node) -> Value | None:
    """law: see SplitStridedGradients; y[d q + p] == convolution(x, w[r::d])[q]"""
    attributes: Any = node.attributes
    spatial = [i for i in range(len(attributes["strides"])) if _can_split(attributes, i)]
    if not spatial or channel_windows(node) is not None:
        return None
    counts = [attributes["lhs_dilation"][i] for i in spatial]
    sizes = [_ceil(_out_size(node, i), d) for i, d in zip(spatial, counts, strict=True)]
    phases = [[_phase(node, i, size, p) for p in range(d)] for i, size, d in zip(spatial, sizes, counts, strict=True)]
    read = [[p.padding for p in of if not p.is_empty] for of in phases]
    borders = [tuple(max((0, *(pair[side] for pair in pairs))) for side in (0, 1)) for pairs in read]
    x = _bordered(rewriter, node, spatial, borders)
    parts = {}
    for residues in itertools.product(*map(range, counts)):
        chosen = [of[p].inside(border) for of, p, border in zip(phases, residues, borders, strict=True)]
        parts[residues] = _one_phase(rewriter, node, x, [*zip(spatial, sizes, chosen, strict=True)])
    dimensions = [attributes["out_spec"][2 + i] for i in spatial]
    whole = _interleave(rewriter, parts, dimensions, counts)
    if whole.type == node.result.type:
        return whole
    rank = whole.type.rank
    return rewriter("slice", whole, start=(0,) * rank, limit=node.result.type.shape, strides=(1,) * rank)


def _can_split(attributes: Any, i: int) -> bool:
    return attributes["lhs_dilation"][i] > 1 and attributes["strides"][i] == 1 and attributes["rhs_dilation"][i] == 1


def _bordered(rewriter: Rewriter, node: Node, spatial: Sequence[int], borders: Sequence[tuple[int, ...]]) -> Value:
    """Pad the input as the phase that needs most asks: all phases read one copy."""
    x = node.operands[0]
    low, high = [0] * x.type.rank, [0] * x.type.rank
    for i, (before, after) in zip(spatial, borders, strict=True):
        at = node.attributes["lhs_spec"][2 + i]
        low[at], high[at] = before, after
    if not any((*low, *high)):
        return x
    zero = rewriter.constant(0, x.type.dtype)
    return rewriter("pad", x, zero, low=tuple(low), high=tuple(high), interior=(0,) * x.type.rank)


def _one_phase(rewriter: Rewriter, node: Node, x: Value, phases: Sequence[tuple[int, int, _Phase]]) -> Value:
    """The convolution of one phase; `phases` has each split dimension, the size of its results, and its phase."""
    attributes: Any = node.attributes
    kernel = node.operands[1]
    shape = list(node.result.type.shape)
    start, limit, step = [0] * kernel.type.rank, list(kernel.type.shape), [1] * kernel.type.rank
    padding, dilation = list(attributes["padding"]), list(attributes["lhs_dilation"])
    for i, size, phase in phases:
        shape[attributes["out_spec"][2 + i]] = size
        at = attributes["rhs_spec"][2 + i]
        start[at], limit[at], step[at] = phase.start, phase.limit, phase.step
        padding[i], dilation[i] = phase.padding, 1
    if any(phase.is_empty for *_, phase in phases):
        return rewriter.full(0, node.result.type.with_shape(shape))
    part = rewriter("slice", kernel, start=start, limit=limit, strides=step)
    return rewriter("convolution", x, part, **{**attributes, "padding": padding, "lhs_dilation": dilation})


def _phase(node: Node, i: int, size: int, residue: int) -> _Phase:
    """The phase of a residue: its kernel elements, and the padding that gives `size` results."""
    attributes: Any = node.attributes
    x, kernel = node.operands
    d, (low, _) = attributes["lhs_dilation"][i], attributes["padding"][i]
    length, window = x.type.shape[attributes["lhs_spec"][2 + i]], kernel.type.shape[attributes["rhs_spec"][2 + i]]
    assert isinstance(length, int)
    assert isinstance(window, int)
    first = (low - residue) % d
    count = _ceil(max(window - first, 0), d)
    start = first
    if attributes["window_reversal"][i] and count:  # the elements first, first + d, ... counted from the end
        start = window - 1 - first - d * (count - 1)
    before = (low - residue - first) // d
    limit = start + d * (count - 1) + 1 if count else start
    return _Phase(start, limit, d, (before, size + count - 1 - length - before))


def _interleave(
    rewriter: Rewriter, parts: dict[tuple[int, ...], Value], dimensions: Sequence[int], counts: Sequence[int]
) -> Value:
    """Interleave parts: element d q + p of the result along each of the dimensions is element q of part p."""
    shape = next(iter(parts.values())).type.shape
    added = sorted(dimensions)
    spread = [size for d, dim in enumerate(shape) for size in ((dim, 1) if d in added else (dim,))]
    level = {residues: rewriter("reshape", part, shape=spread) for residues, part in parts.items()}
    for depth in reversed(range(len(dimensions))):
        at = dimensions[depth] + added.index(dimensions[depth]) + 1
        prefixes = dict.fromkeys(residues[:depth] for residues in level)
        level = {
            prefix: rewriter("concatenate", *(level[*prefix, p] for p in range(counts[depth])), dimension=at)
            for prefix in prefixes
        }
    merged = [dim * counts[dimensions.index(d)] if d in added else dim for d, dim in enumerate(shape)]
    return rewriter("reshape", level[()], shape=merged)


def _out_size(node: Node, i: int) -> int:
    size = node.result.type.shape[node.attributes["out_spec"][2 + i]]  # pyright: ignore[reportIndexIssue, reportArgumentType, reportCallIssue, reportOptionalSubscript]
    assert isinstance(size, int)
    return size


def _ceil(a: int, b: int) -> int:
    return -(-a // b)
