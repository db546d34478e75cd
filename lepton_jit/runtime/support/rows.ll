; Rows of a table in another order: how shuffled batches are gathered, and how a program goes through many of them.

%lpt_rows_type = type {
  ptr,         ; 0  source
  ptr,         ; 1  i64[count]: which row of it
  i64,         ; 2  bytes of a row
  ptr          ; 3  destination
}

@lpt_rows_chunk = internal constant i64 32768      ; bytes that a thread copies at a time: about 3 us

; Copies the 8 rows whose numbers stand at %rows, 128 bytes of each at a time: as many places of memory are under way as
; a core can wait for. %ahead is how many row numbers further on 8 more stand, whose first lines are asked for meanwhile:
; a processor does not foresee a jump. 64 rows of 2,000 bytes take 11 us of memory, one after the other 17.
define internal void @lpt_copy_eight(ptr %source, ptr %rows, i64 %ahead, i64 %bytes, ptr %destination) {
entry:
  %sources = alloca [8 x ptr]
  %whole = and i64 %bytes, -128
  %rest = and i64 %bytes, 127
  br label %find
find:
  %f = phi i64 [ 0, %entry ], [ %f.next, %find ]
  %number.at = getelementptr i64, ptr %rows, i64 %f
  %number = load i64, ptr %number.at
  %offset = mul i64 %number, %bytes
  %found = getelementptr i8, ptr %source, i64 %offset
  %slot = getelementptr [8 x ptr], ptr %sources, i64 0, i64 %f
  store ptr %found, ptr %slot
  %ahead.at = getelementptr i64, ptr %number.at, i64 %ahead
  %ahead.number = load i64, ptr %ahead.at
  %ahead.offset = mul i64 %ahead.number, %bytes
  %ahead.row = getelementptr i8, ptr %source, i64 %ahead.offset
  %ahead.line = getelementptr i8, ptr %ahead.row, i64 64
  call void @llvm.prefetch.p0(ptr %ahead.row, i32 0, i32 2, i32 1)
  call void @llvm.prefetch.p0(ptr %ahead.line, i32 0, i32 2, i32 1)
  %f.next = add i64 %f, 1
  %f.more = icmp ult i64 %f.next, 8
  br i1 %f.more, label %find, label %piece
piece:
  %at = phi i64 [ 0, %find ], [ %at.next, %piece.done ]
  %at.more = icmp ult i64 %at, %whole
  br i1 %at.more, label %row, label %tail
row:
  %r = phi i64 [ 0, %piece ], [ %r.next, %row ]
  %r.slot = getelementptr [8 x ptr], ptr %sources, i64 0, i64 %r
  %r.source = load ptr, ptr %r.slot
  %r.from = getelementptr i8, ptr %r.source, i64 %at
  %r.offset = mul i64 %r, %bytes
  %r.place = add i64 %r.offset, %at
  %r.to = getelementptr i8, ptr %destination, i64 %r.place
  %some = load <128 x i8>, ptr %r.from, align 1
  store <128 x i8> %some, ptr %r.to, align 1
  %r.next = add i64 %r, 1
  %r.more = icmp ult i64 %r.next, 8
  br i1 %r.more, label %row, label %piece.done
piece.done:
  %at.next = add i64 %at, 128
  br label %piece
tail:
  %t = phi i64 [ 0, %piece ], [ %t.next, %tail ]
  %t.slot = getelementptr [8 x ptr], ptr %sources, i64 0, i64 %t
  %t.source = load ptr, ptr %t.slot
  %t.from = getelementptr i8, ptr %t.source, i64 %whole
  %t.offset = mul i64 %t, %bytes
  %t.place = add i64 %t.offset, %whole
  %t.to = getelementptr i8, ptr %destination, i64 %t.place
  call void @llvm.memcpy.p0.p0.i64(ptr %t.to, ptr %t.from, i64 %rest, i1 false)
  %t.next = add i64 %t, 1
  %t.more = icmp ult i64 %t.next, 8
  br i1 %t.more, label %tail, label %done
done:
  ret void
}

define internal void @lpt_copy_rows(ptr %frame, i64 %begin, i64 %end) {
entry:
  %rows.at = getelementptr %lpt_rows_type, ptr %frame, i32 0, i32 1
  %bytes.at = getelementptr %lpt_rows_type, ptr %frame, i32 0, i32 2
  %destination.at = getelementptr %lpt_rows_type, ptr %frame, i32 0, i32 3
  %source = load ptr, ptr %frame
  %rows = load ptr, ptr %rows.at
  %bytes = load i64, ptr %bytes.at
  %destination = load ptr, ptr %destination.at
  %short = icmp sle i64 %bytes, 4096                ; a processor foresees the lines of longer ones
  br label %next
next:
  %i = phi i64 [ %begin, %entry ], [ %i.eight, %eight ], [ %i.one, %one ]
  %row.at = getelementptr i64, ptr %rows, i64 %i
  %to.offset = mul i64 %i, %bytes
  %to = getelementptr i8, ptr %destination, i64 %to.offset
  %i.one = add i64 %i, 1
  %i.eight = add i64 %i, 8
  %i.sixteen = add i64 %i, 16
  %fits = icmp sle i64 %i.eight, %end
  %together = and i1 %short, %fits
  br i1 %together, label %eight, label %alone
eight:
  %more.eight = icmp sle i64 %i.sixteen, %end
  %ahead = select i1 %more.eight, i64 8, i64 0
  call void @lpt_copy_eight(ptr %source, ptr %row.at, i64 %ahead, i64 %bytes, ptr %to)
  br label %next
alone:
  %more = icmp slt i64 %i, %end
  br i1 %more, label %one, label %done
one:
  %row = load i64, ptr %row.at
  %from.offset = mul i64 %row, %bytes
  %from = getelementptr i8, ptr %source, i64 %from.offset
  call void @llvm.memcpy.p0.p0.i64(ptr %to, ptr %from, i64 %bytes, i1 false)
  br label %next
done:
  ret void
}

