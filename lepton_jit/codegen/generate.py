"""Generate object code from an optimized graph: lowering, emission, LLVM."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from lepton_jit.codegen.llvm.emit_program import KernelUnit, emit_program
from lepton_jit.codegen.llvm.machine_code import QUICK, THOROUGH, compile_assembly, compile_object
from lepton_jit.codegen.llvm.module_parts import Part, joined
from lepton_jit.codegen.program.lower import lower, symbols_of_graph
from lepton_jit.codegen.program.lowered import Lowered
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Graph

# Kernels are explicit vector code: LLVM's middle end costs time and gains nothing (docs/code_generation.md).
PIPELINE_LEVEL = 0


@dataclass(frozen=True)
class Generated:
    """A program as text and as object code, in parts that are linked together."""

    lowered: Lowered
    target: Target
    effort: int
    parts: tuple[Part, ...]
    started: tuple[Future[bytes], ...]  # LLVM at work on each part, if it was given somewhere to work
    _objects: list[tuple[bytes, ...]] = field(default_factory=list, repr=False, compare=False)

    @property
    def llvm(self) -> str:
        return joined(self.parts)

    def objects(self) -> tuple[bytes, ...]:
        if not self._objects:
            self._objects.append(self._compiled())
        return self._objects[0]

    def _compiled(self) -> tuple[bytes, ...]:
        if self.started:
            return tuple(future.result() for future in self.started)
        return tuple(_object(part, self.target, self.effort) for part in self.parts)

    def assembly(self) -> str:
        return compile_assembly(self.llvm, self.target, PIPELINE_LEVEL, self.effort)


def generate(graph: Graph, target: Target, *, once: bool = False, executor: Executor | None = None) -> Generated:
    """Generate the program of an optimized graph.

    One that runs `once` is compiled with little effort (docs/measurements.md, compile time). With an executor, LLVM
    compiles each part there while the next ones are made.
    """
    effort = QUICK if once else THOROUGH
    parts: list[Part] = []
    started: list[Future[bytes]] = []

    def take(part: Part) -> None:
        parts.append(part)
        if executor:
            started.append(executor.submit(_object, part, target, effort))

    unit = KernelUnit(graph.name, symbols_of_graph(graph), target, take)
    lowered = lower(graph, target, unit.function_of)
    emit_program(lowered, unit, target)
    return Generated(lowered, target, effort, tuple(parts), tuple(started))


def _object(part: Part, target: Target, effort: int) -> bytes:
    return compile_object(str(part), target, PIPELINE_LEVEL, effort)
