"""Emit a step in slices: for each sample every kernel's part, while a cache holds what they pass on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from llvmlite import ir

from lepton_jit.codegen.kernels.cluster import LEAST_SLICES
from lepton_jit.codegen.llvm.emit_dims import Symbols
from lepton_jit.codegen.llvm.emit_frame import FRAME_BUFFERS, own_frame, pointer_at, slot_of
from lepton_jit.codegen.llvm.emit_primitives import I64_TYPE, POINTER, Builder, Value
from lepton_jit.codegen.llvm.emit_scan import counted
from lepton_jit.codegen.loops.ir import slices_of
from lepton_jit.codegen.program.lowered import ProgramBuffer, Step
from lepton_jit.ir.types import THREADS_NAME, Dim

# Where the time of idle threads would be more than a 16th, kernels run one after the other.
MOST_IDLE = 16


def goes_by_slices(symbols: Symbols, builder: Builder, step: Step) -> Value:
    """A condition of the program: there are enough samples, and the threads' shares of them are nearly equal."""
    batch, threads = symbols.value(slices_of(step.launches[0].kernel)), symbols.values[THREADS_NAME]
    busy = builder.udiv(builder.sub(builder.add(batch, threads), I64_TYPE(1)), threads)
    idle = builder.sub(builder.mul(busy, threads), batch)
    even = builder.icmp_signed("<=", builder.mul(idle, I64_TYPE(MOST_IDLE)), batch)
    return builder.and_(even, builder.icmp_signed(">=", batch, I64_TYPE(LEAST_SLICES)))


@dataclass(frozen=True)
class SlicesEmitter:
    """Emits the body of `void(ptr frames, i64 begin, i64 end)` of a step in slices; each thread has a part of them.

    Buffers that only this step uses have one place for all samples of a part, so that they stay in L2
    (docs/measurements.md, slices).
    """

    number: int
    step: Step
    buffers: Sequence[ProgramBuffer]
    symbol_names: tuple[str, ...]

    def emit(self, function: ir.Function, kernels: Sequence[ir.Function]) -> None:
        builder: Builder = ir.IRBuilder(function.append_basic_block("entry"))
        table, begin, end = function.args
        frames = [own_frame(builder, table, i, launch) for i, launch in enumerate(self.step.launches)]
        symbols = Symbols(builder, pointer_at(builder, frames[0], 1), self.symbol_names)
        batch, threads = symbols.value(slices_of(self.step.launches[0].kernel)), symbols.values[THREADS_NAME]
        private = [(slot, symbols.value(size)) for slot, size in self._private(builder, frames)]
        memories = [builder.load(slot, align=8, typ=POINTER) for slot, _ in private]
        with counted(builder, begin, end) as part:
            first, last = (builder.udiv(builder.mul(builder.add(part, I64_TYPE(i)), batch), threads) for i in (0, 1))
            with counted(builder, first, last) as index:
                for (slot, size), memory in zip(private, memories, strict=True):
                    back = builder.mul(builder.sub(first, index), size)
                    builder.store(builder.gep(memory, [back], source_etype=ir.IntType(8)), slot, align=8)
                self._sample(builder, index, kernels, frames)
        builder.ret_void()

    def _sample(self, builder: Builder, index: Value, kernels: Sequence[ir.Function], frames: Sequence[Value]) -> None:
        following = builder.add(index, I64_TYPE(1))
        for launch, kernel, frame in zip(self.step.launches, kernels, frames, strict=True):
            assert launch.kernel.slices is not None
            count = I64_TYPE(launch.kernel.slices.count)
            builder.call(kernel, [frame, builder.mul(index, count), builder.mul(following, count)])

    def _private(self, builder: Builder, frames: Sequence[Value]) -> Iterator[tuple[Value, Dim]]:
        """Yield the slots of frames with buffers that no other step uses, and the bytes of a sample of each."""
        for launch, frame in zip(self.step.launches, frames, strict=True):
            for i, number in enumerate(launch.buffers):
                buffer = self.buffers[number]
                if buffer.kind == "arena" and buffer.first == buffer.last == self.number:
                    yield slot_of(builder, frame, FRAME_BUFFERS + i), buffer.bytes // slices_of(launch.kernel)
