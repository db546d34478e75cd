"""What leaves the loop of an LSTM and of its gradient; that random loops stay what they are."""

from __future__ import annotations

import pytest

from lepton_jit.ir.graph import Graph
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.passes.base import Pass
from lepton_jit.passes.check_numerics import CheckNumerics, random_arrays, relative_error
from lepton_jit.passes.cse import EliminateCommonSubexpressions
from lepton_jit.passes.dce import EliminateDeadCode
from lepton_jit.passes.expand_composites import ExpandComposites
from lepton_jit.passes.fold_constants import FoldConstants
from lepton_jit.passes.gradient.autodiff import Autodiff
from lepton_jit.passes.manager import Observers, run_pipeline
from lepton_jit.passes.observers import VerifyStructure
from lepton_jit.passes.rewriting.canonicalize import Canonicalize
from lepton_jit.passes.scans.simplify_loops import SimplifyLoops
from tests.ir.loops import lstm
from tests.passes.test_scan_gradient import gradient_of
from tests.random_draft import SeededChoices
from tests.random_loops import random_loop, unrolled

SIMPLIFY = (Canonicalize(), FoldConstants(), EliminateCommonSubexpressions(), EliminateDeadCode())
PIPELINE: tuple[Pass, ...] = (
    Autodiff(),
    SimplifyLoops(),
    *SIMPLIFY,
    ExpandComposites(),
    *SIMPLIFY,
    SimplifyLoops(),
    *SIMPLIFY,
)


def products(graph: Graph) -> list[str]:
    return [repr(node.result.type) for node in graph.nodes if node.op == "dot_general"]


def test_the_input_projection_is_one_product_before_the_loop() -> None:
    graph = run_pipeline(lstm(), PIPELINE)
    (loop,) = (node for node in graph.nodes if node.op == "scan")
    assert products(graph) == ["f32[4,N,20]"]
    assert products(loop.regions[0]) == ["f32[N,20]"]


def test_the_gradient_has_one_product_in_its_loop_and_three_behind_it() -> None:
    graph = run_pipeline(gradient_of(lstm()), PIPELINE)
    _, backward = (node for node in graph.nodes if node.op == "scan")
    assert products(backward.regions[0]) == ["f32[N,5]"]
    assert sorted(products(graph)[1:]) == ["f32[3,20]", "f32[4,N,3]", "f32[5,20]"]
    assert backward.attributes["carries"] == 2


# Among the later ones: a sum over the rounds of a product that another rule replaces.
@pytest.mark.parametrize("seed", [*range(40), 145, 271, 321])
def test_a_random_loop_computes_what_it_did(seed: int) -> None:
    late, choices = seed > 40, SeededChoices(seed)
    width, gradient, symbolic = 3 if late else None, seed % 2 == 0 or late, seed % 3 == 0 and not late
    graph = random_loop(choices, width=width, gradient=gradient, symbolic=symbolic)
    observer = Observers(VerifyStructure(), CheckNumerics(random_arrays(graph, seed), tolerance=2e-5))
    run_pipeline(graph, PIPELINE, observer)


def test_what_is_simple_stays_the_very_graph() -> None:
    graph = run_pipeline(lstm(), PIPELINE)
    assert SimplifyLoops().apply(graph) is graph


@pytest.mark.fuzz
def test_gradients_of_random_loops_are_those_of_the_unrolled_ones(fuzz_examples: int) -> None:
    for seed in range(1000, 1000 + fuzz_examples):
        graph = random_loop(SeededChoices(seed), dtype="f64", gradient=True)
        arrays = random_arrays(graph, seed)
        found = run_graph(run_pipeline(graph, PIPELINE), arrays)
        expected = run_graph(Autodiff().apply(unrolled(graph)), arrays)
        errors = {name: relative_error(found[name], expected[name]) for name in expected}
        assert {name: error for name, error in errors.items() if error > 1e-7} == {}, f"seed {seed}"
