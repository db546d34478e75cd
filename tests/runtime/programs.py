"""Whole programs as LLVM IR text, written by hand: what the code generator emits, at its smallest."""

from __future__ import annotations

import functools

from lepton_jit.codegen.llvm.machine_code import compile_object
from lepton_jit.codegen.target import get_target
from lepton_jit.runtime.linker import link
from lepton_jit.runtime.manifest import Manifest, ManifestBuffer, ManifestStep, Tensor
from lepton_jit.runtime.program import Program
from lepton_jit.runtime.support_text import support_text

TARGET = get_target("x86-64")

DECLARATIONS = """
%lpt_descriptor = type { i32, i32, i32, i32, ptr, ptr, ptr }
declare i32 @lpt_enter(ptr, ptr, ptr)
declare void @lpt_leave(ptr)
declare i32 @lpt_parallel_for(ptr, i32, ptr, ptr, i64, i64)
declare void @lpt_report(ptr, i32, i64)
"""

# y[N] = 2 * x[N] + p[1], in two steps with one planned buffer between them; x[i] = 13 is reported as bad data.
AFFINE = (
    DECLARATIONS
    + """
@affine_first = internal constant [1 x i32] [i32 0]
@affine_last = internal constant [1 x i32] [i32 1]
@affine_descriptor = internal constant %lpt_descriptor {
  i32 2, i32 1, i32 1, i32 2, ptr @affine_sizes, ptr @affine_first, ptr @affine_last }

define internal void @affine_sizes(ptr %dims, i64 %threads, ptr %sizes) {
  %n = load i64, ptr %dims
  %bytes = mul i64 %n, 4
  store i64 %bytes, ptr %sizes
  ret void
}

define internal void @double(ptr %frame, i64 %begin, i64 %end) {
entry:
  %ctx = load ptr, ptr %frame
  %x.at = getelementptr ptr, ptr %frame, i64 2
  %t.at = getelementptr ptr, ptr %frame, i64 3
  %x = load ptr, ptr %x.at
  %t = load ptr, ptr %t.at
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %step ]
  %xi.at = getelementptr float, ptr %x, i64 %i
  %ti.at = getelementptr float, ptr %t, i64 %i
  %xi = load float, ptr %xi.at
  %ti = fmul float %xi, 2.0
  store float %ti, ptr %ti.at
  %bad = fcmp oeq float %xi, 13.0
  br i1 %bad, label %report, label %step
report:
  call void @lpt_report(ptr %ctx, i32 1, i64 %i)
  br label %step
step:
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}

define internal void @shift(ptr %frame, i64 %begin, i64 %end) {
entry:
  %t.at = getelementptr ptr, ptr %frame, i64 2
  %p.at = getelementptr ptr, ptr %frame, i64 3
  %y.at = getelementptr ptr, ptr %frame, i64 4
  %t = load ptr, ptr %t.at
  %p = load ptr, ptr %p.at
  %y = load ptr, ptr %y.at
  %shift = load float, ptr %p
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %loop ]
  %ti.at = getelementptr float, ptr %t, i64 %i
  %yi.at = getelementptr float, ptr %y, i64 %i
  %ti = load float, ptr %ti.at
  %yi = fadd float %ti, %shift
  store float %yi, ptr %yi.at
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}

define i32 @affine_run(ptr %ctx, ptr %dims, ptr %params, ptr %inputs, ptr %outputs) {
entry:
  %frame = alloca [5 x ptr]
  %entered = call i32 @lpt_enter(ptr %ctx, ptr @affine_descriptor, ptr %dims)
  %refused = icmp ne i32 %entered, 0
  br i1 %refused, label %exit, label %body
body:
  %arena = load ptr, ptr %ctx
  %offsets.at = getelementptr i8, ptr %ctx, i64 8
  %offsets = load ptr, ptr %offsets.at
  %offset = load i64, ptr %offsets
  %t = getelementptr i8, ptr %arena, i64 %offset
  %n = load i64, ptr %dims
  %x = load ptr, ptr %inputs
  %p = load ptr, ptr %params
  %y = load ptr, ptr %outputs
  %frame1 = getelementptr ptr, ptr %frame, i64 1
  %frame2 = getelementptr ptr, ptr %frame, i64 2
  %frame3 = getelementptr ptr, ptr %frame, i64 3
  %frame4 = getelementptr ptr, ptr %frame, i64 4
  store ptr %ctx, ptr %frame
  store ptr %dims, ptr %frame1
  store ptr %x, ptr %frame2
  store ptr %t, ptr %frame3
  %code0 = call i32 @lpt_parallel_for(ptr %ctx, i32 0, ptr @double, ptr %frame, i64 %n, i64 16)
  %bad0 = icmp ne i32 %code0, 0
  br i1 %bad0, label %leave, label %step1
step1:
  store ptr %t, ptr %frame2
  store ptr %p, ptr %frame3
  store ptr %y, ptr %frame4
  %code1 = call i32 @lpt_parallel_for(ptr %ctx, i32 1, ptr @shift, ptr %frame, i64 %n, i64 16)
  br label %leave
leave:
  %left = phi i32 [ %code0, %body ], [ %code1, %step1 ]
  call void @lpt_leave(ptr %ctx)
  br label %exit
exit:
  %code = phi i32 [ %entered, %entry ], [ %left, %leave ]
  ret i32 %code
}
"""
)

