; The types that all support code shares, and the functions of libc that it needs. Contract: docs/runtime.md.

%lpt_descriptor = type {
  i32,         ; 0  version of the contract
  i32,         ; 1  symbols
  i32,         ; 2  planned buffers
  i32,         ; 3  steps
  ptr,         ; 4  void (ptr dims, i64 threads, ptr sizes)
  ptr,         ; 5  i32[buffers]: first step
  ptr          ; 6  i32[buffers]: last step
}

%lpt_context = type {
  ptr,         ; 0  arena base                                  (public, byte 0)
  ptr,         ; 1  i64[buffers]: offsets in force              (public, byte 8)
  i32,         ; 2  error code of the last run                  (public, byte 16)
  i32,         ; 3  step that reported it                       (public, byte 20)
  i64,         ; 4  index that it reported                      (public, byte 24)
  i64,         ; 5  bytes of the arena                          (public, byte 32)
  ptr,         ; 6  %lpt_time[steps] while profiling, or null   (public, byte 40)
  i64,         ; 7  smallest report of the current step: index << 8 | code; all ones: none
  i64,         ; 8  the caller's floating-point control state during a run
  i32,         ; 9  threads, the caller included
  i32,         ; 10 plans kept
  [64 x ptr],  ; 11 %lpt_plan_record*, the most recently used first
  i32          ; 12 1 in every other run
}

%lpt_plan_record = type {
  ptr,         ; 0  the descriptor that it belongs to
  i64,         ; 1  bytes of arena
  i64,         ; 2  threads
  [0 x i64]    ; 3  dims[symbols], then offsets[buffers]
}

%lpt_time = type { i64, i64 }   ; nanoseconds, calls

declare ptr @malloc(i64)
declare ptr @calloc(i64, i64)
declare void @free(ptr)
declare i32 @posix_memalign(ptr, i64, i64)
declare ptr @mmap(ptr, i64, i32, i32, i32, i64)
declare i32 @munmap(ptr, i64)
declare i32 @madvise(ptr, i64, i32)
declare i32 @clock_gettime(i32, ptr)
declare i32 @getpid()
declare i32 @sched_yield()
declare i32 @sched_getcpu()
declare i32 @sched_getaffinity(i32, i64, ptr)
declare i32 @sched_setaffinity(i32, i64, ptr)
declare i64 @syscall(i64, ...)
declare i32 @pthread_create(ptr, ptr, ptr, ptr)
declare i32 @pthread_detach(i64)
declare i32 @pthread_sigmask(i32, ptr, ptr)

declare void @llvm.memset.p0.i64(ptr, i8, i64, i1)
declare void @llvm.memcpy.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.memmove.p0.p0.i64(ptr, ptr, i64, i1)
declare void @llvm.prefetch.p0(ptr, i32, i32, i32)
declare i64 @llvm.abs.i64(i64, i1)
declare i64 @llvm.smin.i64(i64, i64)
declare i64 @llvm.smax.i64(i64, i64)
declare i32 @llvm.smin.i32(i32, i32)
declare i32 @llvm.smax.i32(i32, i32)
