; Contexts: an arena with the plans of the dimensions seen, the error record, the profile.

@lpt_small_arena = internal constant i64 2097152         ; below one huge page, 64-byte alignment will do

define ptr @lpt_context_create(i32 %threads) {
entry:
  %end = getelementptr %lpt_context, ptr null, i32 1
  %bytes = ptrtoint ptr %end to i64
  %ctx = call ptr @calloc(i64 1, i64 %bytes)
  %no_memory = icmp eq ptr %ctx, null
  br i1 %no_memory, label %done, label %set
set:
  %report.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 7
  store i64 -1, ptr %report.at
  call void @lpt_context_set_threads(ptr %ctx, i32 %threads)
  br label %done
done:
  ret ptr %ctx
}

define void @lpt_context_set_threads(ptr %ctx, i32 %threads) {
  %at_least = call i32 @llvm.smax.i32(i32 %threads, i32 1)
  %bounded = call i32 @llvm.smin.i32(i32 %at_least, i32 1024)
  %threads.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 9
  store i32 %bounded, ptr %threads.at
  ret void
}

define i32 @lpt_context_threads(ptr %ctx) {
  %threads.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 9
  %threads = load i32, ptr %threads.at
  ret i32 %threads
}

; Null is no context.
define void @lpt_context_destroy(ptr %ctx) {
entry:
  %none = icmp eq ptr %ctx, null
  br i1 %none, label %exit, label %free
free:
  %arena = load ptr, ptr %ctx
  call void @free(ptr %arena)
  %profile.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 6
  %profile = load ptr, ptr %profile.at
  call void @free(ptr %profile)
  %count.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 10
  %count = load i32, ptr %count.at
  br label %next
next:
  %i = phi i32 [ 0, %free ], [ %i.next, %body ]
  %more = icmp slt i32 %i, %count
  br i1 %more, label %body, label %done
body:
  %plan.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 11, i32 %i
  %plan = load ptr, ptr %plan.at
  call void @free(ptr %plan)
  %i.next = add i32 %i, 1
  br label %next
done:
  call void @free(ptr %ctx)
  br label %exit
exit:
  ret void
}

; Starts profiling with a zeroed table of `steps`, or stops it with 0. Returns 0, or -1 without memory.
define i32 @lpt_context_profile(ptr %ctx, i32 %steps) {
entry:
  %profile.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 6
  %old = load ptr, ptr %profile.at
  call void @free(ptr %old)
  store ptr null, ptr %profile.at
  %stop = icmp sle i32 %steps, 0
  br i1 %stop, label %done, label %start
start:
  %count = zext i32 %steps to i64
  %table = call ptr @calloc(i64 %count, i64 16)
  store ptr %table, ptr %profile.at
  %no_memory = icmp eq ptr %table, null
  br label %done
done:
  %failed = phi i1 [ false, %entry ], [ %no_memory, %start ]
  %code = sext i1 %failed to i32
  ret i32 %code
}

; A kernel found bad data at `index`. The smallest index of the step wins, on any number of threads.
define void @lpt_report(ptr %ctx, i32 %code, i64 %index) {
  %report.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 7
  %high = shl i64 %index, 8
  %low = zext i32 %code to i64
  %report = or i64 %high, %low
  %before = atomicrmw umin ptr %report.at, i64 %report monotonic
  ret void
}

; Records an error and returns its code.
define internal i32 @lpt_fail(ptr %ctx, i32 %code, i32 %step, i64 %index) {
  %code.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 2
  %step.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 3
  %index.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 4
  store i32 %code, ptr %code.at
  store i32 %step, ptr %step.at
  store i64 %index, ptr %index.at
  ret i32 %code
}

