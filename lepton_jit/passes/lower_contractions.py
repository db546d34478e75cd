"""Lower convolutions and dot products to affine contractions: loops with strides, B packed where that pays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.types import Dim, element_count, row_major, typical
from lepton_jit.ir.windows import channel_windows
from lepton_jit.passes.base import Pass
from lepton_jit.passes.rewriting.rewrite import Rewriter, rewrite

# With fewer rows than this, packing B costs as much as it gains.
REUSING_ROWS = 32
# Panels of rows of A pay where each is read so often, for sums of so many products.
LEFT_READS = 4
LEFT_PRODUCTS = 64

__all__ = ["AffineLoop", "LowerContractions"]


@dataclass(frozen=True)
class AffineLoop:
    """One loop of a contraction: its step in each operand, and the dimension of the result that it walks."""

    kind: str  # "batch", "row", "column" or "sum"
    extent: Dim
    lhs: Dim
    rhs: Dim
    out: Dim
    out_dim: int


@dataclass(frozen=True)
class LowerContractions(Pass):
    """`convolution` and `dot_general` -> [`convert`] [`pad`] [`pack`] `affine_contraction`.

    law: out[p, o, f] = sum over k, c of lhs[p, o*stride + k*dilation - padding, c] * rhs[k, c, f], each operand read
    through strides, so that any order of dimensions, a dilated or reversed window and feature groups are strides too.
    Padding becomes a `pad` of its own. B is packed into panels of `panel_bytes` where its columns are not contiguous,
    where it depends on parameters only, so that `prepare` packs it once, or where many rows reuse it. In a loop,
    captured values count as parameters: inputs from number `captured` on. A whose rows are contiguous, and K is not, is
    packed into panels of up to `tile_rows` rows where all taps of a window read them: in the gradient of a kernel.
    """

    name: ClassVar[str] = "lower-contractions"

    panel_bytes: int = 128
    tile_rows: int = 14
    captured: int | None = None

    def inside(self, loop: Node) -> LowerContractions:
        a: Any = loop.attributes
        return replace(self, captured=a["carries"] + a["scanned"])

    def apply(self, graph: Graph) -> Graph:
        fixed = {entry.value.name for entry in graph.inputs if entry.role == "parameter"}
        if self.captured is not None:
            fixed.update(entry.value.name for entry in graph.inputs[self.captured :])
        for node in graph.nodes:
            if node.operands and all(v.name in fixed for v in node.operands):
                fixed.update(v.name for v in node.results)

        def lower(function):
            return lambda rewriter, node: function(self, rewriter, node, fixed)

        rules = {"convolution": [_widened, lower(_convolution)], "dot_general": [_widened, lower(_dot_general)]}
        return rewrite(graph, rules)


def _widened(rewriter: Rewriter, node: Node) -> Value | None:
    """law: f(x, y) == f(convert(x), convert(y)) to the type of its sums"""
    dtype = node.result.type.dtype
    if node.operands[0].type.dtype == dtype:
        return None
    return rewriter(node.op, *(rewriter("convert", v, dtype=dtype) for v in node.operands), **node.attributes)


def _convolution(lowering: LowerContractions, rewriter: Rewriter, node: Node, fixed: set[str]) -> Value | None:
    if channel_windows(node) is not None:
        return None  # each channel by itself: code generation slides windows over it
    a: Any = node.attributes
    lhs, rhs = node.operands
    lhs, cut = _padded(rewriter, lhs, a)
    ls, rs, os = (row_major(v.type.shape) for v in (lhs, rhs, node.result))
    groups, batch_groups = a["feature_group_count"], a["batch_group_count"]
    lb, lf, *lx = a["lhs_spec"]
    ro, ri, *rx = a["rhs_spec"]
    ob, of, *ox = a["out_spec"]
    batch = lhs.type.shape[lb] // batch_groups
    features = rhs.type.shape[ro] // (groups * batch_groups)
    loops = [AffineLoop("row", batch, ls[lb], 0, os[ob], ob)]
    if groups > 1:
        step = rhs.type.shape[ri]
        loops.append(AffineLoop("batch", groups, ls[lf] * step, rs[ro] * features, os[of] * features, of))
    if batch_groups > 1:
        loops.append(AffineLoop("batch", batch_groups, ls[lb] * batch, rs[ro] * features, os[of] * features, of))
    lhs_offset: Dim = sum((ls[x] * n for x, n in zip(lx, cut, strict=True)), 0)
    rhs_offset: Dim = 0
    for d, (x, k, o) in enumerate(zip(lx, rx, ox, strict=True)):
        loops.append(AffineLoop("row", node.result.type.shape[o], ls[x] * a["strides"][d], 0, os[o], o))
        size, step = rhs.type.shape[k], rs[k]
        if a["window_reversal"][d]:
            rhs_offset = rhs_offset + step * (size - 1)
            step = -step
        loops.append(AffineLoop("sum", size, ls[x] * a["rhs_dilation"][d], step, 0, -1))
    loops.append(AffineLoop("sum", rhs.type.shape[ri], ls[lf], rs[ri], 0, -1))
    loops.append(AffineLoop("column", features, 0, rs[ro], os[of], of))
    return _contraction(lowering, rewriter, node, lhs, rhs, loops, (lhs_offset, rhs_offset), fixed)


def _padded(rewriter: Rewriter, lhs: Value, a: Any) -> tuple[Value, list[int]]:
    """Put padding and dilation of A in place; returns A, and where windows begin where padding cuts elements off."""
    _, _, *spatial = a["lhs_spec"]
    low, high, interior = ([0] * lhs.type.rank for _ in range(3))
    cut = [0] * len(spatial)
    for d, x in enumerate(spatial):
        low[x], high[x] = a["padding"][d]
        interior[x] = a["lhs_dilation"][d] - 1
        if not interior[x]:
            cut[d] = max(-low[x], 0)
            low[x], high[x] = max(low[x], 0), max(high[x], 0)
    if not any((*low, *high, *interior)):
        return lhs, cut
    zero = rewriter.constant(0, lhs.type.dtype)
    return rewriter("pad", lhs, zero, low=tuple(low), high=tuple(high), interior=tuple(interior)), cut


def _dot_general(lowering: LowerContractions, rewriter: Rewriter, node: Node, fixed: set[str]) -> Value:
    a: Any = node.attributes
    lhs, rhs = node.operands
    ls, rs, os = (row_major(v.type.shape) for v in (lhs, rhs, node.result))
    loops: list[AffineLoop] = []
    out_dim = 0
    for i, j in zip(a["lhs_batching"], a["rhs_batching"], strict=True):
        loops.append(AffineLoop("batch", lhs.type.shape[i], ls[i], rs[j], os[out_dim], out_dim))
        out_dim += 1
    for i, size in enumerate(lhs.type.shape):
        if i not in a["lhs_batching"] and i not in a["lhs_contracting"]:
            loops.append(AffineLoop("row", size, ls[i], 0, os[out_dim], out_dim))
            out_dim += 1
    for j, size in enumerate(rhs.type.shape):
        if j not in a["rhs_batching"] and j not in a["rhs_contracting"]:
            kind = "column" if out_dim == node.result.type.rank - 1 else "batch"
            loops.append(AffineLoop(kind, size, 0, rs[j], os[out_dim], out_dim))
            out_dim += 1
    for i, j in zip(a["lhs_contracting"], a["rhs_contracting"], strict=True):
        loops.append(AffineLoop("sum", lhs.type.shape[i], ls[i], rs[j], 0, -1))
    return _contraction(lowering, rewriter, node, lhs, rhs, loops, (0, 0), fixed)


def _contraction(
    lowering: LowerContractions,
    rewriter: Rewriter,
    node: Node,
    lhs: Value,
    rhs: Value,
    loops: Sequence[AffineLoop],
    offsets: tuple[Dim, Dim],
    fixed: set[str],
) -> Value:
    lhs_offset, rhs_offset = offsets
    loops = _ordered([loop for loop in loops if loop.extent != 1 or loop.kind == "column"])
    rhs_type = rhs.type
    panel = panel_stride = 0
    panel_width = lowering.panel_bytes // rhs_type.dtype.bytes
    if _packs(loops, rhs.name in fixed, panel_width):
        panel = panel_width
        rhs, loops, panel_stride = _packed(rewriter, rhs, loops, rhs_offset, panel)
        rhs_offset = 0
    row_panel, row_panel_stride = 0, 0
    if lhs_offset == 0 and _packs_rows(lhs, loops, panel > 0, lowering):
        lhs, loops, row_panel, row_panel_stride = _packed_rows(rewriter, lhs, loops, lowering.tile_rows)
    return rewriter(
        "affine_contraction",
        lhs,
        rhs,
        kinds=tuple(loop.kind for loop in loops),
        extents=tuple(loop.extent for loop in loops),
        lhs=tuple(loop.lhs for loop in loops),
        rhs=tuple(loop.rhs for loop in loops),
        out=tuple(loop.out for loop in loops),
        out_dims=tuple(loop.out_dim for loop in loops),
        lhs_offset=lhs_offset,
        rhs_offset=rhs_offset,
        out_offset=0,
        panel=panel,
        panel_stride=panel_stride,
        row_panel=row_panel,
        row_panel_stride=row_panel_stride,
        shape=node.result.type.shape,
    )


def _ordered(loops: Sequence[AffineLoop]) -> list[AffineLoop]:
    """Order loops over the result by its memory order, then loops over K by that of A; join neighbours."""
    results = sorted((x for x in loops if x.kind != "sum"), key=lambda x: (x.kind == "column", -typical(x.out)))
    sums = sorted((x for x in loops if x.kind == "sum"), key=lambda x: -typical(x.lhs))
    return _joined([*results, *sums])


def _joined(loops: Sequence[AffineLoop]) -> list[AffineLoop]:
    joined: list[AffineLoop] = []
    for loop in loops:
        if joined and loop.kind == "sum" and _joins(joined[-1], loop):
            last = joined.pop()
            loop = AffineLoop("sum", last.extent * loop.extent, loop.lhs, loop.rhs, 0, -1)
        joined.append(loop)
    return joined


def _joins(outer: AffineLoop, inner: AffineLoop) -> bool:
    """Tell whether two loops over K are one: both operands step over the inner one's whole extent."""
    same = outer.kind == inner.kind
    return same and outer.lhs == inner.lhs * inner.extent and outer.rhs == inner.rhs * inner.extent


