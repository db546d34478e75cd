"""Winograd's minimal filtering: a 3 x 3 convolution of stride 1 as transforms and fewer products.

With Y = A^T [(G w G^T) * (B^T d B)] A for each tile d of (m + 2) x (m + 2) elements, m x m results take (m + 2)^2
products in place of 9 m^2. Source: A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", 2015.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from lepton_jit.errors import ShapeError
from lepton_jit.ir.graph import Attributes
from lepton_jit.ir.op import NOT_DIFFERENTIABLE, Family, Sample
from lepton_jit.ir.ops.rules import BOOLS, INT, INTS, define, expect_dtype, expect_rank
from lepton_jit.ir.traits import Traits
from lepton_jit.ir.types import TensorType, typical

__all__ = ["INPUT_TRANSFORM", "KERNEL_TRANSFORM", "OUTPUT_TRANSFORM", "Matrix", "lines_of_block"]

Matrix = tuple[tuple[Fraction, ...], ...]
TAPS = 3


def _matrix(text: str) -> Matrix:
    return tuple(tuple(map(Fraction, row.split())) for row in text.split(","))


# By m, the results of a tile in each dimension: B^T, G and A^T of F(m, 3).
INPUT_TRANSFORM: dict[int, Matrix] = {
    2: _matrix("1 0 -1 0, 0 1 1 0, 0 -1 1 0, 0 1 0 -1"),
    4: _matrix("4 0 -5 0 1 0, 0 -4 -4 1 1 0, 0 4 -4 -1 1 0, 0 -2 -1 2 1 0, 0 2 -1 -2 1 0, 0 4 0 -5 0 1"),
}
KERNEL_TRANSFORM: dict[int, Matrix] = {
    2: _matrix("1 0 0, 1/2 1/2 1/2, 1/2 -1/2 1/2, 0 0 1"),
    4: _matrix("1/4 0 0, -1/6 -1/6 -1/6, -1/6 1/6 -1/6, 1/24 1/12 1/6, 1/24 -1/12 1/6, 0 0 1"),
}
OUTPUT_TRANSFORM: dict[int, Matrix] = {
    2: _matrix("1 1 1 0, 0 1 -1 -1"),
    4: _matrix("1 1 1 1 1 0, 0 1 -1 2 -2 0, 0 1 1 4 4 0, 0 1 -1 8 -8 1"),
}


# Tiles and products of so many bytes stay in a core's own cache besides a kernel, images and results.
CACHE_BYTES = 5 << 17
# With fewer rows the kernel is read too often.
LEAST_ROWS = 28


def lines_of_block(tiles: TensorType, products: TensorType) -> int:
    """The number of lines of tiles that are transformed, multiplied and transformed back before the next ones.

    >>> tiles, products = (TensorType.of("f32", 36, "N", 8, 8, channels) for channels in (64, 64))
    >>> lines_of_block(tiles, products)
    4
    """
    count, channels, features = (typical(d) for d in (tiles.shape[0], tiles.shape[-1], products.shape[-1]))
    rows = max(CACHE_BYTES // (count * (channels + features) * tiles.dtype.bytes), LEAST_ROWS)
    return max(1, rows // typical(tiles.shape[3]))


def _floats(matrix: Matrix, dtype: np.dtype) -> np.ndarray:
    return np.array([[float(x) for x in row] for row in matrix], dtype)


def _expect_tile(tile: int) -> None:
    if tile not in INPUT_TRANSFORM:
        raise ShapeError(f"tile: expected one of {sorted(INPUT_TRANSFORM)}, got {tile}")


def _infer_input(x: TensorType, *, tile: int) -> TensorType:
    expect_dtype(x, "float")
    expect_rank(x, 4)
    _expect_tile(tile)
    batch, *size, channels = x.shape
    if any(not isinstance(s, int) or s < tile + 2 or (s - 2) % tile for s in size):
        raise ShapeError(f"expected a padded height and width of {tile}*n + 2, got {x}")
    return x.with_shape(((tile + 2) ** 2, batch, *((s - 2) // tile for s in size), channels))


def _input(x: np.ndarray, *, tile: int) -> np.ndarray:
    transform = _floats(INPUT_TRANSFORM[tile], x.dtype)
    size = tile + 2
    view = np.lib.stride_tricks.sliding_window_view(x, (size, size), (1, 2))[:, ::tile, ::tile]
    tiles = np.einsum("ia,jb,nhwcab->ijnhwc", transform, transform, view, optimize=True)
    return tiles.reshape(size * size, *tiles.shape[2:]).astype(x.dtype)


def _infer_kernel(
    kernel: TensorType, *, tile: int, spec: Sequence[int], reversal: Sequence[bool], panel: int
) -> TensorType:
    expect_dtype(kernel, "float")
    expect_rank(kernel, 4)
    _expect_tile(tile)
    if sorted(spec) != [0, 1, 2, 3] or len(reversal) != 2 or panel < 0:
        found = f"{list(spec)}, {list(reversal)} and {panel}"
        raise ShapeError(f"spec, reversal, panel: expected an order of 4 dimensions, 2 truths, at least 0, got {found}")
    features, channels, *taps = (kernel.shape[d] for d in spec)
    if taps != [TAPS, TAPS]:
        raise ShapeError(f"expected a kernel of 3 x 3, got {kernel}")
    count = (tile + 2) ** 2
    if not panel:
        return kernel.with_shape((count, channels, features))
    if not isinstance(features, int):
        raise ShapeError(f"panel: expected a known number of features, got {kernel}")
    return kernel.with_shape((count, -(-features // panel), channels, panel))


def _kernel(kernel: np.ndarray, *, tile: int, spec: Sequence[int], reversal: Sequence[bool], panel: int) -> np.ndarray:
    out_feature, in_feature, *spatial = spec
    window = np.flip(kernel, tuple(d for d, r in zip(spatial, reversal, strict=True) if r))
    window = window.transpose(*spatial, in_feature, out_feature)
    transform = _floats(KERNEL_TRANSFORM[tile], kernel.dtype)
    found = np.einsum("ia,jb,abcd->ijcd", transform, transform, window, optimize=True)
    found = found.reshape(-1, *window.shape[2:]).astype(kernel.dtype)
    if not panel:
        return found
    count, channels, features = found.shape
    panels = -(-features // panel)
    padded = np.pad(found, ((0, 0), (0, 0), (0, panels * panel - features)))
    return padded.reshape(count, channels, panels, panel).swapaxes(1, 2).copy()


def _infer_output(products: TensorType, *, tile: int, size: Sequence[int]) -> TensorType:
    expect_dtype(products, "float")
    expect_rank(products, 5)
    _expect_tile(tile)
    if len(size) != 2:
        raise ShapeError(f"size: expected a height and a width, got {list(size)}")
    count, batch, *tiles, channels = products.shape
    fits = all(isinstance(n, int) and n == -(-s // tile) for n, s in zip(tiles, size, strict=True))
    if count != (tile + 2) ** 2 or not fits:
        raise ShapeError(f"expected {(tile + 2) ** 2} products of the tiles of {size} results, got {products}")
    return products.with_shape((batch, *size, channels))


def _output(products: np.ndarray, *, tile: int, size: Sequence[int]) -> np.ndarray:
    transform = _floats(OUTPUT_TRANSFORM[tile], products.dtype)
    _, batch, rows, columns, channels = products.shape
    square = products.reshape(tile + 2, tile + 2, batch, rows, columns, channels)
    found = np.einsum("ia,jb,abnhwc->nhiwjc", transform, transform, square, optimize=True)
    whole = found.reshape(batch, rows * tile, columns * tile, channels)
    return whole[:, : size[0], : size[1]].astype(products.dtype)


# The order of a kernel [3, 3, in, out]: as a convolution reads it, and as its input's gradient does.
_FORWARD: Attributes = {"spec": (3, 2, 0, 1), "reversal": (False, False)}
_BACKWARD: Attributes = {"spec": (2, 3, 0, 1), "reversal": (True, True)}

define(
    "winograd_input",
    Family.WINDOW,
    operands="x",
    attributes={"tile": INT},
    infer=_infer_input,
    reference=_input,
    gradient=NOT_DIFFERENTIABLE,
    samples=(
        Sample((TensorType.of("f32", "N", 10, 6, 16),), {"tile": 4}),
        Sample((TensorType.of("f32", 2, 6, 4, 19),), {"tile": 2}),
    ),
)

define(
    "winograd_kernel",
    Family.WINDOW,
    operands="kernel",
    attributes={"tile": INT, "spec": INTS, "reversal": BOOLS, "panel": INT},
    infer=_infer_kernel,
    reference=_kernel,
    gradient=NOT_DIFFERENTIABLE,
    samples=(
        Sample((TensorType.of("f32", 3, 3, 5, 16),), _FORWARD | {"tile": 4, "panel": 0}),
        Sample((TensorType.of("f32", 3, 3, 2, 7),), _FORWARD | {"tile": 2, "panel": 0}),
        Sample((TensorType.of("f32", 3, 3, 20, 5),), _BACKWARD | {"tile": 4, "panel": 16}),
        Sample((TensorType.of("f32", 3, 3, 2, 48),), _FORWARD | {"tile": 2, "panel": 32}),
    ),
)

define(
    "winograd_output",
    Family.WINDOW,
    operands="products",
    attributes={"tile": INT, "size": INTS},
    infer=_infer_output,
    reference=_output,
    gradient=NOT_DIFFERENTIABLE,
    traits=Traits(epilogue="window"),
    samples=(
        Sample((TensorType.of("f32", 36, "N", 2, 1, 16),), {"tile": 4, "size": (7, 4)}),
        Sample((TensorType.of("f32", 16, 2, 2, 2, 5),), {"tile": 2, "size": (4, 3)}),
    ),
)
