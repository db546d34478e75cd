"""The whole pipeline against the interpreter on random graphs, gradients and updates of states included."""

from __future__ import annotations

import os

import numpy as np
import pytest

from lepton_jit.codegen.target import Target
from lepton_jit.compiler.build import build
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.passes.gradient.autodiff import Autodiff
from tests.levels import RUNNABLE, at_every_level, level
from tests.random_draft import distance
from tests.random_graphs import RandomGraph, coverage, print_coverage
from tests.random_search import search

# One test searches a part, at one of the levels that this machine has.
PARTS = 3
TOLERANCE = 1e-5
# So many graphs have every registered operation in them.
COVERING = 500


@pytest.fixture(autouse=True)
def without_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "LEPTON_JIT_CACHE", "off")


def native_results(case: RandomGraph, target: Target) -> dict[str, np.ndarray]:
    """What the compiled program gives for every output, states read after the run."""
    arrays = {name: array.copy() for name, array in case.arrays.items()}
    graph = case.graph
    executable = build(graph, threads=2, target=target)
    executable.bind({i.name: arrays[i.name] for i in graph.inputs if i.role != "input"})
    returned = iter(executable.run(*(arrays[i.name] for i in graph.inputs_of("input"))))
    return {o.name: arrays[o.donates] if o.donates else next(returned) for o in graph.outputs}


def check(case: RandomGraph, target: Target) -> None:
    expected = run_graph(Autodiff().apply(case.graph), case.arrays)
    found = native_results(case, target)
    assert [name for name in expected if found[name].shape != expected[name].shape] == []
    assert {n: e for n in expected if (e := distance(found[n], expected[n])) > TOLERANCE} == {}


def agree(seeds: range, target: Target) -> None:
    """All of the seeds' graphs; many of them have all operations in them."""
    seen: list[RandomGraph] = []

    def remember(case: RandomGraph) -> None:
        seen.append(case)
        check(case, target)

    search(remember, seeds)
    counts = coverage([case.graph for case in seen])
    print(print_coverage(counts))
    if len(seen) >= COVERING:
        assert [name for name, count in counts.items() if not count] == []


@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(PARTS))
def test_compiled_random_graphs_agree_with_the_interpreter(part: int, fuzz_seeds: range) -> None:
    agree(fuzz_seeds[part::PARTS], level(part))


@pytest.mark.soak
@at_every_level
def test_compiled_random_graphs_agree_at_every_level(target: Target) -> None:
    first = 1_000_000 * (1 + RUNNABLE.index(target))
    agree(range(first, first + COVERING), target)
