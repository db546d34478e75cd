; Rows of a table in another order: how shuffled batches are gathered, and how a program goes through many of them.

%lpt_rows_type = type {
  ptr,         ; 0  source
  ptr,         ; 1  i64[count]: which row of it
  i64,         ; 2  bytes of a row
  ptr          ; 3  destination
}

@lpt_rows_chunk = internal constant i64 32768      ; bytes that a thread copies at a time: about 3 us

; Asks for the first lines of a row, up to a page, while another one is copied: a processor does not foresee a jump.
define internal void @lpt_prefetch_row(ptr %row, i64 %bytes) {
entry:
  %length = call i64 @llvm.smin.i64(i64 %bytes, i64 4096)
  br label %next
next:
  %at = phi i64 [ 0, %entry ], [ %at.next, %body ]
  %more = icmp slt i64 %at, %length
  br i1 %more, label %body, label %done
body:
  %line = getelementptr i8, ptr %row, i64 %at
  call void @llvm.prefetch.p0(ptr %line, i32 0, i32 2, i32 1)
  %at.next = add i64 %at, 64
  br label %next
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
  br label %next
next:
  %i = phi i64 [ %begin, %entry ], [ %i.next, %copy ]
  %more = icmp slt i64 %i, %end
  br i1 %more, label %body, label %done
body:
  %i.next = add i64 %i, 1
  %last = icmp eq i64 %i.next, %end
  br i1 %last, label %copy, label %ahead
ahead:
  %next.at = getelementptr i64, ptr %rows, i64 %i.next
  %next.row = load i64, ptr %next.at
  %next.offset = mul i64 %next.row, %bytes
  %next.source = getelementptr i8, ptr %source, i64 %next.offset
  call void @lpt_prefetch_row(ptr %next.source, i64 %bytes)
  br label %copy
copy:
  %row.at = getelementptr i64, ptr %rows, i64 %i
  %row = load i64, ptr %row.at
  %from.offset = mul i64 %row, %bytes
  %to.offset = mul i64 %i, %bytes
  %from = getelementptr i8, ptr %source, i64 %from.offset
  %to = getelementptr i8, ptr %destination, i64 %to.offset
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
  %grain = call i64 @llvm.smax.i64(i64 %fitting, i64 1)
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
