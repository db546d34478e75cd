"""Emit a lowered program as one LLVM module: its kernels, `run`, and what the runtime needs to know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from llvmlite import ir

from lepton_jit.codegen.llvm.emit_chain import ChainEmitter, turn_count
from lepton_jit.codegen.llvm.emit_contract import ContractUnit
from lepton_jit.codegen.llvm.emit_dims import Symbols
from lepton_jit.codegen.llvm.emit_frame import FRAME_BUFFERS, KERNEL_TYPE, pointer_at, slot_of
from lepton_jit.codegen.llvm.emit_kernel import emit_kernel
from lepton_jit.codegen.llvm.emit_primitives import I32_TYPE, I64_TYPE, POINTER, Builder, Value, allocate
from lepton_jit.codegen.llvm.emit_scan import ScanUnit, block_count
from lepton_jit.codegen.llvm.emit_slices import SlicesEmitter, goes_by_slices
from lepton_jit.codegen.llvm.module_parts import SHARED, ModuleParts, Part
from lepton_jit.codegen.loops.ir import Kernel
from lepton_jit.codegen.program.lowered import Lowered, ProgramBuffer, Scan, Step, kernel_symbols, memory_of
from lepton_jit.codegen.target import Target
from lepton_jit.ir.types import THREADS_NAME

CONTRACT_VERSION = 2  # of docs/runtime.md
# A context begins with the address of the arena, and that of the offsets in it (docs/runtime.md).
CONTEXT_OFFSETS = 1
# A function that goes through so many steps takes long to compile, and little of a call's time.
MANY_STEPS = 40


class KernelUnit:
    """Emits the kernels of a program, as functions of one module; `take` gets its parts as they are made.

    Names in it carry the program's name as prefix. LLVM can begin while later kernels are still scheduled.
    """

    def __init__(self, program: str, symbols: tuple[str, ...], target: Target, take: Callable[[Part], None]) -> None:
        self.module = ir.Module(program)
        self.module.triple = target.triple
        self.parts = ModuleParts(self.module, take)
        self._symbols, self._target = kernel_symbols(symbols), target
        self._contracts = ContractUnit(self.module, target)
        self._made: dict[Kernel, ir.Function] = {}
        self._known: dict[int, tuple[Kernel, ir.Function]] = {}  # by identity: comparing kernels takes long

    def function_of(self, kernel: Kernel) -> ir.Function:
        """The function of a kernel; kernels that are equal but for their names share one."""
        if id(kernel) in self._known:
            return self._known[id(kernel)][1]
        key = replace(kernel, name="", layer="", extent=0, flops=0, slices=None, progress=None, turning=0)
        made = self._made.get(key)
        if made is None:
            named = replace(kernel, name=f"{self.module.name}_kernel_{len(self._made)}")
            made = emit_kernel(self.module, named, self._target, self._symbols, self._contracts.emit)
            self._made[key] = made
            self.parts.grown()
        self._known[id(kernel)] = kernel, made
        return made


def emit_program(lowered: Lowered, unit: KernelUnit, target: Target) -> None:
    """Emit the rest of a program's module, whose kernels `unit` has: `run`, sizes, constants."""
    _ProgramEmitter(lowered, unit, target).emit()