; destination[i] = source[rows[i]] for i in 0 ... count - 1. Does not check the rows.
define void @lpt_gather_rows(i32 %threads, ptr %source, ptr %rows, i64 %count, i64 %bytes, ptr %destination) {
entry:
  %frame = alloca %lpt_rows_type
  %rows.at = getelementptr %lpt_rows_type, ptr %frame, i32 0, i32 1
  %bytes.at = getelementptr %lpt_rows_type, ptr %frame, i32 0, i32 2
  %destination.at = getelementptr %lpt_rows_type, ptr %frame, i32 0, i32 3
  store ptr %source, ptr %frame
  store ptr %rows, ptr %rows.at
  store i64 %bytes, ptr %bytes.at
  store ptr %destination, ptr %destination.at
  %chunk = load i64, ptr @lpt_rows_chunk
  %divisor = call i64 @llvm.smax.i64(i64 %bytes, i64 1)
  %fitting = udiv i64 %chunk, %divisor
  %eights = and i64 %fitting, -8
  %some = icmp ne i64 %eights, 0
  %few = call i64 @llvm.smax.i64(i64 %fitting, i64 1)
  %grain = select i1 %some, i64 %eights, i64 %few
  %alone = icmp sle i32 %threads, 1
  %single = icmp sge i64 %grain, %count
  %inline = or i1 %alone, %single
  br i1 %inline, label %here, label %fork
here:
  call void @lpt_copy_rows(ptr %frame, i64 0, i64 %count)
  ret void
fork:
  call void @lpt_fork_join(ptr @lpt_copy_rows, ptr %frame, i64 %count, i64 %grain, i32 %threads)
  ret void
}

%lpt_column_type = type {
  ptr,         ; 0  the rows of all batches
  ptr,         ; 1  where the rows of one batch are gathered
  i64          ; 2  bytes of a row
}

; Runs a program on `batches` of `rows` rows each, which are its first `count` inputs, from row `first` on: as they
; stand, or, if `order` is not null, row number i is order[i]. Stops at the first error, whose code it returns.
define i32 @lpt_run_batches(ptr %run, ptr %ctx, ptr %dims, ptr %params, ptr %inputs, ptr %outputs, ptr %columns, i64 %count, ptr %order, i64 %first, i64 %rows, i64 %batches) {
entry:
  %shuffled = icmp ne ptr %order, null
  %threads = call i32 @lpt_context_threads(ptr %ctx)
  br label %batch
batch:
  %b = phi i64 [ 0, %entry ], [ %b.next, %next.batch ]
  %b.more = icmp slt i64 %b, %batches
  %passed = mul i64 %b, %rows
  %at = add i64 %first, %passed
  br i1 %b.more, label %column, label %done
column:
  %c = phi i64 [ 0, %batch ], [ %c.next, %next.column ]
  %c.more = icmp slt i64 %c, %count
  br i1 %c.more, label %feed, label %run.batch
feed:
  %source.at = getelementptr %lpt_column_type, ptr %columns, i64 %c, i32 0
  %gathered.at = getelementptr %lpt_column_type, ptr %columns, i64 %c, i32 1
  %bytes.at = getelementptr %lpt_column_type, ptr %columns, i64 %c, i32 2
  %source = load ptr, ptr %source.at
  %bytes = load i64, ptr %bytes.at
  %slot = getelementptr ptr, ptr %inputs, i64 %c
  br i1 %shuffled, label %gather, label %in.place
gather:
  %numbers = getelementptr i64, ptr %order, i64 %at
  %gathered = load ptr, ptr %gathered.at
  call void @lpt_gather_rows(i32 %threads, ptr %source, ptr %numbers, i64 %rows, i64 %bytes, ptr %gathered)
  br label %next.column
in.place:
  %offset = mul i64 %at, %bytes
  %standing = getelementptr i8, ptr %source, i64 %offset
  br label %next.column
next.column:
  %here = phi ptr [ %gathered, %gather ], [ %standing, %in.place ]
  store ptr %here, ptr %slot
  %c.next = add i64 %c, 1
  br label %column
run.batch:
  %code = call i32 %run(ptr %ctx, ptr %dims, ptr %params, ptr %inputs, ptr %outputs)
  %failed = icmp ne i32 %code, 0
  br i1 %failed, label %stop, label %next.batch
next.batch:
  %b.next = add i64 %b, 1
  br label %batch
stop:
  ret i32 %code
done:
  ret i32 0
}
