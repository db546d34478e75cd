"""Random loops, and gradients of loops, through the whole compiler against the interpreter."""

from __future__ import annotations

import pytest

from lepton_jit.compiler.build import build
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.passes.check_numerics import random_arrays, relative_error
from lepton_jit.passes.gradient.autodiff import Autodiff
from tests.ir.loops import lstm
from tests.levels import level
from tests.passes.test_scan_gradient import gradient_of
from tests.random_draft import SeededChoices, extent
from tests.random_loops import random_loop


def check(graph: Graph, seed: int, *, typical_batch: int | None = None, **sizes: int) -> None:
    executable = build(graph, target=level(seed), typical_batch=typical_batch)
    arrays = random_arrays(graph, seed, sizes)
    executable.bind({entry.name: arrays[entry.name] for entry in graph.inputs if entry.role != "input"})
    found = executable.run(*(arrays[entry.name] for entry in graph.inputs if entry.role == "input"))
    expected = run_graph(Autodiff().apply(graph), arrays)
    errors = {o.name: relative_error(a, expected[o.name]) for o, a in zip(graph.outputs, found, strict=True)}
    assert {name: error for name, error in errors.items() if error > 1e-4} == {}


@pytest.mark.parametrize("batch", [1, 19])
def test_an_lstm_and_its_gradient(batch: int) -> None:
    check(lstm(), 0, N=batch)
    check(gradient_of(lstm(reverse=True)), 0, N=batch)


@pytest.mark.parametrize("seed", [*range(8), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(8, 60))])
def test_random_loops(seed: int) -> None:
    choices = SeededChoices(seed)
    graph = random_loop(choices, gradient=seed % 2 == 0, symbolic=seed % 3 == 0)
    check(graph, seed, typical_batch=choices.one_of((None, 1, 9)), N=extent(choices, 65), T=choices.integer(0, 5))
