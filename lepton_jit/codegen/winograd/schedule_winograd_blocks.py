"""Schedule Winograd's convolution as one kernel: transforms and products of some lines of tiles, which L2 holds.

All at once, tiles and products would go through DRAM: 32 images of 32 x 32 x 64 have 18 MB of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from lepton_jit.codegen.contraction.plan import ContractionDim, Plan
from lepton_jit.codegen.contraction.tile_rows import RowTiles
from lepton_jit.codegen.contraction.tiles import Tiles
from lepton_jit.codegen.kernels.cluster import (
    CHUNK_WORK,
    Cluster,
    Planned,
    ceil_divide,
    cluster_of,
    part_of,
    split_index,
)
from lepton_jit.codegen.kernels.evaluate import Evaluator, linear
from lepton_jit.codegen.loops.ir import I64, THREADS, Affine, Atom, Buffer, Const, Var
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.codegen.target import LINE_BYTES, Target
from lepton_jit.codegen.winograd.schedule_winograd import transform_input, transform_output
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.ops.winograd import lines_of_block
from lepton_jit.ir.types import TensorType, element_count, typical

TILES_MEMORY, PRODUCTS = "s0", "s1"
# Images of so many bytes are not in a cache when they are needed.
IMAGES_DRAM_BYTES = 8 << 20


def schedule_winograd_blocks(cluster: Cluster, target: Target) -> Planned:
    """Schedule the kernel; an iteration is a thread's share of all lines of tiles, block after block in one place."""
    return _Blocks(cluster, target).planned()


