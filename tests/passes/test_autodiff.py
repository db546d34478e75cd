"""Autodiff: paths, layers, errors; that gradients are right is tested for every operation over the registry."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_jit.errors import ShapeError, UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import TensorType
from lepton_jit.passes.gradient.autodiff import Autodiff

MATRICES = {"lhs_batching": (), "rhs_batching": (), "lhs_contracting": (1,), "rhs_contracting": (0,)}


def mean_square(b: Builder, x: Value) -> Value:
    return b("reduce", b("multiply", x, x), dimensions=tuple(range(x.type.rank)), kind="add")


def test_a_graph_without_gradient_stays_the_same_object() -> None:
    b = Builder()
    b.output(b("negate", b.input("x", TensorType.of("f32", 3))), "y")
    graph = b.build()
    assert Autodiff().apply(graph) is graph


def test_an_operation_without_gradient_on_the_path_is_named_with_its_layer() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", 3))
    with b.layer("stem/rounding"):
        rounded = b("floor", x)
    b.output(b("gradient", mean_square(b, rounded), x), "dx")
    with pytest.raises(UnsupportedError, match=r"layer 'stem/rounding': floor: .*no gradient"):
        Autodiff().apply(b.build())


def test_an_operation_without_gradient_beside_the_path_does_no_harm() -> None:
    b = Builder()
    x, w = b.input("x", TensorType.of("f32", 2)), b.input("w", TensorType.of("f32", 2))
    b.output(b("gradient", mean_square(b, b("multiply", b("floor", x), w)), w), "dw")
    found = run_graph(Autodiff().apply(b.build()), {"x": np.float32([1.5, 2.5]), "w": np.float32([1, 3])})
    assert found["dw"].tolist() == [2.0, 24.0]


def test_a_loss_that_is_no_scalar_is_refused() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", 2))
    with pytest.raises(ShapeError, match="loss: expected rank 0"):
        b("gradient", x, x)


def test_every_backward_node_carries_the_layer_of_its_forward_node() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", "N", 4))
    h = x
    for name in ("one", "two"):
        with b.layer(name):
            w = b.input(f"{name}/kernel", TensorType.of("f32", 4, 4), "parameter")
            h = b("tanh", b("dot_general", h, w, **MATRICES))
    with b.layer("loss"):
        loss = mean_square(b, h)
    b.output(b("gradient", loss, x), "dx")
    forward = {node.results for node in b.build().nodes}
    backward = [n for n in Autodiff().apply(b.build()).nodes if n.results not in forward]
    assert list(dict.fromkeys(n.layer for n in backward if n.op != "constant")) == ["loss", "two", "one"]


def weights_read_by_all_layers(count: int) -> Graph:
    b = Builder()
    x, w = b.input("x", TensorType.of("f64", 3)), b.input("w", TensorType.of("f64", 3))
    h = x
    for _ in range(count):
        h = b("sine", b("multiply", h, w))
    b.output(b("gradient", mean_square(b, h), w), "dw")
    return b.build()


def test_a_value_read_many_times_gets_the_sum_as_finite_differences_say() -> None:
    graph = Autodiff().apply(weights_read_by_all_layers(4))
    x, w, step = np.float64([0.3, -0.8, 1.1]), np.float64([0.7, 1.3, -0.4]), 1e-6

    def loss(w: np.ndarray) -> float:
        h = x
        for _ in range(4):
            h = np.sin(h * w)
        return float((h * h).sum())

    expected = [(loss(w + step * e) - loss(w - step * e)) / (2 * step) for e in np.eye(3)]
    np.testing.assert_allclose(run_graph(graph, {"x": x, "w": w})["dw"], expected, rtol=1e-7)
