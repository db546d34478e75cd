"""Winograd's transforms give the convolution, for many sizes, paddings and orders of the kernel."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from lepton_jit.codegen.target import native_target
from lepton_jit.compiler.pipeline import pipeline, set_winograd
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.ops.winograd import INPUT_TRANSFORM, KERNEL_TRANSFORM, OUTPUT_TRANSFORM
from lepton_jit.ir.types import TensorType
from lepton_jit.passes.winograd import Winograd
from tests.codegen.programs import differences, everywhere, fused, run_native, step_ops
from tests.levels import level

FORWARD = {"rhs_spec": (3, 2, 0, 1), "window_reversal": (False, False)}
INPUT_GRADIENT = {"rhs_spec": (2, 3, 0, 1), "window_reversal": (True, True)}
# What the pass states, relative to the largest result.
LARGEST_ERROR = 3e-5


@pytest.fixture(autouse=True)
def whatever_the_estimate_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_jit.passes.winograd.WORTH_IT", 1000.0)


def convolution(size: tuple[int, int], channels: int, padding: Any, batch: int | str = "N", **changed: Any) -> Graph:
    b = Builder("convolution")
    x = b.input("x", TensorType.of("f32", batch, *size, channels))
    kernel = b.input("kernel", TensorType.of("f32", 3, 3, channels, channels))
    attributes = {
        "lhs_spec": (0, 3, 1, 2),
        "out_spec": (0, 3, 1, 2),
        "strides": (1, 1),
        "padding": padding,
        "lhs_dilation": (1, 1),
        "rhs_dilation": (1, 1),
        "feature_group_count": 1,
        "batch_group_count": 1,
        **(FORWARD | changed),
    }
    b.output(b("relu", b("convolution", x, kernel, **attributes)), "y")
    return b.build()


def arrays(size: tuple[int, int], channels: int, images: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = {"x": (images, *size, channels), "kernel": (3, 3, channels, channels)}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("tile", [2, 4])
def test_the_transforms_are_exact(tile: int) -> None:
    """A^T [(G e_k) * (B^T e_i)] is 1 at i - k and 0 elsewhere, in fractions."""
    for i in range(tile + 2):
        for k in range(3):
            products = [g[k] * b[i] for g, b in zip(KERNEL_TRANSFORM[tile], INPUT_TRANSFORM[tile], strict=True)]
            found = [sum(a * p for a, p in zip(row, products, strict=True)) for row in OUTPUT_TRANSFORM[tile]]
            assert found == [int(o == i - k) for o in range(tile)]


@pytest.mark.parametrize("order", [FORWARD, INPUT_GRADIENT], ids=["forward", "input gradient"])
@pytest.mark.parametrize(
    ("size", "channels", "padding"),
    [
        ((8, 8), 32, ((1, 1), (1, 1))),
        ((7, 9), 40, ((1, 1), (1, 1))),
        ((12, 6), 33, ((0, 0), (0, 0))),
        ((9, 11), 32, ((2, 0), (0, 1))),
    ],
)
def test_it_is_the_convolution(size: tuple[int, int], channels: int, padding: Any, order: dict[str, Any]) -> None:
    graph = convolution(size, channels, padding, **order)
    transformed = Winograd().apply(graph)
    assert "winograd_output" in [node.op for node in transformed.nodes]
    given = arrays(size, channels, images=3)
    expected = run_graph(graph, given)["y"]
    assert relative_error(run_graph(transformed, given)["y"], expected) < LARGEST_ERROR
    assert any("winograd" in op for op in everywhere(graph, step_ops))
    native = fused(graph, level(channels))
    assert relative_error(run_native(native, given)["y"], expected) < LARGEST_ERROR


def test_a_sample_has_the_same_bits_in_every_batch_and_on_every_thread() -> None:
    given = arrays((8, 8), 32, images=5)
    native = fused(convolution((8, 8), 32, ((1, 1), (1, 1))), native_target())
    whole = run_native(native, given)["y"]
    for threads in (1, 2, 3):
        assert np.array_equal(whole, run_native(native, given, threads)["y"])
    assert np.array_equal(whole[2:3], run_native(native, given | {"x": given["x"][2:3].copy()})["y"])


@pytest.mark.parametrize(
    "changed",
    [
        {"strides": (2, 2)},
        {"rhs_dilation": (2, 1)},
        {"lhs_dilation": (1, 2)},
        {"lhs_spec": (0, 1, 2, 3)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_others_are_left_alone(changed: dict[str, Any]) -> None:
    size = (32, 8) if "lhs_spec" in changed else (8, 8)
    graph = convolution(size, 32, ((1, 1), (1, 1)), **changed) if "lhs_spec" not in changed else _channels_first()
    assert Winograd().apply(graph) is graph


def _channels_first() -> Graph:
    b = Builder("convolution")
    x = b.input("x", TensorType.of("f32", "N", 32, 8, 8))
    kernel = b.input("kernel", TensorType.of("f32", 3, 3, 32, 32))
    attributes: dict[str, Any] = {
        "lhs_spec": (0, 1, 2, 3),
        "out_spec": (0, 1, 2, 3),
        "strides": (1, 1),
        "padding": ((1, 1), (1, 1)),
        "lhs_dilation": (1, 1),
        "rhs_dilation": (1, 1),
        "feature_group_count": 1,
        "batch_group_count": 1,
        **FORWARD,
    }
    b.output(b("convolution", x, kernel, **attributes), "y")
    return b.build()


def test_few_channels_are_left_alone() -> None:
    graph = convolution((8, 8), 16, ((1, 1), (1, 1)))
    assert Winograd().apply(graph) is graph


@pytest.mark.parametrize(("units", "chosen"), [(100, True), (4000, False)])
def test_weights_that_stay_near_are_worth_transforming(
    units: int, chosen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transformed kernel is 4 times as large: it pays where all the network's weights stay in a cache."""
    monkeypatch.setattr("lepton_jit.passes.winograd.WORTH_IT", 0.85)
    assert chosen == transforms("N", "parameter", units)


