"""Gradients of kernels: the left side packed in panels of rows, which all taps of a window share."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_jit.codegen.target import native_target
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import TensorType
from lepton_jit.passes.gradient.autodiff import Autodiff
from tests.codegen.loop_programs import run_loops
from tests.codegen.programs import everywhere, fused, run_native, step_ops
from tests.levels import level


def kernel_gradient(size: int, channels: int, filters: int, stride: int) -> Graph:
    b = Builder("gradient")
    x = b.input("x", TensorType.of("f32", "N", size, size, channels))
    k = b.input("k", TensorType.of("f32", 3, 3, channels, filters))
    y = b(
        "convolution",
        x,
        k,
        lhs_spec=(0, 3, 1, 2),
        rhs_spec=(3, 2, 0, 1),
        out_spec=(0, 3, 1, 2),
        strides=(stride, stride),
        padding=((1, 1), (1, 1)),
        lhs_dilation=(1, 1),
        rhs_dilation=(1, 1),
        window_reversal=(False, False),
        feature_group_count=1,
        batch_group_count=1,
    )
    dy = b.input("dy", y.type)
    loss = b("reduce", b("multiply", y, dy), dimensions=(0, 1, 2, 3), kind="add")
    (dk,) = b.emit("gradient", loss, k)
    b.output(dk, "dk")
    return Autodiff().apply(b.build())


def arrays(size: int, channels: int, filters: int, stride: int, images: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    outputs = (size - 1) // stride + 1
    shapes = {
        "x": (images, size, size, channels),
        "k": (3, 3, channels, filters),
        "dy": (images, outputs, outputs, filters),
    }
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


CASES = [(6, 32, 40, 1), (7, 37, 48, 2), (5, 30, 33, 1), (33, 15, 32, 1)]


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("images", [0, 1, 9])
def test_it_is_the_gradient_on_any_number_of_threads(case: tuple[int, int, int, int], images: int) -> None:
    graph, given = kernel_gradient(*case), arrays(*case, images)
    assert everywhere(graph, lambda made: "pack" in step_ops(made))
    native = fused(graph, level(images))
    expected = run_graph(graph, given)["dk"]
    found = run_native(native, given)["dk"]
    assert np.abs(found - expected).max() <= 3e-6 * max(1.0, np.abs(expected).max())
    assert np.array_equal(found, run_native(native, given, 3)["dk"])


def test_loops_stay_inside_their_buffers() -> None:
    case = (5, 17, 33, 1)
    graph, given = kernel_gradient(*case), arrays(*case, 2)
    expected = run_graph(graph, given)["dk"]
    found = run_loops(fused(graph, native_target()).lowered, given, {"N": 2})["dk"]
    assert np.abs(found - expected).max() <= 3e-6 * np.abs(expected).max()
