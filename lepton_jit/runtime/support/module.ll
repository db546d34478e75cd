; What a shared library needs in the place of Python: idle contexts that any thread may take, and a default number of threads.

declare i64 @llvm.ctpop.i64(i64)

; Takes an idle context out of ptr[n], or makes one; null without memory.
define ptr @lpt_contexts_take(ptr %slots, i32 %n, i32 %threads) {
entry:
  br label %next
next:
  %i = phi i32 [ 0, %entry ], [ %i.next, %empty ]
  %more = icmp slt i32 %i, %n
  br i1 %more, label %take, label %create
take:
  %slot = getelementptr ptr, ptr %slots, i32 %i
  %taken = atomicrmw xchg ptr %slot, ptr null acq_rel
  %none = icmp eq ptr %taken, null
  br i1 %none, label %empty, label %reuse
empty:
  %i.next = add i32 %i, 1
  br label %next
reuse:
  call void @lpt_context_set_threads(ptr %taken, i32 %threads)
  ret ptr %taken
create:
  %new = call ptr @lpt_context_create(i32 %threads)
  ret ptr %new
}

; Puts a context into an empty slot of ptr[n]; destroys it if there is none.
define void @lpt_contexts_give(ptr %slots, i32 %n, ptr %ctx) {
entry:
  br label %next
next:
  %i = phi i32 [ 0, %entry ], [ %i.next, %put ]
  %more = icmp slt i32 %i, %n
  br i1 %more, label %put, label %destroy
put:
  %slot = getelementptr ptr, ptr %slots, i32 %i
  %exchange = cmpxchg ptr %slot, ptr null, ptr %ctx acq_rel monotonic
  %done = extractvalue { ptr, i1 } %exchange, 1
  %i.next = add i32 %i, 1
  br i1 %done, label %exit, label %next
destroy:
  call void @lpt_context_destroy(ptr %ctx)
  br label %exit
exit:
  ret void
}

; The processors that this process may use; 1 if the system does not say.
define i32 @lpt_default_threads() {
entry:
  %mask = alloca [16 x i64]
  call void @llvm.memset.p0.i64(ptr %mask, i8 0, i64 128, i1 false)
  %status = call i32 @sched_getaffinity(i32 0, i64 128, ptr %mask)
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i.next, %body ]
  %count = phi i64 [ 0, %entry ], [ %count.next, %body ]
  %more = icmp slt i64 %i, 16
  br i1 %more, label %body, label %done
body:
  %word.at = getelementptr i64, ptr %mask, i64 %i
  %word = load i64, ptr %word.at
  %bits = call i64 @llvm.ctpop.i64(i64 %word)
  %count.next = add i64 %count, %bits
  %i.next = add i64 %i, 1
  br label %next
done:
  %at_least = call i64 @llvm.smax.i64(i64 %count, i64 1)
  %result = trunc i64 %at_least to i32
  ret i32 %result
}
