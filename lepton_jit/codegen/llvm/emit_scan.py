"""Emit a scan: functions that go through its iterations (turns), with pointers computed from the turn's number.

    i32 turns(ptr frame)                        each step of a turn on all threads
    void rows(ptr frame, i64 begin, i64 end)    the blocks of rows begin ... end-1, each through all turns on one thread

The frame holds the context, the symbols and the memory that the scan touches, in the order of `memory_of`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from llvmlite import ir

from lepton_jit.codegen.llvm.emit_dims import Symbols
from lepton_jit.codegen.llvm.emit_frame import FRAME_BUFFERS, KERNEL_TYPE, pointer_at, slot_of
from lepton_jit.codegen.llvm.emit_primitives import I32_TYPE, I64_TYPE, POINTER, Builder, Value, allocate, memory_type
from lepton_jit.codegen.program.lowered import Alternate, Except, Launch, Lowered, Scan, Slot, Step, memory_of
from lepton_jit.ir.types import THREADS_NAME, Poly, symbols_of

TURNS_TYPE = ir.FunctionType(I32_TYPE, [POINTER])


@dataclass
class ScanUnit:
    """Emits the scans of a module; `functions` are the kernels of launches, by the launch's identity."""

    module: ir.Module
    lowered: Lowered
    functions: Mapping[int, ir.Function]
    parallel: ir.Function

    def turns(self, step: int, scan: Scan) -> ir.Function:
        """Emit `i32 turns(ptr frame)`, which returns the code of the first error, or 0."""
        function = self._function(TURNS_TYPE, f"turns_{step}")
        emitter = _ScanEmitter(self, function, scan, step)
        emitter.scan(scan)
        emitter.builder.ret(I32_TYPE(0))
        return function

    def rows(self, step: int, scan: Scan) -> ir.Function:
        """Emit `void rows(ptr frame, i64 begin, i64 end)`: block b of B has the rows b*N/B ... (b+1)*N/B - 1."""
        assert scan.rows is not None
        function = self._function(KERNEL_TYPE, f"rows_{step}")
        emitter = _ScanEmitter(self, function, scan, step)
        builder = emitter.builder
        batch = emitter.symbols.values[scan.rows.symbol]
        blocks = block_count(builder, batch, scan.rows.block)
        _, begin, end = function.args
        with counted(builder, begin, end) as block:
            first, last = (builder.udiv(builder.mul(builder.add(block, I64_TYPE(i)), batch), blocks) for i in (0, 1))
            emitter.enter_rows(scan.rows.symbol, block, first, builder.sub(last, first))
            emitter.scan(scan)
        builder.ret_void()
        return function

    def _function(self, typ: ir.FunctionType, name: str) -> ir.Function:
        function = ir.Function(self.module, typ, f"{self.lowered.name}_{name}")
        function.linkage = "internal"
        return function


def block_count(builder: Builder, batch: Value, block: int) -> Value:
    """The number of blocks: ceil(batch / block)."""
    return builder.udiv(builder.add(batch, I64_TYPE(block - 1)), I64_TYPE(block))


@contextmanager
def counted(builder: Builder, begin: Value, end: Value) -> Iterator[Value]:
    """Emit a loop over begin ... end-1 around the code inside."""
    function, before = builder.function, builder.block
    header, body, after = (function.append_basic_block(n) for n in ("loop", "body", "after"))
    builder.branch(header)
    builder.position_at_end(header)
    index = builder.phi(I64_TYPE)
    index.add_incoming(begin, before)
    builder.cbranch(builder.icmp_signed("<", index, end), body, after)
    builder.position_at_end(body)
    yield index
    index.add_incoming(builder.add(index, I64_TYPE(1)), builder.block)
    builder.branch(header)
    builder.position_at_end(after)


@dataclass(frozen=True)
class _Turn:
    """The turn that a scan is at, as native values."""

    index: Value
    last: Value
    reverse: bool