@pytest.mark.parametrize("batch", ["N", 64])
@pytest.mark.parametrize("role", ["parameter", "state"])
def test_tiles_that_go_in_blocks_need_not_pass_through_memory(
    batch: int | str, role: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 images have 14 MB of tiles and products; a known batch, and a step of training, are estimated with all."""
    monkeypatch.setattr("lepton_jit.passes.winograd.WORTH_IT", 0.85)
    assert transforms(batch, role)
    monkeypatch.setattr("lepton_jit.passes.winograd.READ_AGAIN", 0.0)
    assert (batch == "N" and role == "parameter") == transforms(batch, role)


def transforms(batch: int | str, role: Any, units: int = 1) -> bool:
    """Whether the second convolution of the digits network, beside other parameters, is transformed."""
    b = Builder("network")
    x = b.input("x", TensorType.of("f32", batch, 13, 13, 32))
    kernel = b.input("kernel", TensorType.of("f32", 3, 3, 32, 64), role=role)
    b.input("other", TensorType.of("f32", units, 1000), role="parameter")
    attributes = {"lhs_spec": (0, 3, 1, 2), "out_spec": (0, 3, 1, 2), "strides": (1, 1), "padding": ((0, 0), (0, 0))}
    rest = {"lhs_dilation": (1, 1), "rhs_dilation": (1, 1), "feature_group_count": 1, "batch_group_count": 1}
    b.output(b("convolution", x, kernel, **attributes, **rest, **FORWARD), "y")
    return "winograd_input" in {node.op for node in Winograd().apply(b.build()).nodes}


def test_it_can_be_turned_off() -> None:
    target = native_target()
    assert any(isinstance(p, Winograd) for p in pipeline(target))
    set_winograd(False)
    try:
        assert not any(isinstance(p, Winograd) for p in pipeline(target))
    finally:
        set_winograd(True)


def with_pixels_that_are_not_finite() -> dict[str, np.ndarray]:
    given = arrays((17, 19), 32, images=2)
    given["x"][0, 5, 6, 3], given["x"][1, 12, 2, 0] = np.inf, np.nan
    return given


def test_pixels_that_are_not_finite_spoil_the_tiles_that_read_them_and_nothing_else() -> None:
    graph, given = convolution((17, 19), 32, ((1, 1), (1, 1))), with_pixels_that_are_not_finite()
    (tile,) = {n.attributes["tile"] for n in Winograd().apply(graph).nodes if n.op == "winograd_input"}
    found = run_native(fused(graph, native_target()), given)["y"]
    spoiled = np.zeros(found.shape[:3], bool)
    for image, row, column in ((0, 5, 6), (1, 12, 2)):
        # results of the tile t begin at t * tile, and it reads one pixel more on either side
        rows, columns = ([t for t in range(9) if t * tile - 1 <= at <= (t + 1) * tile] for at in (row, column))
        for i, j in itertools.product(rows, columns):
            spoiled[image, i * tile : (i + 1) * tile, j * tile : (j + 1) * tile] = True
    with np.errstate(invalid="ignore"):
        expected = run_graph(graph, given)["y"]
    assert np.isfinite(found[~spoiled]).all()
    assert np.isfinite(expected[~spoiled]).all()
    assert relative_error(found[~spoiled], expected[~spoiled]) <= LARGEST_ERROR


def test_direct_convolutions_have_nan_and_infinities_where_numpy_has_them() -> None:
    graph, given = convolution((17, 19), 32, ((1, 1), (1, 1))), with_pixels_that_are_not_finite()
    set_winograd(False)
    try:
        native = fused(graph, native_target())
    finally:
        set_winograd(True)
    with np.errstate(invalid="ignore"):
        expected = run_graph(graph, given)
    assert (~np.isfinite(expected["y"])).any()
    assert differences(run_native(native, given), expected) == []
