"""The rooms and arrows of docs/architecture.md: which package imports which, and how large a thing may become."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import networkx
import pytest

import lepton_jit

ROOT = Path(lepton_jit.__file__).parent
DOCS = ROOT.parent / "docs"
# Each storey may import those below it, and what all use; within a storey a package imports those named before it.
STOREYS = (
    ("ir", "passes", "codegen", "runtime"),
    ("compiler",),
    ("tracing", "activations", "initializers", "regularizers", "layers", "losses", "metrics", "optimizers"),
    ("callbacks", "training", "models", "datasets"),
    ("loading", "demo", "cli", "__main__"),
)
SHARED = {"errors", "environment", "common", "random", "_version"}
# What the packages of the lowest storey may import besides themselves.
LOWEST = {
    "ir": {"errors"},
    "passes": {"ir", "errors"},
    "codegen": {"ir", "errors"},
    "runtime": {"errors", "environment", "common"},
}
MOST_LOOSE_MODULES = 16
MOST_FILES = 20
MOST_LINES_OF_A_CLASS = 300
# Classes above it that have not been taken apart; none may grow.
LARGE_CLASSES = {"codegen.contraction.tiles.Tiles": 405, "codegen.program.lower.Lowering": 340}


@cache
def modules() -> dict[str, Path]:
    """All modules by their names below the package, whose own is ""."""
    paths = {path.relative_to(ROOT).with_suffix(""): path for path in ROOT.rglob("*.py")}
    return {".".join(p for p in name.parts if p != "__init__"): path for name, path in paths.items()}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@cache
def imports_of(module: str) -> frozenset[str]:
    """The modules of this package that one imports, at its top or later, and for types alone."""
    found = set()
    for node in ast.walk(tree(modules()[module])):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "lepton_jit":
            base = str(node.module).removeprefix("lepton_jit").lstrip(".")
            for alias in node.names:
                inside = f"{base}.{alias.name}".lstrip(".")
                found.add(inside if inside in modules() else base)
    return frozenset(found - {module})


def package(module: str) -> str:
    return module.split(".")[0]


def packages_with_rooms() -> set[str]:
    """Packages that hold packages: their loose modules stand for themselves."""
    rooms = {name for name, path in modules().items() if path.name == "__init__.py" and name}
    return {name.rpartition(".")[0] for name in rooms}


def room(module: str) -> str:
    """The package that a module is in, or the module, where packages lie beside it."""
    if modules()[module].name == "__init__.py":
        return module
    parent = module.rpartition(".")[0]
    return module if parent in packages_with_rooms() else parent


def arrows() -> Iterator[tuple[str, str]]:
    """Who imports whom; what the package itself names lazily is no arrow."""
    for name in modules():
        if name:
            yield from ((name, target) for target in imports_of(name) if target)


def cycles(edges: Iterator[tuple[str, str]]) -> list[list[str]]:
    graph = networkx.DiGraph(edges)
    return [sorted(component) for component in networkx.strongly_connected_components(graph) if len(component) > 1]


def test_no_module_imports_one_that_imports_it_types_included() -> None:
    assert cycles(arrows()) == []


def test_no_room_imports_one_that_imports_it() -> None:
    # `ir` registers the operations below it when it is imported; they stand on its modules.
    between = ((room(a), room(b)) for a, b in arrows() if room(a) != room(b) and (a, b) != ("ir", "ir.ops"))
    assert cycles(between) == []


@pytest.mark.parametrize("lowest", LOWEST)
def test_a_package_of_the_lowest_storey_imports_only_what_it_stands_on(lowest: str) -> None:
    allowed = LOWEST[lowest] | {lowest}
    assert [(a, b) for a, b in arrows() if package(a) == lowest and package(b) not in allowed] == []


def test_every_module_stands_in_a_storey_and_imports_none_above_it() -> None:
    height = {name: i for i, storey in enumerate(STOREYS) for name in storey} | dict.fromkeys(SHARED, -1)
    assert [name for name in modules() if name and package(name) not in height] == []
    above = [(a, b) for a, b in arrows() if height[package(b)] > height[package(a)]]
    assert above == []


def test_what_all_use_imports_nothing_but_itself() -> None:
    assert [(a, b) for a, b in arrows() if package(a) in SHARED and package(b) not in SHARED] == []


def test_each_package_says_what_happens_in_it() -> None:
    inits = {name: path for name, path in modules().items() if path.name == "__init__.py"}
    assert [name for name, path in inits.items() if not ast.get_docstring(tree(path))] == []


def test_modules_at_the_top_files_of_a_folder_and_lines_of_a_class_are_few() -> None:
    folders = {path.parent for path in modules().values()}
    assert len(list(ROOT.glob("*.py"))) <= MOST_LOOSE_MODULES
    assert {d.name: n for d in folders if (n := len(list(d.glob("*.py")))) > MOST_FILES} == {}
    assert {name: n for name, n in classes() if n > LARGE_CLASSES.get(name, MOST_LINES_OF_A_CLASS)} == {}


def classes() -> Iterator[tuple[str, int]]:
    """Every class and the number of its lines."""
    for name, path in modules().items():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                yield f"{name}.{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1


def test_every_file_that_the_docs_name_is_there() -> None:
    named = {
        (page.name, path)
        for page in DOCS.glob("*.md")
        for path in re.findall(r"`((?:lepton_jit/|tests/|benchmarks/)?[\w/]+/\w+\.py)`", page.read_text())
    }
    places = (ROOT.parent, ROOT, ROOT / "codegen")
    assert {(page, path) for page, path in named if not any((place / path).exists() for place in places)} == set()
