"""Maps and rows that read each other are one kernel; an epilogue keeps no expensive work on memory alone."""

from __future__ import annotations

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.parser import parse_graph
from lepton_jit.ir.types import TensorType
from lepton_jit.passes.check_numerics import CheckNumerics
from lepton_jit.passes.fuse import Fuse
from lepton_jit.passes.fuse_merge import MOST_MEMBERS
from lepton_jit.passes.lower_contractions import LowerContractions
from lepton_jit.passes.manager import Observers, run_pipeline
from lepton_jit.passes.observers import VerifyStructure


def ops(text: str) -> list[str]:
    """What the nodes after fusion are, `+` between those of one region."""
    observers = Observers(VerifyStructure(), CheckNumerics())
    nodes = run_pipeline(parse_graph(text), [LowerContractions(), Fuse()], observers).nodes
    return ["+".join(n.op for n in node.regions[0].nodes) if node.regions else node.op for node in nodes]


CENTERED = """
graph @main(%x: f32[N,8] input "x") {
  %0 = negate(%x) : f32[N,8]
  %1 = reduce(%0) {dimensions = [1], kind = "add"} : f32[N]
  %2 = broadcast_in_dim(%1) {dimensions = [0], shape = [N, 8]} : f32[N,8]
  %3 = subtract(%0, %2) : f32[N,8]
  %4 = multiply(%3, %3) : f32[N,8]
  return %3 "y", %4 "z", %1 "total"
}
"""

AROUND = """
graph @main(%x: f32[N,8] input "x") {
  %0 = negate(%x) : f32[N,8]
  %1 = reduce(%0) {dimensions = [0], kind = "add"} : f32[8]
  %2 = broadcast_in_dim(%1) {dimensions = [1], shape = [N, 8]} : f32[N,8]
  %3 = subtract(%0, %2) : f32[N,8]
  return %3 "y", %0 "z"
}
"""

UPDATE = """
graph @main(%x: f32[N,8] input "x", %w: f32[8] input "w") {
  %0 = reduce(%x) {dimensions = [0], kind = "add"} : f32[8]
  %1 = multiply(%0, %0) : f32[8]
  %2 = subtract(%w, %1) : f32[8]
  %3 = abs(%1) : f32[8]
  return %2 "weight", %3 "slot"
}
"""

PRODUCT = """
graph @main(%x: f32[N,32] input "x", %w: f32[32,64] input "w", %h: f32[N,64] input "h") {
  %0 = dot_general(%x, %w) {lhs_batching = [], lhs_contracting = [1], rhs_batching = [], rhs_contracting = [0]}
    : f32[N,64]
  %1 = FACTOR
  %2 = multiply(%0, %1) : f32[N,64]
  return %2 "y"
}
"""


def test_rows_and_what_reads_their_results_are_one_kernel() -> None:
    assert ops(CENTERED) == ["negate+reduce+broadcast_in_dim+subtract+multiply"]


def test_a_reduction_and_what_is_computed_from_its_results_are_one_kernel() -> None:
    assert ops(UPDATE) == ["reduce+multiply+subtract+abs"]
    table = UPDATE.replace("f32[8]", "f32[9,8]").replace(
        'reduce(%x) {dimensions = [0], kind = "add"}', "scatter_add(%x, %i) {axis = 0, size = 9}"
    )
    table = table.replace('"x", ', '"x", %i: i32[N] input "i", ')
    assert ops(table) == ["scatter_add+multiply+subtract+abs"]


def test_not_where_another_kernel_lies_between() -> None:
    assert ops(AROUND) == ["negate", "reduce", "broadcast_in_dim+subtract"]


def test_an_epilogue_computes_expensive_functions_of_the_product_only() -> None:
    tanh = PRODUCT.replace("FACTOR", "tanh(%h) : f32[N,64]")
    assert ops(tanh) == ["pack", "tanh", "affine_contraction+multiply"]
    cheap = PRODUCT.replace("FACTOR", "negate(%h) : f32[N,64]")
    assert ops(cheap) == ["pack", "affine_contraction+negate+multiply"]
    own = PRODUCT.replace("FACTOR", "tanh(%0) : f32[N,64]")
    assert ops(own) == ["pack", "affine_contraction+tanh+multiply"]


def test_a_kernel_has_so_many_members_and_no_more() -> None:
    b = Builder("chain")
    value = b.input("x", TensorType.of("f32", "N"))
    for _ in range(MOST_MEMBERS + 1):
        value = b("negate", value)
    b.output(value, "y")
    nodes = Fuse().apply(b.build()).nodes
    assert [len(n.regions[0].nodes) if n.regions else 1 for n in nodes] == [1, MOST_MEMBERS]
