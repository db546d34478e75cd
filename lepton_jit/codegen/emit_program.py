"""A lowered program to one LLVM module: its kernels, `run`, and what the runtime needs to know."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from llvmlite import ir

from lepton_jit.codegen.emit_contract import ContractUnit
from lepton_jit.codegen.emit_kernel import FRAME_BUFFERS, emit_kernel
from lepton_jit.codegen.emit_primitives import I32_TYPE, I64_TYPE, POINTER, allocate, memory_type
from lepton_jit.codegen.loop_ir import CeilDiv, Extent, Kernel
from lepton_jit.codegen.lower import Lowered, ProgramBuffer
from lepton_jit.codegen.target import Target
from lepton_jit.ir.types import Dim, Poly

CONTRACT_VERSION = 1  # of docs/runtime.md
# Byte offsets of a context's public fields, as docs/runtime.md has them.
CONTEXT_ARENA, CONTEXT_OFFSETS = 0, 1


def emit_program(lowered: Lowered, target: Target) -> ir.Module:
    """The module of a program; its symbols carry the program's name as prefix."""
    return _ProgramEmitter(lowered, target).emit()


@dataclass
class _ProgramEmitter:
    lowered: Lowered
    target: Target

    def emit(self) -> ir.Module:
        self.module = ir.Module(self.lowered.name)
        self.module.triple = self.target.triple
        self.arena = {number: i for i, number in enumerate(self.lowered.arena())}
        self.constants = [self._constant(b) for b in self.lowered.buffers if b.kind == "constant"]
        functions = self._kernels()
        self._sizes()
        self._descriptor()
        self._run(functions)
        return self.module

    def _kernels(self) -> list[ir.Function]:
        """One function a step; steps whose kernels are equal but for their names share it."""
        contracts = ContractUnit(self.module, self.target)
        made: dict[Kernel, ir.Function] = {}
        functions = []
        for step in self.lowered.steps:
            key = replace(step.kernel, name="", layer="", extent=0, flops=0)
            if key not in made:
                named = replace(step.kernel, name=f"{self.lowered.name}_kernel_{len(made)}")
                made[key] = emit_kernel(self.module, named, self.target, self.lowered.symbols, contracts.emit)
            functions.append(made[key])
        return functions

    def _global(self, name: str, value: ir.Constant) -> ir.GlobalVariable:
        variable = ir.GlobalVariable(self.module, value.type, f"{self.lowered.name}_{name}")
        variable.initializer = value  # pyright: ignore[reportAttributeAccessIssue]
        variable.global_constant = True
        variable.linkage = "internal"
        return variable

    def _constant(self, buffer: ProgramBuffer) -> ir.GlobalVariable:
        array = np.broadcast_to(np.asarray(buffer.value, buffer.dtype.numpy).ravel(), buffer.elements)
        data = bytearray(array.tobytes())
        variable = self._global(f"constant_{buffer.index}", ir.Constant(ir.ArrayType(ir.IntType(8), len(data)), data))
        variable.align = 64
        return variable

    def _i32_table(self, name: str, values: list[int]) -> ir.GlobalVariable:
        typ = ir.ArrayType(I32_TYPE, len(values))
        return self._global(name, ir.Constant(typ, [I32_TYPE(v) for v in values]))

    def _sizes(self) -> None:
        function = ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [POINTER, POINTER]), f"{self.lowered.name}_sizes"
        )
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        symbols = _Symbols(builder, function.args[0], self.lowered.symbols)
        for i, number in enumerate(self.arena):
            slot = builder.gep(function.args[1], [I64_TYPE(i)], source_etype=I64_TYPE)
            builder.store(symbols.value(self.lowered.buffers[number].bytes, saturate=True), slot, align=8)
        builder.ret_void()
        self.sizes = function

    def _descriptor(self) -> None:
        buffers = [self.lowered.buffers[n] for n in self.arena]
        first = self._i32_table("first", [b.first for b in buffers])
        last = self._i32_table("last", [b.last for b in buffers])
        counts = [CONTRACT_VERSION, len(self.lowered.symbols), len(buffers), len(self.lowered.steps)]
        fields = [*(I32_TYPE(c) for c in counts), self.sizes, first, last]
        typ = ir.LiteralStructType([f.type for f in fields])
        self.descriptor = self._global("descriptor", ir.Constant(typ, fields))
        self.descriptor.linkage = ""

    def _run(self, functions: list[ir.Function]) -> None:
        lowered = self.lowered
        function = ir.Function(self.module, ir.FunctionType(I32_TYPE, [POINTER] * 5), f"{lowered.name}_run")
        context, dims, parameters, inputs, outputs = function.args
        for argument, name in zip(function.args, ("ctx", "dims", "params", "inputs", "outputs"), strict=True):
            argument.name = name
        enter = ir.Function(self.module, ir.FunctionType(I32_TYPE, [POINTER] * 3), "lpt_enter")
        leave = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [POINTER]), "lpt_leave")
        parallel = ir.Function(
            self.module,
            ir.FunctionType(I32_TYPE, [POINTER, I32_TYPE, POINTER, POINTER, I64_TYPE, I64_TYPE]),
            "lpt_parallel_for",
        )
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        slots = FRAME_BUFFERS + max((len(s.buffers) for s in lowered.steps), default=0)
        frame = allocate(builder, POINTER, slots)
        code = builder.call(enter, [context, self.descriptor, dims])
        with builder.if_then(builder.icmp_signed("!=", code, I32_TYPE(0)), likely=False):
            builder.ret(code)
        builder.store(context, frame, align=8)
        builder.store(dims, self._slot(builder, frame, 1), align=8)
        symbols = _Symbols(builder, dims, lowered.symbols)
        arena = builder.load(context, align=8, typ=POINTER)
        offsets = builder.load(self._slot(builder, context, CONTEXT_OFFSETS), align=8, typ=POINTER)
        tables = {"input": inputs, "parameter": parameters, "state": parameters, "output": outputs}
        self._shift = len([i for i in lowered.inputs if i.role == "parameter"])
        done = function.append_basic_block("done")
        result = None
        exits: list[tuple[ir.Value, ir.Block]] = []
        for number, (step, kernel) in enumerate(zip(lowered.steps, functions, strict=True)):
            for i, buffer in enumerate(step.buffers):
                pointer = self._pointer(builder, buffer, arena, offsets, tables)
                builder.store(pointer, self._slot(builder, frame, FRAME_BUFFERS + i), align=8)
            extent = symbols.extent(step.extent)
            arguments = [context, I32_TYPE(number), kernel, frame, extent, I64_TYPE(step.kernel.grain)]
            result = builder.call(parallel, arguments)
            exits.append((result, builder.block))
            following = function.append_basic_block("step")
            builder.cbranch(builder.icmp_signed("!=", result, I32_TYPE(0)), done, following)
            builder.position_at_end(following)
        exits.append((I32_TYPE(0), builder.block))
        builder.branch(done)
        builder.position_at_end(done)
        final = builder.phi(I32_TYPE)
        for value, block in exits:
            final.add_incoming(value, block)
        builder.call(leave, [context])
        builder.ret(final)

    def _slot(self, builder: ir.IRBuilder, table: ir.Value, index: int) -> ir.Value:
        return builder.gep(table, [I64_TYPE(index)], source_etype=POINTER)

    def _pointer(
        self, builder: ir.IRBuilder, number: int, arena: ir.Value, offsets: ir.Value, tables: dict[str, ir.Value]
    ) -> ir.Value:
        buffer = self.lowered.buffers[number]
        if buffer.kind == "constant":
            return self.constants[buffer.index]
        if buffer.kind == "arena":
            slot = builder.gep(offsets, [I64_TYPE(self.arena[number])], source_etype=I64_TYPE)
            return builder.gep(arena, [builder.load(slot, align=8, typ=I64_TYPE)], source_etype=memory_i8())
        # the runtime's table of parameters holds read-only parameters first, then state
        index = buffer.index + (self._shift if buffer.kind == "state" else 0)
        return builder.load(self._slot(builder, tables[buffer.kind], index), align=8, typ=POINTER)


