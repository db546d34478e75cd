"""`scan`: what it computes, by JAX's loop and by hand; its text; what the type rule refuses."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from lepton_jit.errors import ArgumentError, GraphError, LeptonError, ShapeError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.loops import scan
from lepton_jit.ir.parser import parse_graph
from lepton_jit.ir.types import TensorType
from lepton_jit.ir.verifier import verify
from tests.ir.loops import arrays_for, jax_lstm, lstm, running_sum

pytestmark = pytest.mark.tiny

ROWS = np.arange(15, dtype=np.float32).reshape(5, 3)


def test_a_running_sum() -> None:
    found = run_graph(running_sum(), {"x": ROWS})
    assert found["sums"].tolist() == np.cumsum(ROWS, 0).tolist()
    assert found["last"].tolist() == ROWS.sum(0).tolist()


def test_reverse_stacks_where_it_reads() -> None:
    found = run_graph(running_sum(reverse=True), {"x": ROWS})
    assert found["sums"].tolist() == np.cumsum(ROWS[::-1], 0)[::-1].tolist()


@pytest.mark.parametrize("length", [0, 1, 4])
def test_a_length_known_at_run_time(length: int) -> None:
    found = run_graph(running_sum("T"), {"x": ROWS[:length]})
    assert found["sums"].tolist() == np.cumsum(ROWS[:length], 0).tolist()
    assert found["last"].tolist() == ROWS[:length].sum(0).tolist()


@pytest.mark.parametrize("reverse", [False, True])
def test_jax_agrees(reverse: bool) -> None:
    graph = lstm(dtype="f64", reverse=reverse)
    arrays = arrays_for(graph, N=2)
    with jax.enable_x64(True):
        expected = jax_lstm(arrays, reverse)
        found = run_graph(graph, arrays)
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("graph", [running_sum(), running_sum("T", reverse=True), lstm()])
def test_text_is_read_back(graph: Graph) -> None:
    verify(graph)
    assert parse_graph(str(graph)) == graph


def test_the_text() -> None:
    (node,) = (n for n in running_sum("T").nodes if n.op == "scan")
    assert str(Graph("main", (), (node,), ())).splitlines()[1:-1] == [
        "  %2, %3 = scan(%1, %x) {carries = 1, length = T, reverse = false, scanned = 1} : f32[3], f32[T,3]"
        ' region(%carry0: f32[3] input "carry0", %slice0: f32[3] input "slice0") {',
        "    %0 = add(%carry0, %slice0) : f32[3]",
        '    return %0 "carry0", %0 "stacked0"',
        "  }",
    ]


def test_nodes_of_the_region_carry_the_layer() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", 2, 3))
    with b.layer("lstm"):
        scan(b, lambda b, carries, slices, captured: ([], [b("tanh", slices[0])]), [], [x])
    (node,) = b.build().nodes
    assert (node.layer, node.regions[0].nodes[0].layer) == ("lstm", "lstm")


GOOD = {"carries": 1, "scanned": 1, "length": 5, "reverse": False}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"length": 4}, ShapeError, r"scanned array with a leading dimension of 4, got f32\[5,3\]"),
        ({"length": -1}, ShapeError, "dimensions from 0 up"),
        ({"carries": 2, "scanned": 0}, ShapeError, "a region that reads carries, slices and captured values"),
        ({"carries": 2}, GraphError, "expected 2 carries and 1 scanned arrays among the operands, got 2 of them"),
        ({"scanned": 2}, GraphError, "expected 1 carries and 2 scanned"),
        ({"regions": ()}, ArgumentError, "none called _regions"),
    ],
)
def test_what_does_not_fit(changes: dict[str, object], error: type[LeptonError], message: str) -> None:
    b = Builder()
    x, zero = b.input("x", TensorType.of("f32", 5, 3)), b.input("zero", TensorType.of("f32", 3))
    regions = running_sum().nodes[-1].regions
    with pytest.raises(error, match=message):
        b.emit("scan", zero, x, **{"regions": regions, **GOOD, **changes})  # pyright: ignore[reportArgumentType]


def test_a_carry_keeps_its_type() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", 5, 3))
    with pytest.raises(ShapeError, match="a region that returns new carries first"):
        scan(b, lambda b, carries, slices, captured: ([b("reshape", carries[0], shape=(15,))], []), [x], length=2)


def test_a_loop_over_nothing_needs_its_length() -> None:
    with pytest.raises(GraphError, match="expected a length"):
        scan(Builder(), lambda b, carries, slices, captured: ([], []), [])
