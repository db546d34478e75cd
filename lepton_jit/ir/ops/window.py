"""Reductions over sliding windows, and the scatter that is the gradient of their maximum."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lepton_jit.errors import DTypeError, ShapeError, UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import NOT_DIFFERENTIABLE, Family, Sample
from lepton_jit.ir.ops.parts import padded
from lepton_jit.ir.ops.reduction import combine_along, identity
from lepton_jit.ir.ops.rules import INTS, PAIRS, choice, define, expect_dtype, the_cotangent, window_size
from lepton_jit.ir.traits import Traits
from lepton_jit.ir.types import Dim, TensorType

__all__ = ["Pairs", "window_sum_gradient", "windows"]

Pairs = Sequence[tuple[int, int]]
_NUMBERS = ("float", "signed", "unsigned")


def windows(
    x: np.ndarray, size: Sequence[int], strides: Sequence[int], dilation: Sequence[int] | None = None
) -> np.ndarray:
    """A view of shape (*number of windows, *size): every window of `x`."""
    dilation = dilation or (1,) * x.ndim
    extents = [(s - 1) * d + 1 for s, d in zip(size, dilation, strict=True)]
    counts = [max(0, (n - e) // s + 1) for n, e, s in zip(x.shape, extents, strides, strict=True)]
    steps = [b * s for b, s in zip(x.strides, strides, strict=True)]
    inner = [b * d for b, d in zip(x.strides, dilation, strict=True)]
    return np.lib.stride_tricks.as_strided(x, (*counts, *size), (*steps, *inner), writeable=False)


def _padded(x: np.ndarray, padding: Pairs, value: float) -> np.ndarray:
    low, high = [lo for lo, _ in padding], [hi for _, hi in padding]
    return padded(x, np.asarray(value, x.dtype), low=low, high=high, interior=[0] * x.ndim)


def _window_shape(
    x: TensorType, window: Sequence[int], strides: Sequence[int], padding: Pairs, dilation: Sequence[int]
):
    for name, entries in (("window", window), ("strides", strides), ("padding", padding), ("dilation", dilation)):
        if len(entries) != x.rank:
            raise ShapeError(f"{name}: expected one entry for every dimension of {x}, got {list(entries)}")
    return x.with_shape(map(window_size, x.shape, window, strides, padding, dilation))


# reduce_window


def _infer_reduce_window(
    x: TensorType, *, kind: str, window: Sequence[int], strides: Sequence[int], padding: Pairs, dilation: Sequence[int]
) -> TensorType:
    expect_dtype(x, *_NUMBERS)
    return _window_shape(x, window, strides, padding, dilation)


def _reduce_window(
    x: np.ndarray, *, kind: str, window: Sequence[int], strides: Sequence[int], padding: Pairs, dilation: Sequence[int]
) -> np.ndarray:
    view = windows(_padded(x, padding, identity(kind, x.dtype)), window, strides, dilation)
    return combine_along(view, range(x.ndim, view.ndim), kind)


def _reduce_window_gradient(b: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    dy, (x,) = the_cotangent(cotangents), node.operands
    kind, window, strides, padding, dilation = (
        node.attributes[n] for n in ("kind", "window", "strides", "padding", "dilation")
    )
    if kind == "add":
        return (window_sum_gradient(b, dy, x.type, window, strides, padding, dilation),)
    if any(d != 1 for d in dilation):
        raise UnsupportedError(f"reduce_window: the gradient of a {kind} over a dilated window {list(dilation)}")
    source = x if kind == "maximum" else b("negate", x)
    return (b("select_and_scatter", source, dy, window=window, strides=strides, padding=padding),)


def window_sum_gradient(
    b: Builder,
    dy: Value,
    x: TensorType,
    window: Sequence[int],
    strides: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
) -> Value:
    """The cotangent of every element of x: the sum of those of the windows over it, a sum over windows of spread dy."""
    low, high, interior = [], [], []
    for before, after, size, stride, (lo, _), step in zip(
        x.shape, dy.type.shape, window, strides, padding, dilation, strict=True
    ):
        first, last = _transposed_padding(before, after, size, stride, lo, step)
        low.append(first)
        high.append(last)
        interior.append(stride - 1)
    ones = (1,) * x.rank
    spread = b("pad", dy, b.constant(0, dy.type.dtype), low=low, high=high, interior=interior)
    no_padding = ((0, 0),) * x.rank
    return b("reduce_window", spread, kind="add", window=window, strides=ones, padding=no_padding, dilation=dilation)


def _transposed_padding(before: Dim, after: Dim, size: int, stride: int, low: int, dilation: int) -> tuple[int, int]:
    if not isinstance(before, int) or not isinstance(after, int):
        return 0, 0  # a symbolic dimension has windows of one element
    extent = (size - 1) * dilation + 1
    spread = (after - 1) * stride + 1
    first = extent - 1 - low
    return first, before + extent - 1 - spread - first


define(
    "reduce_window",
    Family.WINDOW,
    operands="x",
    attributes={
        "kind": choice("add", "maximum", "minimum"),
        "window": INTS,
        "strides": INTS,
        "padding": PAIRS,
        "dilation": INTS,
    },
    infer=_infer_reduce_window,
    reference=_reduce_window,
    gradient=_reduce_window_gradient,
    traits=Traits(epilogue="window"),
    samples=[
        Sample(
            (TensorType.of(dtype, *shape),),
            {"kind": kind, "window": window, "strides": strides, "padding": padding, "dilation": dilation},
        )
        for kind in ("add", "maximum", "minimum")
        for dtype, shape, window, strides, padding, dilation in (
            ("f32", ("N", 6, 6, 2), (1, 2, 2, 1), (1, 2, 2, 1), ((0, 0),) * 4, (1,) * 4),
            ("f64", (2, 7, 5), (1, 3, 2), (1, 2, 2), ((0, 0), (1, 1), (0, 1)), (1, 1, 1)),
            ("f64", (7, 5), (3, 2), (2, 3), ((-1, 2), (1, -1)), (1, 1)),
            ("f64", (3, 4), (2, 4), (1, 1), ((1, 0), (3, 3)), (1, 1)),
            ("i32", (9,), (4,), (3,), ((2, 1),), (1,)),
        )
    ]
    + [
        Sample(
            (TensorType.of("f64", 9, 8),),
            {"kind": "add", "window": (3, 2), "strides": (2, 1), "padding": ((1, 2), (0, 3)), "dilation": (2, 3)},
        ),
        Sample(
            (TensorType.of("i8", 9),),
            {"kind": "maximum", "window": (3,), "strides": (1,), "padding": ((4, 0),), "dilation": (3,)},
        ),
    ],
)


# select_and_scatter


def _infer_select_and_scatter(
    x: TensorType, source: TensorType, *, window: Sequence[int], strides: Sequence[int], padding: Pairs
) -> TensorType:
    expect_dtype(x, *_NUMBERS)
    expected = _window_shape(x, window, strides, padding, (1,) * x.rank)
    if source != expected:
        error = DTypeError if source.shape == expected.shape else ShapeError
        raise error(f"source: expected an element for every window, {expected}, got {source}")
    return x


def _select_and_scatter(
    x: np.ndarray, source: np.ndarray, *, window: Sequence[int], strides: Sequence[int], padding: Pairs
) -> np.ndarray:
    """Add each element of the source to where its window is largest: NaN before all, then the first; never padding."""
    lowest = identity("maximum", x.dtype)
    table = (source.size, math.prod(window))
    values = windows(_padded(x, padding, lowest), window, strides).reshape(table)
    places = np.arange(x.size).reshape(x.shape)
    places = windows(_padded(places, padding, -1), window, strides).reshape(table)
    largest = values.max(axis=1, keepdims=True, initial=lowest)
    chosen = (places >= 0) & ((values == largest) | (values != values))
    at = np.take_along_axis(places, chosen.argmax(axis=1)[:, None], axis=1)[:, 0]
    found = chosen.any(axis=1)
    result = np.zeros(x.size, x.dtype)
    np.add.at(result, at[found], source.reshape(-1)[found])
    return result.reshape(x.shape)


define(
    "select_and_scatter",
    Family.WINDOW,
    operands="x source",
    attributes={"window": INTS, "strides": INTS, "padding": PAIRS},
    infer=_infer_select_and_scatter,
    reference=_select_and_scatter,
    gradient=NOT_DIFFERENTIABLE,
    traits=Traits(epilogue="scatter"),
    samples=[
        Sample(
            (TensorType.of(dtype, *shape), TensorType.of(dtype, *source)),
            {"window": window, "strides": strides, "padding": padding},
        )
        for dtype, shape, source, window, strides, padding in (
            ("f32", ("N", 6, 6, 2), ("N", 3, 3, 2), (1, 2, 2, 1), (1, 2, 2, 1), ((0, 0),) * 4),
            ("f64", (2, 7, 5), (2, 4, 3), (1, 3, 2), (1, 2, 2), ((0, 0), (1, 1), (0, 1))),
            ("f64", (7, 5), (5, 4), (3, 2), (1, 1), ((0, 0), (0, 0))),
            ("f64", (7, 5), (3, 2), (3, 2), (2, 3), ((-1, 2), (1, -1))),
            ("i32", (9,), (3,), (4,), (3,), ((2, 1),)),
        )
    ],
)
