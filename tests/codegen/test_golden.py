"""Golden kernels: the loop text that the compiler makes of a graph, for the target that the file names."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_jit.codegen.loops.parser import parse_kernels
from lepton_jit.codegen.loops.printer import print_kernels
from lepton_jit.codegen.program.lower import lower
from lepton_jit.codegen.target import get_target
from lepton_jit.compiler.pipeline import optimize
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.parser import parse_graph
from lepton_jit.passes.check_numerics import random_arrays
from tests.codegen.programs import differences, run_loops
from tests.passes import golden

FILES = sorted((Path(__file__).parent / "golden").glob("*.loops"))
CASES = [case for path in FILES for case in golden.read(path)]


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{c.path.stem}: {c.name}") for c in CASES])
def test_a_graph_becomes_the_expected_kernels(case: golden.Golden, update_golden: bool) -> None:
    target = get_target(case.pipeline)
    _, main = optimize(parse_graph(case.before), target)
    kernels = [launch.kernel for step in lower(main, target).steps for launch in step.launches]
    found = print_kernels(kernels)
    if update_golden:
        golden.rewrite(case, found)
        return
    assert found == case.after
    assert parse_kernels(case.after) == kernels


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{c.path.stem}: {c.name}") for c in CASES])
def test_these_kernels_compute_what_the_graph_says(case: golden.Golden) -> None:
    graph, target = parse_graph(case.before), get_target(case.pipeline)
    prepare, main = optimize(graph, target)
    arrays = random_arrays(graph)
    prepared = run_graph(prepare, {entry.name: arrays[entry.name] for entry in prepare.inputs})
    given = {entry.name: {**arrays, **prepared}[entry.name] for entry in main.inputs}
    found = run_loops(lower(main, target), given, {"N": 3})
    assert differences(found, run_graph(graph, arrays)) == []