class _ScanEmitter:
    def __init__(self, unit: ScanUnit, function: ir.Function, scan: Scan, step: int) -> None:
        self.unit, self.function, self.step = unit, function, step
        self.buffers = unit.lowered.buffers
        self.builder: Builder = ir.IRBuilder(function.append_basic_block("entry"))
        frame = function.args[0]
        self.context, self.dims = (pointer_at(self.builder, frame, i) for i in range(FRAME_BUFFERS))
        memory = memory_of(self.buffers, scan.buffers)
        self.memory = {number: pointer_at(self.builder, frame, FRAME_BUFFERS + i) for i, number in enumerate(memory)}
        self.symbols = Symbols(self.builder, self.dims, unit.lowered.kernel_symbols)
        self.frames = {id(x): allocate(self.builder, POINTER, FRAME_BUFFERS + len(x.buffers)) for x in scan.launches}
        self.turns: dict[int, _Turn] = {}
        # of a block of rows: its symbol, its number, its first row, and the symbols as its kernels see them
        self.batch = ""
        self.block: Value = None
        self.first: Value = None
        self.kernel_symbols = self.symbols
        self.kernel_dims = self.dims
        if scan.rows is not None and function.function_type is KERNEL_TYPE:
            self.kernel_dims = allocate(self.builder, I64_TYPE, len(unit.lowered.kernel_symbols))

    def enter_rows(self, symbol: str, block: Value, first: Value, count: Value) -> None:
        """Let kernels see the `count` rows of a block, from row `first` on."""
        self.batch, self.block, self.first = symbol, block, first
        for i, name in enumerate(self.unit.lowered.kernel_symbols):
            slot = self.builder.gep(self.kernel_dims, [I64_TYPE(i)], source_etype=I64_TYPE)
            alone = {symbol: count, THREADS_NAME: I64_TYPE(1)}
            self.builder.store(alone.get(name, self.symbols.values[name]), slot, align=8)
        self.kernel_symbols = Symbols(self.builder, self.kernel_dims, self.unit.lowered.kernel_symbols)

    def scan(self, scan: Scan) -> None:
        """Emit all turns, in order."""
        builder = self.builder
        self.symbols.builder = builder
        length = self.symbols.value(scan.length)
        last = builder.sub(length, I64_TYPE(1))
        for step in scan.body:
            if isinstance(step, Step):
                self._fill_frames(step.launches, scan, inside=False)
        with counted(builder, I64_TYPE(0), length) as index:
            self.turns[scan.number] = _Turn(index, last, scan.reverse)
            for step in scan.body:
                self._turn(step, scan)

    def _turn(self, step: Step | Scan, scan: Scan) -> None:
        if isinstance(step, Scan):
            self.scan(step)
            return
        if step.when == "always":
            self._launches(step, scan)
            return
        turn = self.turns[scan.number]
        which = I64_TYPE(0) if step.when == "first" else turn.last
        with self.builder.if_then(self.builder.icmp_signed("==", turn.index, which)):
            self._launches(step, scan)

    def _launches(self, step: Step, scan: Scan) -> None:
        self._fill_frames(step.launches, scan, inside=True)
        for launch in step.launches:
            self._launch(launch)

    def _launch(self, launch: Launch) -> None:
        builder, frame = self.builder, self.frames[id(launch)]
        function = self.unit.functions[id(launch)]
        extent = self.kernel_symbols.extent(builder, launch.kernel.extent)
        if self.batch:
            builder.call(function, [frame, I64_TYPE(0), extent])
            return
        arguments = [self.context, I32_TYPE(self.step), function, frame, extent, I64_TYPE(launch.kernel.grain)]
        code = builder.call(self.unit.parallel, arguments)
        with builder.if_then(builder.icmp_signed("!=", code, I32_TYPE(0)), likely=False):
            builder.ret(code)

    def _fill_frames(self, launches: Sequence[Launch], scan: Scan, inside: bool) -> None:
        """Store the pointers that change from turn to turn (`inside`), or all others."""
        for launch in launches:
            frame = self.frames[id(launch)]
            if not inside:
                self._store(frame, 0, self.context)
                self._store(frame, 1, self.kernel_dims)
            for i, number in enumerate(launch.buffers):
                if (scan.number in self._scans(number)) == inside:
                    self._store(frame, FRAME_BUFFERS + i, self._pointer(number))

    def _scans(self, number: int) -> set[int]:
        """The scans on whose turn the place of a buffer depends."""
        view = self.buffers[number].view
        return {view.scan}.union(*(self._scans(n) for n in view.buffers)) if view else set()

    def _pointer(self, number: int) -> Value:
        """The pointer for a kernel: the buffer at this turn, from the block's first row, or the block's own part."""
        pointer, buffer = self._place(number), self.buffers[number]
        if not self.batch or self.batch not in symbols_of((buffer.elements,)):
            return pointer
        if buffer.block:
            index, size = self.block, buffer.block
        else:
            index, size = self.first, buffer.elements // Poly.symbol(self.batch)
        return self._offset(pointer, self.builder.mul(index, self.symbols.value(size)), number)

    def _place(self, number: int) -> Value:
        view = self.buffers[number].view
        if view is None:
            return self.memory[number]
        builder, turn = self.builder, self.turns[view.scan]
        match view:
            case Slot(_, array, shift):
                index = builder.add(turn.index, I64_TYPE(shift)) if shift else turn.index
                index = builder.sub(turn.last, index) if turn.reverse else index
                size = self.symbols.value(self.buffers[number].elements)
                return self._offset(self._place(array), builder.mul(index, size), number)
            case Alternate(_, last, other):
                odd = builder.trunc(builder.sub(turn.last, turn.index), ir.IntType(1))
                return builder.select(odd, self._place(other), self._place(last))
            case Except(_, when, chosen, otherwise):
                which = I64_TYPE(0) if when == "first" else turn.last
                here = builder.icmp_signed("==", turn.index, which)
                return builder.select(here, self._place(chosen), self._place(otherwise))

    def _offset(self, pointer: Value, elements: Value, number: int) -> Value:
        return self.builder.gep(pointer, [elements], source_etype=memory_type(self.buffers[number].dtype))

    def _store(self, table: Value, index: int, value: Value) -> None:
        self.builder.store(value, slot_of(self.builder, table, index), align=8)
