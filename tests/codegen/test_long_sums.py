"""Sums of many terms: the error hardly grows with their number, however they lie and whatever sums them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.codegen.kernels.blocked_fold import FOLD_BLOCK
from lepton_jit.codegen.loops.ir import Loop, walk
from lepton_jit.codegen.program.lower import lower
from lepton_jit.codegen.target import get_target, native_target
from lepton_jit.compiler.pipeline import optimize
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.types import Dim, TensorType
from tests.codegen.programs import fused, run_native

ROWS = 60_000
# Of one chain they are off by 1e-3 of the sum in float32, and by 1e-12 in float64.
EXACT = {"f32": 1e-6, "f64": 2e-15}


def reduce(*dimensions: int) -> Callable[[Builder, Value], Value]:
    return lambda b, x: b("reduce", x, dimensions=dimensions, kind="add")


def window(*size: int) -> Callable[[Builder, Value], Value]:
    ones, none = [1] * len(size), [(0, 0)] * len(size)
    return lambda b, x: b("reduce_window", x, kind="add", window=size, strides=ones, padding=none, dilation=ones)


def softmax(b: Builder, x: Value) -> Value:
    return b("softmax", x, axis=-1)


# shape, what sums, and how many terms each sum has
SUMS: dict[str, tuple[tuple[Dim, ...], Callable[[Builder, Value], Value], int]] = {
    "a row": ((1, ROWS), reduce(1), ROWS),
    "rows": ((40, 5 * FOLD_BLOCK**3), reduce(1), 5 * FOLD_BLOCK**3),
    "columns": ((ROWS, 5), reduce(0), ROWS),
    "columns of many vectors": ((1000, 300), reduce(0), 1000),
    "images": ((1, 224, 224, 3), reduce(1, 2), 224 * 224),
    "the first and the last of three": ((90, 4, 1000), reduce(0, 2), 90 * 1000),
    "all but the second of four": ((20, 3, 40, 50), reduce(0, 2, 3), 20 * 40 * 50),
    "everything": ((70, 30, 30), reduce(0, 1, 2), 70 * 30 * 30),
    "a batch": (("N", 5), reduce(0), ROWS),
    "windows": ((1, 101, 102, 3), window(1, 100, 100, 1), 100 * 100),
    "windows along a line": ((1, 403, 3), window(1, 400, 1), 400),
    "windows of whole images": ((2, 90, 90), window(1, 88, 88), 88 * 88),
}


def graph_of(shape: tuple[Dim, ...], write: Callable[[Builder, Value], Value], dtype: str) -> Graph:
    b = Builder()
    b.output(write(b, b.input("x", TensorType.of(dtype, *shape))), "y")
    return b.build()


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name", SUMS)
def test_equal_numbers_sum_up_to_their_product(name: str, dtype: str) -> None:
    shape, write, terms = SUMS[name]
    graph = graph_of(shape, write, dtype)
    x = np.full([ROWS if d == "N" else d for d in shape], 0.1, graph.inputs[0].value.type.dtype.numpy)
    found = run_native(fused(graph, native_target()), {"x": x})["y"]
    assert np.abs(found / (np.longdouble(x.flat[0]) * terms) - 1).max() <= EXACT[dtype]


@pytest.mark.parametrize("name", ["x86-64-v3", "x86-64-v4", "aarch64"])
@pytest.mark.parametrize("shape", [(16, FOLD_BLOCK**3, 8), (16, FOLD_BLOCK**2 * 64)], ids=["columns", "rows"])
def test_no_chain_of_additions_is_longer_than_a_block(name: str, shape: tuple[int, ...]) -> None:
    target = get_target(name)
    _, main = optimize(graph_of(shape, reduce(1), "f32"), target)
    kernels = [launch.kernel for step in lower(main, target).steps for launch in step.launches]
    chains = [stmt for kernel in kernels for stmt in walk(kernel.body) if isinstance(stmt, Loop) and stmt.carries]
    # where the loop starts at an outer loop's variable, so does its stop: their difference is a number
    turns = [-(-(loop.stop - loop.start).constant // loop.step) for loop in chains]
    assert (len(chains) >= 2, max(turns) <= FOLD_BLOCK) == (True, True)


def test_a_softmax_of_many_equal_numbers_is_their_number_inverted() -> None:
    graph = graph_of((2, ROWS), softmax, "f32")
    found = run_native(fused(graph, native_target()), {"x": np.full((2, ROWS), 0.3, np.float32)})["y"]
    assert np.abs(found * ROWS - 1).max() <= 1e-6


def test_the_variance_of_a_long_ramp_is_exact_to_a_few_units() -> None:
    graph = graph_of((4 * ROWS, 3), lambda b, x: b.emit("moments", x)[1], "f32")
    ramp = np.repeat(np.linspace(1, 2, 4 * ROWS, dtype=np.float32), 3).reshape(-1, 3)
    found = run_native(fused(graph, native_target()), {"x": ramp})["y"]
    assert np.abs(found / ramp.astype(np.float64).var(0) - 1).max() <= 1e-6


def test_the_mean_of_an_image_of_equal_numbers_is_that_number() -> None:
    model = lpt.Sequential([lpt.GlobalAveragePooling2D(input_shape=(224, 224, 3))])
    image = np.full((2, 224, 224, 3), 0.1, np.float32)
    assert np.abs(model.predict(image) / np.float32(0.1) - 1).max() <= 5e-7
