"""Winograd's convolution in one kernel: block after block of lines of tiles, each thread in its own memory."""

from __future__ import annotations

import re

import numpy as np
import pytest

from lepton_jit.codegen.loops.printer import print_kernel
from lepton_jit.codegen.program.lowered import Lowered
from lepton_jit.codegen.target import Target, native_target
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import TensorType
from tests.codegen.programs import differences, everywhere, fused, run_loops, run_native, step_ops
from tests.levels import at_every_level

ONE_KERNEL = "winograd_input+affine_contraction+winograd_output"


@pytest.fixture(autouse=True)
def blocks_of_few_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two lines of three tiles, where the estimate would take the direct convolution."""
    monkeypatch.setattr("lepton_jit.passes.winograd.WORTH_IT", 1000.0)
    monkeypatch.setattr("lepton_jit.ir.ops.winograd.CACHE_BYTES", 1)
    monkeypatch.setattr("lepton_jit.ir.ops.winograd.LEAST_ROWS", 6)
    monkeypatch.setattr("lepton_jit.passes.winograd.READ_AGAIN", 100.0)


def convolved(b: Builder, x: Value, features: int) -> Value:
    channels = x.type.shape[3]
    kernel = b.input("kernel", TensorType.of("f32", 3, 3, channels, features))
    return b(
        "convolution",
        x,
        kernel,
        strides=(1, 1),
        padding=((1, 1), (1, 1)),
        lhs_dilation=(1, 1),
        rhs_dilation=(1, 1),
        lhs_spec=(0, 3, 1, 2),
        rhs_spec=(3, 2, 0, 1),
        out_spec=(0, 3, 1, 2),
        feature_group_count=1,
        batch_group_count=1,
        window_reversal=(False, False),
    )


def residual(height: int = 17, width: int = 11, features: int = 32) -> Graph:
    """relu(convolution(x) + x), of the same size: five lines of three tiles, the last of which reach over the edges."""
    b = Builder("residual")
    x = b.input("x", TensorType.of("f32", "N", height, width, 32))
    y = convolved(b, x, features)
    b.output(b("relu", b("add", y, x) if features == 32 else y), "y")
    return b.build()


def numbers(graph: Graph, batch: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(batch)
    shapes = {i.name: [batch if not isinstance(d, int) else d for d in i.value.type.shape] for i in graph.inputs}
    return {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@at_every_level
@pytest.mark.parametrize("features", [32, 40])
def test_it_is_the_convolution_whatever_lines_blocks_and_threads_have(target: Target, features: int) -> None:
    graph = residual(features=features)
    made = fused(graph, target)
    assert any(op.startswith(ONE_KERNEL) for op in everywhere(graph, step_ops))
    for batch, threads in ((1, 1), (1, 8), (3, 2), (4, 3)):
        arrays = numbers(graph, batch)
        expected = run_graph(graph, arrays)
        found = run_native(made, arrays, threads)
        assert differences(found, expected, {"float32": 1e-4}) == []
        whole = run_native(made, arrays, 1)
        assert all(np.array_equal(found[name], whole[name]) for name in whole)


@pytest.mark.parametrize("threads", [1, 3])
def test_no_block_reads_what_it_has_not_written_and_no_thread_what_is_anothers(threads: int) -> None:
    graph = residual()
    made = fused(graph, native_target())
    arrays = numbers(graph, 2)
    found = run_loops(made.lowered, arrays, {"N": 2}, threads=threads)
    assert differences(found, run_graph(graph, arrays), {"float32": 1e-4}) == []


def test_a_thread_needs_memory_for_one_block_whatever_the_batch_is() -> None:
    elements = everywhere(residual(), lambda made: [b.elements for b in made.buffers if b.per_thread])
    assert elements == [36 * 2 * 3 * 32] * 2


def test_far_images_are_asked_for_while_products_are_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """At each of 36 positions a share of a line of tiles, in cache lines: of this block's results, which are
    4 x 11 x 32 = 1,408 numbers a line of tiles, and of what the next block reads of x, from its third row on.
    """

    def fetched(made: Lowered) -> list[tuple[str, str, str]]:
        (step,) = (s for s in made.steps if s.op.startswith(ONE_KERNEL))
        text = re.sub(r"%[iv]\d+", "%", print_kernel(step.launches[0].kernel))
        return re.findall(r"in 0 to (\d+) step 16 \{\s+fetch (\w+)\[(.+)\]", text)

    assert everywhere(residual(), fetched) == []
    monkeypatch.setattr("lepton_jit.codegen.winograd.schedule_winograd_blocks.IMAGES_DRAM_BYTES", 1)
    results, images = "5984*% + 1408*% + 48*% + %", "9856*% + 1792*% + 64*% + % + 896"
    assert everywhere(residual(), fetched) == [("48", "o0", results), ("64", "a0", images)]
    graph = residual()
    arrays = numbers(graph, 3)
    found = run_native(fused(graph, native_target()), arrays, 2)
    assert differences(found, run_graph(graph, arrays), {"float32": 1e-4}) == []


def transformed(b: Builder, name: str, tiles: Value) -> tuple[Value, Value]:
    """Products of tiles with a kernel of their own, and the convolution's result."""
    kernel = b.input(f"kernel_{name}", TensorType.of("f32", 3, 3, 32, 32))
    weights = b("winograd_kernel", kernel, tile=4, panel=0, spec=(3, 2, 0, 1), reversal=(False, False))
    where = {"lhs_batching": (0,), "rhs_batching": (0,), "lhs_contracting": (4,), "rhs_contracting": (1,)}
    products = b("dot_general", tiles, weights, **where)
    return products, b("winograd_output", products, tile=4, size=(16, 12))


def check_apart(graph: Graph) -> None:
    """The program, which has no such kernel and gives what the interpreter gives."""
    ops = everywhere(graph, step_ops)
    assert ops.count("winograd_input") == 1
    assert not any(ONE_KERNEL in op for op in ops)
    arrays = numbers(graph, 2)
    assert (
        differences(run_native(fused(graph, native_target()), arrays, 2), run_graph(graph, arrays), {"float32": 1e-4})
        == []
    )


def test_tiles_that_two_convolutions_read_are_made_once() -> None:
    b = Builder("two")
    tiles = b("winograd_input", b.input("x", TensorType.of("f32", "N", 18, 14, 32)), tile=4)
    for name in "yz":
        b.output(transformed(b, name, tiles)[1], name)
    check_apart(b.build())


@pytest.mark.parametrize("which", ["tiles", "products"])
def test_what_leaves_the_program_is_made_whole(which: str) -> None:
    b = Builder("leaving")
    tiles = b("winograd_input", b.input("x", TensorType.of("f32", "N", 18, 14, 32)), tile=4)
    products, y = transformed(b, "y", tiles)
    b.output(y, "y")
    b.output(tiles if which == "tiles" else products, which)
    check_apart(b.build())


def test_a_kernel_too_large_to_be_read_for_each_block_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_jit.passes.winograd.READ_AGAIN", 1.0)  # 32 * 32 / (2 * 6 * 64) is 1.33
    assert everywhere(residual(), step_ops)[-1].startswith("winograd_output")