; The kept plan for a descriptor, the context's threads and dims, moved to the front, or null.
define internal ptr @lpt_find_plan(ptr %ctx, ptr %descriptor, ptr %dims, i64 %symbols) {
entry:
  %plans = getelementptr %lpt_context, ptr %ctx, i32 0, i32 11
  %count.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 10
  %count32 = load i32, ptr %count.at
  %count = zext i32 %count32 to i64
  %threads32 = call i32 @lpt_context_threads(ptr %ctx)
  %threads = zext i32 %threads32 to i64
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i.next, %other ]
  %more = icmp slt i64 %i, %count
  br i1 %more, label %look, label %missing
look:
  %plan.at = getelementptr ptr, ptr %plans, i64 %i
  %plan = load ptr, ptr %plan.at
  %owner = load ptr, ptr %plan
  %same_program = icmp eq ptr %owner, %descriptor
  %planned.at = getelementptr %lpt_plan_record, ptr %plan, i32 0, i32 2
  %planned = load i64, ptr %planned.at
  %same_threads = icmp eq i64 %planned, %threads
  %candidate = and i1 %same_program, %same_threads
  br i1 %candidate, label %dim, label %other
dim:
  %d = phi i64 [ 0, %look ], [ %d.next, %compare ]
  %d.more = icmp slt i64 %d, %symbols
  br i1 %d.more, label %compare, label %found
compare:
  %kept.at = getelementptr %lpt_plan_record, ptr %plan, i32 0, i32 3, i64 %d
  %asked.at = getelementptr i64, ptr %dims, i64 %d
  %kept = load i64, ptr %kept.at
  %asked = load i64, ptr %asked.at
  %same = icmp eq i64 %kept, %asked
  %d.next = add i64 %d, 1
  br i1 %same, label %dim, label %other
other:
  %i.next = add i64 %i, 1
  br label %next
found:
  %in_front = icmp eq i64 %i, 0
  br i1 %in_front, label %done, label %move
move:
  %second.at = getelementptr ptr, ptr %plans, i64 1
  %bytes = mul i64 %i, 8
  call void @llvm.memmove.p0.p0.i64(ptr %second.at, ptr %plans, i64 %bytes, i1 false)
  store ptr %plan, ptr %plans
  br label %done
done:
  ret ptr %plan
missing:
  ret ptr null
}

; Puts a plan in front; drops the one that was not used for longest if the table is full.
define internal void @lpt_keep_plan(ptr %ctx, ptr %plan) {
entry:
  %plans = getelementptr %lpt_context, ptr %ctx, i32 0, i32 11
  %count.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 10
  %count = load i32, ptr %count.at
  %full = icmp eq i32 %count, 64
  br i1 %full, label %drop, label %shift
drop:
  %last.at = getelementptr ptr, ptr %plans, i64 63
  %last = load ptr, ptr %last.at
  call void @free(ptr %last)
  br label %shift
shift:
  %kept32 = phi i32 [ %count, %entry ], [ 63, %drop ]
  %kept = zext i32 %kept32 to i64
  %bytes = mul i64 %kept, 8
  %second.at = getelementptr ptr, ptr %plans, i64 1
  call void @llvm.memmove.p0.p0.i64(ptr %second.at, ptr %plans, i64 %bytes, i1 false)
  store ptr %plan, ptr %plans
  %count.new = add i32 %kept32, 1
  store i32 %count.new, ptr %count.at
  ret void
}

; Copies dims into a plan record; false if one is outside 0 ... 2^31 - 1.
define internal i1 @lpt_copy_dims(ptr %plan, ptr %dims, i64 %symbols) {
entry:
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i.next, %body ]
  %good = phi i1 [ true, %entry ], [ %good.next, %body ]
  %more = icmp slt i64 %i, %symbols
  br i1 %more, label %body, label %done
body:
  %dim.at = getelementptr i64, ptr %dims, i64 %i
  %dim = load i64, ptr %dim.at
  %kept.at = getelementptr %lpt_plan_record, ptr %plan, i32 0, i32 3, i64 %i
  store i64 %dim, ptr %kept.at
  %in_range = icmp ult i64 %dim, 2147483648
  %good.next = and i1 %good, %in_range
  %i.next = add i64 %i, 1
  br label %next
