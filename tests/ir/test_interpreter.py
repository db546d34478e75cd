"""The interpreter: symbols from shapes, errors that name the input, fresh results."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lepton_jit.errors import DTypeError, GraphError, LeptonError, ShapeError, UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.interpreter import bind_symbols, run_graph
from lepton_jit.ir.types import DTYPES, Dim, Poly, TensorType
from tests.ir.graphs import fused

pytestmark = pytest.mark.tiny

N, M = Poly.symbol("N"), Poly.symbol("M")


def graph_of(**shapes: tuple[Dim, ...]) -> Graph:
    """Inputs of float32, each of which is an output too."""
    b = Builder()
    for name, shape in shapes.items():
        b.output(b.input(name, TensorType(DTYPES["f32"], shape)), name)
    return b.build()


def zeros(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    return {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}


def test_symbols_come_from_the_inputs() -> None:
    assert bind_symbols(graph_of(x=(N, 3), y=(M, N)), zeros(x=(5, 3), y=(2, 5))) == {"N": 5, "M": 2}


def test_symbols_are_read_from_polynomials() -> None:
    assert bind_symbols(graph_of(x=(2 * N + 1,)), zeros(x=(7,))) == {"N": 3}
    assert bind_symbols(graph_of(x=(N * M,), y=(N, M)), zeros(x=(6,), y=(2, 3))) == {"N": 2, "M": 3}


def test_a_symbol_may_be_zero() -> None:
    assert bind_symbols(graph_of(x=(4 * N,)), zeros(x=(0,))) == {"N": 0}


@pytest.mark.parametrize(
    ("graph", "arrays", "error", "message"),
    [
        (
            graph_of(x=(N, 3), y=(N,)),
            zeros(x=(5, 3), y=(4,)),
            ShapeError,
            r"input 'y': expected f32\[N\] with N = 5 by input 'x', got the shape \[4\]",
        ),
        (graph_of(x=(N, 3)), zeros(x=(5, 4)), ShapeError, r"input 'x': expected f32\[N,3\].*\[5, 4\]"),
        (graph_of(x=(N, 3)), zeros(x=(5,)), ShapeError, r"input 'x': expected f32\[N,3\], got an array of shape \[5\]"),
        (graph_of(x=(N,)), {"x": np.zeros(3)}, DTypeError, r"input 'x': expected f32\[N\], got an array of float64"),
        (graph_of(x=(2 * N,)), zeros(x=(3,)), ShapeError, "no input's shape gives the dimension N"),
        (graph_of(x=(2 * N,), y=(N,)), zeros(x=(3,), y=(2,)), ShapeError, "input 'x'.*with N = 2 by input 'y'"),
        (graph_of(x=(N * M,)), zeros(x=(3,)), ShapeError, "no input's shape gives the dimension M"),
        (graph_of(x=(N,)), zeros(x=(3,), y=(3,)), GraphError, r"expected the inputs \['x'\], got \['x', 'y'\]"),
        (graph_of(x=(N,)), {}, GraphError, "expected the inputs"),
    ],
)
def test_arrays_that_do_not_fit(graph: Graph, arrays: Any, error: type[LeptonError], message: str) -> None:
    with pytest.raises(error, match=message):
        run_graph(graph, arrays)


def test_a_symbol_of_an_attribute_alone_is_named() -> None:
    b = Builder()
    b.output(b("dimension_value", value=2 * M, dtype=DTYPES["i32"]), "rows")
    with pytest.raises(ShapeError, match="no input's shape gives the dimension M of dimension_value's value"):
        run_graph(b.build(), {})


def test_outputs_are_fresh_and_inputs_untouched() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", 2, 3))
    b.output(x, "same")
    b.output(b("reshape", x, shape=(6,)), "flat")
    b.output(b("broadcast_in_dim", x, shape=(2, 2, 3), dimensions=(1, 2)), "wide")
    given = np.arange(6, dtype=np.float32).reshape(2, 3)
    results = run_graph(b.build(), {"x": given})
    for result in results.values():
        assert result.flags.c_contiguous
        assert result.flags.writeable
        result[...] = -1
    assert given.tolist() == [[0, 1, 2], [3, 4, 5]]


def test_strided_and_read_only_inputs() -> None:
    b = Builder()
    b.output(b("negate", b.input("x", TensorType.of("f32", "N", 2))), "y")
    given = np.arange(8, dtype=np.float32).reshape(2, 4).T[:, ::-1]
    given.flags.writeable = False
    np.testing.assert_array_equal(run_graph(b.build(), {"x": given})["y"], -given)


def test_a_fusion_runs_its_region() -> None:
    x = np.float32([[0.0, 1.0, 2.0]])
    results = run_graph(fused(), {"x": x})
    np.testing.assert_array_equal(results["z"], np.tanh(x))
    assert np.isnan(results["y"]).all()


def test_a_region_may_read_a_symbol_that_its_inputs_do_not_tell() -> None:
    inner = Builder("region")
    inner.output(inner("dimension_value", value=N, dtype=DTYPES["i32"]), "0")
    b = Builder()
    b.input("x", TensorType.of("f32", "N"))
    (y,) = b.emit("fusion", kind="map", regions=(inner.build(),))
    b.output(y, "y")
    assert run_graph(b.build(), zeros(x=(7,)))["y"] == 7


def test_a_gradient_has_to_be_expanded_first() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32"))
    with b.layer("loss"):
        b.output(b("gradient", x, x), "dx")
    with pytest.raises(UnsupportedError, match=r"layer 'loss': gradient: .*autodiff pass"):
        run_graph(b.build(), zeros(x=()))


def test_what_only_numbers_show_is_an_error_with_the_layer() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", "N"))
    with b.layer("crop"):
        b.output(b("slice", x, start=(2,), limit=(N,), strides=(1,)), "y")
    assert run_graph(b.build(), zeros(x=(5,)))["y"].shape == (3,)
    with pytest.raises(ShapeError, match="layer 'crop': slice: expected 0 <= start <= limit"):
        run_graph(b.build(), zeros(x=(1,)))


def test_warnings_of_numpy_stay_inside() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32"))
    b.output(b("divide", b("log", x), x), "y")
    assert np.isinf(run_graph(b.build(), zeros(x=()))["y"])
