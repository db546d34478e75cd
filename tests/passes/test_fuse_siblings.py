"""Maps in the region of a loop that share what they read are one kernel."""

from __future__ import annotations

from lepton_jit.ir.graph import Graph
from lepton_jit.ir.parser import parse_graph
from lepton_jit.passes.check_numerics import CheckNumerics
from lepton_jit.passes.fuse import Fuse
from lepton_jit.passes.manager import Observers, run_pipeline
from lepton_jit.passes.observers import VerifyStructure


def ops(text: str, fuse: Fuse) -> list[str]:
    """What the nodes after fusion are, `+` between those of one region."""
    graph: Graph = run_pipeline(parse_graph(text), [fuse], Observers(VerifyStructure(), CheckNumerics()))
    return ["+".join(n.op for n in node.regions[0].nodes) if node.regions else node.op for node in graph.nodes]


SHARED = """
graph @main(%x: f32[N,2] input "x", %y: f32[N,2] input "y", %z: f32[N,2] input "z") {
  %0 = tanh(%x) : f32[N,2]
  %1 = multiply(%y, %y) : f32[N,2]
  %2 = negate(%y) : f32[N,2]
  %3 = sine(%z) : f32[N,2]
  %4 = concatenate(%0, %1) {dimension = 0} : f32[2*N,2]
  return %4 "a", %2 "b", %3 "c"
}
"""

AROUND = """
graph @main(%x: f32[N,2] input "x", %w: f32[2,2] input "w") {
  %0 = tanh(%x) : f32[N,2]
  %1 = reduce(%0) {dimensions = [0], kind = "add"} : f32[2]
  %2 = broadcast_in_dim(%1) {dimensions = [1], shape = [N, 2]} : f32[N,2]
  %3 = multiply(%2, %x) : f32[N,2]
  return %3 "y"
}
"""


def test_what_reads_the_same_or_is_concatenated_is_one_kernel() -> None:
    assert ops(SHARED, Fuse(siblings=True)) == ["tanh+multiply+negate", "sine", "concatenate"]
    assert ops(SHARED, Fuse()) == ["tanh", "multiply", "negate", "sine", "concatenate"]


def test_what_depends_on_the_other_by_another_kernel_is_not() -> None:
    assert ops(AROUND, Fuse(siblings=True)) == ops(AROUND, Fuse())


def test_regions_of_loops_are_fused_so() -> None:
    region = SHARED.split("{", 1)[1].rsplit("return", 1)[0]
    text = f"""
graph @main(%x: f32[3,N,2] input "x") {{
  %0, %1, %2 = scan(%x, %x, %x) {{carries = 0, length = 3, reverse = false, scanned = 3}}
    : f32[3,2*N,2], f32[3,N,2], f32[3,N,2]
    region(%x: f32[N,2] input "x", %y: f32[N,2] input "y", %z: f32[N,2] input "z") {{
    {region}
    return %4 "a", %2 "b", %3 "c"
  }}
  return %0 "a", %1 "b", %2 "c"
}}
"""
    (loop,) = run_pipeline(parse_graph(text), [Fuse()]).nodes
    assert [node.op for node in loop.regions[0].nodes] == ["fusion", "sine", "concatenate"]


def test_what_stands_side_by_side_in_the_last_dimension_is_one_kernel() -> None:
    text = SHARED.replace("{dimension = 0} : f32[2*N,2]", "{dimension = 1} : f32[N,4]")
    assert ops(text, Fuse()) == ["negate", "sine", "tanh+multiply+concatenate"]
