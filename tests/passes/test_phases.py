"""A convolution over a dilated input equals its dense phases, for many sizes, paddings, dilations and kernels."""

from __future__ import annotations

import random

import pytest

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.types import TensorType
from lepton_jit.passes.check_numerics import CheckNumerics
from lepton_jit.passes.gradient.autodiff import Autodiff
from lepton_jit.passes.manager import Observers, run_pipeline
from lepton_jit.passes.observers import VerifyStructure
from lepton_jit.passes.phases import SplitStridedGradients

CHANNELS_LAST = {"lhs_spec": (0, 3, 1, 2), "rhs_spec": (3, 2, 0, 1), "out_spec": (0, 3, 1, 2)}


def strided_convolution(
    size: tuple[int, int], window: tuple[int, int], strides: tuple[int, int], padding: int, groups: int
) -> Graph:
    """The gradient of a strided convolution by its input."""
    b = Builder()
    x = b.input("x", TensorType.of("f32", "N", *size, 4))
    kernel = b.input("kernel", TensorType.of("f32", *window, 4 // groups, 4), "parameter")
    y = b(
        "convolution",
        x,
        kernel,
        **CHANNELS_LAST,
        strides=strides,
        padding=((padding, 1), (1, padding)),
        lhs_dilation=(1, 1),
        rhs_dilation=(1, 1),
        window_reversal=(False, False),
        feature_group_count=groups,
        batch_group_count=1,
    )
    loss = b("reduce", b("multiply", y, y), dimensions=(0, 1, 2, 3), kind="add")
    b.output(b("gradient", loss, x), "dx")
    return Autodiff().apply(b.build())


def dilations(graph: Graph) -> set[object]:
    return {node.attributes["lhs_dilation"] for node in graph.nodes if node.op == "convolution"}


@pytest.mark.parametrize("seed", range(40))
def test_phases_compute_the_same_without_dilation(seed: int) -> None:
    choose = random.Random(seed)
    window = choose.randint(1, 5), choose.randint(1, 4)
    size = choose.randint(window[0], 9), choose.randint(window[1], 9)
    strides = choose.randint(1, 3), choose.randint(2, 4)
    graph = strided_convolution(size, window, strides, choose.randint(0, 2), choose.choice([1, 2]))
    assert dilations(graph) == {(1, 1), strides}
    observer = Observers(VerifyStructure(), CheckNumerics(tolerance=1e-5))
    assert dilations(run_pipeline(graph, [SplitStridedGradients()], observer)) == {(1, 1)}


def test_as_many_products_as_the_forward_pass_has() -> None:
    graph = SplitStridedGradients().apply(strided_convolution((8, 8), (4, 4), (2, 2), 1, 1))
    kernels = [node.operands[1].type.shape for node in graph.nodes if node.op == "convolution"]
    assert kernels == [(4, 4, 4, 4), *[(2, 2, 4, 4)] * 4]
