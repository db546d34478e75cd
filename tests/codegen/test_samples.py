"""Every operation, on every sample of its record: native code and loops against the interpreter of the graph."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from lepton_jit.codegen.generate import Generated
from lepton_jit.codegen.loop_parser import parse_kernels
from lepton_jit.codegen.loop_printer import print_kernels
from lepton_jit.codegen.loop_verifier import verify_kernel
from lepton_jit.codegen.target import Target, native_target
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.op import OPS, Family
from tests.codegen.programs import differences, joined, run_loops, run_native, unfused
from tests.ir.cases import SYMBOLS, Case
from tests.levels import RUNNABLE, at_every_level

NAMES = [name for name, op in OPS.items() if op.family not in (Family.STRUCTURAL, Family.LOOP)]
# Two roundings of a float64 multiply-add and signs of zero apart, loops and native code give the same bits.
ROUNDINGS = {"float32": 2e-7, "float64": 4e-16}


@functools.cache
def program(name: str, target: Target, samples: int | None = None) -> tuple[Graph, dict[str, np.ndarray], Generated]:
    graph, arrays = joined([Case(OPS[name], sample) for sample in OPS[name].samples[:samples]], name)
    return graph, arrays, unfused(graph, target)


@functools.cache
def native_results(name: str, target: Target, samples: int | None = None) -> dict[str, np.ndarray]:
    _, arrays, generated = program(name, target, samples)
    return run_native(generated, arrays, threads=2)


@pytest.mark.parametrize("name", NAMES)
@at_every_level
def test_native_code_agrees_with_the_interpreter_of_the_graph(target: Target, name: str) -> None:
    """One sample at each lower level: they differ in lanes and primitives only, and cost more to compile."""
    samples = None if target is native_target() else 1
    graph, arrays, _ = program(name, target, samples)
    assert differences(native_results(name, target, samples), run_graph(graph, arrays)) == []


@pytest.mark.soak
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("target", RUNNABLE[1:], ids=lambda t: t.name)
def test_every_sample_agrees_at_every_level(target: Target, name: str) -> None:
    graph, arrays, generated = program(name, target)
    native = native_results(name, target)
    assert differences(native, run_graph(graph, arrays)) == []
    loops = run_loops(generated.lowered, arrays, SYMBOLS, fused=target.name != "x86-64")
    assert differences(loops, native, ROUNDINGS) == []


@pytest.mark.parametrize("name", NAMES)
def test_kernels_are_verified_and_read_back(name: str) -> None:
    _, _, generated = program(name, native_target())
    kernels = [launch.kernel for step in generated.lowered.steps for launch in step.launches]
    for kernel in kernels:
        verify_kernel(kernel)
    assert parse_kernels(print_kernels(kernels)) == kernels


@pytest.mark.parametrize("name", NAMES)
def test_the_interpreter_of_loops_agrees_with_native_code(name: str) -> None:
    _, arrays, generated = program(name, native_target())
    loops = run_loops(generated.lowered, arrays, SYMBOLS)
    native = native_results(name, native_target())
    assert differences(loops, native, ROUNDINGS) == []
