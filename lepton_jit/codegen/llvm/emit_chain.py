"""Emit a chain of kernels: each turn takes every kernel as far as the last one needs it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llvmlite import ir

from lepton_jit.codegen.llvm.emit_dims import Symbols
from lepton_jit.codegen.llvm.emit_frame import FRAME_BUFFERS, KERNEL_TYPE, own_frame, pointer_at, slot_of
from lepton_jit.codegen.llvm.emit_primitives import I64_TYPE, POINTER, Builder, Value, allocate, declared
from lepton_jit.codegen.llvm.emit_scan import counted
from lepton_jit.codegen.loops.ir import Kernel
from lepton_jit.codegen.program.chain import Walk, progress_of, written_by
from lepton_jit.codegen.program.lowered import ProgramBuffer, Step
from lepton_jit.codegen.target import LINE_BYTES

I1_TYPE = ir.IntType(1)


@dataclass(frozen=True)
class _Native:
    """A native i64 of at least 0 with the operators of an int."""

    builder: Builder
    value: Value

    def _apply(self, op: str, other: _Native | int, swapped: bool = False) -> _Native:
        value = I64_TYPE(other) if isinstance(other, int) else other.value
        pair = (value, self.value) if swapped else (self.value, value)
        return _Native(self.builder, getattr(self.builder, op)(*pair))

    def __add__(self, other: _Native | int) -> _Native:
        return self._apply("add", other)

    def __sub__(self, other: _Native | int) -> _Native:
        return self._apply("sub", other)

    def __mul__(self, other: _Native | int) -> _Native:
        return self._apply("mul", other)

    def __floordiv__(self, other: _Native | int) -> _Native:
        return self._apply("udiv", other)

    def __mod__(self, other: _Native | int) -> _Native:
        return self._apply("urem", other)

    def choose(self, sign: str, other: _Native | int) -> _Native:
        """The smaller (`<`) or larger (`>`) of two."""
        value = I64_TYPE(other) if isinstance(other, int) else other.value
        chosen = self.builder.select(self.builder.icmp_signed(sign, self.value, value), self.value, value)
        return _Native(self.builder, chosen)


def group_count(symbols: Symbols, builder: Builder, kernel: Kernel) -> Value:
    """The number of groups of iterations, each of which finishes some rows, that a kernel has."""
    assert kernel.progress is not None
    return builder.udiv(symbols.extent(builder, kernel.extent), I64_TYPE(kernel.progress.each))


def turn_count(symbols: Symbols, builder: Builder, step: Step) -> Value:
    """The number of turns of a chain."""
    groups = group_count(symbols, builder, step.launches[-1].kernel)
    return builder.udiv(builder.add(groups, I64_TYPE(step.turn - 1)), I64_TYPE(step.turn))


@dataclass(frozen=True)
class _Window:
    """A thread's window of a result; `origin` is the element of the result at the beginning of its memory."""

    launch: int  # which writes it
    itemsize: int
    capacity: int  # in elements
    memory: Value
    origin: Value  # the address of an i64
    slots: tuple[Value, ...]  # where frames have its address


