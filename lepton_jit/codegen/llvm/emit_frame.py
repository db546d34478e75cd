"""Emit accesses to frames: tables of pointers, one for each launch, in which kernels find their memory."""

from __future__ import annotations

from llvmlite import ir

from lepton_jit.codegen.llvm.emit_primitives import I64_TYPE, POINTER, Builder, Value, allocate
from lepton_jit.codegen.program.lowered import Launch

# void kernel(ptr frame, i64 begin, i64 end): frame[0] is the context, frame[1] the symbols, frame[2 + i] buffer i
KERNEL_TYPE = ir.FunctionType(ir.VoidType(), [POINTER, I64_TYPE, I64_TYPE])
FRAME_BUFFERS = 2


def slot_of(builder: Builder, table: Value, index: int) -> Value:
    """The address of entry `index` of a table of pointers."""
    return builder.gep(table, [I64_TYPE(index)], source_etype=POINTER)


def pointer_at(builder: Builder, table: Value, index: int) -> Value:
    """Entry `index` of a table of pointers."""
    return builder.load(slot_of(builder, table, index), align=8, typ=POINTER)


def own_frame(builder: Builder, table: Value, index: int, launch: Launch) -> Value:
    """Copy the frame of a launch, for one thread to change; the table has the frames of all launches."""
    shared = pointer_at(builder, table, index)
    own = allocate(builder, POINTER, FRAME_BUFFERS + len(launch.buffers))
    for k in range(FRAME_BUFFERS + len(launch.buffers)):
        builder.store(pointer_at(builder, shared, k), slot_of(builder, own, k), align=8)
    return own
