"""Define passes: frozen dataclasses with a name, options as fields, and one function from graph to graph."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar

from lepton_jit.errors import GraphError
from lepton_jit.ir.graph import Graph, Node

__all__ = ["PASSES", "Pass"]

PASSES: dict[str, type[Pass]] = {}


@dataclass(frozen=True)
class Pass(ABC):
    """One job on a graph; see docs/add_a_pass.md.

    A subclass is a frozen dataclass: its fields are the pass's options, `name` is kebab-case and unique. `apply` is
    pure, and returns the very graph that it got where there is nothing to do.
    """

    name: ClassVar[str]

    def __init_subclass__(cls) -> None:
        if not re.fullmatch(r"[a-z]+(-[a-z]+)*", cls.__dict__.get("name", "")):
            raise GraphError(f"pass {cls.__name__}: `name` expected in kebab-case, got {cls.__dict__.get('name')!r}")
        if PASSES.setdefault(cls.name, cls).__qualname__ != cls.__qualname__:
            raise GraphError(f"pass {cls.name!r}: defined by {PASSES[cls.name].__qualname__} and {cls.__qualname__}")

    @abstractmethod
    def apply(self, graph: Graph) -> Graph:
        """Return the graph after the pass."""

    def inside(self, loop: Node) -> Pass | None:
        """Return the pass for the region of a loop, before `apply` gets the graph around it; None for no pass."""
        return self

    def __str__(self) -> str:
        options = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in fields(self))
        return f"{self.name}{{{options}}}" if options else self.name
