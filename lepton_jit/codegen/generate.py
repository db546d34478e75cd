"""Graph to object code: lowering, emission, LLVM, and the manifest that tells the runtime what came out."""

from __future__ import annotations

from dataclasses import dataclass

from lepton_jit.codegen.emit_program import emit_program
from lepton_jit.codegen.lower import Lowered, lower
from lepton_jit.codegen.machine_code import compile_assembly, compile_object
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.types import Dim, Poly
from lepton_jit.runtime.manifest import Buffer, Manifest, Step, Tensor

# What kernels report, see docs/runtime.md.
ERRORS = {1: "label out of range"}
# Kernels are explicit vector code: LLVM's middle end costs time and gains nothing (docs/code_generation.md).
PIPELINE_LEVEL = 0


@dataclass(frozen=True)
class Generated:
    """A program as text and as object code."""

    lowered: Lowered
    target: Target
    llvm: str

    def object_code(self) -> bytes:
        return compile_object(self.llvm, self.target, PIPELINE_LEVEL)

    def assembly(self) -> str:
        return compile_assembly(self.llvm, self.target, PIPELINE_LEVEL)

    def manifest(self) -> Manifest:
        return make_manifest(self.lowered, self.target)


def generate(graph: Graph, target: Target) -> Generated:
    """The program of an optimized graph."""
    lowered = lower(graph, target)
    return Generated(lowered, target, str(emit_program(lowered, target)))


def make_manifest(lowered: Lowered, target: Target) -> Manifest:
    """What the runtime needs to know of a program."""
    params = [i for role in ("parameter", "state") for i in lowered.inputs if i.role == role]
    position = {p.name: n for n, p in enumerate(params)}
    donations = {n: position[o.donates] for n, o in enumerate(lowered.outputs) if o.donates is not None}
    return Manifest(
        name=lowered.name,
        prefix=lowered.name,
        target=target.name,
        architecture=target.triple.split("-")[0],
        features=target.required,
        symbols=lowered.symbols,
        inputs=tuple(_tensor(i.name, i.value, "input") for i in lowered.inputs if i.role == "input"),
        outputs=tuple(_tensor(o.name, o.value, "output") for o in lowered.outputs),
        params=tuple(_tensor(p.name, p.value, "weight" if p.role == "parameter" else "state") for p in params),
        donations=donations,
        steps=tuple(Step(s.op, s.layer, _dim(s.flops), _dim(sum_bytes(lowered, s.buffers))) for s in lowered.steps),
        buffers=tuple(
            Buffer(b.name, _dim(b.bytes), b.first, b.last, b.layer)
            for b in (lowered.buffers[n] for n in lowered.arena())
        ),
        errors=ERRORS,
    )


def sum_bytes(lowered: Lowered, buffers: tuple[int, ...]) -> Dim:
    """The bytes that a step touches, each buffer once."""
    total: Dim = 0
    for number in dict.fromkeys(buffers):
        total = lowered.buffers[number].bytes + total
    return total


def _tensor(name: str, value: Value, role: str) -> Tensor:
    return Tensor(name, value.type.dtype.name, tuple(_dim(d) for d in value.type.shape), role)


def _dim(dim: Dim) -> int | str:
    return repr(dim) if isinstance(dim, Poly) else dim
