"""The gradient of a loop: JAX's, that of the unrolled loop, and which values the loop keeps for it."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import numpy as np
import pytest

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.inline import inline
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.loops import ScanLoop, scan
from lepton_jit.ir.types import TensorType
from lepton_jit.ir.verifier import verify
from lepton_jit.passes.check_numerics import random_arrays, relative_error
from lepton_jit.passes.gradient.autodiff import Autodiff
from tests.ir.loops import MATMUL, arrays_for, jax_lstm, lstm
from tests.random_draft import SeededChoices
from tests.random_loops import random_loop, unrolled


def squares(b: Builder, values: Sequence[Value]) -> Value:
    sums = [b("reduce", b("multiply", v, v), dimensions=tuple(range(v.type.rank)), kind="add") for v in values]
    total = sums[0]
    for part in sums[1:]:
        total = b("add", total, part)
    return total


def gradient_of(graph: Graph) -> Graph:
    """The gradient of the sum of the outputs' squares: d<name> for every input."""
    b = Builder("gradient")
    inputs = [b.input(entry.name, entry.value.type) for entry in graph.inputs]
    found = b.emit("gradient", squares(b, inline(b, graph, inputs)), *inputs)
    for entry, value in zip(graph.inputs, found, strict=True):
        b.output(value, f"d{entry.name}")
    expanded = Autodiff().apply(b.build())
    verify(expanded)
    return expanded


@pytest.mark.parametrize("reverse", [False, True])
def test_jax_agrees(reverse: bool) -> None:
    graph = lstm(dtype="f64", reverse=reverse)
    arrays = arrays_for(graph, N=2)
    found = run_graph(gradient_of(graph), arrays)
    with jax.enable_x64(True):
        expected = jax.grad(lambda a: sum((v * v).sum() for v in jax_lstm(a, reverse).values()))(arrays)
        for name in arrays:
            np.testing.assert_allclose(found[f"d{name}"], np.asarray(expected[name]), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("seed", range(60))
def test_the_gradient_is_that_of_the_unrolled_loop(seed: int) -> None:
    graph = random_loop(SeededChoices(seed), dtype="f64", gradient=True)
    verify(graph)
    arrays = random_arrays(graph, seed)
    expanded = Autodiff().apply(graph)
    verify(expanded)
    found, expected = run_graph(expanded, arrays), run_graph(Autodiff().apply(unrolled(graph)), arrays)
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    assert {name: error for name, error in errors.items() if error > 1e-9} == {}


def test_a_gradient_of_a_gradient() -> None:
    b = Builder()
    x, w = b.input("x", TensorType.of("f64", 3, 2, 4)), b.input("w", TensorType.of("f64", 4, 4))
    start = b.full(1.0, TensorType.of("f64", 2, 4))

    def body(b: Builder, carries: Sequence[Value], slices: Sequence[Value], captured: Sequence[Value]):
        return [b("tanh", b("add", b("dot_general", carries[0], captured[0], **MATMUL), slices[0]))], []

    (last,), _ = scan(b, body, [start], [x], [w])
    dx = b("gradient", squares(b, [last]), x)
    b.output(b("gradient", squares(b, [dx]), w), "ddw")
    graph = b.build()
    arrays = arrays_for(graph)
    found = run_graph(Autodiff().apply(graph), arrays)
    expected = run_graph(Autodiff().apply(unrolled(graph)), arrays)
    np.testing.assert_allclose(found["ddw"], expected["ddw"], rtol=1e-10)


def test_a_loop_keeps_what_is_dear_and_repeats_the_rest() -> None:
    forward, backward = (node for node in gradient_of(lstm()).nodes if node.op == "scan")
    producers = {value: node.op for node in forward.regions[0].nodes for value in node.results}
    kept = [producers.get(stacked.step, "carry") for stacked in ScanLoop.of(forward).stacked]
    # Every h is the output; then both carries, three gates and the two hyperbolic tangents.
    assert kept == ["multiply", "carry", "carry", "logistic", "logistic", "tanh", "logistic", "tanh"]
    assert {node.op for node in backward.regions[0].nodes} & {"logistic", "tanh"} == set()


def test_what_the_loss_does_not_depend_on_is_not_computed() -> None:
    b = Builder()
    x, w = b.input("x", TensorType.of("f32", 3, 2, 4)), b.input("w", TensorType.of("f32", 4, 4))
    start = b.full(1.0, TensorType.of("f32", 2, 4))

    def body(b: Builder, carries: Sequence[Value], slices: Sequence[Value], captured: Sequence[Value]):
        return [b("tanh", b("add", b("dot_general", carries[0], captured[0], **MATMUL), slices[0]))], []

    (last,), _ = scan(b, body, [start], [x], [w])
    b.output(b("gradient", squares(b, [last]), x), "dx")
    *_, backward = (node for node in Autodiff().apply(b.build()).nodes if node.op == "scan")
    assert [value.type for value in backward.results] == [start.type, x.type]
