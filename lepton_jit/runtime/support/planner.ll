; The memory planner: offsets for intervals of time with a size each, so that intervals that share a step do not overlap in memory.

; One plan in the making. Arrays have one entry a buffer.
%lpt_planner = type {
  i64,   ; 0  n
  ptr,   ; 1  i64 sizes, rounded up to 64 bytes
  ptr,   ; 2  i32 first step
  ptr,   ; 3  i32 last step
  ptr,   ; 4  i64 offsets of the current trial
  ptr,   ; 5  i64 scratch: placed buffers, by offset
  ptr    ; 6  i64 scratch: sort keys
}

@lpt_size_limit = internal constant i64 70368744177664   ; 2^46: more than any arena, and sums stay far from overflow

; The largest live set: the most bytes that are alive at the start of any buffer.
define internal i64 @lpt_lower_bound(i64 %n, ptr %sizes, ptr %first, ptr %last) {
entry:
  br label %outer
outer:
  %i = phi i64 [ 0, %entry ], [ %i.next, %outer.end ]
  %bound = phi i64 [ 0, %entry ], [ %bound.next, %outer.end ]
  %outer.more = icmp slt i64 %i, %n
  br i1 %outer.more, label %start, label %done
start:
  %start.at = getelementptr i32, ptr %first, i64 %i
  %step = load i32, ptr %start.at
  br label %inner
inner:
  %j = phi i64 [ 0, %start ], [ %j.next, %inner.body ]
  %live = phi i64 [ 0, %start ], [ %live.next, %inner.body ]
  %inner.more = icmp slt i64 %j, %n
  br i1 %inner.more, label %inner.body, label %outer.end
inner.body:
  %first.at = getelementptr i32, ptr %first, i64 %j
  %last.at = getelementptr i32, ptr %last, i64 %j
  %size.at = getelementptr i64, ptr %sizes, i64 %j
  %first.j = load i32, ptr %first.at
  %last.j = load i32, ptr %last.at
  %size = load i64, ptr %size.at
  %begun = icmp sle i32 %first.j, %step
  %unfinished = icmp sge i32 %last.j, %step
  %alive = and i1 %begun, %unfinished
  %counted = select i1 %alive, i64 %size, i64 0
  %live.next = add i64 %live, %counted
  %j.next = add i64 %j, 1
  br label %inner
outer.end:
  %bound.next = call i64 @llvm.smax.i64(i64 %bound, i64 %live)
  %i.next = add i64 %i, 1
  br label %outer
done:
  ret i64 %bound
}

