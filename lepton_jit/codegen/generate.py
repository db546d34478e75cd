"""Graph to object code: lowering, emission, LLVM."""

from __future__ import annotations

from dataclasses import dataclass

from lepton_jit.codegen.emit_program import emit_program
from lepton_jit.codegen.lower import lower
from lepton_jit.codegen.lowered import Lowered
from lepton_jit.codegen.machine_code import QUICK, THOROUGH, compile_assembly, compile_object
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Graph

# Kernels are explicit vector code: LLVM's middle end costs time and gains nothing (docs/code_generation.md).
PIPELINE_LEVEL = 0


@dataclass(frozen=True)
class Generated:
    """A program as text and as object code."""

    lowered: Lowered
    target: Target
    llvm: str
    effort: int = THOROUGH

    def object_code(self) -> bytes:
        return compile_object(self.llvm, self.target, PIPELINE_LEVEL, self.effort)

    def assembly(self) -> str:
        return compile_assembly(self.llvm, self.target, PIPELINE_LEVEL, self.effort)


def generate(graph: Graph, target: Target, *, once: bool = False) -> Generated:
    """The program of an optimized graph. One that runs `once` is made with little effort.

    What prepares ResNet-50's weights takes 15 ms to make instead of 180, and 37 to run instead of 31.
    """
    lowered = lower(graph, target)
    return Generated(lowered, target, str(emit_program(lowered, target)), QUICK if once else THOROUGH)
