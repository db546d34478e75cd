; The thread pool: one per process, fork-join, chunks claimed by decrementing a counter.

%lpt_job_type = type {
  ptr,         ; 0  kernel
  ptr,         ; 1  frame
  i64,         ; 2  extent
  i64,         ; 3  chunks: number i runs from i * extent / chunks
  i64,         ; 4  share: the first chunks, which are the caller's
  [88 x i8]
}

; What is written often by different threads stands on lines of its own.
@lpt_generation = internal global { i32, [124 x i8] } zeroinitializer, align 128   ; jobs published; the futex that workers sleep on
@lpt_unclaimed = internal global { i64, [120 x i8] } zeroinitializer, align 128    ; below: chunks that nobody has claimed, 0 or less: none; above: claimed by workers
@lpt_unfinished = internal global { i64, [120 x i8] } zeroinitializer, align 128   ; chunks of the job that have not run to their end
@lpt_seats = internal global { i32, [124 x i8] } zeroinitializer, align 128        ; workers that may still join the job
@lpt_job = internal global %lpt_job_type zeroinitializer, align 128                ; valid for whoever owns a chunk
@lpt_busy = internal global { i32, [124 x i8] } zeroinitializer, align 128         ; 1 while a caller has the pool
@lpt_caller_processor = internal global i32 -1, align 128                          ; where the caller published the job
@lpt_moved = internal global i64 0                                                 ; when a worker last left that processor
@lpt_sleepers = internal global i32 0, align 128                                   ; workers in the futex
@lpt_signalled = internal global i32 0                                             ; of these, already woken but not yet running
@lpt_workers = internal global i32 0                                               ; started in this process; written by the owner of the pool
@lpt_fork_page = internal global ptr null                                          ; i32 there: 0 no pool in this process, 1 ready, 2 being made
@lpt_owner = internal global i32 0                                                 ; this process, where the kernel cannot wipe on fork; else 0

; Claims and runs chunks until none is left; returns how many. A decrement that finds the counter positive owns a chunk of
; the current job: that job cannot end, nor its fields change, before the chunk has run. The caller begins with the first
; chunk, workers (`claim` is 2^32 - 1: one more by workers, one fewer in all) with the first one behind its share: so that a
; thread finds in its own cache what the kernel before this one left there. Both go forwards, as kernels that fetch ahead
; expect; who has done its own part goes on with the other's, from the end backwards.
define internal i64 @lpt_work(i64 %claim) {
entry:
  br label %look
look:
  %done = phi i64 [ 0, %entry ], [ %done.next, %run ]
  %seen = load atomic i64, ptr @lpt_unclaimed monotonic, align 8
  %seen.left = trunc i64 %seen to i32
  %some = icmp sgt i32 %seen.left, 0
  br i1 %some, label %take, label %finish
take:
  %ticket = atomicrmw add ptr @lpt_unclaimed, i64 %claim acq_rel
  %left = trunc i64 %ticket to i32
  %mine = icmp sgt i32 %left, 0
  br i1 %mine, label %run, label %finish
run:
  %frame.at = getelementptr %lpt_job_type, ptr @lpt_job, i32 0, i32 1
  %extent.at = getelementptr %lpt_job_type, ptr @lpt_job, i32 0, i32 2
  %chunks.at = getelementptr %lpt_job_type, ptr @lpt_job, i32 0, i32 3
  %kernel = load ptr, ptr @lpt_job
  %frame = load ptr, ptr %frame.at
  %extent = load i64, ptr %extent.at
  %chunks = load i64, ptr %chunks.at
  %behind = lshr i64 %ticket, 32
  %left.wide = zext i32 %left to i64
  %share.at = getelementptr %lpt_job_type, ptr @lpt_job, i32 0, i32 4
  %share = load i64, ptr %share.at
  %rest = sub i64 %chunks, %share
  %by.worker = icmp sgt i64 %claim, 0
  %done.all = sub i64 %chunks, %left.wide
  %done.caller = sub i64 %done.all, %behind
  %number = select i1 %by.worker, i64 %behind, i64 %done.caller
  %own = select i1 %by.worker, i64 %rest, i64 %share
  %own.first = select i1 %by.worker, i64 %share, i64 0
  %others.end = select i1 %by.worker, i64 %share, i64 %chunks
  %is.own = icmp slt i64 %number, %own
  %forwards = add i64 %own.first, %number
  %helped = sub i64 %number, %own
  %others.last = sub i64 %others.end, 1
  %backwards = sub i64 %others.last, %helped
  %index = select i1 %is.own, i64 %forwards, i64 %backwards
  %following = add i64 %index, 1
  %begin.part = mul i64 %index, %extent
  %end.part = mul i64 %following, %extent
  %begin = udiv i64 %begin.part, %chunks
  %end = udiv i64 %end.part, %chunks
  call void %kernel(ptr %frame, i64 %begin, i64 %end)
  %done.next = add i64 %done, 1
  br label %look
finish:
  %any = icmp sgt i64 %done, 0
  br i1 %any, label %count, label %exit
count:
  %before = atomicrmw sub ptr @lpt_unfinished, i64 %done release
  br label %exit
exit:
  ret i64 %done
}