@dataclass
class _ProgramEmitter:
    lowered: Lowered
    unit: KernelUnit
    target: Target

    def emit(self) -> None:
        self.module, self.parts = self.unit.module, self.unit.parts
        self.arena = {number: i for i, number in enumerate(self.lowered.arena())}
        self.constants = [self._constant(b) for b in self.lowered.buffers if b.kind == "constant"]
        functions = [[self.unit.function_of(x.kernel) for x in step.launches] for step in self.lowered.steps]
        self._sizes()
        self._descriptor()
        self._run(functions)
        self.parts.grown()
        self.parts.cut()

    def _global(self, name: str, value: ir.Constant) -> ir.GlobalVariable:
        variable = ir.GlobalVariable(self.module, value.type, f"{self.lowered.name}_{name}")
        variable.initializer = value  # pyright: ignore[reportAttributeAccessIssue]
        variable.global_constant = True
        variable.linkage = SHARED
        return variable

    def _constant(self, buffer: ProgramBuffer) -> ir.GlobalVariable:
        assert isinstance(buffer.elements, int)
        array = np.broadcast_to(np.asarray(buffer.value, buffer.dtype.numpy).ravel(), (buffer.elements,))
        data = bytearray(array.tobytes())
        variable = self._global(f"constant_{buffer.index}", ir.Constant(ir.ArrayType(ir.IntType(8), len(data)), data))
        variable.align = 64  # pyright: ignore[reportAttributeAccessIssue]
        return variable

    def _i32_table(self, name: str, values: list[int]) -> ir.GlobalVariable:
        typ = ir.ArrayType(I32_TYPE, len(values))
        return self._global(name, ir.Constant(typ, [I32_TYPE(v) for v in values]))

    def _sizes(self) -> None:
        function = ir.Function(
            self.module, ir.FunctionType(ir.VoidType(), [POINTER, I64_TYPE, POINTER]), f"{self.lowered.name}_sizes"
        )
        dims, threads, sizes = function.args
        builder: Builder = ir.IRBuilder(function.append_basic_block("entry"))
        symbols = Symbols(builder, dims, self.lowered.symbols)
        for i, number in enumerate(self.arena):
            buffer, slot = self.lowered.buffers[number], builder.gep(sizes, [I64_TYPE(i)], source_etype=I64_TYPE)
            size = symbols.value(buffer.bytes, saturate=True)
            builder.store(builder.mul(size, threads) if buffer.per_thread else size, slot, align=8)
        builder.ret_void()
        self._seldom(function)
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

    def _run(self, functions: list[list[ir.Function]]) -> None:
        lowered = self.lowered
        function = ir.Function(self.module, ir.FunctionType(I32_TYPE, [POINTER] * 5), f"{lowered.name}_run")
        context, dims, parameters, inputs, outputs = function.args
        for argument, name in zip(function.args, ("ctx", "dims", "params", "inputs", "outputs"), strict=True):
            argument.name = name
        enter = ir.Function(self.module, ir.FunctionType(I32_TYPE, [POINTER] * 3), "lpt_enter")
        leave = ir.Function(self.module, ir.FunctionType(ir.VoidType(), [POINTER]), "lpt_leave")
        self.parallel = ir.Function(
            self.module,
            ir.FunctionType(I32_TYPE, [POINTER, I32_TYPE, POINTER, POINTER, I64_TYPE, I64_TYPE]),
            "lpt_parallel_for",
        )
        self.threads = ir.Function(self.module, ir.FunctionType(I32_TYPE, [POINTER]), "lpt_context_threads")
        builder: Builder = ir.IRBuilder(function.append_basic_block("entry"))
        launched = [x.buffers for s in lowered.steps for x in s.launches]
        scanned = [memory_of(lowered.buffers, s.buffers) for s in lowered.steps if isinstance(s, Scan)]
        slots = max((len(buffers) for buffers in launched + scanned), default=0)
        by_launch = {
            id(launch): made
            for step, kernels in zip(lowered.steps, functions, strict=True)
            for launch, made in zip(step.launches, kernels, strict=True)
        }
        self.scans = ScanUnit(self.module, lowered, by_launch, self.parallel)
        self.frames = [allocate(builder, POINTER, FRAME_BUFFERS + slots) for _ in range(self._most_launches())]
        self.frame_table = allocate(builder, POINTER, len(self.frames) + 1)  # the last slot: the parts of a chain
        code = builder.call(enter, [context, self.descriptor, dims])
        with builder.if_then(builder.icmp_signed("!=", code, I32_TYPE(0)), likely=False):
            builder.ret(code)
        dims = self._kernel_dims(builder, context, dims)
        for frame in self.frames:
            builder.store(context, frame, align=8)
            builder.store(dims, slot_of(builder, frame, 1), align=8)
        for i, frame in enumerate(self.frames):
            builder.store(frame, slot_of(builder, self.frame_table, i), align=8)
        self.symbols = Symbols(builder, dims, lowered.kernel_symbols)
        self.arena_base = builder.load(context, align=8, typ=POINTER)
        self.offsets = pointer_at(builder, context, CONTEXT_OFFSETS)
        self.tables = {"input": inputs, "parameter": parameters, "state": parameters, "output": outputs}
        self._shift = len([i for i in lowered.inputs if i.role == "parameter"])
        self.done = function.append_basic_block("done")
        self.exits: list[tuple[Value, Value]] = []
        for number, (step, kernels) in enumerate(zip(lowered.steps, functions, strict=True)):
            if isinstance(step, Scan):
                self._scan(builder, context, number, step)
            else:
                self._step(builder, context, number, step, kernels)
        self.exits.append((I32_TYPE(0), builder.block))
        builder.branch(self.done)
        builder.position_at_end(self.done)
        final = builder.phi(I32_TYPE)
        for value, block in self.exits:
            final.add_incoming(value, block)
        builder.call(leave, [context])
        builder.ret(final)
        self._seldom(function)

    def _kernel_dims(self, builder: Builder, context: Value, dims: Value) -> Value:
        """The program's symbols, and behind them the number of threads."""
        names = self.lowered.kernel_symbols
        found = allocate(builder, I64_TYPE, len(names))
        values = Symbols(builder, dims, self.lowered.symbols).values
        values[THREADS_NAME] = builder.zext(builder.call(self.threads, [context]), I64_TYPE)
        for i, name in enumerate(names):
            builder.store(values[name], builder.gep(found, [I64_TYPE(i)], source_etype=I64_TYPE), align=8)
        return found

    def _seldom(self, function: ir.Function) -> None:
        """Leave a long function unoptimized that runs once a call, or once a thread: it takes long to compile.

        In a small program, calls would lose more than the compilation gains (docs/measurements.md, compile time).
        """
        if len(self.lowered.steps) >= MANY_STEPS:
            function.attributes.add("noinline")
            function.attributes.add("optnone")

    def _most_launches(self) -> int:
        return max((len(s.launches) for s in self.lowered.steps if isinstance(s, Step)), default=1)

    def _fill(self, builder: Builder, frame: Value, buffers: Sequence[int]) -> None:
        for i, buffer in enumerate(buffers):
            pointer = self._pointer(builder, buffer)
            builder.store(pointer, slot_of(builder, frame, FRAME_BUFFERS + i), align=8)

    def _scan(self, builder: Builder, context: Value, number: int, scan: Scan) -> None:
        """Emit all turns of a scan: blocks of independent rows in one launch, or each step of a turn on all threads."""
        frame = self.frames[0]
        self._fill(builder, frame, memory_of(self.lowered.buffers, scan.buffers))
        if scan.rows is None:
            self._checked(builder, builder.call(self.scans.turns(number, scan), [frame]))
            return
        blocks = block_count(builder, self.symbols.values[scan.rows.symbol], scan.rows.block)
        arguments = [context, I32_TYPE(number), self.scans.rows(number, scan), frame, blocks, I64_TYPE(1)]
        if not scan.rows.shared:
            self._checked(builder, builder.call(self.parallel, arguments))
            return
        several = builder.icmp_signed(">", blocks, I64_TYPE(1))
        with builder.if_else(several) as (then, otherwise):
            with then:
                self._checked(builder, builder.call(self.parallel, arguments))
            with otherwise:
                self._checked(builder, builder.call(self.scans.turns(number, scan), [frame]))

    def _step(self, builder: Builder, context: Value, number: int, step: Step, kernels: list[ir.Function]) -> None:
        for launch, frame in zip(step.launches, self.frames, strict=False):
            self._fill(builder, frame, launch.buffers)
        if len(kernels) == 1:
            self._launch(builder, context, number, step.launches[0].kernel, kernels[0], self.frames[0])
            return
        if step.turn:
            self._chain(builder, context, number, step, kernels)
            return
        sliced, whole, after = (builder.append_basic_block(n) for n in ("sliced", "whole", "joined"))
        builder.cbranch(goes_by_slices(self.symbols, builder, step), sliced, whole)
        builder.position_at_end(sliced)
        function = ir.Function(self.module, KERNEL_TYPE, f"{self.lowered.name}_slices_{number}")
        function.linkage = "internal"
        SlicesEmitter(number, step, self.lowered.buffers, self.lowered.kernel_symbols).emit(function, kernels)
        self._seldom(function)
        parts = self.symbols.values[THREADS_NAME]
        arguments = [context, I32_TYPE(number), function, self.frame_table, parts, I64_TYPE(1)]
        self._checked(builder, builder.call(self.parallel, arguments))
        builder.branch(after)
        builder.position_at_end(whole)
        for launch, kernel, frame in zip(step.launches, kernels, self.frames, strict=False):
            self._launch(builder, context, number, launch.kernel, kernel, frame)
        builder.branch(after)
        builder.position_at_end(after)

    def _chain(self, builder: Builder, context: Value, number: int, step: Step, kernels: list[ir.Function]) -> None:
        """Emit a chain: one part for each thread, as far as there are turns."""
        name, parts_slot = f"{self.lowered.name}_chain_{number}", len(self.frames)
        chain = ChainEmitter(self.module, name, step, self.lowered.buffers, self.lowered.kernel_symbols, parts_slot)
        turns = turn_count(self.symbols, builder, step)
        threads = self.symbols.values[THREADS_NAME]
        parts = builder.select(builder.icmp_signed("<", threads, turns), threads, turns)
        builder.store(parts, slot_of(builder, self.frame_table, parts_slot), align=8)
        function = chain.parts(kernels)
        self._seldom(function)
        arguments = [context, I32_TYPE(number), function, self.frame_table, parts, I64_TYPE(1)]
        self._checked(builder, builder.call(self.parallel, arguments))

    def _launch(
        self,
        builder: Builder,
        context: Value,
        number: int,
        kernel: Kernel,
        function: ir.Function,
        frame: Value,
    ) -> None:
        extent = self.symbols.extent(builder, kernel.extent)
        arguments = [context, I32_TYPE(number), function, frame, extent, self._grain(builder, kernel)]
        self._checked(builder, builder.call(self.parallel, arguments))

    def _grain(self, builder: Builder, kernel: Kernel) -> Value:
        """The grain of a kernel, negative where its iterations are to run in serpentine order."""
        grain = I64_TYPE(kernel.grain)
        if kernel.turning == 0:
            return grain
        turns = builder.icmp_signed("==", self.symbols.value(kernel.turning), I64_TYPE(1))
        return builder.select(turns, I64_TYPE(-kernel.grain), grain)

    def _checked(self, builder: Builder, code: Value) -> None:
        """Leave `run` with an error code, or go on."""
        following = builder.append_basic_block("step")
        self.exits.append((code, builder.block))
        builder.cbranch(builder.icmp_signed("!=", code, I32_TYPE(0)), self.done, following)
        builder.position_at_end(following)

    def _pointer(self, builder: Builder, number: int) -> Value:
        buffer = self.lowered.buffers[number]
        if buffer.kind == "constant":
            return self.constants[buffer.index]
        if buffer.kind == "arena":
            slot = builder.gep(self.offsets, [I64_TYPE(self.arena[number])], source_etype=I64_TYPE)
            offset = builder.load(slot, align=8, typ=I64_TYPE)
            return builder.gep(self.arena_base, [offset], source_etype=ir.IntType(8))
        # the runtime's table of parameters holds read-only parameters first, then state
        index = buffer.index + (self._shift if buffer.kind == "state" else 0)
        return pointer_at(builder, self.tables[buffer.kind], index)
