"""What `make docs` adds to the pages of this folder: an API reference, one page for each family of public names.

A name is on the page of its module if the module's `__all__` has it, so that new layers, losses or optimizers need no
line here. Links to the source, which the site does not contain, become paths.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
# Page -> title, and its modules below `lepton_jit` (a package stands for its public modules).
PAGES = {
    "models": ("Models", ["models.model", "models.sequential", "models.loading", "loading"]),
    "layers": ("Layers", ["layers", "layers.base.layer"]),
    "training": ("Losses, metrics, optimizers", ["losses.losses", "metrics", "optimizers", "callbacks"]),
    "compiler": (
        "Compiled programs",
        [
            "compiler.compile",
            "compiler.compiled",
            "compiler.reading",
            "runtime.module",
            "runtime.plan",
            "runtime.profile",
            "runtime.threads",
        ],
    ),
    "weights": ("Activations, initializers, regularizers", ["activations", "initializers", "regularizers", "random"]),
    "datasets": ("Data sets", ["datasets"]),
    "errors": ("Errors", ["errors"]),
}
SOURCE_LINK = re.compile(r"\[(?P<text>[^\]]*)\]\(\.\./(?P<path>[^)#]*)(#[^)]*)?\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the API reference."""
    for page, (title, names) in PAGES.items():
        directives = [d for name in names for path in modules(name) for d in directives_of(path)]
        text = "\n\n".join([f"# {title}", *directives]) + "\n"
        files.append(File.generated(config, f"api/{page}.md", content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put paths in place of links to files outside of this folder; a path that does not exist fails the build."""

    def path(link: re.Match[str]) -> str:
        if not (ROOT / link["path"]).exists():
            raise PluginError(f"no such file: {link['path']}")
        return f"`{link['path']}`"

    return SOURCE_LINK.sub(path, markdown)


def modules(name: str) -> list[Path]:
    """The files of a module, or of a package's modules with public names."""
    path = ROOT / "lepton_jit" / name.replace(".", "/")
    return (
        sorted(p for p in path.glob("*.py") if p.name != "__init__.py") if path.is_dir() else [path.with_suffix(".py")]
    )


def directives_of(path: Path) -> list[str]:
    """A directive of mkdocstrings for each name in a module's `__all__`."""
    module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return [f"::: {module}.{name}" for name in public_names(path)]


def public_names(path: Path) -> list[str]:
    for statement in ast.parse(path.read_text()).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(statement.value) if name != "registry"]
    return []
