"""Observers of a pipeline: verify, dump, time, collect, stop. The numeric check has its own file."""

from __future__ import annotations

from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TextIO

from lepton_jit.errors import ArgumentError, GraphError
from lepton_jit.ir.graph import Graph, print_graph
from lepton_jit.ir.verifier import verify
from lepton_jit.passes.base import Pass
from lepton_jit.passes.manager import Observer, StopPipeline
from lepton_jit.passes.split_prepare import SPLIT

__all__ = ["Dump", "PrintAfterAll", "Stages", "StopAfter", "Timing", "VerifyStructure"]


class VerifyStructure(Observer):
    """Run the verifier on the first graph, after every pass that changed something, and on both halves of the split.

    Raises GraphError that names the pass.
    """

    def start(self, graph: Graph) -> None:
        verify(graph)

    def after(self, pass_: Pass, before: Graph, after: Graph, seconds: float) -> None:
        if after is not before:
            _verify_after(pass_.name, after)

    def split(self, before: Graph, prepare: Graph, main: Graph) -> tuple[Observer, Observer]:
        for half in (prepare, main):
            _verify_after(SPLIT, half)
        return self, self


def _verify_after(name: str, graph: Graph) -> None:
    try:
        verify(graph)
    except GraphError as error:
        raise GraphError(f"pass {name}: {error}") from error


class _Texts(Observer):
    """Tell `_write` of each stage's text and name; that of an unchanged stage is one line.

    The split gives `prepare` and `main`; what passes make of `prepare` after it is called `prepare-fuse`, ...
    """

    def __init__(self, *, layer: str | None = None, first: str = "traced") -> None:
        self._layer = layer
        self._first = first
        self._prefix = ""

    def start(self, graph: Graph) -> None:
        self._write(self._first, print_graph(graph, layer=self._layer))

    def after(self, pass_: Pass, before: Graph, after: Graph, seconds: float) -> None:
        text = "// unchanged\n" if after is before else print_graph(after, layer=self._layer)
        self._write(f"{self._prefix}{pass_.name}", text)

    def split(self, before: Graph, prepare: Graph, main: Graph) -> tuple[Observer, Observer]:
        return self._half("prepare", "prepare-"), self._half("main", "")

    def _half(self, first: str, prefix: str) -> Observer:
        half = copy(self)
        half._first, half._prefix = first, prefix
        return half

    def _write(self, name: str, text: str) -> None:
        raise NotImplementedError


class Dump(_Texts):
    """Write `00-traced.ir`, `01-fold-constants.ir`, ... into a directory."""

    def __init__(self, directory: str | Path, *, layer: str | None = None, first: str = "traced") -> None:
        super().__init__(layer=layer, first=first)
        self._directory = Path(directory)
        self._numbers: Iterator[int] = count()  # one for both halves of a split

    def start(self, graph: Graph) -> None:
        self._directory.mkdir(parents=True, exist_ok=True)
        super().start(graph)

    def _write(self, name: str, text: str) -> None:
        (self._directory / f"{next(self._numbers):02d}-{name}.ir").write_text(text, encoding="utf-8")


class PrintAfterAll(_Texts):
    """Print each stage as soon as it is there, under the headings of `fast.ir()`."""

    def __init__(self, file: TextIO, *, first: str = "traced") -> None:
        super().__init__(first=first)
        self._file = file

    def _write(self, name: str, text: str) -> None:
        print(f"// ---- {name}\n{text}", file=self._file)


@dataclass(frozen=True)
class PassTime:
    """The time of one run of a pass, and the number of nodes before and after it."""

    name: str
    seconds: float
    nodes_before: int
    nodes_after: int
    changed: bool


class Timing(Observer):
    """Measures how long each pass takes; `print(timing)` is a table."""

    def __init__(self) -> None:
        self.rows: list[PassTime] = []

    def after(self, pass_: Pass, before: Graph, after: Graph, seconds: float) -> None:
        self.rows.append(PassTime(pass_.name, seconds, len(before.nodes), len(after.nodes), after is not before))

    def __str__(self) -> str:
        lines = [f"{'pass':<28}{'ms':>9}{'nodes':>8}"]
        for row in self.rows:
            note = "" if row.changed else "  unchanged"
            lines.append(f"{row.name:<28}{row.seconds * 1e3:>9.2f}{row.nodes_after:>8}{note}")
        lines.append(f"{'sum':<28}{sum(row.seconds for row in self.rows) * 1e3:>9.2f}")
        return "\n".join(lines)


class Stages(Observer):
    """Keep every stage's graph by the name of the pass that made it; the first one as `traced`.

    The runs of a pass that runs more than once are called `name`, `name-2`, `name-3`. The split gives `prepare` and
    `main`; what passes make of `prepare` after it is called `prepare-fuse`, ...
    """

    def __init__(self, first: str = "traced") -> None:
        self._first = first
        self._prefix = ""
        self.graphs: dict[str, Graph] = {}

    def start(self, graph: Graph) -> None:
        self.graphs[self._first] = graph

    def after(self, pass_: Pass, before: Graph, after: Graph, seconds: float) -> None:
        name = first = f"{self._prefix}{pass_.name}"
        run = 1
        while name in self.graphs:
            run += 1
            name = f"{first}-{run}"
        self.graphs[name] = after

    def split(self, before: Graph, prepare: Graph, main: Graph) -> tuple[Observer, Observer]:
        return self._half("prepare", "prepare-"), self._half("main", "")

    def _half(self, first: str, prefix: str) -> Stages:
        half = Stages(first)
        half._prefix, half.graphs = prefix, self.graphs
        return half

    def __getitem__(self, name: str) -> Graph:
        if name not in self.graphs:
            raise ArgumentError(f"stage: expected one of {', '.join(self.graphs)}, got {name!r}")
        return self.graphs[name]


class StopAfter(Observer):
    """End the pipeline after the pass of this name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def after(self, pass_: Pass, before: Graph, after: Graph, seconds: float) -> None:
        if pass_.name == self._name:
            raise StopPipeline
