"""Measure the machine's peak: the fused multiply-adds that one core retires when it does nothing else."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from functools import cache

import llvmlite.binding as llvm
from llvmlite import ir

from lepton_jit.codegen.llvm.emit_primitives import I64_TYPE
from lepton_jit.codegen.llvm.machine_code import compile_object
from lepton_jit.codegen.target import Target

# Independent chains: more than latency times issue width (4 x 2), and few enough for 16 registers.
CHAINS = 12
STEPS = 100_000
ROUNDS = 5

_owners: list[object] = []


def measure_peak(target: Target) -> float:
    """Measure one core's floating-point operations a second on f32 vectors: the best of a few short runs."""
    run, operations = _loop(target)
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run(STEPS)
        best = min(best, time.perf_counter() - start)
    return STEPS * operations / best


@cache
def _loop(target: Target) -> tuple[Callable[[int], float], int]:
    lanes = target.lanes(32)
    code = compile_object(_text(target), target)
    linked = llvm.create_lljit_compiler()
    builder = llvm.JITLibraryBuilder().add_object_img(code).export_symbol("fma_loop")
    tracker = builder.link(linked, "peak")
    function = ctypes.CFUNCTYPE(ctypes.c_float, ctypes.c_int64)(tracker["fma_loop"])
    _owners.append((linked, tracker))  # the code lives as long as the function
    return function, 2 * lanes * CHAINS


def _text(target: Target) -> str:
    module = ir.Module("peak")
    vector = ir.VectorType(ir.FloatType(), target.lanes(32))
    function = ir.Function(module, ir.FunctionType(ir.FloatType(), [I64_TYPE]), "fma_loop")
    fma = ir.Function(module, ir.FunctionType(vector, [vector] * 3), f"llvm.fma.v{vector.count}f32")
    entry, body, after = (function.append_basic_block(n) for n in ("entry", "body", "after"))
    builder = ir.IRBuilder(entry)
    factor = ir.Constant(vector, [0.5] * vector.count)
    builder.branch(body)
    builder.position_at_end(body)
    index = builder.phi(I64_TYPE)
    chains = [builder.phi(vector) for _ in range(CHAINS)]
    following = [builder.call(fma, [chain, factor, factor]) for chain in chains]
    count = builder.add(index, I64_TYPE(1))
    index.add_incoming(I64_TYPE(0), entry)
    index.add_incoming(count, body)
    for number, (chain, new) in enumerate(zip(chains, following, strict=True)):
        chain.add_incoming(ir.Constant(vector, [float(number)] * vector.count), entry)
        chain.add_incoming(new, body)
    builder.cbranch(builder.icmp_signed("<", count, function.args[0]), body, after)
    builder.position_at_end(after)
    total = following[0]
    for value in following[1:]:
        total = builder.fadd(total, value)
    builder.ret(builder.extract_element(total, ir.IntType(32)(0)))
    return str(module)