; Waits until the generation differs from `seen`: spins until `deadline`, then sleeps. Returns the new generation.
define internal i32 @lpt_await(i32 %seen, i64 %deadline) {
entry:
  br label %burst
burst:
  %limit = phi i64 [ %deadline, %entry ], [ %limit, %spin_more ], [ %limit, %give_way ], [ %limit.woken, %woken ]
  br label %spin
spin:
  %k = phi i32 [ 0, %burst ], [ %k.next, %again ]
  %now.generation = load atomic i32, ptr @lpt_generation acquire, align 4
  %published = icmp ne i32 %now.generation, %seen
  br i1 %published, label %exit, label %again
again:
  call void @lpt_pause()
  %k.next = add i32 %k, 1
  %k.more = icmp slt i32 %k.next, 32
  br i1 %k.more, label %spin, label %clock
clock:
  %now = call i64 @lpt_now()
  %early = icmp slt i64 %now, %limit
  br i1 %early, label %spin_more, label %sleep
spin_more:                                       ; after the first tenth, let another thread have the core if it waits for one
  %left = sub i64 %limit, %now
  %fresh = icmp sgt i64 %left, 90000
  br i1 %fresh, label %burst, label %give_way
give_way:
  %yielded = call i32 @sched_yield()
  br label %burst
sleep:
  %s = atomicrmw add ptr @lpt_sleepers, i32 1 seq_cst
  %number = load i64, ptr @lpt_futex_number
  ; FUTEX_WAIT | FUTEX_PRIVATE; returns at once if the generation has changed meanwhile
  %status = call i64 (i64, ...) @syscall(i64 %number, ptr @lpt_generation, i32 128, i32 %seen, ptr null, ptr null, i32 0)
  %t = atomicrmw sub ptr @lpt_sleepers, i32 1 seq_cst
  %was_woken = icmp eq i64 %status, 0
  br i1 %was_woken, label %signal, label %woken
signal:
  %u = atomicrmw sub ptr @lpt_signalled, i32 1 seq_cst
  br label %woken
woken:
  %wake.time = call i64 @lpt_now()
  %limit.woken = add i64 %wake.time, 100000
  br label %burst
exit:
  ret i32 %now.generation
}

; A worker that was woken on the caller's processor would wait there until the caller sleeps, beside a processor that is
; idle: ResNet-18 took 16 ms on two threads in such a process, and 7.6 in others. It asks for the other processors that it
; may use, which moves it, and then for all of them again; once a millisecond at most, where all processors are busy.
define internal void @lpt_leave_caller() {
entry:
  %mask = alloca [1024 x i8]
  %caller = load atomic i32, ptr @lpt_caller_processor monotonic, align 4
  %here = call i32 @sched_getcpu()
  %shared = icmp eq i32 %caller, %here
  %known = icmp ult i32 %here, 8192
  %crowded = and i1 %shared, %known
  br i1 %crowded, label %clock, label %done
clock:
  %now = call i64 @lpt_now()
  %last = load atomic i64, ptr @lpt_moved monotonic, align 8
  %since = sub i64 %now, %last
  %rarely = icmp sgt i64 %since, 1000000
  br i1 %rarely, label %ask, label %done
ask:
  store atomic i64 %now, ptr @lpt_moved monotonic, align 8
  call void @llvm.memset.p0.i64(ptr %mask, i8 0, i64 1024, i1 false)
  %got = call i32 @sched_getaffinity(i32 0, i64 1024, ptr %mask)
  %failed = icmp slt i32 %got, 0
  br i1 %failed, label %done, label %move
move:
  %byte = lshr i32 %here, 3
  %bit = and i32 %here, 7
  %bit.narrow = trunc i32 %bit to i8
  %only = shl i8 1, %bit.narrow
  %others = xor i8 %only, -1
  %byte.at = getelementptr i8, ptr %mask, i32 %byte
  %allowed = load i8, ptr %byte.at
  %without = and i8 %allowed, %others
  store i8 %without, ptr %byte.at
  %status = call i32 @sched_setaffinity(i32 0, i64 1024, ptr %mask)      ; refused where there is no other processor
  store i8 %allowed, ptr %byte.at
  %restored = call i32 @sched_setaffinity(i32 0, i64 1024, ptr %mask)
  br label %done
done:
  ret void
}

