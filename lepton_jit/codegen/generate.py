"""Graph to object code: lowering, emission, LLVM."""

from __future__ import annotations

from concurrent.futures import Executor, Future
from dataclasses import dataclass, field

from lepton_jit.codegen.emit_program import emit_program
from lepton_jit.codegen.lower import lower
from lepton_jit.codegen.lowered import Lowered
from lepton_jit.codegen.machine_code import QUICK, THOROUGH, compile_assembly, compile_object
from lepton_jit.codegen.module_parts import Part, joined
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Graph

# Kernels are explicit vector code: LLVM's middle end costs time and gains nothing (docs/code_generation.md).
PIPELINE_LEVEL = 0


@dataclass(frozen=True)
class Generated:
    """A program as text and as object code, in parts that are linked together."""

    lowered: Lowered
    target: Target
    effort: int = THOROUGH
    parts: list[Part] = field(default_factory=list)
    started: list[Future[bytes]] = field(default_factory=list)

    @property
    def llvm(self) -> str:
        return joined(self.parts)

    def objects(self) -> tuple[bytes, ...]:
        if self.started:
            return tuple(future.result() for future in self.started)
        return tuple(self._object(part) for part in self.parts)

    def assembly(self) -> str:
        return compile_assembly(self.llvm, self.target, PIPELINE_LEVEL, self.effort)

    def emit(self, executor: Executor | None) -> None:
        """Make the parts; LLVM begins with each on the executor while the next ones are made."""

        def take(part: Part) -> None:
            self.parts.append(part)
            if executor:
                self.started.append(executor.submit(self._object, part))

        emit_program(self.lowered, self.target, take)

    def _object(self, part: Part) -> bytes:
        return compile_object(str(part), self.target, PIPELINE_LEVEL, self.effort)


def generate(graph: Graph, target: Target, *, once: bool = False, executor: Executor | None = None) -> Generated:
    """The program of an optimized graph. One that runs `once` is made with little effort.

    What prepares ResNet-50's weights takes 15 ms to make instead of 180, and 37 to run instead of 31.
    """
    made = Generated(lower(graph, target), target, QUICK if once else THOROUGH)
    made.emit(executor)
    return made
