; What differs on x86-64.

@lpt_futex_number = internal constant i64 202

declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
declare void @llvm.x86.sse2.pause()

; MXCSR 0x1f80: round to nearest, denormals kept, exceptions masked. Returns the state before.
define internal i64 @lpt_float_state_default() {
  %word = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %word)
  %before = load i32, ptr %word
  store i32 8064, ptr %word
  call void @llvm.x86.sse.ldmxcsr(ptr %word)
  %wide = zext i32 %before to i64
  ret i64 %wide
}

define internal void @lpt_float_state_restore(i64 %state) {
  %word = alloca i32
  %narrow = trunc i64 %state to i32
  store i32 %narrow, ptr %word
  call void @llvm.x86.sse.ldmxcsr(ptr %word)
  ret void
}

define internal void @lpt_pause() alwaysinline {
  call void @llvm.x86.sse2.pause()
  ret void
}
