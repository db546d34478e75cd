"""Sizes that no memory holds are named before anything is computed; windows end where the image ends."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.layers.window import same_padding, window_inside
from lepton_jit.runtime.arguments import aligned_empty

HUGE = 10**12
IMAGE = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)


@pytest.mark.parametrize(
    "make, shape, message",
    [
        (lambda: lpt.ZeroPadding2D(HUGE, name="p"), (8, 8, 3), r"'p': the output: .* 2\*\*47 bytes, got f32"),
        (lambda: lpt.Dense(2**61, name="d"), (3,), r"layer 'd': weight 'kernel': expected a tensor of at most 2\*\*47"),
        (lambda: lpt.Dense(2**62, name="d"), (3,), r"layer 'd': units: expected a positive integer below 2\*\*62"),
        (lambda: lpt.LSTM(2**60, name="l"), (3, 4), r"layer 'l': shape of lstm_cell/kernel: .* below 2\*\*62"),
        (lambda: lpt.GRU(2**50, name="g"), (3, 4), r"layer 'g': weight 'gru_cell/kernel': expected a tensor of at mos"),
        (lambda: lpt.Conv2D(2, HUGE, padding="same", name="c"), (8, 8, 3), r"layer 'c': weight 'kernel': expected"),
        (lambda: lpt.DepthwiseConv2D(1, depth_multiplier=2**60, name="w"), (8, 8, 3), r"layer 'w': weight 'kernel': "),
        (lambda: lpt.Reshape((2**61, 8), name="r"), (8, 8, 3), r"layer 'r': expected samples that fit the shape"),
    ],
)  # fmt: skip
def test_a_size_beyond_every_memory_is_refused_by_the_layer(
    make: Callable[[], Any], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises((lpt.ShapeError, lpt.ArgumentError), match=message):
        make()(lpt.Input(shape))


def test_an_input_a_table_a_sum_and_a_concatenation_beyond_every_memory_are_refused() -> None:
    with pytest.raises(lpt.ShapeError, match=r"layer 'x': the output: expected a tensor of at most"):
        lpt.Input((2**30, 2**30), name="x")
    with pytest.raises(lpt.ShapeError, match=r"layer 'e': weight 'embeddings': expected a tensor of at most"):
        lpt.Embedding(2**61, 4, name="e")(lpt.Input((3,), dtype="int32"))
    with pytest.raises(lpt.ShapeError, match=r"layer 'add': the output: expected a tensor of at most"):
        lpt.Add(name="add")([lpt.Input((2**30, 1)), lpt.Input((1, 2**30))])
    with pytest.raises(lpt.ShapeError, match=r"layer 'c': the output: expected a tensor of at most"):
        lpt.Concatenate(name="c")([lpt.Input((2**44,)), lpt.Input((2**45,))])


def test_what_only_a_pass_would_make_too_large_names_its_layer() -> None:
    model = lpt.Sequential([lpt.Input((8, 8, 3)), lpt.Conv2D(2, 3, dilation_rate=HUGE, padding="same", name="far")])
    with pytest.raises(lpt.ShapeError, match=r"layer 'far': pad: expected a tensor of at most 2\*\*47 bytes"):
        lpt.compile(model)


@pytest.mark.parametrize("strides", [1, 3, HUGE])
def test_windows_larger_than_the_image_are_the_image(strides: int) -> None:
    x = lpt.Input((8, 8, 3))
    pooled = [kind(HUGE, strides=strides, padding="same")(x) for kind in (lpt.MaxPooling2D, lpt.AveragePooling2D)]
    largest, mean = lpt.compile(lpt.Model(x, pooled))(IMAGE)
    size = -(-8 // strides)
    assert largest.shape == mean.shape == (2, size, size, 3)
    assert np.array_equal(largest, np.broadcast_to(IMAGE.max((1, 2), keepdims=True), largest.shape))
    assert np.allclose(mean, np.broadcast_to(IMAGE.mean((1, 2), keepdims=True), mean.shape), atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5, 8])
def test_a_window_inside_the_image_reads_what_the_whole_window_reads(size: int) -> None:
    def read(taps: int, low: int, stride: int) -> list[list[int]]:
        starts = range(-low, -(-size // stride) * stride - low, stride)
        return [[place for place in range(start, start + taps) if 0 <= place < size] for start in starts]

    for window in (1, 2, 3, 4, 5, 9, 14, 15, 16, 17, 31):
        for stride in (1, 2, 3, 7, 8, 9):
            arguments = (size, 1), (window, 1), (stride, 1)
            ((low, _), _), ((taps, _), ((inner, behind), _)) = same_padding(*arguments), window_inside(*arguments)
            assert read(taps, inner, stride) == read(window, low, stride), (window, stride)
            assert (size + inner + behind - taps) // stride + 1 == -(-size // stride), (window, stride)
            assert taps <= max(2 * size - 1, stride), (window, stride)


@pytest.mark.parametrize("kernel", ["glorot_uniform", "he_normal", "orthogonal", "zeros", "ones"])
def test_a_weight_that_no_memory_is_left_for_is_named(kernel: str) -> None:
    with pytest.raises(lpt.OutOfMemoryError, match=r"layer 'd': weight 'kernel': Unable to allocate"):
        lpt.Dense(2**42, kernel_initializer=kernel, name="d")(lpt.Input((4,)))


def test_an_answer_that_no_memory_is_left_for_is_an_error_of_this_package() -> None:
    with pytest.raises(lpt.OutOfMemoryError, match=r"no memory for 70,368,744,177,664 bytes of float32"):
        aligned_empty((2**40, 16), np.dtype("float32"))