def _packs(loops: Sequence[AffineLoop], parameters_only: bool, panel: int) -> bool:
    """Tell whether B is to be packed (docs/measurements.md, packed B).

    Columns that are not contiguous have to be. Others are where `prepare` does it once, or where many rows reuse the
    panels, and rows of B are longer than a panel.
    """
    columns = [loop for loop in loops if loop.kind == "column"]
    if len(columns) != 1 or not isinstance(columns[0].extent, int) or columns[0].extent == 1:
        return False
    if sum(loop.kind == "sum" for loop in loops) > 3:
        return False  # more than a register tile takes
    sums = [loop for loop in loops if loop.kind == "sum"]
    rows = typical(element_count(loop.extent for loop in loops if loop.kind == "row"))
    reused = bool(sums) and typical(sums[-1].rhs) > panel and rows >= REUSING_ROWS
    return parameters_only or columns[0].rhs != 1 or reused


def _packed(
    rewriter: Rewriter, rhs: Value, loops: Sequence[AffineLoop], offset: Dim, panel: int
) -> tuple[Value, list[AffineLoop], Dim]:
    """Pack B as [batches...][panel][K...][column in the panel], with zeros behind the last column."""
    (column,) = (loop for loop in loops if loop.kind == "column")
    sums = [loop for loop in loops if loop.kind == "sum"]
    batches = [loop for loop in loops if loop.kind == "batch"]
    assert isinstance(column.extent, int)
    transform = rewriter.producer(rhs)
    if transform is not None and transform.op == "winograd_kernel":  # which can write panels itself
        attributes: Any = {**transform.attributes, "panel": panel}
        packed = rewriter("winograd_kernel", *transform.operands, **attributes)
        return _moved(packed, loops, column, batches, sums)
    packed = rewriter(
        "pack",
        rhs,
        batches=len(batches),
        extents=tuple(loop.extent for loop in (*batches, *sums)),
        strides=tuple(loop.rhs for loop in (*batches, *sums)),
        column_stride=column.rhs,
        columns=column.extent,
        offset=offset,
        panel=panel,
    )
    return _moved(packed, loops, column, batches, sums)


