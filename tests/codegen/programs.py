"""What the tests of code generation share: graphs compiled or executed as loops, and one graph of many samples."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import numpy as np

from lepton_jit.codegen.generate import Generated, generate
from lepton_jit.codegen.llvm.machine_code import compile_object
from lepton_jit.codegen.program.lower import lower
from lepton_jit.codegen.program.lowered import Lowered, Step
from lepton_jit.codegen.target import Target, native_target
from lepton_jit.compiler.describe import describe
from lepton_jit.compiler.pipeline import optimize
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.types import TensorType
from lepton_jit.passes.expand_composites import ExpandComposites
from lepton_jit.passes.lower_contractions import LowerContractions
from lepton_jit.runtime.linker import link
from lepton_jit.runtime.program import Program
from lepton_jit.runtime.support_text import support_text
from tests.codegen.loop_programs import run_loops
from tests.ir.cases import SYMBOLS, Case
from tests.levels import NAMED, RUNNABLE

__all__ = [
    "RUNNABLE",
    "differences",
    "everywhere",
    "fused",
    "joined",
    "linked",
    "lowered",
    "lowered_unfused",
    "run_loops",
    "run_native",
    "step_ops",
    "support_object",
    "unfused",
]

T = TypeVar("T")
Arrays = Mapping[str, np.ndarray]


@functools.cache
def support_object() -> bytes:
    target = native_target()
    return compile_object(support_text(target.triple.split("-")[0]), target, 1)


def unfused(graph: Graph, target: Target) -> Generated:
    """The program with one kernel an operation: only what code generation cannot do without has been lowered."""
    return generate(_with_contractions(graph, target), target)


def _with_contractions(graph: Graph, target: Target) -> Graph:
    return LowerContractions(target.vector_bytes * target.tile_vectors).apply(ExpandComposites().apply(graph))


def fused(graph: Graph, target: Target) -> Generated:
    """The program that the compiler makes; the graph has no parameters, so nothing is prepared."""
    _, main = optimize(graph, target)
    return generate(main, target)


def lowered(graph: Graph, target: Target) -> Lowered:
    """The kernels of `fused`, which any machine can make for any target."""
    _, main = optimize(graph, target)
    return lower(main, target)


def lowered_unfused(graph: Graph, target: Target) -> Lowered:
    """The kernels of `unfused`."""
    return lower(_with_contractions(graph, target), target)


def everywhere(graph: Graph, of: Callable[[Lowered], T], make: Callable[[Graph, Target], Lowered] = lowered) -> T:
    """What `of` finds in the program, which has to be the same for all targets that have a name."""
    first, *others = ({target.name: of(make(graph, target))} for target in NAMED)
    ((_, found),) = first.items()
    assert others == [dict.fromkeys(other, found) for other in others]
    return found


def step_ops(program: Lowered) -> list[str]:
    """What each step computes."""
    return [step.op for step in program.steps if isinstance(step, Step)]


def linked(generated: Generated, threads: int = 1) -> Program:
    code = link(generated.objects(), support_object(), generated.lowered.name)
    return Program(describe(generated.lowered, generated.target), code, threads=threads)


def run_native(generated: Generated, arrays: Arrays, threads: int = 1) -> dict[str, np.ndarray]:
    """All outputs by name, those that are written into a state as well."""
    program, manifest = linked(generated, threads), describe(generated.lowered, generated.target)
    state = {p.name: arrays[p.name].copy() for p in manifest.params}
    results = iter(program(*(arrays[i.name] for i in manifest.inputs), parameters=program.bind(state)))
    return {
        output.name: state[manifest.params[manifest.donations[n]].name] if n in manifest.donations else next(results)
        for n, output in enumerate(manifest.outputs)
    }


def joined(cases: Sequence[Case], name: str) -> tuple[Graph, dict[str, np.ndarray]]:
    """All samples of an operation as one graph, and its arrays: one program compiles faster than many."""
    b = Builder(name)
    # the number behind N, for samples of which no operand says it
    b.input("n", TensorType.of("f32", "N"))
    arrays = {"n": np.zeros(SYMBOLS["N"], np.float32)}
    for number, case in enumerate(cases):
        arrays |= {f"x{number}_{i}": a for i, a in enumerate(case.arrays())}
        operands = [b.input(f"x{number}_{i}", t) for i, t in enumerate(case.sample.operands)]
        for i, value in enumerate(b.emit(case.op.name, *operands, **case.sample.attributes)):
            b.output(value, f"y{number}_{i}")
    return b.build(), arrays


def differences(found: Arrays, expected: Arrays, tolerance: Mapping[str, float] | None = None) -> list[str]:
    """What is wrong: dtypes, shapes, NaN and infinities, integers, and floats beyond a relative error."""
    allowed = {"float32": 1e-5, "float64": 1e-12, **(tolerance or {})}
    return [
        f"{name}: {problem}"
        for name, want in expected.items()
        for problem in _problems(found[name], want, allowed.get(want.dtype.name, 0.0))
    ]


def _problems(got: np.ndarray, want: np.ndarray, allowed: float) -> Iterable[str]:
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        yield f"expected {want.dtype}{list(want.shape)}, got {got.dtype}{list(got.shape)}"
        return
    if want.dtype.kind != "f":
        if not np.array_equal(got, want):
            yield f"expected {want.tolist()}, got {got.tolist()}"
        return
    finite = np.isfinite(want)
    if not np.array_equal(got[~finite], want[~finite], equal_nan=True):
        yield f"expected {want[~finite].tolist()}, got {got[~finite].tolist()}"
    scale = np.abs(want[finite]).max(initial=0)
    error = np.abs(got[finite].astype(float) - want[finite]).max(initial=0) / (scale or 1)
    if not error <= allowed:
        yield f"relative error {error:.3g}, more than {allowed}"
