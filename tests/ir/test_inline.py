"""Copying a graph into a builder."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_jit.errors import GraphError, ShapeError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.inline import inline
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import TensorType
from lepton_jit.ir.verifier import verify
from tests.ir.graphs import fused


def affine() -> Graph:
    """3 * x + 1, its sum in the layer `sum`."""
    b = Builder("affine")
    y = b("multiply", b.input("x", TensorType.of("f32", 4)), 3.0)
    with b.layer("sum"):
        b.output(b("add", y, 1.0), "y")
    return b.build()


def test_a_graph_may_be_copied_twice() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", 4))
    (once,) = inline(b, affine(), [x])
    (twice,) = inline(b, affine(), [once])
    b.output(twice, "y")
    verify(b.build())
    assert run_graph(b.build(), {"x": np.float32([0, 1, 2, 3])})["y"].tolist() == [4, 13, 22, 31]


def test_copies_carry_their_layer_or_else_the_current_one() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", 4))
    with b.layer("model"):
        inline(b, affine(), [x])
    assert {node.op: node.layer for node in b.build().nodes if node.operands} == {
        "broadcast_in_dim": "sum",
        "multiply": "model",
        "add": "sum",
    }


def test_regions_come_along() -> None:
    b = Builder()
    results = inline(b, fused(), [b.input("x", TensorType.of("f32", "N", 3))])
    assert b.build().nodes[0].regions == fused().nodes[0].regions
    assert [v.type for v in results] == [TensorType.of("f32", "N", 3)] * 2


def test_operands_have_to_fit() -> None:
    b = Builder()
    with pytest.raises(GraphError, match="graph affine: expected 1 operands, got 0"):
        inline(b, affine(), [])
    with pytest.raises(ShapeError, match="multiply: expected operands of one type"):
        inline(b, affine(), [b.input("x", TensorType.of("f32", 5))])
