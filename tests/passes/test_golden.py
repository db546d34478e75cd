"""Every golden case: the pass gives the text in the file, and the interpreter the same numbers before and after."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_jit.codegen.target import get_target
from lepton_jit.compiler.pipeline import AFTER_SPLIT, pipeline
from lepton_jit.ir.parser import parse_graph
from lepton_jit.passes.base import Pass
from lepton_jit.passes.manager import run_pipeline
from lepton_jit.passes.observers import Dump
from lepton_jit.passes.split_prepare import SPLIT
from tests.passes import golden


@pytest.mark.parametrize("case", [pytest.param(c, id=f"{c.path.stem}: {c.name}") for c in golden.all_cases()])
def test_a_pass_gives_the_expected_text(case: golden.Golden, update_golden: bool) -> None:
    found = case.run()
    if update_golden:
        golden.rewrite(case, found)
    else:
        assert found == case.after


def test_names_of_cases_are_unique_in_their_file() -> None:
    names = [(case.path, case.name) for case in golden.all_cases()]
    assert len(names) == len(set(names))


def test_updating_rewrites_the_expectation_of_one_case(tmp_path: Path) -> None:
    text = 'graph @main(%x: f32[2] input "x") {\n  return %x "x"\n}\n'
    path = tmp_path / "cases.ir"
    path.write_text(f"// pass: dce\n// ==== one\n{text}// ----\nold\n\n// ==== two\n{text}// ----\nkept\n")
    one, two = golden.read(path)
    golden.rewrite(one, one.run())
    assert golden.read(path) == [golden.Golden(path, "dce", "one", text, "// unchanged\n"), two]


def test_every_pass_of_the_pipeline_and_the_split_have_golden_cases() -> None:
    covered = {text.partition("{")[0] for case in golden.all_cases() for text in case.pipeline.split(", ")}
    target = get_target("x86-64-v3")
    assert {pass_.name for pass_ in (*pipeline(target), *AFTER_SPLIT)} | {SPLIT} <= covered


GRAPHS = {f"{case.path.stem}: {case.name}": parse_graph(case.before) for case in golden.all_cases()}


@pytest.mark.parametrize("pass_", dict.fromkeys((*pipeline(get_target("x86-64-v3")), *AFTER_SPLIT)), ids=str)
def test_a_pass_returns_the_very_graph_where_it_changes_nothing(pass_: Pass, tmp_path: Path) -> None:
    """What it has just made, and what other passes' cases are about."""
    for name, before in GRAPHS.items():
        after = run_pipeline(before, [pass_])
        assert (after is before) == (str(after) == str(before)), name
        again = run_pipeline(after, [pass_], Dump(tmp_path))
        assert again is after, name
        assert (tmp_path / f"01-{pass_.name}.ir").read_text() == "// unchanged\n"
