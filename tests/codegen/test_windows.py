"""Windows that slide over each channel by itself: depthwise convolutions and pooling, for many shapes."""

from __future__ import annotations

import random

import numpy as np
import pytest

from lepton_jit.codegen.target import Target, native_target
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import TensorType, dim_value
from lepton_jit.passes.gradient.autodiff import Autodiff
from tests.codegen.programs import differences, everywhere, fused, linked, run_loops, run_native, step_ops
from tests.levels import RUNNABLE, at_every_level, level

# float32 sums of up to 49 products
TOLERANCE = {"float32": 3e-6}
CHANNELS_LAST = {"lhs_spec": (0, 3, 1, 2), "rhs_spec": (3, 2, 0, 1), "out_spec": (0, 3, 1, 2)}


def depthwise(b: Builder, x: Value, kernel: Value, **changes: object) -> Value:
    ones = (1, 1)
    attributes = {
        "strides": ones,
        "padding": ((0, 0), (0, 0)),
        "lhs_dilation": ones,
        "rhs_dilation": ones,
        "window_reversal": (False, False),
        "feature_group_count": x.type.shape[-1],
        "batch_group_count": 1,
    }
    return b("convolution", x, kernel, **CHANNELS_LAST, **(attributes | changes))


def drawn(seed: int) -> Graph:
    """A depthwise convolution of a random geometry, with a bias and relu6."""
    choose = random.Random(seed)
    taps = choose.choice([(3, 3), (3, 3), (5, 5), (7, 7), (1, 3), (2, 4), (1, 1)])
    changes: dict[str, object] = {}
    dilation = strides = (1, 1)
    match choose.choice(["plain", "plain", "strides", "dilation", "spread"]):
        case "strides":
            strides = changes["strides"] = choose.randint(1, 3), choose.randint(1, 3)
        case "dilation":
            dilation = changes["rhs_dilation"] = choose.randint(1, 3), choose.randint(1, 3)
        case "spread":
            changes["lhs_dilation"] = choose.randint(1, 3), choose.randint(1, 3)
    changes["window_reversal"] = choose.choice([True, False]), choose.choice([True, False])
    extents = [(k - 1) * d + 1 for k, d in zip(taps, dilation, strict=True)]
    padding = changes["padding"] = tuple((choose.randint(-1, e), choose.randint(-1, e)) for e in extents)
    size = [max(1, e - sum(p)) + choose.randint(0, 30 * s) for e, p, s in zip(extents, padding, strides, strict=True)]
    channels = choose.choice([2, 3, 8, 15, 16, 17, 24, 33, 64, 70])
    b = Builder("drawn")
    x = b.input("x", TensorType.of("f32", "N", *size, channels))
    kernel = b.input("kernel", TensorType.of("f32", *taps, 1, channels))
    bias = b.input("bias", TensorType.of("f32", channels))
    y = depthwise(b, x, kernel, **changes)
    b.output(b("relu6", b("add", y, b.broadcast(bias, y.type.shape, (3,)))), "y")
    return b.build()


