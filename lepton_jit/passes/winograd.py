"""Compute 3 x 3 convolutions by Winograd's transforms and a batched product, where that is estimated to be faster."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.ops.winograd import lines_of_block
from lepton_jit.ir.types import TensorType, dim_value, symbols_of, typical, typical_rows
from lepton_jit.passes.base import Pass
from lepton_jit.passes.rewriting.facts import of_parameters_alone
from lepton_jit.passes.rewriting.rewrite import Rewriter, rewrite

__all__ = ["Winograd"]

CHANNELS_LAST = (0, 3, 1, 2)
LEAST_CHANNELS = 32
TILES = (4, 2)
# The estimate: operations a second of a core, bytes a second from DRAM and from its caches, which hold NEAR_BYTES, and
# bytes a second in blocks.
OPERATIONS, FAR, NEAR, NEAR_BYTES, IN_BLOCKS = 200e9, 20e9, 40e9, 2 << 20, 90e9
# Below this share of the direct convolution's time, an estimate is trusted.
WORTH_IT = 0.85
# Bytes of a kernel that may be read again for each byte that then stays in a core's cache; and where tiles and products
# have so many bytes that they would go through DRAM.
READ_AGAIN, READ_AGAIN_FAR = 0.7, 1.25
READ_AGAIN_FAR_BYTES = 16 << 20


@dataclass(frozen=True)
class Winograd(Pass):
    """`convolution` of 3 x 3, stride 1 -> `winograd_output(dot_general(winograd_input(x), winograd_kernel(w)))`.

    law: A^T [(G w G^T) * (B^T d B)] A is the convolution of the tile d with w, in exact arithmetic. Rounded to f32, the
    largest error relative to the largest result stays under 3e-5 for tiles of 4 x 4 results (measured: 1.5e-5) and
    under 5e-6 for 2 x 2 (2.3e-6; normal inputs, 64 to 512 channels).

    Products fall to 1/4 and 4/9, but the transformed kernel is 4 and 1.8 times as large, and the transformed input and
    products pass through memory. Where the kernel is a parameter and any batch is possible, it is estimated for `batch`
    rows: for one unless the user said more, since a single row has the least use for a larger kernel.
    """

    name: ClassVar[str] = "winograd"

    batch: int = 1

    def apply(self, graph: Graph) -> Graph:
        fixed = {v.name for v in of_parameters_alone(graph)}
        parameters = [entry.value for entry in graph.inputs if entry.role == "parameter"]
        fixed |= {value.name for value in parameters}
        size = sum(value.type.dtype.bytes * typical(value.type.elements) for value in parameters)
        speed = NEAR if size < NEAR_BYTES // 2 else FAR  # where the parameters are when they are needed again

        def transformed(rewriter: Rewriter, node: Node) -> Value | None:
            prepared = node.operands[1].name in fixed
            tile = (
                _best_tile(node, prepared, self.batch if prepared else typical_rows(), speed) if _fits(node) else None
            )
            return _transformed(rewriter, node, tile) if tile else None

        return rewrite(graph, {"convolution": [transformed]})


def _transformed(rewriter: Rewriter, node: Node, tile: int) -> Value:
    """law: see Winograd."""
    x, kernel = node.operands
    a: Any = node.attributes
    (_, height, width, _), size = x.type.shape, node.result.type.shape[1:3]
    low = [lo for lo, _ in a["padding"]]
    high = [
        -(-out // tile) * tile + 2 - before - extent
        for out, before, extent in zip(size, low, (height, width), strict=True)
    ]
    if any((*low, *high)):
        zero = rewriter.constant(0, x.type.dtype)
        x = rewriter("pad", x, zero, low=(0, *low, 0), high=(0, *high, 0), interior=(0,) * 4)
    tiles = rewriter("winograd_input", x, tile=tile)
    order = {"spec": a["rhs_spec"], "reversal": a["window_reversal"]}
    weights = rewriter("winograd_kernel", kernel, tile=tile, panel=0, **order)
    products = rewriter(
        "dot_general",
        tiles,
        weights,
        lhs_batching=(0,),
        rhs_batching=(0,),
        lhs_contracting=(4,),
        rhs_contracting=(1,),
    )
    return rewriter("winograd_output", products, tile=tile, size=size)


def _fits(node: Node) -> bool:
    """Tell whether it has 3 x 3 taps at stride 1 on channels-last f32 images of known size, and channels enough."""
    a: Any = node.attributes
    x, kernel = node.operands
    if x.type.rank != 4 or x.type.dtype.name != "f32" or tuple(a["lhs_spec"]) != CHANNELS_LAST:
        return False
    out_feature, in_feature, *spatial = a["rhs_spec"]
    plain = (
        all(set(a[name]) == {1} for name in ("strides", "lhs_dilation", "rhs_dilation"))
        and a["feature_group_count"] == a["batch_group_count"] == 1
    )
    taps = all(kernel.type.shape[d] == 3 for d in spatial)
    channels = [kernel.type.shape[out_feature], kernel.type.shape[in_feature]]
    if not plain or not taps or tuple(a["out_spec"]) != CHANNELS_LAST:
        return False
    known = all(isinstance(d, int) and d > 0 for d in (*x.type.shape[1:], *node.result.type.shape[1:]))
    return known and all(isinstance(c, int) and c >= LEAST_CHANNELS for c in channels)


def gains_by_blocks(tiles: TensorType, products: TensorType, trained: bool) -> bool:
    """Tell whether one kernel that goes by blocks gains (docs/measurements.md, Winograd).

    Each block of tiles reads the transformed kernel again; in return, its tiles and products stay in a cache.
    """
    channels, features = (typical(t.shape[-1]) for t in (tiles, products))
    rows = lines_of_block(tiles, products) * typical(tiles.shape[3])
    again = channels * features / (2 * rows * (channels + features))
    far = trained and typical(tiles.elements + products.elements) * tiles.dtype.bytes > READ_AGAIN_FAR_BYTES
    return again <= (READ_AGAIN_FAR if far else READ_AGAIN)


def _best_tile(node: Node, fixed: bool, batch: int, weight_speed: float) -> int | None:
    dtype, shape = node.result.type.dtype, node.result.type.shape
    images, height, width, features = (dim_value(d, dict.fromkeys(symbols_of([d]), batch)) for d in shape)
    channels = dim_value(node.operands[0].type.shape[3], {})

    def seconds(products: float, weights: float, passing: float) -> float:
        """Estimate the seconds; a kernel that `prepare` does not transform is written and read once more."""
        return 2 * products / OPERATIONS + weights / weight_speed * (1 if fixed else 3) + passing

    def transformed(tile: int) -> float:
        count, lines, columns = (tile + 2) ** 2, -(-height // tile), -(-width // tile)
        rows = images * lines * columns
        tiles, products = (TensorType(dtype, (count, images, lines, columns, n)) for n in (channels, features))
        size = typical(tiles.elements + products.elements) * dtype.bytes
        near = NEAR if size < NEAR_BYTES else FAR
        speed = IN_BLOCKS if gains_by_blocks(tiles, products, not fixed) else near
        return seconds(count * max(rows, 8) * channels * features, 4 * count * channels * features, 2 * size / speed)

    direct = seconds(
        9 * images * height * width * channels * features, 4 * 9 * channels * features / (1 if fixed else 3), 0
    )
    best = min(TILES, key=transformed)
    return best if transformed(best) < WORTH_IT * direct else None
