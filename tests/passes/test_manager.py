"""The pass manager, its observers, and what a pass has to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

from lepton_jit.errors import ArgumentError, GraphError, ShapeError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value, print_graph
from lepton_jit.ir.loops import scan
from lepton_jit.ir.parser import parse_graph
from lepton_jit.ir.types import DTYPES, TensorType
from lepton_jit.passes.base import Pass
from lepton_jit.passes.check_numerics import CheckNumerics, random_arrays, relative_error
from lepton_jit.passes.dce import EliminateDeadCode
from lepton_jit.passes.manager import Observer, Observers, run_pipeline
from lepton_jit.passes.observers import Dump, Stages, StopAfter, Timing, VerifyStructure
from lepton_jit.passes.rewriting.canonicalize import Canonicalize

GRAPH = parse_graph("""
graph @main(%x: f32[N,3] input "x") {
  %0 = negate(%x) : f32[N,3] @"stem/first"
  %1 = negate(%0) : f32[N,3] @"stem/second"
  %2 = tanh(%1) : f32[N,3] @"head"
  %3 = exponential(%2) : f32[N,3] @"head"
  return %3 "y"
}
""")


@dataclass(frozen=True)
class Replace(Pass):
    """Puts one operation in place of another, as a defect would."""

    name: ClassVar[str] = "replace-for-a-test"

    old: str = "tanh"
    new: str = "sine"

    def apply(self, graph: Graph) -> Graph:
        nodes = tuple(replace(n, op=self.new) if n.op == self.old else n for n in graph.nodes)
        return replace(graph, nodes=nodes)


def test_passes_run_in_order() -> None:
    result = run_pipeline(GRAPH, [Canonicalize(), Replace("tanh", "sine"), Replace("sine", "cosine")])
    assert [node.op for node in result.nodes] == ["cosine", "exponential"]


def test_an_error_inside_a_pass_says_which_one() -> None:
    @dataclass(frozen=True)
    class Fails(Pass):
        name: ClassVar[str] = "fails-for-a-test"

        def apply(self, graph: Graph) -> Graph:
            raise ShapeError("expected 2, got 3")

    with pytest.raises(ShapeError) as caught:
        run_pipeline(GRAPH, [Fails()])
    assert caught.value.__notes__ == ["in pass fails-for-a-test"]


def test_names_are_kebab_case_and_unique() -> None:
    with pytest.raises(GraphError, match="kebab-case, got 'Fold_It'"):

        class Bad(Pass):
            name: ClassVar[str] = "Fold_It"

    with pytest.raises(GraphError, match="'dce': defined by EliminateDeadCode and"):

        class Doubled(Pass):
            name: ClassVar[str] = "dce"


def test_a_pass_prints_with_its_options() -> None:
    assert str(EliminateDeadCode()) == "dce"
    assert str(Replace("a", "b")) == "replace-for-a-test{old='a', new='b'}"


def test_the_verifier_names_the_pass_that_broke_the_graph() -> None:
    with pytest.raises(GraphError, match=r"pass replace-for-a-test: graph main: compare"):
        run_pipeline(GRAPH, [Canonicalize(), Replace("tanh", "compare")], VerifyStructure())


def test_the_numeric_check_names_pass_operation_layer_and_error() -> None:
    where = r"it starts at %2 = sine, layer 'head'"
    expected = r"pass replace-for-a-test: output 'y' changed: .* at most 0.0001, got 0\.\d+; " + where
    with pytest.raises(GraphError, match=expected):
        run_pipeline(GRAPH, [Canonicalize(), Replace("tanh", "sine")], CheckNumerics())


def test_the_numeric_check_uses_the_arrays_that_it_is_given() -> None:
    run_pipeline(GRAPH, [Replace("tanh", "sine")], CheckNumerics({"x": np.zeros((1, 3), np.float32)}))
    with pytest.raises(GraphError, match="pass replace-for-a-test"):
        run_pipeline(GRAPH, [Replace("tanh", "sine")], CheckNumerics({"x": np.ones((1, 3), np.float32)}))


def test_the_numeric_check_accepts_rounding_but_not_another_integer() -> None:
    assert relative_error(np.float32([1, 1e-9]), np.float32([1, 0])) == pytest.approx(1e-9)
    assert relative_error(np.int32([3]), np.int32([4])) == np.inf
    assert relative_error(np.float32([np.nan]), np.float32([1])) == np.inf
    assert relative_error(np.float32([np.nan, 1]), np.float32([np.nan, 1])) == 0
    assert relative_error(np.float32([np.inf]), np.float32([-np.inf])) == np.inf
    assert relative_error(np.float32([0]), np.float32([0])) == 0


def test_random_arrays_fit_the_graph_and_are_the_same_for_a_seed() -> None:
    first, again, other = (random_arrays(GRAPH, seed, {"N": 5})["x"] for seed in (1, 1, 2))
    assert first.shape == (5, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_dumps_are_numbered_and_an_unchanged_stage_is_one_line(tmp_path: Path) -> None:
    run_pipeline(GRAPH, [Canonicalize(), EliminateDeadCode()], Dump(tmp_path / "dump"))
    files = {path.name: path.read_text() for path in sorted((tmp_path / "dump").iterdir())}
    assert list(files) == ["00-traced.ir", "01-canonicalize.ir", "02-dce.ir"]
    assert parse_graph(files["00-traced.ir"]) == GRAPH
    assert files["02-dce.ir"] == "// unchanged\n"


def test_dumps_can_show_one_layer(tmp_path: Path) -> None:
    run_pipeline(GRAPH, [], Dump(tmp_path, layer="stem"))
    assert (tmp_path / "00-traced.ir").read_text() == print_graph(GRAPH, layer="stem")
    assert "tanh" not in (tmp_path / "00-traced.ir").read_text()


def test_stages_are_kept_by_name_and_a_second_run_gets_a_number() -> None:
    stages = Stages()
    result = run_pipeline(GRAPH, [Canonicalize(), Replace(), Canonicalize()], stages)
    assert list(stages.graphs) == ["traced", "canonicalize", "replace-for-a-test", "canonicalize-2"]
    assert stages["traced"] is GRAPH
    assert stages["canonicalize-2"] is result
    with pytest.raises(ArgumentError, match=r"stage: expected one of traced, canonicalize, .*, got 'fuse'"):
        stages["fuse"]


def test_timing_is_a_table_that_says_what_was_unchanged() -> None:
    timing = Timing()
    run_pipeline(GRAPH, [Canonicalize(), EliminateDeadCode()], timing)
    assert [(row.name, row.nodes_before, row.nodes_after, row.changed) for row in timing.rows] == [
        ("canonicalize", 4, 2, True),
        ("dce", 2, 2, False),
    ]
    assert str(timing).splitlines()[2].endswith("unchanged")


def test_a_pipeline_can_stop_after_a_pass_and_all_observers_have_seen_it() -> None:
    stages = Stages()
    result = run_pipeline(GRAPH, [Canonicalize(), Replace()], Observers(StopAfter("canonicalize"), stages))
    assert [node.op for node in result.nodes] == ["tanh", "exponential"]
    assert list(stages.graphs) == ["traced", "canonicalize"]


def test_an_observer_alone_does_nothing() -> None:
    assert run_pipeline(GRAPH, [EliminateDeadCode()], Observer()) is GRAPH


def test_random_arrays_pass_the_checks_of_their_graph() -> None:
    b = Builder("checks")
    x, y = b.input("x", TensorType.of("i64", "N", 4)), b.input("y", TensorType.of("f32", "N", 4))
    free = b.input("free", TensorType.of("i32", "N"))

    def body(
        b: Builder, carries: Sequence[Value], slices: Sequence[Value], captured: Sequence[Value]
    ) -> tuple[list[Value], list[Value]]:
        return [], [b("check_indices", slices[0], low=6, high=90)]

    b.output(b("check_indices", b("convert", y, dtype=DTYPES["i32"]), low=-9, high=-7), "y")
    turned = b("transpose", x, permutation=(1, 0))
    _, (stack,) = scan(b, body, [], [turned], [], length=4)
    b.output(b("check_indices", stack, low=-4, high=8), "x")
    b.output(free, "free")

    drawn = random_arrays(b.build(), sizes={"N": 50})

    assert {name: set(np.unique(a).tolist()) for name, a in drawn.items()} == {
        "x": {6, 7, 8},
        "y": {-9, -8, -7},
        "free": {0, 1},
    }