; Sorts `order` by decreasing key, keeping the order of equal keys (insertion sort: n is a few hundred).
define internal void @lpt_sort(i64 %n, ptr %order, ptr %keys) {
entry:
  br label %outer
outer:
  %i = phi i64 [ 1, %entry ], [ %i.next, %insert ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %take, label %done
take:
  %item.at = getelementptr i64, ptr %order, i64 %i
  %item = load i64, ptr %item.at
  %key.at = getelementptr i64, ptr %keys, i64 %item
  %key = load i64, ptr %key.at
  br label %inner
inner:
  %hole = phi i64 [ %i, %take ], [ %left, %shift ]
  %left = sub i64 %hole, 1
  %at_start = icmp eq i64 %hole, 0
  br i1 %at_start, label %insert, label %compare
compare:
  %left.at = getelementptr i64, ptr %order, i64 %left
  %left.item = load i64, ptr %left.at
  %left.key.at = getelementptr i64, ptr %keys, i64 %left.item
  %left.key = load i64, ptr %left.key.at
  %smaller = icmp slt i64 %left.key, %key
  br i1 %smaller, label %shift, label %insert
shift:
  %hole.at = getelementptr i64, ptr %order, i64 %hole
  store i64 %left.item, ptr %hole.at
  br label %inner
insert:
  %end.at = getelementptr i64, ptr %order, i64 %hole
  store i64 %item, ptr %end.at
  %i.next = add i64 %i, 1
  br label %outer
done:
  ret void
}

; The offset for one buffer: the smallest gap that fits between the placed buffers that it meets, else behind the last of them.
define internal i64 @lpt_best_fit(ptr %planner, i64 %buffer, i64 %placed_count) {
entry:
  %sizes.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 1
  %first.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 2
  %last.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 3
  %offsets.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 4
  %placed.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 5
  %sizes = load ptr, ptr %sizes.at
  %first = load ptr, ptr %first.at
  %last = load ptr, ptr %last.at
  %offsets = load ptr, ptr %offsets.at
  %placed = load ptr, ptr %placed.at
  %size.at = getelementptr i64, ptr %sizes, i64 %buffer
  %size = load i64, ptr %size.at
  %mine.first.at = getelementptr i32, ptr %first, i64 %buffer
  %mine.last.at = getelementptr i32, ptr %last, i64 %buffer
  %mine.first = load i32, ptr %mine.first.at
  %mine.last = load i32, ptr %mine.last.at
  br label %next
next:
  %k = phi i64 [ 0, %entry ], [ %k.next, %skip ]
  %free_from = phi i64 [ 0, %entry ], [ %free_from.next, %skip ]        ; end of the occupied part so far
  %best = phi i64 [ -1, %entry ], [ %best.next, %skip ]
  %best_gap = phi i64 [ 9223372036854775807, %entry ], [ %best_gap.next, %skip ]
  %more = icmp slt i64 %k, %placed_count
  br i1 %more, label %look, label %done
look:
  %other.at = getelementptr i64, ptr %placed, i64 %k
  %other = load i64, ptr %other.at
  %other.first.at = getelementptr i32, ptr %first, i64 %other
  %other.last.at = getelementptr i32, ptr %last, i64 %other
  %other.first = load i32, ptr %other.first.at
  %other.last = load i32, ptr %other.last.at
  %begun = icmp sle i32 %other.first, %mine.last
  %not_over = icmp sge i32 %other.last, %mine.first
  %meet = and i1 %begun, %not_over
  br i1 %meet, label %gap, label %skip
gap:
  %other.offset.at = getelementptr i64, ptr %offsets, i64 %other
  %other.offset = load i64, ptr %other.offset.at
  %other.size.at = getelementptr i64, ptr %sizes, i64 %other
  %other.size = load i64, ptr %other.size.at
  %other.end = add i64 %other.offset, %other.size
  %room = sub i64 %other.offset, %free_from
  %fits = icmp sge i64 %room, %size
  %tighter = icmp slt i64 %room, %best_gap
  %better = and i1 %fits, %tighter
  %best.new = select i1 %better, i64 %free_from, i64 %best
  %best_gap.new = select i1 %better, i64 %room, i64 %best_gap
  %free_from.new = call i64 @llvm.smax.i64(i64 %free_from, i64 %other.end)
  br label %skip
skip:
  %free_from.next = phi i64 [ %free_from, %look ], [ %free_from.new, %gap ]
  %best.next = phi i64 [ %best, %look ], [ %best.new, %gap ]
  %best_gap.next = phi i64 [ %best_gap, %look ], [ %best_gap.new, %gap ]
  %k.next = add i64 %k, 1
  br label %next
done:
  %none = icmp slt i64 %best, 0
  %offset = select i1 %none, i64 %free_from, i64 %best
  ret i64 %offset
}

; Places all buffers in the given order into `offsets` of the planner; returns the bytes needed.
define internal i64 @lpt_place(ptr %planner, ptr %order) {
entry:
  %n = load i64, ptr %planner
  %sizes.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 1
  %offsets.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 4
  %placed.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 5
  %sizes = load ptr, ptr %sizes.at
  %offsets = load ptr, ptr %offsets.at
  %placed = load ptr, ptr %placed.at
  br label %next
next:
  %k = phi i64 [ 0, %entry ], [ %k.next, %insert ]
  %total = phi i64 [ 0, %entry ], [ %total.next, %insert ]
  %more = icmp slt i64 %k, %n
  br i1 %more, label %place, label %done
place:
  %buffer.at = getelementptr i64, ptr %order, i64 %k
  %buffer = load i64, ptr %buffer.at
  %offset = call i64 @lpt_best_fit(ptr %planner, i64 %buffer, i64 %k)
  %offset.at = getelementptr i64, ptr %offsets, i64 %buffer
  store i64 %offset, ptr %offset.at
  %size.at = getelementptr i64, ptr %sizes, i64 %buffer
  %size = load i64, ptr %size.at
  %end = add i64 %offset, %size
  %total.next = call i64 @llvm.smax.i64(i64 %total, i64 %end)
  br label %search
search:                                          ; insert into `placed`, which stays sorted by offset
  %hole = phi i64 [ %k, %place ], [ %left, %shift ]
  %left = sub i64 %hole, 1
  %at_start = icmp eq i64 %hole, 0
  br i1 %at_start, label %insert, label %compare
compare:
  %left.at = getelementptr i64, ptr %placed, i64 %left
  %left.buffer = load i64, ptr %left.at
  %left.offset.at = getelementptr i64, ptr %offsets, i64 %left.buffer
  %left.offset = load i64, ptr %left.offset.at
  %behind = icmp sgt i64 %left.offset, %offset
  br i1 %behind, label %shift, label %insert
shift:
  %hole.at = getelementptr i64, ptr %placed, i64 %hole
  store i64 %left.buffer, ptr %hole.at
  br label %search
insert:
  %slot.at = getelementptr i64, ptr %placed, i64 %hole
  store i64 %buffer, ptr %slot.at
  %k.next = add i64 %k, 1
  br label %next
done:
  ret i64 %total
}

; Fills `order` with 0 ... n-1 sorted by one of four keys, the largest first:
; 0 size, 1 duration (ties: size), 2 size * duration, 3 earliest first step.
define internal void @lpt_order(ptr %planner, ptr %order, i32 %criterion) {
entry:
  %n = load i64, ptr %planner
  %sizes.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 1
  %first.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 2
  %last.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 3
  %keys.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 6
  %sizes = load ptr, ptr %sizes.at
  %first = load ptr, ptr %first.at
  %last = load ptr, ptr %last.at
  %keys = load ptr, ptr %keys.at
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i.next, %store ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %key, label %sort
key:
  %order.at = getelementptr i64, ptr %order, i64 %i
  store i64 %i, ptr %order.at
  %size.at = getelementptr i64, ptr %sizes, i64 %i
  %size = load i64, ptr %size.at
  %first.i.at = getelementptr i32, ptr %first, i64 %i
  %first.i = load i32, ptr %first.i.at
  %last.i.at = getelementptr i32, ptr %last, i64 %i
  %last.i = load i32, ptr %last.i.at
  %span = sub i32 %last.i, %first.i
  %steps = add i32 %span, 1
  %duration = zext i32 %steps to i64
  switch i32 %criterion, label %by_start [ i32 0, label %store
                                           i32 1, label %by_duration
                                           i32 2, label %by_area ]
by_duration:                                     ; 47 bits for the size, which is below 2^46
  %duration.high = shl i64 %duration, 47
  %duration.key = or i64 %duration.high, %size
  br label %store
by_area:                                         ; in units of 64 bytes, so that 2^40 * 2^23 fits
  %lines = lshr i64 %size, 6
  %area = mul i64 %lines, %duration
  br label %store
by_start:
  %earlier = sub i32 0, %first.i
  %start.key = sext i32 %earlier to i64
  br label %store
store:
  %value = phi i64 [ %size, %key ], [ %duration.key, %by_duration ], [ %area, %by_area ], [ %start.key, %by_start ]
  %key.at = getelementptr i64, ptr %keys, i64 %i
  store i64 %value, ptr %key.at
  %i.next = add i64 %i, 1
  br label %next
sort:
  call void @lpt_sort(i64 %n, ptr %order, ptr %keys)
  ret void
}

; Moves the buffer that reaches `total`, the last such in the order, forward: to half its position, or to the front.
define internal void @lpt_promote(ptr %planner, ptr %order, i64 %total, i1 %to_front) {
entry:
  %n = load i64, ptr %planner
  %sizes.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 1
  %offsets.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 4
  %sizes = load ptr, ptr %sizes.at
  %offsets = load ptr, ptr %offsets.at
  br label %search
search:
  %k = phi i64 [ %n, %entry ], [ %position, %look ]
  %position = sub i64 %k, 1
  %any = icmp sgt i64 %k, 0
  br i1 %any, label %look, label %done
look:
  %buffer.at = getelementptr i64, ptr %order, i64 %position
  %buffer = load i64, ptr %buffer.at
  %size.at = getelementptr i64, ptr %sizes, i64 %buffer
  %size = load i64, ptr %size.at
  %offset.at = getelementptr i64, ptr %offsets, i64 %buffer
  %offset = load i64, ptr %offset.at
  %end = add i64 %offset, %size
  %peak = icmp eq i64 %end, %total
  br i1 %peak, label %move, label %search
move:
  %half = lshr i64 %position, 1
  %target = select i1 %to_front, i64 0, i64 %half
  %from.at = getelementptr i64, ptr %order, i64 %target
  %to.at = getelementptr i64, ptr %from.at, i64 1
  %count = sub i64 %position, %target
  %bytes = mul i64 %count, 8
  call void @llvm.memmove.p0.p0.i64(ptr %to.at, ptr %from.at, i64 %bytes, i1 false)
  store i64 %buffer, ptr %from.at
  br label %done
done:
  ret void
}

; Rounds sizes up to 64 bytes; returns 0, or -2 if one is negative or above the limit.
define internal i64 @lpt_round_sizes(i64 %n, ptr %sizes, ptr %rounded) {
entry:
  %limit = load i64, ptr @lpt_size_limit
  br label %next
next:
  %i = phi i64 [ 0, %entry ], [ %i.next, %body ]
  %bad = phi i1 [ false, %entry ], [ %bad.next, %body ]
  %more = icmp slt i64 %i, %n
  br i1 %more, label %body, label %done
body:
  %size.at = getelementptr i64, ptr %sizes, i64 %i
  %size = load i64, ptr %size.at
  %refused = icmp ugt i64 %size, %limit          ; unsigned: negative sizes too
  %bad.next = or i1 %bad, %refused
  %up = add i64 %size, 63
  %round = and i64 %up, -64
  %rounded.at = getelementptr i64, ptr %rounded, i64 %i
  store i64 %round, ptr %rounded.at
  %i.next = add i64 %i, 1
  br label %next
done:
  %code = select i1 %bad, i64 -2, i64 0
  ret i64 %code
}

; i64 sizes[n], i32 first[n], i32 last[n] -> i64 offsets[n]. Returns the arena's bytes, -1 (no memory) or -2 (a size out of range).
define i64 @lpt_plan(i64 %n, ptr %sizes, ptr %first, ptr %last, ptr %offsets) {
entry:
  %planner = alloca %lpt_planner
  %array = mul i64 %n, 8
  %rows = mul i64 %array, 5
  %bytes = add i64 %rows, 8
  %scratch = call ptr @malloc(i64 %bytes)
  %no_memory = icmp eq ptr %scratch, null
  br i1 %no_memory, label %refuse, label %set_up
refuse:
  ret i64 -1
set_up:
  %trial = getelementptr i8, ptr %scratch, i64 %array
  %placed = getelementptr i8, ptr %trial, i64 %array
  %keys = getelementptr i8, ptr %placed, i64 %array
  %order = getelementptr i8, ptr %keys, i64 %array
  %sizes.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 1
  %first.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 2
  %last.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 3
  %offsets.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 4
  %placed.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 5
  %keys.at = getelementptr %lpt_planner, ptr %planner, i32 0, i32 6
  store i64 %n, ptr %planner
  store ptr %scratch, ptr %sizes.at
  store ptr %first, ptr %first.at
  store ptr %last, ptr %last.at
  store ptr %trial, ptr %offsets.at
  store ptr %placed, ptr %placed.at
  store ptr %keys, ptr %keys.at
  %sizes_code = call i64 @lpt_round_sizes(i64 %n, ptr %sizes, ptr %scratch)
  %sizes_good = icmp eq i64 %sizes_code, 0
  br i1 %sizes_good, label %measure, label %finish
measure:
  %bound = call i64 @lpt_lower_bound(i64 %n, ptr %scratch, ptr %first, ptr %last)
  ; Attempts for each of the four orders: 100 up to n = 100, 11 at n = 300 (at most 5 ms in all), then 6.
  %at_least_one = call i64 @llvm.smax.i64(i64 %n, i64 1)
  %square = mul i64 %at_least_one, %at_least_one
  %affordable = udiv i64 1000000, %square
  %not_many = call i64 @llvm.smin.i64(i64 %affordable, i64 100)
  %not_few = call i64 @llvm.smax.i64(i64 %not_many, i64 6)
  %attempts = trunc i64 %not_few to i32
  br label %criterion
criterion:
  %c = phi i32 [ 0, %measure ], [ %c.next, %next_criterion ]
  %best.in = phi i64 [ 9223372036854775807, %measure ], [ %best.out, %next_criterion ]
  %c.more = icmp slt i32 %c, 4
  br i1 %c.more, label %sort, label %finish
sort:
  call void @lpt_order(ptr %planner, ptr %order, i32 %c)
  br label %attempt
attempt:
  %a = phi i32 [ 0, %sort ], [ %a.next, %promote ]
  %best = phi i64 [ %best.in, %sort ], [ %best.new, %promote ]
  %total = call i64 @lpt_place(ptr %planner, ptr %order)
  %better = icmp slt i64 %total, %best
  br i1 %better, label %keep, label %judge
keep:
  call void @llvm.memcpy.p0.p0.i64(ptr %offsets, ptr %trial, i64 %array, i1 false)
  br label %judge
judge:
  %best.new = phi i64 [ %best, %attempt ], [ %total, %keep ]
  %perfect = icmp sle i64 %best.new, %bound
  br i1 %perfect, label %finish, label %again
again:
  %a.next = add i32 %a, 1
  %a.more = icmp slt i32 %a.next, %attempts
  br i1 %a.more, label %promote, label %next_criterion
promote:
  %odd = trunc i32 %a to i1
  call void @lpt_promote(ptr %planner, ptr %order, i64 %total, i1 %odd)
  br label %attempt
next_criterion:
  %best.out = phi i64 [ %best.new, %again ]
  %c.next = add i32 %c, 1
  br label %criterion
finish:
  %result = phi i64 [ %sizes_code, %set_up ], [ %best.in, %criterion ], [ %best.new, %judge ]
  call void @free(ptr %scratch)
  ret i64 %result
}