done:
  ret i1 %good
}

; Plans a program for dims that were not seen before. Returns 0 and puts the plan in front, or an error code.
define internal i32 @lpt_make_plan(ptr %ctx, ptr %descriptor, ptr %dims, i64 %symbols) {
entry:
  %buffers.at = getelementptr %lpt_descriptor, ptr %descriptor, i32 0, i32 2
  %buffers32 = load i32, ptr %buffers.at
  %buffers = zext i32 %buffers32 to i64
  %words.plan = add i64 %symbols, %buffers
  %words = add i64 %words.plan, 3
  %bytes = mul i64 %words, 8
  %plan = call ptr @malloc(i64 %bytes)
  %sizes.words = add i64 %buffers, 1             ; never an empty allocation
  %sizes.bytes = mul i64 %sizes.words, 8
  %sizes = call ptr @malloc(i64 %sizes.bytes)
  %no_plan = icmp eq ptr %plan, null
  %no_sizes = icmp eq ptr %sizes, null
  %no_memory = or i1 %no_plan, %no_sizes
  br i1 %no_memory, label %refuse, label %copy
copy:
  store ptr %descriptor, ptr %plan
  %good = call i1 @lpt_copy_dims(ptr %plan, ptr %dims, i64 %symbols)
  br i1 %good, label %place, label %refuse
place:
  %sizes_function.at = getelementptr %lpt_descriptor, ptr %descriptor, i32 0, i32 4
  %first.at = getelementptr %lpt_descriptor, ptr %descriptor, i32 0, i32 5
  %last.at = getelementptr %lpt_descriptor, ptr %descriptor, i32 0, i32 6
  %sizes_function = load ptr, ptr %sizes_function.at
  %first = load ptr, ptr %first.at
  %last = load ptr, ptr %last.at
  %threads32 = call i32 @lpt_context_threads(ptr %ctx)
  %threads = zext i32 %threads32 to i64
  %threads.at = getelementptr %lpt_plan_record, ptr %plan, i32 0, i32 2
  store i64 %threads, ptr %threads.at
  call void %sizes_function(ptr %dims, i64 %threads, ptr %sizes)
  %offsets = getelementptr %lpt_plan_record, ptr %plan, i32 0, i32 3, i64 %symbols
  %total = call i64 @lpt_plan(i64 %buffers, ptr %sizes, ptr %first, ptr %last, ptr %offsets)
  %failed = icmp slt i64 %total, 0
  br i1 %failed, label %refuse_total, label %keep
keep:
  call void @free(ptr %sizes)
  %total.at = getelementptr %lpt_plan_record, ptr %plan, i32 0, i32 1
  store i64 %total, ptr %total.at
  call void @lpt_keep_plan(ptr %ctx, ptr %plan)
  ret i32 0
refuse_total:
  %total.code = trunc i64 %total to i32
  br label %refuse
refuse:
  %code = phi i32 [ -1, %entry ], [ -3, %copy ], [ %total.code, %refuse_total ]
  call void @free(ptr %sizes)
  call void @free(ptr %plan)
  %result = call i32 @lpt_fail(ptr %ctx, i32 %code, i32 -1, i64 0)
  ret i32 %result
}

