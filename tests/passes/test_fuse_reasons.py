"""Fusion says why two nodes are two kernels, in the words of the condition that kept them apart."""

from __future__ import annotations

import itertools

import pytest

from lepton_jit.errors import ArgumentError
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.op import traits_of
from lepton_jit.ir.parser import parse_graph
from lepton_jit.ir.traits import Storage
from lepton_jit.passes import fuse, fuse_merge
from lepton_jit.passes.fuse import Fuse
from lepton_jit.passes.fuse_reasons import EVERYWHERE, FUSED, UNRELATED, why_not_fused
from lepton_jit.passes.lower_contractions import LowerContractions
from tests.passes.golden import all_cases

DOT = "{lhs_batching = [], lhs_contracting = [1], rhs_batching = [], rhs_contracting = [0]} : f32[N,8]"
TEXT = f"""
graph @main(%x: f32[N,8] input "x", %w: f32[8,8] parameter "w", %v: f32[8,8] parameter "v") {{
  %before = tanh(%x) : f32[N,8]
  %dot = dot_general(%before, %w) {DOT}
  %seen = negate(%dot) : f32[N,8]
  %once = exponential(%seen) : f32[N,8]
  %second = dot_general(%seen, %v) {DOT}
  %turned = transpose(%second) {{permutation = [1, 0]}} : f32[8,N]
  %row = reduce(%once) {{dimensions = [1], kind = "add"}} : f32[N]
  %zero = constant() {{dtype = f32, shape = [], value = 0.0}} : f32[]
  %zeros = broadcast_in_dim(%zero) {{dimensions = [], shape = [N]}} : f32[N]
  %least = maximum(%row, %zeros) : f32[N]
  return %turned "turned", %least "least", %once "once", %before "before"
}}
"""


@pytest.fixture(scope="module")
def graph() -> Graph:
    return LowerContractions().apply(parse_graph(TEXT))


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [
        ("once", "row", FUSED),
        ("zeros", "least", EVERYWHERE),
        ("before", "1", fuse.READER_ALONE),
        ("1", "seen", fuse.ONLY_ELEMENTWISE),
        ("3", "turned", fuse.ONLY_ELEMENTWISE),
        ("before", "least", UNRELATED),
    ],
)
def test_each_condition_has_its_words(graph: Graph, first: str, second: str, reason: str) -> None:
    said = why_not_fused(graph, first, second)

    assert said == why_not_fused(graph, f"%{second}", f"%{first}")  # in either order, with or without the sign
    assert reason in said


def test_a_path_through_a_third_kernel_is_named() -> None:
    text = """
    graph @main(%x: f32[N,8] input "x") {
      %0 = negate(%x) : f32[N,8]
      %1 = reduce(%0) {dimensions = [0], kind = "add"} : f32[8]
      %2 = broadcast_in_dim(%1) {dimensions = [1], shape = [N, 8]} : f32[N,8]
      %3 = subtract(%0, %2) : f32[N,8]
      return %3 "y", %0 "z"
    }
    """
    assert fuse_merge.AROUND in why_not_fused(parse_graph(text), "0", "3")


def test_an_expensive_epilogue_of_memory_alone_is_named() -> None:
    text = f"""
    graph @main(%x: f32[N,8] input "x", %w: f32[8,8] parameter "w", %h: f32[N,8] input "h") {{
      %0 = dot_general(%x, %w) {DOT}
      %1 = tanh(%h) : f32[N,8]
      %2 = multiply(%0, %1) : f32[N,8]
      return %2 "y"
    }}
    """
    graph = LowerContractions().apply(parse_graph(text))
    assert fuse_merge.SPARED in why_not_fused(graph, "1", "2")


@pytest.mark.parametrize("case", [c for c in all_cases() if c.pipeline == "fuse"], ids=lambda case: case.name)
def test_what_it_says_agrees_with_what_fusion_does(case) -> None:
    """Pairs of golden graphs: fused if and only if a fusion has both; every other pair has a reason."""
    graph = parse_graph(case.before)
    fused = [
        {v.name for n in node.regions[0].nodes for v in n.results}
        for node in Fuse().apply(graph).nodes
        if node.op == "fusion"
    ]
    nodes = [node for node in graph.nodes if traits_of(node).storage is not Storage.RECOMPUTED]

    for a, b in itertools.combinations(nodes[:8], 2):
        names = {a.results[0].name, b.results[0].name}
        said = why_not_fused(graph, *sorted(names))
        assert (FUSED in said) == any(names <= one for one in fused)


def test_a_name_that_no_node_has_is_an_error(graph: Graph) -> None:
    with pytest.raises(ArgumentError, match="expected the result of a node, such as %before, %"):
        why_not_fused(graph, "before", "x")
