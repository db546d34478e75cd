"""The split of `prepare` and `main` is a stage: checked, dumped and kept like what passes do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import pytest

import lepton_jit.compiler.pipeline
from lepton_jit.codegen.target import get_target
from lepton_jit.compiler.pipeline import optimize
from lepton_jit.errors import GraphError
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.parser import parse_graph
from lepton_jit.passes.base import Pass
from lepton_jit.passes.check_numerics import CheckNumerics
from lepton_jit.passes.manager import Observer, Observers
from lepton_jit.passes.observers import Dump, Stages, VerifyStructure
from lepton_jit.passes.split_prepare import split_prepare

TARGET = get_target("x86-64-v3")
GRAPH = parse_graph("""
graph @main(%x: f32[N,3] input "x", %w: f32[3] parameter "w") {
  %0 = tanh(%w) : f32[3] @"scale"
  %1 = exponential(%0) : f32[3] @"scale"
  %2 = broadcast_in_dim(%1) {dimensions = [1], shape = [N, 3]} : f32[N,3] @"scale"
  %3 = multiply(%x, %2) : f32[N,3] @"head"
  return %3 "y"
}
""")


def with_another_op(graph: Graph, old: str, new: str) -> Graph:
    return replace(graph, nodes=tuple(replace(n, op=new) if n.op == old else n for n in graph.nodes))


def breaking(half: int, old: str, new: str) -> Callable[[Graph], tuple[Graph, Graph]]:
    """A split that writes another operation into one of the halves."""

    def split(graph: Graph) -> tuple[Graph, Graph]:
        halves = list(split_prepare(graph))
        halves[half] = with_another_op(halves[half], old, new)
        return halves[0], halves[1]

    return split


@dataclass(frozen=True)
class BreaksPrepare(Pass):
    """A pass that is wrong for what is computed of the weights, and only there."""

    name: ClassVar[str] = "breaks-prepare"

    def apply(self, graph: Graph) -> Graph:
        return with_another_op(graph, "tanh", "sine")


@pytest.mark.parametrize(
    ("half", "old", "new", "where"),
    [
        (0, "tanh", "sine", "%0 = sine, layer 'scale'"),
        (1, "multiply", "add", "%3 = add, layer 'head'"),
    ],
)
def test_a_split_that_changes_the_answer_is_caught_and_named(
    monkeypatch: pytest.MonkeyPatch, half: int, old: str, new: str, where: str
) -> None:
    monkeypatch.setattr(lepton_jit.compiler.pipeline, "split_prepare", breaking(half, old, new))
    with pytest.raises(GraphError, match=rf"pass split-prepare: output 'y' changed: .*; it starts at {where}"):
        optimize(GRAPH, TARGET, CheckNumerics())


def test_a_split_that_breaks_a_graph_is_caught_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lepton_jit.compiler.pipeline, "split_prepare", breaking(0, "tanh", "compare"))
    with pytest.raises(GraphError, match="pass split-prepare: graph prepare: compare"):
        optimize(GRAPH, TARGET, VerifyStructure())


def test_a_pass_that_changes_what_prepare_computes_is_caught_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lepton_jit.compiler.pipeline, "AFTER_SPLIT", (BreaksPrepare(),))
    where = "it starts at %0 = sine, layer 'scale'"
    with pytest.raises(GraphError, match=rf"pass breaks-prepare: output 'prepared/0' changed: .*; {where}"):
        optimize(GRAPH, TARGET, Observers(Observer(), CheckNumerics()))


def test_the_split_and_what_becomes_of_both_halves_are_stages() -> None:
    stages = Stages()
    prepare, main = optimize(GRAPH, TARGET, Observers(VerifyStructure(), stages))
    assert list(stages.graphs)[-5:] == ["recompute", "prepare", "prepare-fuse", "main", "fuse"]
    assert [node.op for node in stages["prepare"].nodes] == ["tanh", "exponential"]
    assert [node.op for node in stages["main"].nodes] == ["broadcast_in_dim", "multiply"]
    assert (stages["prepare-fuse"], stages["fuse"]) == (prepare, main)


def test_the_split_and_what_becomes_of_both_halves_are_dumped(tmp_path: Path) -> None:
    optimize(GRAPH, TARGET, Dump(tmp_path))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert [int(name[:2]) for name in names] == list(range(len(names)))
    assert [name[3:] for name in names[-4:]] == ["prepare.ir", "prepare-fuse.ir", "main.ir", "fuse.ir"]
    assert "tanh" in (tmp_path / names[-4]).read_text()


def test_a_graph_without_parameters_has_an_empty_prepare() -> None:
    graph = parse_graph('graph @main(%x: f32[2] input "x") {\n  %0 = tanh(%x) : f32[2]\n  return %0 "y"\n}')
    stages = Stages()
    optimize(graph, TARGET, Observers(CheckNumerics(), stages))
    assert (stages["prepare"].nodes, stages["prepare"].outputs) == ((), ())
