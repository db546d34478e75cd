"""Golden cases: text files of graphs before and after a pass.

    // pass: canonicalize
    // ==== x + 0 == x
    graph @main(...) { ... }
    // ----
    graph @main(...) { ... }

The first line is the pipeline of all cases of the file: passes in order, with their options as in
`expand-composites{claimed=softmax max_pool}`, or `split-prepare`. `// unchanged` stands for the same graph again.
"""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path

import lepton_jit.passes
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.parser import parse_graph
from lepton_jit.ir.verifier import verify
from lepton_jit.passes.base import PASSES, Pass
from lepton_jit.passes.check_numerics import CheckNumerics
from lepton_jit.passes.manager import Observers, run_pipeline
from lepton_jit.passes.observers import VerifyStructure
from lepton_jit.passes.split_prepare import SPLIT, split_prepare

DIRECTORY = Path(__file__).parent / "golden"
_CASE, _RESULT, _UNCHANGED = "// ==== ", "// ----\n", "// unchanged\n"

for module in pkgutil.iter_modules(lepton_jit.passes.__path__):
    importlib.import_module(f"lepton_jit.passes.{module.name}")


@dataclass(frozen=True)
class Golden:
    """One case: `before` is run through `pipeline`, and the result's text compared with `after`."""

    path: Path
    pipeline: str
    name: str
    before: str
    after: str

    def run(self) -> str:
        """The text that the pipeline gives, verified, and checked against the interpreter."""
        graph = parse_graph(self.before)
        if self.pipeline == SPLIT:
            parts = split_prepare(graph)
            for part in parts:
                verify(part)
            return "".join(map(str, parts))
        observer = Observers(VerifyStructure(), CheckNumerics(tolerance=1e-5))
        result = run_pipeline(graph, [parse_pass(text) for text in self.pipeline.split(", ")], observer)
        return _UNCHANGED if result is graph else str(result)


def parse_pass(text: str) -> Pass:
    """The pass for `name` or `name{option=value, option=value}`; values are integers or words.

    >>> parse_pass("expand-composites{claimed=softmax relu}").claimed == {"softmax", "relu"}
    True
    """
    found = re.fullmatch(r"([a-z-]+)(?:\{(.*)\})?", text)
    assert found is not None, text
    made = PASSES[found[1]]()
    given = dict(item.split("=") for item in found[2].split(", ")) if found[2] else {}
    options = {name: _option(getattr(made, name), value) for name, value in given.items()}
    return dataclasses.replace(made, **options)


def _option(default: object, text: str) -> int | frozenset[str]:
    return int(text) if isinstance(default, int) else frozenset(text.split())


def read(path: Path) -> list[Golden]:
    """The cases of a file."""
    header, *cases = path.read_text(encoding="utf-8").split(_CASE)
    found = re.match(r"// (?:pass|target): (.+)\n", header)
    assert found is not None, path
    result = []
    for case in cases:
        name, text = case.split("\n", 1)
        before, _, after = text.partition(_RESULT)
        result.append(Golden(path, found[1], name, before, after.rstrip("\n") + "\n"))
    return result


def rewrite(case: Golden, after: str) -> None:
    """Put another expectation into the case's file."""
    text = case.path.read_text(encoding="utf-8")
    start = text.index(f"{_CASE}{case.name}\n") + len(f"{_CASE}{case.name}\n")
    end = text.find(f"\n{_CASE}", start)
    rest = "" if end < 0 else text[end:]
    case.path.write_text(f"{text[:start]}{case.before.rstrip()}\n{_RESULT}{after}{rest}", encoding="utf-8")


def all_cases() -> list[Golden]:
    return [case for path in sorted(DIRECTORY.glob("*.ir")) for case in read(path)]


def text_of(graph: Graph, name: str) -> str:
    """A graph as a case of a golden file, for a failure to print."""
    return f"{_CASE}{name}\n{graph}{_RESULT}"