AFFINE_MANIFEST = Manifest(
    name="affine",
    prefix="affine",
    target="x86-64",
    architecture="x86_64",
    symbols=("N",),
    inputs=(Tensor("x", "f32", ("N",)),),
    outputs=(Tensor("y", "f32", ("N",), "output"),),
    params=(Tensor("shift", "f32", (1,), "weight"),),
    steps=(ManifestStep("double", "head/double", "N", "8*N"), ManifestStep("shift", "head/shift", "N", "8*N")),
    buffers=(ManifestBuffer("t", "4*N", 0, 1, "head/double"),),
    errors={1: "expected no 13"},
)


@functools.cache
def support_object() -> bytes:
    return compile_object(support_text("x86_64"), TARGET)


@functools.cache
def affine_object() -> bytes:
    return compile_object(AFFINE, TARGET)


def affine(threads: int | None = None) -> Program:
    return Program(AFFINE_MANIFEST, link([affine_object()], support_object(), "affine"), threads=threads)


def one_step(name: str, kernel: str, *, grain: int, threads: int, buffer_bytes: int = 0) -> Program:
    """`y[N] = kernel(x[N])` in one step; `kernel` is the text of `@kernel`, its frame is ctx, dims, x, y.

    Two planned buffers of `buffer_bytes` are alive, and not used.
    """
    text = f"""{DECLARATIONS}{kernel}
@{name}_steps = internal constant [2 x i32] zeroinitializer
@{name}_descriptor = internal constant %lpt_descriptor {{
  i32 2, i32 1, i32 2, i32 1, ptr @{name}_sizes, ptr @{name}_steps, ptr @{name}_steps }}
define internal void @{name}_sizes(ptr %dims, i64 %threads, ptr %sizes) {{
  %second = getelementptr i64, ptr %sizes, i64 1
  store i64 {buffer_bytes}, ptr %sizes
  store i64 {buffer_bytes}, ptr %second
  ret void
}}
define i32 @{name}_run(ptr %ctx, ptr %dims, ptr %params, ptr %inputs, ptr %outputs) {{
entry:
  %frame = alloca [4 x ptr]
  %entered = call i32 @lpt_enter(ptr %ctx, ptr @{name}_descriptor, ptr %dims)
  %refused = icmp ne i32 %entered, 0
  br i1 %refused, label %exit, label %body
body:
  %n = load i64, ptr %dims
  %x = load ptr, ptr %inputs
  %y = load ptr, ptr %outputs
  %frame1 = getelementptr ptr, ptr %frame, i64 1
  %frame2 = getelementptr ptr, ptr %frame, i64 2
  %frame3 = getelementptr ptr, ptr %frame, i64 3
  store ptr %ctx, ptr %frame
  store ptr %dims, ptr %frame1
  store ptr %x, ptr %frame2
  store ptr %y, ptr %frame3
  %code = call i32 @lpt_parallel_for(ptr %ctx, i32 0, ptr @kernel, ptr %frame, i64 %n, i64 {grain})
  call void @lpt_leave(ptr %ctx)
  br label %exit
exit:
  %result = phi i32 [ %entered, %entry ], [ %code, %body ]
  ret i32 %result
}}
"""
    manifest = Manifest(
        name=name,
        prefix=name,
        target=TARGET.name,
        architecture="x86_64",
        symbols=("N",),
        inputs=(Tensor("x", "f32", ("N",)),),
        outputs=(Tensor("y", "f32", ("N",), "output"),),
        steps=(ManifestStep("kernel", f"{name}/layer", "N", "8*N"),),
        errors={7: "seven is not allowed"},
    )
    return Program(manifest, link([compile_object(text, TARGET)], support_object(), name), threads=threads)


def elementwise(body: str, declarations: str = "") -> str:
    """A kernel that computes `%yi` from `%xi` for each `%i`."""
    return f"""{declarations}
define internal void @kernel(ptr %frame, i64 %begin, i64 %end) {{
entry:
  %ctx = load ptr, ptr %frame
  %x.at = getelementptr ptr, ptr %frame, i64 2
  %y.at = getelementptr ptr, ptr %frame, i64 3
  %x = load ptr, ptr %x.at
  %y = load ptr, ptr %y.at
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %loop ]
  %xi.at = getelementptr float, ptr %x, i64 %i
  %yi.at = getelementptr float, ptr %y, i64 %i
  %xi = load float, ptr %xi.at
{body}
  store float %yi, ptr %yi.at
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}}
"""


