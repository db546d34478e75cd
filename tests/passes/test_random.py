"""Every pass keeps what a random graph computes."""

from __future__ import annotations

import pytest

from lepton_jit.ir.interpreter import run_graph
from lepton_jit.passes.algebra import Algebra
from lepton_jit.passes.autodiff import Autodiff
from lepton_jit.passes.base import Pass
from lepton_jit.passes.canonicalize import Canonicalize
from lepton_jit.passes.check_numerics import CheckNumerics, relative_error
from lepton_jit.passes.cse import EliminateCommonSubexpressions
from lepton_jit.passes.dce import EliminateDeadCode
from lepton_jit.passes.expand_composites import ExpandComposites
from lepton_jit.passes.fold_constants import FoldConstants
from lepton_jit.passes.manager import Observers, run_pipeline
from lepton_jit.passes.observers import VerifyStructure
from lepton_jit.passes.phases import SplitStridedGradients
from lepton_jit.passes.schedule_updates import ScheduleUpdates
from lepton_jit.passes.split_prepare import split_prepare
from tests.random_graphs import RandomGraph
from tests.random_search import search

SIMPLIFY: tuple[Pass, ...] = (Canonicalize(), FoldConstants(), EliminateCommonSubexpressions(), EliminateDeadCode())
PIPELINE: tuple[Pass, ...] = (
    *SIMPLIFY,
    Algebra(),
    Autodiff(),
    *SIMPLIFY,
    SplitStridedGradients(),
    ExpandComposites(claimed=frozenset({"softmax"})),
    *SIMPLIFY,
    ScheduleUpdates(),
)


def check(case: RandomGraph) -> None:
    observer = Observers(VerifyStructure(), CheckNumerics(case.arrays, tolerance=1e-5))
    graph = run_pipeline(case.graph, PIPELINE, observer)
    prepare, main = split_prepare(graph)
    prepared = run_graph(prepare, {i.name: case.arrays[i.name] for i in prepare.inputs})
    known = {**case.arrays, **prepared}
    expected = run_graph(graph, case.arrays)
    found = run_graph(main, {i.name: known[i.name] for i in main.inputs})
    # NumPy sums in another order where a weight has come to lie contiguously.
    errors = {name: relative_error(found[name], expected[name]) for name in expected}
    assert {name: error for name, error in errors.items() if error > 1e-5} == {}


@pytest.mark.fuzz
def test_every_pass_keeps_what_a_random_graph_computes(fuzz_examples: int) -> None:
    # A fifth: each graph is run by the interpreter before and after seventeen passes.
    search(check, fuzz_examples // 5)