def _moved(
    packed: Value,
    loops: Sequence[AffineLoop],
    column: AffineLoop,
    batches: Sequence[AffineLoop],
    sums: Sequence[AffineLoop],
) -> tuple[Value, list[AffineLoop], Dim]:
    """Packed B, the loops with their steps in it, and the step from panel to panel."""
    steps = row_major(packed.type.shape)
    panel_stride = steps[len(batches)]
    strides = {column: 1} | dict(zip(batches, steps, strict=False))
    strides |= dict(zip(sums, steps[len(batches) + 1 :], strict=False))
    moved = [replace(loop, rhs=strides.get(loop, loop.rhs)) for loop in loops]
    return packed, _joined(moved), panel_stride


def _packs_rows(lhs: Value, loops: Sequence[AffineLoop], panels: bool, lowering: LowerContractions) -> bool:
    """Tell whether A is to be packed by panels of rows: its whole last dimension, read by many taps or panels."""
    rows, sums, columns = ([x for x in loops if x.kind == kind] for kind in ("row", "sum", "column"))
    width = lhs.type.shape[-1] if lhs.type.rank else 0
    if len(rows) < 2 or len(columns) != 1 or not 1 <= len(sums) <= 3 or not lhs.type.dtype.is_float:
        return False
    (column,), inner = columns, rows[-1]
    if not isinstance(column.extent, int) or column.extent == 1 or column.out != 1 or not (panels or column.rhs == 1):
        return False
    if not isinstance(width, int) or width <= lowering.tile_rows or inner.lhs != 1 or inner.extent != width:
        return False
    if not all(isinstance(x.lhs, int) and x.lhs % width == 0 for x in loops if x is not inner):
        return False
    reads = -(-column.extent * lhs.type.dtype.bytes // lowering.panel_bytes)
    reads *= typical(element_count(x.extent for x in rows[:-1]))
    return reads >= LEFT_READS and typical(element_count(x.extent for x in sums)) >= LEFT_PRODUCTS


def _packed_rows(
    rewriter: Rewriter, lhs: Value, loops: Sequence[AffineLoop], tile_rows: int
) -> tuple[Value, list[AffineLoop], int, Dim]:
    """Pack A as [panel][everything else][row in the panel].

    The rows of a tile then follow those of the product before. Unpacked, each product reads other cache lines, of few
    sets of L1 and of many pages (docs/measurements.md, packed A).
    """
    *around, width = lhs.type.shape
    assert isinstance(width, int)
    panel = -(-width // -(-width // tile_rows))
    packed = rewriter(
        "pack",
        lhs,
        batches=0,
        extents=tuple(around),
        strides=row_major(lhs.type.shape)[:-1],
        column_stride=1,
        columns=width,
        offset=0,
        panel=panel,
    )
    inner = [x for x in loops if x.kind == "row"][-1]
    moved = [x if x is inner else replace(x, lhs=x.lhs // width * panel) for x in loops]
    return packed, moved, panel, element_count(around) * panel