class ChainEmitter:
    """The function of a chain, `void(ptr frames, i64 begin, i64 end)`; slot `parts_slot` has the number of parts.

    Parts share the turns evenly, and each has windows of its own; both neighbours of a boundary compute the halo.
    """

    def __init__(
        self,
        module: ir.Module,
        name: str,
        step: Step,
        buffers: Sequence[ProgramBuffer],
        symbols: tuple[str, ...],
        parts_slot: int,
    ) -> None:
        self.module, self.name, self.step, self.buffers = module, name, step, buffers
        self.symbol_names, self.parts_slot = symbols, parts_slot

    def parts(self, kernels: Sequence[ir.Function]) -> ir.Function:
        function = self._open()
        builder = self.builder
        states = self._slots(len(kernels), I64_TYPE)
        windows = list(self._windows())
        memories = self._slots(len(windows), POINTER)
        with counted(builder, *function.args[1:]) as part:
            first, last = self._boundary(part), self._boundary(builder.add(part, I64_TYPE(1)))
            begins = self.walk.starts(self._iteration(first))
            for slot, start in zip(states, begins, strict=True):
                builder.store(start.value, slot, align=8)
            for window, slot in zip(windows, memories, strict=True):
                size = builder.mul(part, I64_TYPE(window.capacity * window.itemsize))
                builder.store(self._at(window.memory, size), slot, align=8)
                builder.store(self._first(window, begins), window.origin, align=8)
            with counted(builder, first, last) as turn:
                begins = self.walk.starts(self._iteration(turn))
                goals = self.walk.goals(self._iteration(builder.add(turn, I64_TYPE(1))))
                done = [_Native(builder, builder.load(slot, align=8, typ=I64_TYPE)) for slot in states]
                for window, slot in zip(windows, memories, strict=True):
                    self._move(window, builder.load(slot, align=8, typ=POINTER), begins, done, goals)
                for kernel, frame, slot, state, goal in zip(kernels, self.frames, states, done, goals, strict=True):
                    builder.call(kernel, [frame, state.value, goal.value])
                    builder.store(goal.value, slot, align=8)
        builder.ret_void()
        return function

    def _move(
        self, window: _Window, memory: Value, begins: list[_Native], done: list[_Native], goals: list[_Native]
    ) -> None:
        """Move what a turn reads of a window to its beginning, where the turn's rows do not fit behind those there."""
        builder, scale = self.builder, I64_TYPE(window.itemsize)
        begin, origin = self._first(window, begins), builder.load(window.origin, align=8, typ=I64_TYPE)
        end = self._elements(window, goals)
        full = builder.icmp_signed(">", builder.sub(end, origin), I64_TYPE(window.capacity))
        with builder.if_then(full):
            source = self._at(memory, builder.mul(builder.sub(begin, origin), scale))
            size = builder.mul(builder.sub(self._elements(window, done), begin), scale)
            types = [POINTER, POINTER, I64_TYPE, I1_TYPE]
            function = declared(self.module, "llvm.memmove.p0.p0.i64", ir.VoidType(), types)
            builder.call(function, [memory, source, size, I1_TYPE(0)])
            builder.store(begin, window.origin, align=8)
        origin = builder.load(window.origin, align=8, typ=I64_TYPE)
        base = self._at(memory, builder.neg(builder.mul(origin, scale)))
        for slot in window.slots:
            builder.store(base, slot, align=8)

    def _elements(self, window: _Window, iterations: list[_Native]) -> Value:
        """The elements of a window's result that are finished once launches have done so many iterations."""
        rows = self.walk.rows(window.launch, iterations[window.launch])
        return (rows * progress_of(self.step.launches[window.launch]).width).value

    def _first(self, window: _Window, begins: list[_Native]) -> Value:
        """The element where a window begins for a turn: at a cache line, so that vectors lie as in the whole result."""
        return self.builder.and_(self._elements(window, begins), I64_TYPE(-(LINE_BYTES // window.itemsize)))

    def _windows(self) -> Iterator[_Window]:
        """Yield the windows in a thread's frames."""
        for j, launch in enumerate(self.step.launches):
            for number in sorted(written_by(launch)):
                buffer = self.buffers[number]
                if not buffer.per_thread:
                    continue
                assert isinstance(buffer.elements, int)
                slots = [
                    slot_of(self.builder, frame, FRAME_BUFFERS + i)
                    for frame, x in zip(self.frames, self.step.launches, strict=True)
                    for i, other in enumerate(x.buffers)
                    if other == number
                ]
                memory = self.builder.load(slots[0], align=8, typ=POINTER)
                origin = allocate(self.builder, I64_TYPE, 1)
                yield _Window(j, buffer.dtype.bytes, buffer.elements, memory, origin, tuple(slots))

    def _open(self) -> ir.Function:
        """Begin a function: copy its frames, read the number of parts and each launch's rows and groups."""
        function = ir.Function(self.module, KERNEL_TYPE, f"{self.name}_parts")
        function.linkage = "internal"
        builder = self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.frames = [own_frame(builder, function.args[0], i, x) for i, x in enumerate(self.step.launches)]
        self.count = builder.load(slot_of(builder, function.args[0], self.parts_slot), align=8, typ=I64_TYPE)
        symbols = Symbols(builder, pointer_at(builder, self.frames[0], 1), self.symbol_names)
        self.turns = turn_count(symbols, builder, self.step)
        groups = [_Native(builder, group_count(symbols, builder, x.kernel)) for x in self.step.launches]
        counts = [_Native(builder, symbols.value(progress_of(x).count)) for x in self.step.launches]
        self.walk = Walk(
            self.step.launches,
            groups,
            counts,
            lambda x, most: x.choose(">", 0).choose("<", most),
            lambda a, b: a.choose("<", b),
            lambda a, b: a.choose(">", b),
        )
        return function

    def _slots(self, count: int, typ: ir.Type) -> list[Value]:
        table = allocate(self.builder, typ, max(count, 1))
        return [self.builder.gep(table, [I64_TYPE(i)], source_etype=typ) for i in range(count)]

    def _at(self, memory: Value, offset: Value) -> Value:
        return self.builder.gep(memory, [offset], source_etype=ir.IntType(8))

    def _boundary(self, part: Value) -> Value:
        """The first turn of a part."""
        return self.builder.udiv(self.builder.mul(part, self.turns), self.count)

    def _iteration(self, turn: Value) -> _Native:
        """The first iteration of the last launch in a turn."""
        group = (_Native(self.builder, turn) * self.step.turn).choose("<", self.walk.groups[-1])
        return group * progress_of(self.step.launches[-1]).each
