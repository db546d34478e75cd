"""The graphs that random searches use: they cover everything, mean the same in text, and are well conditioned."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.op import OPS
from lepton_jit.ir.parser import parse_graph
from lepton_jit.ir.verifier import verify
from lepton_jit.passes.gradient.autodiff import Autodiff
from tests.random_draft import LATE, distance, evaluate, widened
from tests.random_graphs import RandomGraph, coverage, print_coverage, random_graph
from tests.random_search import search

COUNT = 120


@pytest.fixture(scope="module")
def drawn() -> list[RandomGraph]:
    return [random_graph(seed) for seed in range(COUNT)]


def test_every_operation_occurs(drawn: list[RandomGraph]) -> None:
    counts = coverage([case.graph for case in drawn])
    print(print_coverage(counts))
    assert [name for name, count in counts.items() if not count] == []
    assert set(OPS) >= LATE


def test_many_have_a_gradient_and_a_symbolic_batch(drawn: list[RandomGraph]) -> None:
    assert sum(case.has_gradient for case in drawn) > COUNT // 4
    assert all("N" in str(case.graph) for case in drawn)
    assert {role for case in drawn for role in (i.role for i in case.graph.inputs)} == {"input", "parameter", "state"}


def test_they_verify_and_read_back(drawn: list[RandomGraph]) -> None:
    for case in drawn:
        verify(case.graph)
        assert parse_graph(str(case.graph)) == case.graph


def test_the_same_seed_gives_the_same_graph_and_arrays(drawn: list[RandomGraph]) -> None:
    again = random_graph(7)
    assert str(again) == str(drawn[7])
    assert all(np.array_equal(again.arrays[name], drawn[7].arrays[name]) for name in again.arrays)


def test_float32_is_within_1e_minus_5_of_float64(drawn: list[RandomGraph]) -> None:
    for case in drawn:
        graph = Autodiff().apply(case.graph)
        known = {i.value: widened(case.arrays[i.name]) for i in graph.inputs}
        for node in graph.nodes:
            known.update(zip(node.results, evaluate(node, known, case.sizes), strict=True))
        found = run_graph(graph, case.arrays)
        assert {o.name: o for o in graph.outputs if distance(found[o.name], known[o.value]) > 1e-5} == {}


def test_a_failure_shrinks_to_a_small_golden_case() -> None:
    with pytest.raises(AssertionError, match="found by random search") as caught:
        search(_refuse_exponentials, range(500))
    text = str(caught.value).split("// ==== found by random search\n")[1].removesuffix("// ----\n")
    assert [node.op for node in parse_graph(text).nodes if node.op != "constant"] == ["exponential"]


def _refuse_exponentials(case: RandomGraph) -> None:
    if any(node.op == "exponential" for node in case.graph.nodes):
        raise ValueError("an exponential")
