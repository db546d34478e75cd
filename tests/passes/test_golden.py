"""Every golden case: the pass gives the text in the file, and the interpreter the same numbers before and after."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_jit.passes.base import PASSES
from tests.passes import golden

TESTED_ELSEWHERE = {"fuse", "layout", "lower-contractions", "plan-memory"}


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


def test_every_pass_that_is_tested_here_has_a_golden_file() -> None:
    pipelines = {text for case in golden.all_cases() for text in case.pipeline.split(", ")}
    covered = {golden.parse_pass(text).name for text in pipelines - {"split-prepare"}}
    own = {name for name, pass_ in PASSES.items() if pass_.__module__.startswith("lepton_jit.passes.")}
    assert own - TESTED_ELSEWHERE - covered == set()