; Makes the arena at least as large as `bytes`; its contents are not kept. Returns 0 or -1.
define internal i32 @lpt_grow(ptr %ctx, i64 %bytes) {
entry:
  %bytes.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 5
  %have = load i64, ptr %bytes.at
  %enough = icmp sge i64 %have, %bytes
  br i1 %enough, label %done, label %allocate
allocate:
  %old = load ptr, ptr %ctx
  call void @free(ptr %old)
  store ptr null, ptr %ctx
  store i64 0, ptr %bytes.at
  %threshold = load i64, ptr @lpt_small_arena
  %small = icmp slt i64 %bytes, %threshold
  %alignment = select i1 %small, i64 64, i64 %threshold
  %new.at = alloca ptr
  %status = call i32 @posix_memalign(ptr %new.at, i64 %alignment, i64 %bytes)
  %failed = icmp ne i32 %status, 0
  br i1 %failed, label %refuse, label %advise
advise:
  %new = load ptr, ptr %new.at
  store ptr %new, ptr %ctx
  store i64 %bytes, ptr %bytes.at
  br i1 %small, label %done, label %huge
huge:
  %advised = call i32 @madvise(ptr %new, i64 %bytes, i32 14)   ; MADV_HUGEPAGE: advice only, its failure changes nothing
  br label %done
refuse:
  %code = call i32 @lpt_fail(ptr %ctx, i32 -1, i32 -1, i64 %bytes)
  ret i32 -1
done:
  ret i32 0
}

; Begins a run: clears the error record, finds or makes the plan for dims, sets the floating-point state.
define i32 @lpt_enter(ptr %ctx, ptr %descriptor, ptr %dims) {
entry:
  %cleared = call i32 @lpt_fail(ptr %ctx, i32 0, i32 -1, i64 0)
  %report.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 7
  store i64 -1, ptr %report.at
  %version = load i32, ptr %descriptor
  %known = icmp eq i32 %version, 2
  br i1 %known, label %find, label %bad_version
bad_version:
  %version.code = call i32 @lpt_fail(ptr %ctx, i32 -4, i32 -1, i64 0)
  ret i32 %version.code
find:
  %symbols.at = getelementptr %lpt_descriptor, ptr %descriptor, i32 0, i32 1
  %symbols32 = load i32, ptr %symbols.at
  %symbols = zext i32 %symbols32 to i64
  %found = call ptr @lpt_find_plan(ptr %ctx, ptr %descriptor, ptr %dims, i64 %symbols)
  %missing = icmp eq ptr %found, null
  br i1 %missing, label %make, label %use
make:
  %make.code = call i32 @lpt_make_plan(ptr %ctx, ptr %descriptor, ptr %dims, i64 %symbols)
  %unplanned = icmp ne i32 %make.code, 0
  br i1 %unplanned, label %stop, label %use
use:
  %plans = getelementptr %lpt_context, ptr %ctx, i32 0, i32 11
  %plan = load ptr, ptr %plans
  %offsets = getelementptr %lpt_plan_record, ptr %plan, i32 0, i32 3, i64 %symbols
  %offsets.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 1
  store ptr %offsets, ptr %offsets.at
  %total.at = getelementptr %lpt_plan_record, ptr %plan, i32 0, i32 1
  %total = load i64, ptr %total.at
  %grow.code = call i32 @lpt_grow(ptr %ctx, i64 %total)
  %no_arena = icmp ne i32 %grow.code, 0
  br i1 %no_arena, label %stop, label %run
run:
  %state = call i64 @lpt_float_state_default()
  %state.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 8
  store i64 %state, ptr %state.at
  %turn.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 12
  %turn = load i32, ptr %turn.at
  %turned = xor i32 %turn, 1
  store i32 %turned, ptr %turn.at
  ret i32 0
stop:
  %code = phi i32 [ %make.code, %make ], [ %grow.code, %use ]
  ret i32 %code
}

define void @lpt_leave(ptr %ctx) {
  %state.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 8
  %state = load i64, ptr %state.at
  call void @lpt_float_state_restore(i64 %state)
  ret void
}

; Turns a step's report into the context's error record; returns the code, 0 if there was none.
define internal i32 @lpt_settle(ptr %ctx, i32 %step) {
entry:
  %report.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 7
  %report = load i64, ptr %report.at
  %none = icmp eq i64 %report, -1
  br i1 %none, label %good, label %bad
good:
  ret i32 0
bad:
  %code8 = trunc i64 %report to i8
  %code = zext i8 %code8 to i32
  %index = lshr i64 %report, 8
  %result = call i32 @lpt_fail(ptr %ctx, i32 %code, i32 %step, i64 %index)
  ret i32 %result
}

