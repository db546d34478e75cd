"""A chain of kernels: each turn takes every kernel as far as the last one needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from lepton_jit.codegen.chain import Walk
from lepton_jit.codegen.emit_dims import Symbols
from lepton_jit.codegen.emit_kernel import KERNEL_TYPE
from lepton_jit.codegen.emit_primitives import I64_TYPE, POINTER, Builder, Value, allocate
from lepton_jit.codegen.emit_scan import counted
from lepton_jit.codegen.loop_ir import Kernel
from lepton_jit.codegen.lowered import Step

NO_LIMIT = (1 << 63) - 1


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
    """How many groups of iterations, each of which finishes some rows, a kernel has."""
    assert kernel.progress is not None
    return builder.udiv(symbols.extent(builder, kernel.extent), I64_TYPE(kernel.progress.each))


def turn_count(symbols: Symbols, builder: Builder, step: Step) -> Value:
    """How many turns a chain has."""
    groups = group_count(symbols, builder, step.launches[-1].kernel)
    return builder.udiv(builder.add(groups, I64_TYPE(step.turn - 1)), I64_TYPE(step.turn))


class ChainEmitter:
    """The two functions of a chain, `void(ptr frames, i64 begin, i64 end)` each; slot `parts_slot` has the parts.

    Parts share the turns evenly. `edges` does what both neighbours of a boundary need; its iterations 0 ... parts-2 are
    the boundaries 1 ... parts-1. `parts` then does the rest. So nothing is computed or written twice.
    """

    def __init__(self, module: ir.Module, name: str, step: Step, symbols: tuple[str, ...], parts_slot: int) -> None:
        self.module, self.name, self.step = module, name, step
        self.symbol_names, self.parts_slot = symbols, parts_slot

    def edges(self, kernels: Sequence[ir.Function]) -> ir.Function:
        function = self._open("edges", len(kernels))
        with counted(self.builder, *function.args[1:]) as i:
            boundary = self._first(self._boundary(self.builder.add(i, I64_TYPE(1))))
            spans = zip(kernels, self.pointers, self.walk.starts(boundary), self.walk.goals(boundary), strict=True)
            for kernel, frame, start, goal in spans:
                self.builder.call(kernel, [frame, start.value, goal.value])
        self.builder.ret_void()
        return function

    def parts(self, kernels: Sequence[ir.Function]) -> ir.Function:
        function = self._open("parts", len(kernels))
        builder = self.builder
        done = allocate(builder, I64_TYPE, len(kernels))
        slots = [builder.gep(done, [I64_TYPE(j)], source_etype=I64_TYPE) for j in range(len(kernels))]
        with counted(builder, *function.args[1:]) as part:
            following = builder.add(part, I64_TYPE(1))
            first, last = self._boundary(part), self._boundary(following)
            is_first = builder.icmp_signed("==", part, I64_TYPE(0))
            is_last = builder.icmp_signed("==", following, self.count)
            for slot, goal in zip(slots, self.walk.goals(self._first(first)), strict=True):
                builder.store(builder.select(is_first, I64_TYPE(0), goal.value), slot, align=8)
            starts = self.walk.starts(self._first(last))
            limits = [builder.select(is_last, I64_TYPE(NO_LIMIT), start.value) for start in starts]
            with counted(builder, first, last) as turn:
                goals = self.walk.goals(self._first(builder.add(turn, I64_TYPE(1))))
                for kernel, frame, slot, goal, limit in zip(kernels, self.pointers, slots, goals, limits, strict=True):
                    state = builder.load(slot, align=8, typ=I64_TYPE)
                    reached = goal.choose("<", _Native(builder, limit)).choose(">", _Native(builder, state)).value
                    builder.call(kernel, [frame, state, reached])
                    builder.store(reached, slot, align=8)
        builder.ret_void()
        return function

    def _open(self, suffix: str, count: int) -> ir.Function:
        """A function that has read its frames, the number of parts, and how many rows and groups each launch has."""
        function = ir.Function(self.module, KERNEL_TYPE, f"{self.name}_{suffix}")
        function.linkage = "internal"
        builder = self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.pointers = [self._slot(function.args[0], i, POINTER) for i in range(count)]
        self.count = self._slot(function.args[0], self.parts_slot, I64_TYPE)
        symbols = Symbols(builder, self._slot(self.pointers[0], 1, POINTER), self.symbol_names)
        self.turns = turn_count(symbols, builder, self.step)
        groups, counts = [], []
        for launch in self.step.launches:
            assert launch.kernel.progress is not None
            groups.append(_Native(builder, group_count(symbols, builder, launch.kernel)))
            counts.append(_Native(builder, symbols.value(launch.kernel.progress.count)))
        self.walk = Walk(
            self.step.launches,
            groups,
            counts,
            lambda x, most: x.choose(">", 0).choose("<", most),
            lambda a, b: a.choose("<", b),
            lambda a, b: a.choose(">", b),
        )
        return function

    def _slot(self, table: Value, index: int, typ: ir.Type) -> Value:
        place = self.builder.gep(table, [I64_TYPE(index)], source_etype=POINTER)
        return self.builder.load(place, align=8, typ=typ)

    def _boundary(self, part: Value) -> Value:
        """The first turn of a part."""
        return self.builder.udiv(self.builder.mul(part, self.turns), self.count)

    def _first(self, turn: Value) -> _Native:
        """The first iteration of the last launch in a turn."""
        last = self.step.launches[-1].kernel.progress
        assert last is not None
        group = (_Native(self.builder, turn) * self.step.turn).choose("<", self.walk.groups[-1])
        return group * last.each
