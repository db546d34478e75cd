"""Row reductions: what is the same along a row, and results that lie where something is still to be read."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_jit.codegen.program.lowered import Step
from lepton_jit.codegen.target import Target
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.parser import parse_graph
from tests.codegen.programs import differences, fused, run_native, unfused
from tests.levels import at_every_level

# One vector of 4, 8 or 16 lanes, several of them, and what is left over.
LENGTHS = (1, 3, 4, 8, 16, 17, 32, 40)


@at_every_level
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_what_is_the_same_along_a_row_counts_once_for_each_element(op: str, target: Target) -> None:
    nodes = [
        f"""  %a{n} = broadcast_in_dim(%x) {{dimensions = [0], shape = [5, {n}]}} : f32[5,{n}]
  %b{n} = {op}(%a{n}) {{axis = 1}} : f32[5,{n}]
"""
        for n in LENGTHS
    ]
    returned = ", ".join(f'%b{n} "y{n}"' for n in LENGTHS)
    graph = parse_graph(f'graph @rows(%x: f32[5] input "x") {{\n{"".join(nodes)}  return {returned}\n}}\n')
    x = {"x": np.linspace(-2, 2, 5, dtype=np.float32)}
    assert differences(run_native(fused(graph, target), x), run_graph(graph, x)) == []


LATE = """graph @late(%x: f32[32] input "x", %y: f32[32] input "y", %p: f32[8] input "p") {
  %penalty = reduce(%p) {dimensions = [0], kind = "add"} : f32[]
  %a, %d = fusion(%x, %y, %penalty) {kind = "rows"} : f32[], f32[] region @fusion(%x: f32[32] input "x", %y: f32[32] input "y", %penalty: f32[] input "penalty") {
    %a = reduce(%x) {dimensions = [0], kind = "add"} : f32[]
    %b = reduce(%y) {dimensions = [0], kind = "add"} : f32[]
    %c = add(%a, %b) : f32[]
    %d = add(%c, %penalty) : f32[]
    return %a "a", %d "d"
  }
  %e = exponential(%a) : f32[]
  return %d "d", %e "e"
}
"""  # noqa: E501


@at_every_level
def test_a_result_that_lies_where_a_later_one_reads_is_written_behind_all_loads(target: Target) -> None:
    graph = parse_graph(LATE)
    rng = np.random.default_rng(0)
    arrays = {name: rng.uniform(-1, 1, n).astype(np.float32) for name, n in (("x", 32), ("y", 32), ("p", 8))}
    made = unfused(graph, target)
    (rows,) = (step for step in made.lowered.steps if isinstance(step, Step) and len(step.launches[0].buffers) == 5)
    penalty, a = rows.launches[0].buffers[2:4]
    assert penalty == a  # which is what the test is about
    assert differences(run_native(made, arrays), run_graph(graph, arrays)) == []
