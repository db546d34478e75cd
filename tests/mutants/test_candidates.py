"""Mutants of a few lines: what is changed, what is left alone, and names that stay when other code changes."""

from __future__ import annotations

from pathlib import Path

from tests.mutants.candidates import mutants_of

SOURCE = '''
"""A module."""
__all__ = ["small"]


def small(x: int, limit: int = 3) -> bool:
    assert x > 0, "no"
    if not x:
        raise ValueError(f"{x + 1}")
    return x < limit and x != 2
'''

NATIVE = """
define i64 @sum(i64 %a) {
  %more = icmp slt i64 %a, 4 ; icmp sgt
  %b = add i64 %a, 1
}
"""


def mutated(tmp_path: Path, name: str, source: str) -> dict[str, str]:
    """The line that each mutant changes, by the mutant's name."""
    (tmp_path / name).write_text(source)
    found = {}
    for mutant in mutants_of(tmp_path, name):
        lines = mutant.text(source.encode()).decode().split("\n")
        found[mutant.key.removeprefix(f"{name}:")] = lines[mutant.line - 1].strip()
    return found


def test_comparisons_guards_constants_and_results_are_mutated(tmp_path: Path) -> None:
    assert mutated(tmp_path, "m.py", SOURCE) == {
        "small: 3 -> (4)": "def small(x: int, limit: int = (4)) -> bool:",
        "small: 3 -> (2)": "def small(x: int, limit: int = (2)) -> bool:",
        "small: not x -> True": "if True:",
        "small: not x -> False": "if False:",
        "small: not x -> (x)": "if (x):",
        "small: return x < limit and x != 2 -> return None": "return None",
        "small: x < limit and x != 2 -> (x < limit or x != 2)": "return (x < limit or x != 2)",
        "small: x < limit and x != 2 -> (x != 2)": "return (x != 2)",
        "small: x < limit and x != 2 -> (x < limit)": "return (x < limit)",
        "small: x < limit -> (x <= limit)": "return (x <= limit) and x != 2",
        "small: x < limit -> (x >= limit)": "return (x >= limit) and x != 2",
        "small: x != 2 -> (x == 2)": "return x < limit and (x == 2)",
        "small: 2 -> (3)": "return x < limit and x != (3)",
        "small: 2 -> (1)": "return x < limit and x != (1)",
    }


def test_native_code_is_mutated_outside_of_comments(tmp_path: Path) -> None:
    assert mutated(tmp_path, "m.ll", NATIVE) == {
        "sum: icmp slt -> icmp sle": "%more = icmp sle i64 %a, 4 ; icmp sgt",
        "sum: icmp slt -> icmp sge": "%more = icmp sge i64 %a, 4 ; icmp sgt",
        "sum: 4 -> 5": "%more = icmp slt i64 %a, 5 ; icmp sgt",
        "sum: 4 -> 3": "%more = icmp slt i64 %a, 3 ; icmp sgt",
        "sum: = add -> = sub": "%b = sub i64 %a, 1",
        "sum: 1 -> 2": "%b = add i64 %a, 2",
        "sum: 1 -> 0": "%b = add i64 %a, 0",
    }


def test_a_mutant_keeps_its_name_and_its_rank_where_other_code_changes(tmp_path: Path) -> None:
    (tmp_path / "m.py").write_text(SOURCE)
    before = {mutant.key: mutant.rank(1) for mutant in mutants_of(tmp_path, "m.py")}
    (tmp_path / "m.py").write_text("def other(x: int) -> int:\n    return x - 1\n" + SOURCE)
    after = {mutant.key: mutant.rank(1) for mutant in mutants_of(tmp_path, "m.py")}
    assert before.items() <= after.items()