class _Blocks:
    """Writes the kernel; a thread's scratch has [position of the transform][row of the block][channel], twice."""

    def __init__(self, cluster: Cluster, target: Target) -> None:
        nodes = {n.op: n for n in cluster.region.nodes}
        self.input, self.product, self.output = (
            nodes[op] for op in ("winograd_input", "affine_contraction", "winograd_output")
        )
        self.cluster, self.target = cluster, target
        tiles, products = self.input.result.type, self.product.result.type
        self.count: Any = tiles.shape[0]
        self.columns: Any = tiles.shape[3]
        self.lines = lines_of_block(tiles, products)
        self.rows = self.lines * self.columns
        self.shapes = {
            TILES_MEMORY: (self.count, self.rows, tiles.shape[4]),
            PRODUCTS: (self.count, self.rows, products.shape[4]),
        }
        self.dtype = tiles.dtype

    def planned(self) -> Planned:
        cluster, k = self.cluster, self.cluster.builder()
        scratch = [Buffer(name, self.dtype, THREADS * element_count(shape)) for name, shape in self.shapes.items()]
        k.buffers |= {b.name: b for b in scratch}
        _, batch, lines, *_ = self.input.result.type.shape
        begin, end = part_of(k, Affine.var("t"), batch * lines, THREADS)
        own = k.apply("subtract", end, begin)
        blocks = ceil_divide(k, own, Const(self.lines, I64))
        with k.loop(0, Affine.var(blocks.name)) as block:
            first, past = part_of(k, block, own, blocks)
            count = k.apply("subtract", past, first)
            here, following = (k.apply("add", begin, at) for at in (first, past))
            self._tiles(k, here, count)
            self._products(k, count, (here, following))
            self._results(k, here, count)
        flops = 2 * element_count(self.product.result.type.shape) * self.input.result.type.shape[4]
        kernel = cluster.kernel(k, THREADS, CHUNK_WORK, flops, scratch)
        return (kernel,), tuple((b.dtype, b.size) for b in scratch)

    def _tiles(self, k: KernelBuilder, first: Var, count: Var) -> None:
        with k.loop(0, Affine.var(count.name)) as line:
            where, place = self._line(k, first, line), self._place(TILES_MEMORY, line)
            transform_input(self.cluster, k, self.input, self.target, where, place)

    def _results(self, k: KernelBuilder, first: Var, count: Var) -> None:
        with k.loop(0, Affine.var(count.name)) as line:
            where, place = self._line(k, first, line), self._place(PRODUCTS, line)

            def load(evaluator: Evaluator, position: int, column: Affine, channel: Affine) -> Atom:
                return evaluator.load_at(*place(position, column, channel))

            transform_output(self.cluster, k, self.output, self.target, where, load)

    def _line(self, k: KernelBuilder, first: Var, line: Affine) -> list[Affine]:
        """The image, and the line of tiles in it."""
        _, batch, lines, *_ = self.input.result.type.shape
        return split_index(k, Affine.var(first.name) + line, [batch, lines])

    def _place(self, name: str, line: Affine) -> Callable[[int, Affine, Affine], tuple[str, Affine]]:
        """A function from position, column and channel to the place in a line of the block."""
        count, rows, channels = self.shapes[name]
        own = Affine.var("t") * (count * rows * channels)

        def place(position: int, column: Affine, channel: Affine) -> tuple[str, Affine]:
            return name, own + position * (rows * channels) + (line * self.columns + column) * channels + channel

        return place

    def _products(self, k: KernelBuilder, count: Var, places: Sequence[Var]) -> None:
        """Write the products of a block: at each position of the transform, its rows times a kernel."""
        node = self._product_of_block()
        plan = Plan(cluster_of(node)[0], self.target)
        plan.lhs, plan.rhs = TILES_MEMORY, self.cluster.inputs[self.product.operands[1]]
        rows = k.apply("multiply", count, Const(self.columns, I64))
        shares = [Affine.var("t") * element_count(shape) for shape in self.shapes.values()]
        tiles = _TilesOfBlock(plan, k, PRODUCTS, None)
        tiles.rows, tiles.heights = rows, _heights(self.lines, self.columns, self.target.tile_rows)
        (around,) = plan.around
        with k.loop(0, self.count) as position:
            self._ask(k, position, count, places)
            with k.loop(0, plan.panels) as panel:
                tiles.panel(around, position, panel, shares[0], shares[1])

    def _ask(self, k: KernelBuilder, position: Affine, count: Var, places: Sequence[Var]) -> None:
        """Prefetch, for images in DRAM, a share of the lines that transforms touch next: of the result, and of x."""
        x, tile = self.input.operands[0], self.input.attributes["tile"]
        ((result, buffer),) = self.cluster.outputs.items()
        if typical(x.type.elements) * self.dtype.bytes < IMAGES_DRAM_BYTES:
            return
        line_elements = LINE_BYTES // self.dtype.bytes
        here, following = places
        # the first two rows of x belong to the block before as well
        for value, name, first, shared in ((result, buffer, here, 0), (x, self.cluster.inputs[x], following, 2)):
            size: Any = element_count((tile, *value.type.shape[2:]))
            part = -(-size // (self.count * line_elements)) * line_elements
            with k.loop(0, Affine.var(count.name)) as line:
                n, row = self._line(k, first, line)
                start = linear((n, row * tile + shared, Affine(), Affine()), value.type.shape)
                with k.loop(0, part, line_elements) as i:
                    k.fetch(name, start + position * part + i)

    def _product_of_block(self) -> Node:
        """The contraction of the rows of one block."""
        a, (_, kernel) = self.product.attributes, self.product.operands
        (_, rows, channels), (_, _, features) = self.shapes.values()
        loops = dict(zip(a["kinds"], zip(a["rhs"], a["out_dims"], strict=True), strict=True))
        rhs = [loops[kind][0] for kind in ("batch", "row", "column", "sum")]
        attributes = {
            "kinds": ("batch", "row", "column", "sum"),
            "extents": (self.count, rows, features, channels),
            "lhs": (rows * channels, channels, 0, 1),
            "rhs": tuple(rhs),
            "out": (rows * features, features, 1, 0),
            "out_dims": (0, 1, 2, loops["sum"][1]),
        }
        given, made = (Value(name, TensorType(self.dtype, shape)) for name, shape in self.shapes.items())
        return replace(self.product, operands=(given, kernel), results=(made,), attributes={**a, **attributes})


class _TilesOfBlock(Tiles):
    """Writes the tiles of a block, which has `rows` rows, at most as many as its place, in tiles of `heights`."""

    rows: Var
    heights: tuple[int, ...]

    def panel(self, around: ContractionDim, position: Affine, panel: Affine, lhs: Affine, out: Affine) -> None:
        """Write all rows of one product in one panel."""
        self._sums, self._shifts = self.plan.sums_whole(), (lhs, Affine(), out)
        self._panel([(around, position)], Affine(), 1, panel)

    def _rows(self, located: list, block: Affine, blocks: Atom | int, panel: Affine, columns: int) -> None:
        def tile(row: Affine, height: int | Var, heights: tuple[int, ...], packed: Affine | None = None) -> None:
            self._contract(located, panel, columns, row, height, heights)

        RowTiles(self.plan, self.kernel, tile, None, False).even_tiles(Affine(), self.rows, self.heights)


def _heights(lines: int, columns: int, most: int) -> tuple[int, ...]:
    """The heights of even tiles of up to so many lines of rows.

    >>> _heights(4, 8, 14)
    (8, 10, 11, 12)
    """
    sizes = ((n * columns, -(-n * columns // most)) for n in range(1, lines + 1))
    return tuple(sorted({height for rows, tiles in sizes for height in (rows // tiles, -(-rows // tiles))}))