define internal i64 @lpt_now() {
  %time = alloca { i64, i64 }
  %status = call i32 @clock_gettime(i32 1, ptr %time)      ; CLOCK_MONOTONIC
  %seconds = load i64, ptr %time
  %nanoseconds.at = getelementptr { i64, i64 }, ptr %time, i32 0, i32 1
  %nanoseconds = load i64, ptr %nanoseconds.at
  %whole = mul i64 %seconds, 1000000000
  %now = add i64 %whole, %nanoseconds
  ret i64 %now
}

; Runs kernel(frame, begin, end) over 0 ... extent - 1, in chunks of `grain` on the threads of the context. A negative
; grain: on one thread, from the end in every other run.
define i32 @lpt_parallel_for(ptr %ctx, i32 %step, ptr %kernel, ptr %frame, i64 %extent, i64 %grain) {
entry:
  %profile.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 6
  %profile = load ptr, ptr %profile.at
  %timed = icmp ne ptr %profile, null
  br i1 %timed, label %with_time, label %plain
plain:
  call void @lpt_dispatch(ptr %ctx, ptr %kernel, ptr %frame, i64 %extent, i64 %grain)
  br label %done
with_time:
  %start = call i64 @lpt_now()
  call void @lpt_dispatch(ptr %ctx, ptr %kernel, ptr %frame, i64 %extent, i64 %grain)
  %end = call i64 @lpt_now()
  %elapsed = sub i64 %end, %start
  %row = getelementptr %lpt_time, ptr %profile, i32 %step
  %calls.at = getelementptr %lpt_time, ptr %row, i32 0, i32 1
  %time = load i64, ptr %row
  %calls = load i64, ptr %calls.at
  %time.new = add i64 %time, %elapsed
  %calls.new = add i64 %calls, 1
  store i64 %time.new, ptr %row
  store i64 %calls.new, ptr %calls.at
  br label %done
done:
  %code = call i32 @lpt_settle(ptr %ctx, i32 %step)
  ret i32 %code
}

; Chooses between this thread alone and the pool.
define internal void @lpt_dispatch(ptr %ctx, ptr %kernel, ptr %frame, i64 %extent, i64 %grain) {
entry:
  %threads.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 9
  %threads = load i32, ptr %threads.at
  %alone = icmp eq i32 %threads, 1
  %size = call i64 @llvm.abs.i64(i64 %grain, i1 true)
  %one_chunk = icmp sge i64 %size, %extent
  %no_grain = icmp eq i64 %grain, 0
  %single = or i1 %one_chunk, %no_grain
  %inline = or i1 %alone, %single
  br i1 %inline, label %check, label %fork
check:
  %any = icmp sgt i64 %extent, 0
  br i1 %any, label %way, label %done
way:
  %turn.at = getelementptr %lpt_context, ptr %ctx, i32 0, i32 12
  %turn = load i32, ptr %turn.at
  %odd = icmp eq i32 %turn, 1
  %turning = icmp slt i64 %grain, 0
  %turned = and i1 %odd, %turning
  %backwards = select i1 %single, i1 false, i1 %turned
  br i1 %backwards, label %back, label %run
run:
  call void %kernel(ptr %frame, i64 0, i64 %extent)
  br label %done
back:
  %end = phi i64 [ %extent, %way ], [ %begin, %back ]
  %before = sub i64 %end, 1
  %chunk = udiv i64 %before, %size
  %begin = mul i64 %chunk, %size
  call void %kernel(ptr %frame, i64 %begin, i64 %end)
  %first = icmp eq i64 %begin, 0
  br i1 %first, label %done, label %back
fork:
  call void @lpt_fork_join(ptr %kernel, ptr %frame, i64 %extent, i64 %size, i32 %threads)
  br label %done
done:
  ret void
}
