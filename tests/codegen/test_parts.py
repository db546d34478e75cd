"""Contractions that are computed where they stand in a larger tensor, and kernels that go through it by samples."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_jit.codegen.target import Target
from lepton_jit.compiler.pipeline import optimize
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import TensorType
from tests.codegen.programs import differences, fused, lowered, run_loops, run_native
from tests.levels import RUNNABLE, for_every_target

SUMS = {"lhs_contracting": (2,), "rhs_contracting": (0,), "lhs_batching": (), "rhs_batching": ()}
DILATED = {"lhs_spec": (0, 3, 1, 2), "rhs_spec": (3, 2, 0, 1), "out_spec": (0, 3, 1, 2), "strides": (1, 1)}
DILATED |= {"lhs_dilation": (2, 2), "rhs_dilation": (1, 1), "feature_group_count": 1, "batch_group_count": 1}


def input_gradient(size: int, window: int, channels: int = 8, features: int = 40) -> Graph:
    """What the input gradient of a convolution of stride 2 is: one over the dilated gradient of its result."""
    b = Builder("gradient")
    dy = b.input("dy", TensorType.of("f32", "N", size, size, channels))
    kernel = b.input("kernel", TensorType.of("f32", window, window, channels, features))
    low = window - 1 - window // 2
    padding = ((low, low + 1),) * 2
    b.output(b("convolution", dy, kernel, **DILATED, padding=padding, window_reversal=(True, True)), "dx")
    return b.build()


def numbers(graph: Graph, batch: int) -> dict[str, np.ndarray]:
    """Small integers, which any order of additions sums alike."""
    rng = np.random.default_rng(batch)
    shapes = {e.name: [d if isinstance(d, int) else batch for d in e.value.type.shape] for e in graph.inputs}
    return {name: rng.integers(-3, 4, shape).astype(np.float32) for name, shape in shapes.items()}


def agree(graph: Graph, target: Target) -> list[str]:
    """The steps' operations; loops, and native code where it runs, give the same numbers as the graph's interpreter.

    16 samples are shared by slices, 9 are not on several threads.
    """
    made = fused(graph, target)
    for batch in (1, 3, 9, 16):
        arrays = numbers(graph, batch)
        expected = run_graph(graph, arrays)
        if target in RUNNABLE:
            for threads in (1, 2, 3):
                assert differences(run_native(made, arrays, threads=threads), expected) == [], (batch, threads)
        if batch == 3:
            assert differences(run_loops(made.lowered, arrays, {"N": batch}), expected) == []
    return [op for step in made.lowered.steps for op in step.op.split(" | ")]


@for_every_target
@pytest.mark.parametrize("window", [2, 3, 5])
def test_phases_of_a_strided_gradient_are_written_interleaved(window: int, target: Target) -> None:
    ops = agree(input_gradient(15, window), target)
    assert [ops.count(op) for op in ("affine_contraction", "concatenate", "pad")] == [4, 0, 1]


@for_every_target
def test_phases_of_a_window_of_one_leave_zeros(target: Target) -> None:
    """Three of four phases have no kernel elements."""
    assert agree(input_gradient(15, 1), target).count("affine_contraction") == 1


def two_halves(b: Builder, *, width: int = 40) -> tuple[Value, Value]:
    """Two products of [N, 15, width]."""
    x = b.input("x", TensorType.of("f32", "N", 15, 8))
    left, right = (b.input(name, TensorType.of("f32", 8, width)) for name in ("left", "right"))
    return b("dot_general", x, left, **SUMS), b("dot_general", x, right, **SUMS)


@for_every_target
@pytest.mark.parametrize("dimension", [1, 2])
def test_products_side_by_side_are_not_copied(dimension: int, target: Target) -> None:
    b = Builder("halves")
    b.output(b("concatenate", *two_halves(b), dimension=dimension), "y")
    assert agree(b.build(), target).count("concatenate") == 0


@for_every_target
@pytest.mark.parametrize("dimension", [1, 3])
def test_gradients_of_kernels_side_by_side_are_not_copied(dimension: int, target: Target) -> None:
    """Their left sides are packed into panels of rows, which the taps of a window share."""
    b = Builder("gradients")
    spec = {"lhs_spec": (3, 0, 1, 2), "rhs_spec": (3, 0, 1, 2), "out_spec": (2, 3, 0, 1)}
    plain = DILATED | {"lhs_dilation": (1, 1), "window_reversal": (False, False), "padding": ((1, 1), (1, 1))} | spec
    kernels = []
    for name in ("first", "second"):
        x, dy = (b.input(f"{kind}_{name}", TensorType.of("f32", 1, 8, 8, 17)) for kind in ("x", "dy"))
        kernels.append(b("convolution", x, dy, **plain))
    b.output(b("concatenate", *kernels, dimension=dimension), "y")
    ops = agree(b.build(), target)
    assert [ops.count(op) for op in ("affine_contraction", "concatenate")] == [2, 0]
    _, main = optimize(b.build(), target)
    assert all(n.attributes["row_panel"] for n in main.nodes if n.op == "affine_contraction")


@for_every_target
def test_a_product_that_others_read_keeps_its_own_memory(target: Target) -> None:
    b = Builder("read")
    one, other = two_halves(b)
    b.output(b("concatenate", one, other, dimension=1), "y")
    b.output(b("reduce", one, dimensions=(0, 1), kind="maximum"), "z")
    assert agree(b.build(), target).count("concatenate") == 1


@for_every_target
def test_a_product_that_stands_twice_is_copied(target: Target) -> None:
    b = Builder("twice")
    one, other = two_halves(b)
    b.output(b("concatenate", one, other, one, dimension=1), "y")
    assert agree(b.build(), target).count("concatenate") == 2


@for_every_target
def test_a_state_is_not_written_before_its_last_reader(target: Target) -> None:
    b = Builder("state")
    x, old = b.input("x", TensorType.of("f32", 15, 8)), b.input("old", TensorType.of("f32", 30, 40), "state")
    sums = SUMS | {"lhs_contracting": (1,)}
    first = b("dot_general", x, b.input("left", TensorType.of("f32", 8, 40)), **sums)
    second = b("dot_general", x, b("slice", old, start=(0, 0), limit=(8, 40), strides=(1, 1)), **sums)
    b.output(b("concatenate", first, second, dimension=0), "old", donates="old")
    agree(b.build(), target)


@for_every_target
def test_a_padded_image_is_read_while_a_cache_holds_it(target: Target) -> None:
    """Where one panel holds all filters; with several, a panel goes through all samples."""
    b, filters = Builder("padded"), target.lanes(32) * target.tile_vectors
    x = b.input("x", TensorType.of("f32", "N", 16, 16, 8))
    kernel = b.input("kernel", TensorType.of("f32", 3, 3, 8, filters))
    plain = DILATED | {"strides": (2, 2), "lhs_dilation": (1, 1), "window_reversal": (False, False)}
    b.output(b("convolution", x, kernel, **plain, padding=((0, 1), (0, 1))), "y")
    agree(b.build(), target)
    made = lowered(b.build(), target)
    assert [step.op for step in made.steps] == ["pad | affine_contraction"]
    (image, result) = (launch.buffers[-1] for launch in made.steps[0].launches)
    assert [made.buffers[n].kind for n in (image, result)] == ["arena", "output"]