; The life of a worker. `start` is the generation before the job that it was started for.
define internal ptr @lpt_worker(ptr %start) {
entry:
  %state = call i64 @lpt_float_state_default()
  %start.wide = ptrtoint ptr %start to i64
  %start.generation = trunc i64 %start.wide to i32
  %start.time = call i64 @lpt_now()
  %start.deadline = add i64 %start.time, 100000
  br label %wait
wait:
  %seen = phi i32 [ %start.generation, %entry ], [ %generation, %full ], [ %generation, %worked ]
  %deadline = phi i64 [ %start.deadline, %entry ], [ %deadline, %full ], [ %deadline.next, %worked ]
  %generation = call i32 @lpt_await(i32 %seen, i64 %deadline)
  %seats = atomicrmw sub ptr @lpt_seats, i32 1 monotonic
  %admitted = icmp sgt i32 %seats, 0
  br i1 %admitted, label %work, label %full
full:
  br label %wait
work:
  call void @lpt_leave_caller()
  %done = call i64 @lpt_work(i64 4294967295)
  br label %worked
worked:
  %now = call i64 @lpt_now()
  %deadline.next = add i64 %now, 100000
  br label %wait
}

; Starts workers until there are `wanted`; fewer if the system refuses. Only the owner of the pool calls this.
define internal void @lpt_start_workers(i32 %wanted) {
entry:
  %all = alloca [128 x i8]
  %mask = alloca [128 x i8]
  %thread = alloca i64
  %have = load i32, ptr @lpt_workers
  %enough = icmp sge i32 %have, %wanted
  br i1 %enough, label %done, label %block
block:                                           ; signals are for the program's own threads
  call void @llvm.memset.p0.i64(ptr %all, i8 -1, i64 128, i1 false)
  %blocked = call i32 @pthread_sigmask(i32 2, ptr %all, ptr %mask)
  %generation = load i32, ptr @lpt_generation
  %generation.wide = zext i32 %generation to i64
  %argument = inttoptr i64 %generation.wide to ptr
  br label %next
next:
  %count = phi i32 [ %have, %block ], [ %count.next, %started ]
  %more = icmp slt i32 %count, %wanted
  br i1 %more, label %start, label %restore
start:
  %status = call i32 @pthread_create(ptr %thread, ptr null, ptr @lpt_worker, ptr %argument)
  %refused = icmp ne i32 %status, 0
  br i1 %refused, label %restore, label %started
started:
  %handle = load i64, ptr %thread
  %detached = call i32 @pthread_detach(i64 %handle)
  %count.next = add i32 %count, 1
  br label %next
restore:
  store i32 %count, ptr @lpt_workers
  %restored = call i32 @pthread_sigmask(i32 2, ptr %mask, ptr null)
  br label %done
done:
  ret void
}

