"""The manifest of a program: what code generation made, in the runtime's words."""

from __future__ import annotations

from lepton_jit.codegen.program.lowered import Lowered, memory_of
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import Dim, Poly
from lepton_jit.runtime.manifest import Manifest, ManifestBuffer, ManifestStep, Tensor

__all__ = ["describe"]


def describe(lowered: Lowered, target: Target) -> Manifest:
    """Make the manifest of a program: what the runtime needs to know of it."""
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
        steps=tuple(
            ManifestStep(s.op, s.layer, _dim(s.flops), _dim(sum_bytes(lowered, s.buffers)), s.checked)
            for s in lowered.steps
        ),
        errors=dict(lowered.errors),
        buffers=tuple(
            ManifestBuffer(b.name, _dim(b.bytes), b.first, b.last, b.layer, b.per_thread)
            for b in (lowered.buffers[n] for n in lowered.arena())
        ),
    )


def sum_bytes(lowered: Lowered, buffers: tuple[int, ...]) -> Dim:
    """The bytes that a step touches, each buffer once."""
    total: Dim = 0
    for number in memory_of(lowered.buffers, buffers):
        total = lowered.buffers[number].bytes + total
    return total


def _tensor(name: str, value: Value, role: str) -> Tensor:
    return Tensor(name, value.type.dtype.name, tuple(_dim(d) for d in value.type.shape), role)


def _dim(dim: Dim) -> int | str:
    return repr(dim) if isinstance(dim, Poly) else dim
