"""The arrows of docs/architecture.md: which package imports which."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

import lepton_jit

ROOT = Path(lepton_jit.__file__).parent
# The lower storey, and what each package there may import besides itself.
LOWER = {
    "ir": {"errors"},
    "passes": {"ir", "errors"},
    "codegen": {"ir", "errors"},
    "runtime": {"errors", "environment", "common"},
}
# The middle storey: knows all of the lower one, and nothing that a user writes.
MIDDLE = {"compiler"}
SHARED = {"errors", "environment", "common", "_version"}


def modules() -> Iterator[tuple[str, Path]]:
    for path in ROOT.rglob("*.py"):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        yield name.removesuffix(".__init__"), path


def imports_of(path: Path) -> set[str]:
    """The modules of this package that a file imports, at its top or later."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("lepton_jit."):
            found.add(str(node.module).removeprefix("lepton_jit."))
    return found


def package(module: str) -> str:
    return module.split(".")[0]


@pytest.mark.parametrize("lower", LOWER)
def test_a_lower_package_imports_only_what_it_stands_on(lower: str) -> None:
    allowed = LOWER[lower] | {lower}
    strangers = {
        (name, target)
        for name, path in modules()
        if package(name) == lower
        for target in imports_of(path)
        if package(target) not in allowed
    }
    assert strangers == set()


def test_the_compiler_knows_no_layer_and_no_front_end() -> None:
    allowed = set(LOWER) | MIDDLE | SHARED
    strangers = {
        (name, target)
        for name, path in modules()
        if package(name) in MIDDLE
        for target in imports_of(path)
        if package(target) not in allowed
    }
    assert strangers == set()


def test_lower_packages_form_no_cycle() -> None:
    graph = networkx.DiGraph()
    for name, path in modules():
        if package(name) in LOWER:
            graph.add_edges_from((package(name), package(t)) for t in imports_of(path) if package(t) != package(name))
    assert list(networkx.simple_cycles(graph)) == []
