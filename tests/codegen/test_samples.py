"""Every operation, on every sample of its record: native code and loops against the interpreter of the graph."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from lepton_jit.codegen.generate import Generated
from lepton_jit.codegen.loops.parser import parse_kernels
from lepton_jit.codegen.loops.printer import print_kernels
from lepton_jit.codegen.loops.verifier import verify_kernel
from lepton_jit.codegen.target import Target, native_target
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.op import OPS, Family
from lepton_jit.ir.types import dim_value
from tests.codegen.programs import differences, joined, run_loops, run_native, unfused
from tests.ir.cases import SYMBOLS, Case
from tests.ir.special import edges
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


# Their sums and products overflow and underflow in an order of their own, so the largest and the least numbers are left
# out: of those the interpreter makes infinities, zeros and NaN elsewhere.
OF_ANY_ORDER = {
    *("reduce", "reduce_window", "moments", "convolution", "dot_general", "affine_contraction", "scatter_add"),
    *("batch_norm_training", "batch_norm_inference", "layer_norm", "average_pool", "softmax_cross_entropy"),
    *("sparse_softmax_cross_entropy", "softmax", "log_softmax"),
}
# A bad index ends a program; Winograd's transforms leave out what the interpreter multiplies by 0.
WITHOUT_EDGES = {"check_indices", "winograd_input", "winograd_kernel", "winograd_output"}
# An infinity among numbers whose mean and variance are wanted makes NaN of both; of the mean the interpreter keeps it.
NOT_FINITE_EITHER_WAY = {"moments", "batch_norm_training"}
# Infinite weights are ordinary here: in the padding of an image they are left out, or multiplied by 0.
WEIGHTS = {"convolution": "_1"}
EDGE_BATCH = 40


def edge_arrays(graph: Graph, seed: int) -> dict[str, np.ndarray]:
    """Edges of the types for elementwise operations; for others a few of them among ordinary numbers."""
    random = np.random.default_rng(seed)
    elementwise, tame = OPS[graph.name].family is Family.ELEMENTWISE, graph.name in OF_ANY_ORDER
    arrays = {}
    for entry in graph.inputs:
        dtype, shape = entry.value.type.dtype, [dim_value(d, {"N": EDGE_BATCH}) for d in entry.value.type.shape]
        drawn = random.choice(edges(dtype), shape)
        if not elementwise and dtype.kind in ("signed", "unsigned"):
            drawn = random.integers(0, 4, shape)  # they may be indices
        elif not elementwise and dtype.is_float:
            ordinary = random.normal(size=shape)
            weights = entry.name.endswith(WEIGHTS.get(graph.name, "none"))
            extreme = tame & np.isfinite(drawn) & (drawn != 0) & ((np.abs(drawn) < 1e-3) | (np.abs(drawn) > 1e3))
            drawn = np.where((random.random(shape) < 0.85) | extreme | weights, ordinary, drawn)
        arrays[entry.name] = drawn.astype(dtype.numpy)
    return arrays


def edge_problems(name: str, got: np.ndarray, want: np.ndarray) -> list[str]:
    """NaN and infinities that differ, integers; of elementwise operations also numbers, and the signs of zeros."""
    if want.dtype.kind != "f":
        return [] if np.array_equal(got, want) else ["integers"]
    both = np.isfinite(got) & np.isfinite(want)
    if name in NOT_FINITE_EITHER_WAY:
        return [] if np.array_equal(np.isfinite(got), np.isfinite(want)) else ["not finite"]
    problems = [] if np.array_equal(got[~both], want[~both], equal_nan=True) else ["not finite"]
    if OPS[name].family is Family.ELEMENTWISE:
        allowed = {"float32": 1e-6, "float64": 2e-15}[want.dtype.name]
        slack = 2 * float(np.finfo(want.dtype).smallest_subnormal)
        error = np.abs(got[both].astype(np.longdouble) - want[both])
        problems += ["numbers"] if (error > allowed * np.abs(want[both]) + slack).any() else []
        zeros = both & (want == 0) & (got == 0)
        problems += [] if np.array_equal(np.signbit(got[zeros]), np.signbit(want[zeros])) else ["signs of zeros"]
    return problems


@pytest.mark.parametrize("name", [name for name in NAMES if OPS[name].operands and name not in WITHOUT_EDGES])
def test_native_code_agrees_at_the_edges_of_every_type(name: str) -> None:
    """NaN, infinities, both zeros, denormals, the largest and the smallest; docs/numerics.md has the exceptions."""
    graph, _, generated = program(name, native_target())
    problems = []
    for seed in range(3):
        arrays = edge_arrays(graph, seed)
        with np.errstate(all="ignore"):
            expected = run_graph(graph, arrays)
        found = run_native(generated, arrays)
        problems += [(n, p) for n, want in expected.items() for p in edge_problems(name, found[n], want)]
    assert problems == []