# y[i] is read and written, so an iteration that runs twice or never shows.
COUNT = """
  %before = load float, ptr %yi.at
  %yi = fadd float %before, 1.0"""

# Each iteration waits until the other one has begun, for a few seconds at most: y[i] = 1 if they met.
MEET = """
@arrived = internal global i32 0
define internal void @kernel(ptr %frame, i64 %begin, i64 %end) {
entry:
  %y.at = getelementptr ptr, ptr %frame, i64 3
  %y = load ptr, ptr %y.at
  %yi.at = getelementptr float, ptr %y, i64 %begin
  %length = sub i64 %end, %begin
  %count = trunc i64 %length to i32
  %mine = atomicrmw add ptr @arrived, i32 %count seq_cst
  %round = and i32 %mine, -2
  %both = add i32 %round, 2
  %alone = icmp eq i32 %count, 2
  br i1 %alone, label %exit, label %wait
wait:
  %k = phi i64 [ 0, %entry ], [ %k.next, %again ]
  %now = load atomic i32, ptr @arrived seq_cst, align 4
  %met = icmp sge i32 %now, %both
  br i1 %met, label %exit, label %again
again:
  %k.next = add i64 %k, 1
  %more = icmp slt i64 %k.next, 5000000000
  br i1 %more, label %wait, label %exit
exit:
  %result = phi float [ 0.0, %entry ], [ 1.0, %wait ], [ 0.0, %again ]
  store float %result, ptr %yi.at
  ret void
}
"""

# Every iteration of the outer loop runs an inner parallel loop over 8 elements of its own and sums them: y[i] = 8.
NESTED = """
define internal void @inner(ptr %frame, i64 %begin, i64 %end) {
entry:
  %row = load ptr, ptr %frame
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %loop ]
  %at = getelementptr i32, ptr %row, i64 %i
  %before = load i32, ptr %at
  %after = add i32 %before, 1
  store i32 %after, ptr %at
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}
define internal void @kernel(ptr %frame, i64 %begin, i64 %end) {
entry:
  %row = alloca [8 x i32]
  %inner = alloca ptr
  store ptr %row, ptr %inner
  %ctx = load ptr, ptr %frame
  %y.at = getelementptr ptr, ptr %frame, i64 3
  %y = load ptr, ptr %y.at
  br label %loop
loop:
  %i = phi i64 [ %begin, %entry ], [ %next, %after ]
  store [8 x i32] zeroinitializer, ptr %row
  %code = call i32 @lpt_parallel_for(ptr %ctx, i32 0, ptr @inner, ptr %inner, i64 8, i64 1)
  br label %sum
sum:
  %j = phi i64 [ 0, %loop ], [ %j.next, %sum ]
  %total = phi i32 [ 0, %loop ], [ %total.next, %sum ]
  %at = getelementptr i32, ptr %row, i64 %j
  %value = load i32, ptr %at
  %total.next = add i32 %total, %value
  %j.next = add i64 %j, 1
  %j.more = icmp slt i64 %j.next, 8
  br i1 %j.more, label %sum, label %after
after:
  %yi = sitofp i32 %total.next to float
  %yi.at = getelementptr float, ptr %y, i64 %i
  store float %yi, ptr %yi.at
  %next = add i64 %i, 1
  %more = icmp slt i64 %next, %end
  br i1 %more, label %loop, label %done
done:
  ret void
}
"""

# Each iteration waits until x[i] is no longer 0, for a minute at most; y[i] = x[i].
GATE = """
define internal void @kernel(ptr %frame, i64 %begin, i64 %end) {
entry:
  %x.at = getelementptr ptr, ptr %frame, i64 2
  %y.at = getelementptr ptr, ptr %frame, i64 3
  %x = load ptr, ptr %x.at
  %y = load ptr, ptr %y.at
  %xi.at = getelementptr float, ptr %x, i64 %begin
  %yi.at = getelementptr float, ptr %y, i64 %begin
  br label %wait
wait:
  %k = phi i64 [ 0, %entry ], [ %k.next, %again ]
  %xi = load volatile float, ptr %xi.at
  %open = fcmp one float %xi, 0.0
  br i1 %open, label %exit, label %again
again:
  %k.next = add i64 %k, 1
  %more = icmp slt i64 %k.next, 50000000000
  br i1 %more, label %wait, label %exit
exit:
  store float %xi, ptr %yi.at
  ret void
}
"""
