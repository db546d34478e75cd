; What differs on AArch64.

@lpt_futex_number = internal constant i64 98

declare i64 @llvm.aarch64.get.fpcr()
declare void @llvm.aarch64.set.fpcr(i64)
declare void @llvm.aarch64.isb(i32)

; FPCR 0: round to nearest, denormals kept, exceptions masked. Returns the state before.
define internal i64 @lpt_float_state_default() {
  %before = call i64 @llvm.aarch64.get.fpcr()
  call void @llvm.aarch64.set.fpcr(i64 0)
  ret i64 %before
}

define internal void @lpt_float_state_restore(i64 %state) {
  call void @llvm.aarch64.set.fpcr(i64 %state)
  ret void
}

; `isb` waits some tens of cycles, as x86's pause does; `yield` is a no-operation on most cores.
define internal void @lpt_pause() alwaysinline {
  call void @llvm.aarch64.isb(i32 15)
  ret void
}
