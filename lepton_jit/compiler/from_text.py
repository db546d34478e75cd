"""Passes and code generation on the text of a graph: what `lepton-jit opt` and `lepton-jit lower` print."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import partial
from typing import TextIO

from lepton_jit.codegen.generate import Generated, generate
from lepton_jit.codegen.program.step_printer import print_steps
from lepton_jit.codegen.target import Target, get_target
from lepton_jit.common import arguments
from lepton_jit.compiler.build import memory_plan
from lepton_jit.compiler.compile_thread import run_apart
from lepton_jit.compiler.pipeline import AFTER_SPLIT, observer, pipeline, run_passes
from lepton_jit.compiler.reading import parse
from lepton_jit.errors import ArgumentError, FileFormatError, GraphError, ParseError, UnsupportedError
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.types import typical_batch as making_for
from lepton_jit.passes.base import Pass
from lepton_jit.passes.manager import Observer, Observers, run_pipeline
from lepton_jit.passes.observers import PrintAfterAll
from lepton_jit.passes.split_prepare import SPLIT

__all__ = ["CODE_STAGES", "Shell", "read_graph"]

CODE_STAGES = ("loops", "llvm", "asm", "plan")


def read_graph(source: bytes, name: str) -> Graph:
    """The verified graph that a file holds; FileFormatError says in which file, and where in it, something is wrong."""
    try:
        found = parse(source.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{name}: offset {error.start}: expected the text of a graph, in UTF-8") from None
    except (ParseError, GraphError) as error:
        raise FileFormatError(f"{name}: {error}") from error
    if not isinstance(found, Graph):
        raise FileFormatError(f"{name}: expected a graph, got kernels; nothing is left to optimize in them")
    return found


@dataclass(frozen=True)
class Shell:
    """The setting that passes run in: a target and a batch, whether each is checked, where stages are printed to."""

    target: str = "native"
    typical_batch: int | None = None
    verify: bool = False
    print_to: TextIO | None = None

    def optimize(self, graph: Graph, passes: str | None) -> tuple[Graph, Graph]:
        """The graphs (prepare, main) that the whole pipeline makes of one: what depends on weights alone, and the rest.

        With `passes`, names with commas between them, it is just those in this order, and nothing is split off.
        """
        with making_for(self._batch()):
            return run_apart(partial(self._optimize, graph, passes))

    def code(self, graph: Graph, stage: str, *, once: bool = False) -> str:
        """The code of an optimized graph: `loops`, `llvm`, `asm` or the memory `plan`; `once` as for `prepare`."""
        arguments.choice("lower", "stage", stage, CODE_STAGES)
        with making_for(self._batch()):
            return run_apart(partial(_code, graph, get_target(self.target), stage, once))

    def _batch(self) -> int | None:
        batch = self.typical_batch
        return None if batch is None else arguments.integer("passes", "typical_batch", batch)

    def _optimize(self, graph: Graph, passes: str | None) -> tuple[Graph, Graph]:
        target = get_target(self.target)
        whole = pipeline(target, self.typical_batch)
        if passes is None:
            return run_passes(graph, whole, self._observer())
        chosen = _named(passes, (*whole, *AFTER_SPLIT))
        return Graph("prepare", (), (), ()), run_pipeline(graph, chosen, self._observer())

    def _observer(self) -> Observer:
        printing = () if self.print_to is None else (PrintAfterAll(self.print_to),)
        return Observers(*printing, observer("passes" if self.verify else None, None))


def _named(names: str, available: Sequence[Pass]) -> list[Pass]:
    """The passes of these names, with the options that the pipeline gives them."""
    known = {pass_.name: pass_ for pass_ in available}
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name == SPLIT:
            raise ArgumentError(f"passes: {SPLIT} makes two graphs of one, so it is no pass; the whole pipeline has it")
        if name not in known:
            near = get_close_matches(name, known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            *most, last = known
            raise ArgumentError(f"passes: expected {', '.join(most)} or {last}, got {name!r}{hint}")
    return [known[name] for name in chosen]


def _code(graph: Graph, target: Target, stage: str, once: bool) -> str:
    try:
        made: Generated = generate(graph, target, once=once)
    except UnsupportedError as error:
        raise UnsupportedError(f"{error}; has the graph been through all passes?") from error
    match stage:
        case "loops":
            return print_steps(made.lowered.steps)
        case "llvm":
            return made.llvm
        case "asm":
            return made.assembly()
        case _:
            return str(memory_plan(made))
