"""The arithmetic of windows over images: output sizes and padding of `valid` and `same`."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_jit.errors import ShapeError
from lepton_jit.ir.types import Dim
from lepton_jit.layers.base.symbolic import ShapeTuple

__all__ = ["same_padding", "window_inside", "window_output"]


def window_output(
    owner: str,
    input_shape: ShapeTuple,
    window: Sequence[int],
    strides: Sequence[int],
    padding: str,
    dilation: Sequence[int] = (1, 1),
) -> tuple[int, int]:
    """Height and width of the output of `[N, H, W, C]`.

    >>> window_output("conv2d", (None, 28, 28, 1), (3, 3), (2, 2), "same")
    (14, 14)
    """
    sizes = []
    for size, k, s, d in zip(input_shape[1:3], window, strides, dilation, strict=True):
        assert size is not None
        span = (k - 1) * d + 1
        sizes.append(-(-size // s) if padding == "same" else (size - span) // s + 1)
    if min(sizes) < 1:
        at = f" at dilation {tuple(dilation)}" if max(dilation) > 1 else ""
        raise ShapeError(
            f"{owner}: expected an input of at least the window's size {tuple(window)}{at}, got shape {input_shape}; "
            f"the output would be of height {sizes[0]} and width {sizes[1]}"
        )
    return sizes[0], sizes[1]


def same_padding(
    sizes: Sequence[Dim], window: Sequence[int], strides: Sequence[int], dilation: Sequence[int] = (1, 1)
) -> tuple[tuple[int, int], ...]:
    """The padding that `padding="same"` adds before and after each dimension; an odd one goes after.

    >>> same_padding((28, 28), (3, 3), (2, 2))
    ((0, 1), (0, 1))
    """
    pads = []
    for size, k, s, d in zip(sizes, window, strides, dilation, strict=True):
        assert isinstance(size, int)
        total = max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0)
        pads.append((total // 2, total - total // 2))
    return tuple(pads)


def window_inside(
    sizes: Sequence[Dim], window: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, ...], tuple[tuple[int, int], ...]]:
    """A window of `padding="same"` without what lies outside the image wherever the window stands, and its padding.

    >>> window_inside((8, 8), (3, 10**12), (1, 1))
    ((3, 15), ((1, 1), (7, 7)))
    """
    taps, pads = [], []
    for size, k, s, (low, high) in zip(sizes, window, strides, same_padding(sizes, window, strides), strict=True):
        assert isinstance(size, int)
        last = (-(-size // s) - 1) * s  # where the last window begins, before the padding
        before, behind = max(low - last, 0), max(k - size - low, 0)
        taps.append(k - before - behind)
        pads.append((low - before, high - behind))
    return tuple(taps), tuple(pads)
