"""A chain of kernels as one function: each turn takes every kernel as far as the last one needs it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llvmlite import ir

from lepton_jit.codegen.chain import Walk
from lepton_jit.codegen.emit_dims import Symbols
from lepton_jit.codegen.emit_kernel import KERNEL_TYPE
from lepton_jit.codegen.emit_primitives import I64_TYPE, POINTER, Builder, Value
from lepton_jit.codegen.loop_ir import Kernel
from lepton_jit.codegen.lowered import Step


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


def emit_chain(
    module: ir.Module, name: str, step: Step, kernels: Sequence[ir.Function], symbol_names: tuple[str, ...]
) -> ir.Function:
    """void chain(ptr frames, i64 begin, i64 end): the turns `begin` to `end`, from what their first rows need on."""
    function = ir.Function(module, KERNEL_TYPE, name)
    function.linkage = "internal"
    frames, begin, end = function.args
    entry = function.append_basic_block("entry")
    builder: Builder = ir.IRBuilder(entry)

    def pointer(table: Value, index: int) -> Value:
        place = builder.gep(table, [I64_TYPE(index)], source_etype=POINTER)
        return builder.load(place, align=8, typ=POINTER)

    pointers = [pointer(frames, i) for i in range(len(kernels))]
    symbols = Symbols(builder, pointer(pointers[0], 1), symbol_names)
    groups, counts = [], []
    for launch in step.launches:
        assert launch.kernel.progress is not None
        groups.append(_Native(builder, group_count(symbols, builder, launch.kernel)))
        counts.append(_Native(builder, symbols.value(launch.kernel.progress.count)))
    walk = Walk(
        step.launches,
        groups,
        counts,
        lambda x, most: x.choose(">", 0).choose("<", most),
        lambda a, b: a.choose("<", b),
        lambda a, b: a.choose(">", b),
    )
    last = step.launches[-1].kernel.progress
    assert last is not None
    first = walk.starts(_Native(builder, begin) * (step.turn * last.each))
    header, body, after = (function.append_basic_block(n) for n in ("loop", "body", "after"))
    outside = builder.block
    builder.branch(header)
    builder.position_at_end(header)
    turn = builder.phi(I64_TYPE)
    turn.add_incoming(begin, outside)
    states = [builder.phi(I64_TYPE) for _ in kernels]
    for state, start in zip(states, first, strict=True):
        state.add_incoming(start.value, outside)
    builder.cbranch(builder.icmp_signed("<", turn, end), body, after)
    builder.position_at_end(body)
    following = builder.add(turn, I64_TYPE(1))
    goals = walk.goals((_Native(builder, following) * step.turn).choose("<", groups[-1]) * last.each)
    for kernel, frame, state, goal in zip(kernels, pointers, states, goals, strict=True):
        reached = goal.choose(">", _Native(builder, state)).value
        builder.call(kernel, [frame, state, reached])
        state.add_incoming(reached, builder.block)
    turn.add_incoming(following, builder.block)
    builder.branch(header)
    builder.position_at_end(after)
    builder.ret_void()
    return function