def arrays_of(graph: Graph, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    shapes = {i.name: [dim_value(d, {"N": batch}) for d in i.value.type.shape] for i in graph.inputs}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("seed", range(40))
def test_depthwise_convolutions_of_many_shapes(seed: int) -> None:
    graph = drawn(seed)
    assert everywhere(graph, step_ops) == ["convolution+add+maximum+minimum"]
    made = fused(graph, level(seed))
    for batch in (1, 2):
        arrays = arrays_of(graph, batch)
        assert differences(run_native(made, arrays), run_graph(graph, arrays), TOLERANCE) == []


@pytest.mark.parametrize("channels", [3, 16, 70, 129])
@pytest.mark.parametrize("stride", [1, 2])
def test_gradients_of_depthwise_convolutions(channels: int, stride: int) -> None:
    b = Builder("gradients")
    x = b.input("x", TensorType.of("f32", "N", 9, 11, channels))
    kernel = b.input("kernel", TensorType.of("f32", 3, 3, 1, channels))
    y = depthwise(b, x, kernel, strides=(stride, stride), padding=((1, 1), (0, 1)))
    loss = b("reduce", b("multiply", y, y), dimensions=(0, 1, 2, 3), kind="add")
    for name, value in zip(("dx", "dk"), b.emit("gradient", loss, x, kernel), strict=True):
        b.output(value, name)
    graph = Autodiff().apply(b.build())
    arrays = arrays_of(graph, 3)
    expected = run_graph(graph, arrays)
    for target in RUNNABLE:
        assert differences(run_native(fused(graph, target), arrays), expected, {"float32": 1e-5}) == []


@pytest.mark.parametrize("seed", range(20))
def test_pooling_of_many_shapes(seed: int) -> None:
    choose = random.Random(seed)
    window = choose.choice([(2, 2), (3, 3), (2, 3), (7, 7), (1, 4)])
    strides, dilation = ((choose.randint(1, 3), choose.randint(1, 3)) for _ in range(2))
    extents = [(k - 1) * d + 1 for k, d in zip(window, dilation, strict=True)]
    padding = tuple((choose.randint(0, e - 1), choose.randint(0, e - 1)) for e in extents)
    size = [e + choose.randint(0, 25) for e in extents]
    b = Builder("pooling")
    x = b.input("x", TensorType.of("f32", "N", *size, choose.choice([1, 3, 16, 35])))
    kind = choose.choice(["add", "maximum", "minimum"])
    spatial = {"window": window, "strides": strides, "dilation": dilation}
    whole = {name: (1, *entries, 1) for name, entries in spatial.items()}
    y = b("reduce_window", x, kind=kind, padding=((0, 0), *padding, (0, 0)), **whole)
    b.output(b("multiply", y, 0.5), "y")
    graph = b.build()
    arrays = arrays_of(graph, 2)
    arrays["x"][0, 0, 0, 0] = np.nan
    made = fused(graph, level(seed))
    expected = run_graph(graph, arrays)
    assert differences(run_native(made, arrays), expected, TOLERANCE) == []


def small(**changes: object) -> Graph:
    b = Builder("small")
    x = b.input("x", TensorType.of("f32", "N", 7, 9, 18))
    y = depthwise(b, x, b.input("kernel", TensorType.of("f32", 3, 3, 1, 18)), **changes)
    b.output(y, "y")
    return b.build()


@at_every_level
@pytest.mark.parametrize(
    "changes",
    [
        {"padding": ((1, 1), (1, 1))},
        {"strides": (2, 2), "padding": ((0, 1), (1, 1))},
        {"lhs_dilation": (2, 2), "padding": ((2, 1), (1, 2)), "window_reversal": (True, True)},
        {"rhs_dilation": (2, 3), "padding": ((2, 2), (3, 3))},
    ],
)
def test_loops_read_and_write_what_exists(changes: dict[str, object], target: Target) -> None:
    graph = small(**changes)
    made, arrays = fused(graph, target), arrays_of(graph, 2)
    found = run_loops(made.lowered, arrays, {"N": 2}, fused=target.name != "x86-64")
    assert differences(found, run_graph(graph, arrays), TOLERANCE) == []


def test_a_sample_has_the_same_bits_in_every_batch_and_on_any_number_of_threads() -> None:
    graph = drawn(4)
    made = fused(graph, native_target())
    arrays = arrays_of(graph, 5)
    programs = [linked(made, threads) for threads in (1, 2)]
    whole, other = (program(*arrays.values())[0] for program in programs)
    (one,) = programs[0](arrays["x"][:1], arrays["kernel"], arrays["bias"])
    assert [other.tobytes(), one.tobytes()] == [whole.tobytes(), whole[:1].tobytes()]
