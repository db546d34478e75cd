"""Winograd's transform of kernels: in panels, from kernels of any order of dimensions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from lepton_jit.codegen.generate import generate
from lepton_jit.codegen.loops.ir import Let, Load, walk
from lepton_jit.codegen.program.lower import lower
from lepton_jit.codegen.target import Target
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import TensorType
from tests.codegen.programs import differences, run_loops, run_native
from tests.levels import at_every_level, for_every_target, level

FORWARD, GRADIENT = (3, 2, 0, 1), (2, 3, 0, 1)  # where features and channels stand, then rows and columns


def transform(channels: int, features: int, spec: Sequence[int], tile: int, panel: int) -> Graph:
    b = Builder("kernels")
    sizes = dict(zip(spec, (features, channels, 3, 3), strict=True))
    kernel = b.input("kernel", TensorType.of("f32", *(sizes[d] for d in range(4))))
    turned = (spec == GRADIENT,) * 2
    b.output(b("winograd_kernel", kernel, tile=tile, spec=spec, reversal=turned, panel=panel), "y")
    return b.build()


@at_every_level
@pytest.mark.parametrize("tile", [2, 4])
@pytest.mark.parametrize("spec", [FORWARD, GRADIENT])
@pytest.mark.parametrize(("channels", "features", "panel"), [(32, 64, 32), (16, 48, 32), (32, 50, 32), (5, 32, 0)])
def test_it_is_what_the_interpreter_computes(
    channels: int, features: int, panel: int, spec: Sequence[int], tile: int, target: Target
) -> None:
    graph = transform(channels, features, spec, tile, panel)
    arrays = {"kernel": np.random.default_rng(0).normal(size=graph.inputs[0].value.type.shape).astype(np.float32)}
    made, expected = generate(graph, target), run_graph(graph, arrays)
    assert differences(run_native(made, arrays, threads=2), expected, {"float32": 1e-6}) == []
    if target == level(channels + tile // 2):
        loops = run_loops(made.lowered, arrays, {}, target.name != "x86-64")
        assert differences(loops, expected, {"float32": 1e-6}) == []


@for_every_target
@pytest.mark.parametrize(("channels", "gathers"), [(32, False), (17, True)])
def test_features_that_lie_apart_are_transposed_in_registers(channels: int, gathers: bool, target: Target) -> None:
    graph = transform(channels, 64, GRADIENT, 4, 32)
    (step,) = lower(graph, target).steps
    loads = [s.expr for s in walk(step.launches[0].kernel.body) if isinstance(s, Let) and isinstance(s.expr, Load)]
    assert any(load.step != 1 for load in loads) == gathers