; The page that the kernel wipes in a child of fork; made once. Null if there is no memory.
define internal ptr @lpt_make_fork_page() {
entry:
  ; PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS; 64 KB is a multiple of every page size
  %page = call ptr @mmap(ptr null, i64 65536, i32 3, i32 34, i32 -1, i64 0)
  %address = ptrtoint ptr %page to i64
  %failed = icmp eq i64 %address, -1
  br i1 %failed, label %refuse, label %advise
refuse:
  ret ptr null
advise:
  %status = call i32 @madvise(ptr %page, i64 65536, i32 18)     ; MADV_WIPEONFORK
  %wiping = icmp eq i32 %status, 0
  br i1 %wiping, label %publish, label %remember
remember:                                        ; kernels before 4.14: compare process numbers instead
  %pid = call i32 @getpid()
  store atomic i32 %pid, ptr @lpt_owner monotonic, align 4
  br label %publish
publish:
  %exchange = cmpxchg ptr @lpt_fork_page, ptr null, ptr %page acq_rel acquire
  %won = extractvalue { ptr, i1 } %exchange, 1
  %other = extractvalue { ptr, i1 } %exchange, 0
  br i1 %won, label %mine, label %theirs
mine:
  ret ptr %page
theirs:
  %unmapped = call i32 @munmap(ptr %page, i64 65536)
  ret ptr %other
}

; Whether the pool belongs to this process; makes it anew in a process that has none. False: run alone this time.
define internal i1 @lpt_pool_ready() {
entry:
  %page = load atomic ptr, ptr @lpt_fork_page acquire, align 8
  %first = icmp eq ptr %page, null
  br i1 %first, label %make_page, label %test
make_page:
  %made = call ptr @lpt_make_fork_page()
  %no_memory = icmp eq ptr %made, null
  br i1 %no_memory, label %alone, label %revive
test:
  %owner = load atomic i32, ptr @lpt_owner monotonic, align 4
  %wiping = icmp eq i32 %owner, 0
  br i1 %wiping, label %look, label %compare
compare:
  %pid = call i32 @getpid()
  %same = icmp eq i32 %pid, %owner
  br i1 %same, label %look, label %adopt
adopt:                                           ; a child of fork: exactly one of its threads resets the page
  %adopted = cmpxchg ptr @lpt_owner, i32 %owner, i32 %pid acq_rel acquire
  %adopting = extractvalue { i32, i1 } %adopted, 1
  br i1 %adopting, label %reset_page, label %alone
reset_page:
  store atomic i32 0, ptr %page release, align 4
  br label %revive
look:
  %marker = load atomic i32, ptr %page acquire, align 4
  %ready = icmp eq i32 %marker, 1
  br i1 %ready, label %yes, label %revive
yes:
  ret i1 true
revive:
  %here = phi ptr [ %made, %make_page ], [ %page, %reset_page ], [ %page, %look ]
  %claimed = cmpxchg ptr %here, i32 0, i32 2 acq_rel acquire
  %winner = extractvalue { i32, i1 } %claimed, 1
  br i1 %winner, label %reset, label %alone
reset:
  store atomic i32 0, ptr @lpt_workers monotonic, align 4
  store atomic i32 0, ptr @lpt_sleepers monotonic, align 4
  store atomic i32 0, ptr @lpt_signalled monotonic, align 4
  store atomic i32 0, ptr @lpt_seats monotonic, align 4
  store atomic i64 0, ptr @lpt_unclaimed monotonic, align 8
  store atomic i64 0, ptr @lpt_unfinished monotonic, align 8
  store atomic i32 0, ptr @lpt_busy monotonic, align 4
  store atomic i32 1, ptr %here release, align 4
  ret i1 true
alone:
  ret i1 false
}

; Wakes up to `wanted` of the workers that sleep and have not been woken yet.
define internal void @lpt_wake(i32 %wanted) {
entry:
  %sleepers = load atomic i32, ptr @lpt_sleepers seq_cst, align 4
  %signalled = load atomic i32, ptr @lpt_signalled seq_cst, align 4
  %asleep = sub i32 %sleepers, %signalled
  %count = call i32 @llvm.smin.i32(i32 %asleep, i32 %wanted)
  %any = icmp sgt i32 %count, 0
  br i1 %any, label %wake, label %done
wake:
  %s = atomicrmw add ptr @lpt_signalled, i32 %count seq_cst
  %number = load i64, ptr @lpt_futex_number
  ; FUTEX_WAKE | FUTEX_PRIVATE
  %woken.wide = call i64 (i64, ...) @syscall(i64 %number, ptr @lpt_generation, i32 129, i32 %count, ptr null, ptr null, i32 0)
  %woken = trunc i64 %woken.wide to i32
  %missed = sub i32 %count, %woken
  %t = atomicrmw sub ptr @lpt_signalled, i32 %missed seq_cst
  br label %done
done:
  ret void
}