def memory_i8() -> ir.Type:
    return ir.IntType(8)


class _Symbols:
    """Native values of dimensions, from the array of symbol values."""

    def __init__(self, builder: ir.IRBuilder, dims: ir.Value, symbols: tuple[str, ...]) -> None:
        self.builder = builder
        self.values = {
            name: builder.load(builder.gep(dims, [I64_TYPE(i)], source_etype=I64_TYPE), align=8, typ=I64_TYPE)
            for i, name in enumerate(symbols)
        }

    def value(self, dim: Dim, saturate: bool = False) -> ir.Value:
        """`saturate`: products that do not fit become the largest i64, which the runtime refuses."""
        if not isinstance(dim, Poly):
            return I64_TYPE(dim)
        total: ir.Value = I64_TYPE(0)
        for monomial, coefficient in dim.terms:
            term: ir.Value = I64_TYPE(coefficient)
            for name in monomial:
                saturated = saturate and len(monomial) > 1
                term = self._saturating(term, self.values[name]) if saturated else self.builder.mul(
                    term, self.values[name]
                )
            total = self.builder.add(total, term)
        return total

    def extent(self, extent: Extent) -> ir.Value:
        if not isinstance(extent, CeilDiv):
            return self.value(extent)
        raised = self.builder.add(self.value(extent.dividend), I64_TYPE(extent.divisor - 1))
        return self.builder.mul(self.builder.udiv(raised, I64_TYPE(extent.divisor)), self.value(extent.factor))

    def _saturating(self, a: ir.Value, b: ir.Value) -> ir.Value:
        name = "llvm.smul.fix.sat.i64"
        module = self.builder.module
        function = module.globals.get(name) or ir.Function(
            module, ir.FunctionType(I64_TYPE, [I64_TYPE, I64_TYPE, I32_TYPE]), name
        )
        return self.builder.call(function, [a, b, I32_TYPE(0)])


__all__ = ["emit_program", "memory_type"]
