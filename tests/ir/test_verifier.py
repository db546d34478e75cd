"""The verifier finds what a faulty pass would leave behind, and shows where."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lepton_jit.errors import GraphError
from lepton_jit.ir.graph import Graph, Input, Node, Output, Value
from lepton_jit.ir.types import TensorType
from lepton_jit.ir.verifier import verify
from tests.ir.graphs import fused, training_step

STEP = training_step()


def node_at(graph: Graph, at: int, **changes: object) -> Graph:
    nodes = list(graph.nodes)
    nodes[at] = replace(nodes[at], **changes)  # pyright: ignore[reportArgumentType]
    return replace(graph, nodes=tuple(nodes))


def outputs(graph: Graph, *found: Output) -> Graph:
    return replace(graph, outputs=found)


def region(**changes: object) -> Graph:
    """The fused graph, whose outer region is changed."""
    graph = fused()
    inner = replace(graph.nodes[0].regions[0], **changes)  # pyright: ignore[reportArgumentType]
    return node_at(graph, 0, regions=(inner,))


def test_well_formed_graphs_pass() -> None:
    verify(STEP)
    verify(fused())


LOSS, KERNEL = STEP.nodes[5].result, STEP.inputs[3].value
BODY = fused().nodes[0].regions[0]
SCALAR = Value("s", TensorType.of("f32"))


@pytest.mark.parametrize(
    ("graph", "message"),
    [
        (replace(STEP, nodes=STEP.nodes[::-1]), "%10 is read, but nothing before defines it"),
        (replace(STEP, nodes=STEP.nodes[:1] + STEP.nodes), "%0 is defined twice"),
        (replace(STEP, nodes=STEP.nodes[1:]), "%0 is read, but nothing before defines it"),
        (replace(STEP, inputs=STEP.inputs[1:]), "%input is read"),
        (replace(STEP, inputs=(*STEP.inputs, STEP.inputs[0])), "%input is defined twice"),
        (
            replace(STEP, inputs=(*STEP.inputs, Input(SCALAR, "seed"))),
            "inputs: expected different names, got 'seed' twice",
        ),
        (replace(STEP, inputs=(*STEP.inputs, Input(SCALAR, "s", "weight"))), "expected a role of"),
        (node_at(STEP, 1, op="nonsense"), "got 'nonsense'"),
        (node_at(STEP, 5, op="tanh"), r"tanh: expected the operands \(x\), got 2"),
        (node_at(STEP, 4, attributes={"dimensions": (1,), "kind": "add"}), "reduce: dimensions"),
        (node_at(STEP, 4, results=(Value("4", TensorType.of("f64")),)), r"results of type f32\[\], got f64\[\]"),
        (node_at(STEP, 4, results=()), r"results of type f32\[\], got nothing"),
        (node_at(STEP, 8, operands=(KERNEL, Value("7", KERNEL.type.with_shape((4, 3))))), "%7 is read as"),
        (outputs(STEP, Output(SCALAR, "y")), "%s is read, but nothing before defines it"),
        (outputs(STEP, Output(LOSS, "y"), Output(LOSS, "y")), "outputs: expected different names, got 'y' twice"),
        (outputs(STEP, Output(LOSS, "y", "nothing")), "an input of role state, got 'nothing'"),
        (outputs(STEP, Output(LOSS, "y", "learning_rate")), "an input of role state, got 'learning_rate'"),
        (outputs(STEP, Output(LOSS, "y", "dense/kernel")), r"expected f32\[3,4\], the type of the state"),
        (
            outputs(STEP, Output(KERNEL, "y", "dense/kernel"), Output(KERNEL, "z", "dense/kernel")),
            "donated inputs: expected different names",
        ),
        (node_at(fused(), 0, regions=()), "got none called _regions"),
        (region(nodes=BODY.nodes[1:]), "region: graph body: %0 is read, but nothing before defines it"),
        (region(inputs=()), "region: graph body: %c is read"),
        (region(outputs=BODY.outputs[:1]), "results of type"),
        (region(inputs=tuple(replace(i, role="state") for i in BODY.inputs)), "region: expected inputs of role input"),
    ],
)
def test_a_fault_is_found(graph: Graph, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        verify(graph)


def test_the_error_shows_the_nodes_around_the_fault() -> None:
    with pytest.raises(GraphError) as caught:
        verify(node_at(STEP, 5, op="tanh"))
    lines = str(caught.value).splitlines()
    assert lines[0] == "graph train: tanh: expected the operands (x), got 2 of them"
    assert [line.strip().split(" = ")[0] for line in lines[1:]] == ["%2", "%3", "%4", "-> %5", "%6", "%7", "%8"]


def test_a_long_line_is_cut() -> None:
    wide = Node("constant", (), (Value("w", TensorType.of("i32", 900)),), {"value": (1,) * 900})
    with pytest.raises(GraphError) as caught:
        verify(replace(STEP, nodes=(wide,), outputs=()))
    assert max(map(len, str(caught.value).splitlines())) < 250