; How many chunks a job has: of at most about `grain` iterations, unless that makes more than 64 for each thread; and, where
; there are more chunks than threads, as many for each thread, so that 5 equal chunks on 2 threads become 6 smaller ones.
; A kernel gives the same bits however its range is cut.
define internal i64 @lpt_chunks(i64 %extent, i64 %grain, i32 %threads) {
entry:
  %up = sub i64 %grain, 1
  %padded = add i64 %extent, %up
  %wanted = udiv i64 %padded, %grain
  %participants = zext i32 %threads to i64
  %most = mul i64 %participants, 64
  %chunks = call i64 @llvm.smin.i64(i64 %wanted, i64 %most)
  %few = icmp sle i64 %chunks, %participants
  br i1 %few, label %done, label %round
round:
  %threads.up = sub i64 %participants, 1
  %raised = add i64 %chunks, %threads.up
  %rounds = udiv i64 %raised, %participants
  %even = mul i64 %rounds, %participants
  %possible = call i64 @llvm.smin.i64(i64 %even, i64 %extent)
  br label %done
done:
  %result = phi i64 [ %chunks, %entry ], [ %possible, %round ]
  ret i64 %result
}

; Runs a job on the caller and up to `threads - 1` workers; on the caller alone if the pool is busy.
define internal void @lpt_fork_join(ptr %kernel, ptr %frame, i64 %extent, i64 %grain, i32 %threads) {
entry:
  %ready = call i1 @lpt_pool_ready()
  br i1 %ready, label %acquire, label %alone
acquire:
  %locked = cmpxchg ptr @lpt_busy, i32 0, i32 1 acquire monotonic
  %mine = extractvalue { i32, i1 } %locked, 1
  br i1 %mine, label %publish, label %alone
alone:
  call void %kernel(ptr %frame, i64 0, i64 %extent)
  ret void
publish:
  %chunks = call i64 @lpt_chunks(i64 %extent, i64 %grain, i32 %threads)
  %others = sub i32 %threads, 1
  %useful.wide = sub i64 %chunks, 1
  %others.wide = zext i32 %others to i64
  %helpers.wide = call i64 @llvm.smin.i64(i64 %useful.wide, i64 %others.wide)
  %helpers = trunc i64 %helpers.wide to i32
  call void @lpt_start_workers(i32 %helpers)
  %frame.at = getelementptr %lpt_job_type, ptr @lpt_job, i32 0, i32 1
  %extent.at = getelementptr %lpt_job_type, ptr @lpt_job, i32 0, i32 2
  %chunks.at = getelementptr %lpt_job_type, ptr @lpt_job, i32 0, i32 3
  store ptr %kernel, ptr @lpt_job
  store ptr %frame, ptr %frame.at
  store i64 %extent, ptr %extent.at
  store i64 %chunks, ptr %chunks.at
  %here = call i32 @sched_getcpu()
  store atomic i32 %here, ptr @lpt_caller_processor monotonic, align 4
  %share.at = getelementptr %lpt_job_type, ptr @lpt_job, i32 0, i32 4
  %participants = add i64 %helpers.wide, 1
  %share = udiv i64 %chunks, %participants
  store i64 %share, ptr %share.at
  store atomic i64 %chunks, ptr @lpt_unfinished monotonic, align 8
  store atomic i32 %helpers, ptr @lpt_seats monotonic, align 4
  store atomic i64 %chunks, ptr @lpt_unclaimed release, align 8
  %g = atomicrmw add ptr @lpt_generation, i32 1 seq_cst
  call void @lpt_wake(i32 %helpers)
  %done = call i64 @lpt_work(i64 -1)
  br label %join
join:
  %k = phi i32 [ 0, %publish ], [ %k.next, %pause ], [ %k, %yield ]
  %unfinished = load atomic i64, ptr @lpt_unfinished acquire, align 8
  %finished = icmp sle i64 %unfinished, 0
  br i1 %finished, label %release, label %wait
wait:
  %patient = icmp slt i32 %k, 256
  br i1 %patient, label %pause, label %yield
pause:
  call void @lpt_pause()
  %k.next = add i32 %k, 1
  br label %join
yield:                                           ; a worker lost its core: let it have ours
  %yielded = call i32 @sched_yield()
  br label %join
release:
  store atomic i32 0, ptr @lpt_busy release, align 4
  ret void
}
