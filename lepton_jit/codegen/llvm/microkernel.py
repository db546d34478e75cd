"""The micro-kernel of every contraction: one register tile of C = epilogue(sum of A * B), as explicit vector code.

Each element of C is one sequential chain of multiply-adds over (k2, k1, k0), k0 fastest, whatever the tile: its bits do
not depend on tile height or width, on masks, or on how K is cut into blocks (`accumulate` goes on from C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from llvmlite import ir
from llvmlite.ir.values import ArgumentAttributes

from lepton_jit.codegen.contraction.requests import LINES_AHEAD
from lepton_jit.codegen.llvm.emit_primitives import declared
from lepton_jit.codegen.target import FAR_ELEMENTS, LINE_BYTES, Target
from lepton_jit.errors import ArgumentError

# llvmlite's annotations give no value a type and no arithmetic a result.
Value = Any

I64 = ir.IntType(64)
POINTER = ir.PointerType()
ELEMENTS = {"f32": ir.FloatType(), "f64": ir.DoubleType()}
BITS = {"f32": 32, "f64": 64}

A_STEPS_AHEAD = 16

ARGUMENTS = ("a", "b", "c", "shape", "row_offsets", "extras", "row", "column")

# The i64 table behind the argument `shape`; steps and strides count elements.
SHAPE = (
    *("n2", "a2", "b2"),  # outermost sum: trip count (at least 1), step of A, step of B
    *("n1", "a1", "b1"),
    *("n0", "a0", "b0"),  # innermost
    "b_panel",  # from one panel of B to the next
    "c_row",  # from one row of C to the next
    "active",  # lanes of the last vector that exist (masked kernels), 1..lanes
    *("ahead", "ahead_step"),  # kernels with `ahead`: the address of lines that a later tile will need, and its step
    "c_size",  # elements of the whole C (kernels with `fetch`)
)

ALayout = Literal["rows", "columns"]


@dataclass(frozen=True)
class Fragment:
    """The part of a tile that one accumulator holds, as an epilogue sees it.

    `row` and `column` (in elements) are relative to the tile; `mask` says which lanes exist, None for all of them.
    """

    row: int
    column: int
    type: ir.VectorType
    mask: Value | None

    def load(self, builder: ir.IRBuilder, pointer: Value) -> Value:
        """Read the lanes of this fragment that exist; the others are zero."""
        if self.mask is None:
            return builder.load(pointer, align=_element_bytes(self.type), typ=self.type)
        return _masked_load(builder, pointer, self.type, self.mask)

    def store(self, builder: ir.IRBuilder, value: Value, pointer: Value) -> None:
        """Write the lanes of this fragment that exist."""
        if self.mask is None:
            builder.store(value, pointer, align=_element_bytes(self.type))
        else:
            _masked_store(builder, value, pointer, self.mask)


Epilogue = Callable[[ir.IRBuilder, Value, Fragment], Value]


@dataclass(frozen=True)
class MicroKernel:
    """The constants of a micro-kernel; all else (trip counts, strides) is read from `shape` at run time.

    Its addresses, in elements:

    - A, element (row i, k): `a + offset(i) + k2*a2 + k1*a1 + k0*a0`, where offset(i) is `row_offsets[i]` in "rows" (so
      the rows of a tile may jump: a convolution across image lines) and i in "columns" (a weight gradient, or packed A)
    - B, vector v of k: `b + (v // panel_vectors)*b_panel + (v % panel_vectors)*lanes + k2*b2 + k1*b1 + k0*b0`
    - C, row i, vector v: `c + i*c_row + v*lanes`

    With `masked`, only `active` lanes of the last vector of C are read and written; with `b_masked` also of B (where a
    target has no masked loads, each lane becomes a branch: pack B instead). `accumulate` starts from C, not from zero.
    `prefetch` is the distance in bytes at which B is prefetched; 0 leaves that out. With `ahead`, what a later tile
    needs from DRAM is prefetched after the n-th innermost sum, at `ahead + n*ahead_step`. With `fetch`, the lines of C
    are prefetched before the sums where C is too large for a cache.

    A sum of few products, all known, is unrolled: `terms` are the distances of their factors from `a` and `b`, in
    order, `row_step` that of neighbouring rows of A; trip counts, steps and `row_offsets` are then not read.

    Steps and strides at run time cost nothing, and unrolling k0 gains nothing (docs/measurements.md, micro-kernel).
    """

    target: Target
    dtype: Literal["f32", "f64"]
    rows: int
    vectors: int
    panel_vectors: int
    a_layout: ALayout = "rows"
    masked: bool = False
    b_masked: bool = False
    accumulate: bool = False
    prefetch: int = 2048
    ahead: bool = False
    fetch: bool = False
    terms: tuple[tuple[int, int], ...] = ()
    row_step: int = 0

    def __post_init__(self) -> None:
        if self.dtype not in ELEMENTS:
            raise ArgumentError(f"micro-kernel: dtype: expected 'f32' or 'f64', got {self.dtype!r}")
        if self.a_layout not in get_args(ALayout):
            raise ArgumentError(f"micro-kernel: a_layout: expected one of {get_args(ALayout)}, got {self.a_layout!r}")
        if min(self.rows, self.vectors, self.panel_vectors) < 1:
            sizes = f"{self.rows} x {self.vectors}, panels of {self.panel_vectors}"
            raise ArgumentError(f"micro-kernel: expected at least one row, vector and vector a panel, got {sizes}")
        if self.b_masked and not self.masked:
            raise ArgumentError("micro-kernel: expected `masked` with `b_masked`, got `b_masked` alone")

    @property
    def lanes(self) -> int:
        """The elements of one vector."""
        return self.target.lanes(BITS[self.dtype])

    @property
    def width(self) -> int:
        """The columns of C that the tile covers."""
        return self.vectors * self.lanes


def emit_microkernel(
    module: ir.Module,
    kernel: MicroKernel,
    name: str,
    epilogue: Epilogue | None = None,
    prologue: Callable[[ir.IRBuilder, Fragment], None] | None = None,
) -> ir.Function:
    """Add `void name(ptr a, ptr b, ptr c, ptr shape, ptr row_offsets, ptr extras, i64 row, i64 column)` to `module`.

    `epilogue` is called while emitting, once for each accumulator, row by row and after the sums; what it returns is
    stored. It reaches the arguments by `builder.function.args` (order: ARGUMENTS), and may use a value that it emitted
    for row 0 in the rows below. `prologue` is called in the same order, before the sums.
    """
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER] * 6 + [I64] * 2), name)
    function.attributes.add("nounwind")
    for argument, argument_name in zip(function.args, ARGUMENTS, strict=True):
        argument.name = argument_name
    _Emitter(kernel, function).emit(epilogue, prologue)
    return function


@dataclass(frozen=True)
class _Group:
    """Neighbouring vectors of one panel as one wide value, which LLVM splits into registers.

    That halves the instructions to emit, parse and select, and gives the same machine code in three quarters of the
    time.
    """

    panel: int
    within: int  # its first vector, counted in the panel
    vectors: int
    masked: bool


def _groups(kernel: MicroKernel) -> list[_Group]:
    """Group vectors by 2**n (others are not split evenly); a masked last vector stands alone."""
    whole = kernel.vectors - kernel.masked
    groups = []
    vector = 0
    while vector < whole:
        panel, within = divmod(vector, kernel.panel_vectors)
        rest = min(kernel.panel_vectors - within, whole - vector)
        size = 1 << (rest.bit_length() - 1)
        groups.append(_Group(panel, within, size, False))
        vector += size
    if kernel.masked:
        groups.append(_Group(*divmod(whole, kernel.panel_vectors), 1, True))
    return groups


class _ZeroMask(ir.Constant):
    """A shuffle mask of zeros (broadcast), printed short: the text of 32 zeros costs more than the instruction."""

    def get_reference(self) -> str:
        return "zeroinitializer"


@dataclass(frozen=True)
class _Walk:
    """The position of one loop in A and B, and the iterations that are left: values carried around `body`."""

    a: ir.PhiInstr
    b: ir.PhiInstr
    left: ir.PhiInstr

    def enter(self, a: Value, b: Value, left: Value, block: ir.Block) -> None:
        for phi, value in ((self.a, a), (self.b, b), (self.left, left)):
            phi.add_incoming(value, block)


class _Emitter:
    """Emits three summation loops around one block, `body`, which every loop's latch branches back to.

    So each accumulator needs one phi instead of three, and LLVM finds the loop nest again by itself.
    """

    def __init__(self, kernel: MicroKernel, function: ir.Function) -> None:
        self.kernel = kernel
        self.function = function
        self.builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.element = ELEMENTS[kernel.dtype]
        self.scalar = ir.VectorType(self.element, 1)
        self.groups = _groups(kernel)
        self.fragment_types = [ir.VectorType(self.element, g.vectors * kernel.lanes) for g in self.groups]
        self.splat_masks = {t.count: _ZeroMask(ir.VectorType(ir.IntType(32), t.count), 0) for t in self.fragment_types}
        self.poison = ir.Constant(self.scalar, ir.Undefined)
        self.fused = kernel.target.name == "aarch64" or "fma" in kernel.target.required
        self.mask: Value | None = None

    def emit(self, epilogue: Epilogue | None, prologue: Callable[[ir.IRBuilder, Fragment], None] | None) -> None:
        builder = self.builder
        a, b, c = self.function.args[:3]
        if self.kernel.masked:
            self.mask = self.lane_mask()
        if self.kernel.terms:
            self.emit_terms(a, b, c, epilogue)
            return
        body, next1, next2, finish = (self.function.append_basic_block(n) for n in ("body", "next1", "next2", "finish"))
        self.row_offsets = self.load_row_offsets()
        self.panel_offsets = self.load_panel_offsets()
        innermost_steps = self.shape("a0"), self.shape("b0")
        trips = [self.shape(f"n{level}") for level in range(3)]
        starts = [self.initial_row(row) for row in range(self.kernel.rows)]
        far_start = builder.inttoptr(self.shape("ahead"), POINTER) if self.kernel.ahead else None
        if prologue:
            for fragment in (f for row in range(self.kernel.rows) for f in self.fragments(row)):
                prologue(builder, fragment)
        if self.kernel.fetch:
            self.fetch_c(c)
        entry: Any = builder.block
        builder.branch(body)

        builder.position_at_end(body)
        walk = [_Walk(*(builder.phi(t) for t in (POINTER, POINTER, I64))) for _ in range(3)]
        sums = [[builder.phi(t) for t in self.fragment_types] for _ in starts]
        far = far_next = builder.phi(POINTER) if self.kernel.ahead else None
        totals = self.multiply_add(walk[0].a, walk[0].b, sums)
        for level in range(3):
            walk[level].enter(a, b, trips[level], entry)
        for level, (latch, after) in enumerate(((body, next1), (next1, next2), (next2, finish))):
            builder.position_at_end(latch)
            a_step, b_step = innermost_steps if level == 0 else (self.shape(f"a{level}"), self.shape(f"b{level}"))
            a_next, b_next = self.offset(walk[level].a, a_step), self.offset(walk[level].b, b_step)
            left = builder.sub(walk[level].left, I64(1))
            if far and level == 1:
                far_next = self.prefetch_ahead(far)
            builder.cbranch(builder.icmp_signed("!=", left, I64(0)), body, after)
            for inner in range(level):
                walk[inner].enter(a_next, b_next, trips[inner], latch)
            walk[level].enter(a_next, b_next, left, latch)
            for outer in walk[level + 1 :]:
                outer.enter(outer.a, outer.b, outer.left, latch)
        for row in zip(sums, starts, totals, strict=True):
            for phi, start, total in zip(*row, strict=True):
                for value, block in ((start, entry), (total, body), (total, next1), (total, next2)):
                    phi.add_incoming(value, block)
        if far:
            for value, block in ((far_start, entry), (far, body), (far_next, next1), (far_next, next2)):
                far.add_incoming(value, block)

        builder.position_at_end(finish)
        self.store_tile(c, totals, epilogue)
        builder.ret_void()

    def emit_terms(self, a: Value, b: Value, c: Value, epilogue: Epilogue | None) -> None:
        """Emit a sum without loops.

        The fence, which is no instruction, keeps LLVM from loading factors early or only once, for which registers are
        too few: without it they spill, in the first convolution of an image with 27 products 432 times.
        """
        kernel = self.kernel
        self.row_offsets = [I64(row * kernel.row_step) for row in range(kernel.rows)]
        self.panel_offsets = self.load_panel_offsets()
        totals = [self.initial_row(row) for row in range(kernel.rows)]
        for a_offset, b_offset in kernel.terms:
            self.builder.fence("acq_rel", "singlethread")
            totals = self.multiply_add(self.offset(a, I64(a_offset)), self.offset(b, I64(b_offset)), totals)
        self.store_tile(c, totals, epilogue)
        self.builder.ret_void()

    def multiply_add(self, a: Value, b: Value, sums: Sequence[list[Value]]) -> list[list[Value]]:
        """Emit one k: load the vectors of B, then for each row broadcast an element of A into its multiply-adds."""
        self.prefetch_b(b)
        self.prefetch_a(a)
        right = [self.load_b(b, group, t) for group, t in zip(self.groups, self.fragment_types, strict=True)]
        totals = []
        for row, row_sums in enumerate(sums):
            pointer = self.offset(a, self.row_offsets[row])
            element = self.builder.load(pointer, align=_element_bytes(self.scalar), typ=self.scalar)
            splats = {n: self.builder.shuffle_vector(element, self.poison, m) for n, m in self.splat_masks.items()}
            totals.append([self.fma(splats[t.type.count], t, s) for t, s in zip(right, row_sums, strict=True)])
        return totals

    def load_row_offsets(self) -> list[Value]:
        """The distance of each row of A from the pointer that walks."""
        kernel = self.kernel
        if kernel.a_layout == "columns":
            return [I64(row) for row in range(kernel.rows)]
        return [self.load_i64(self.function.args[4], row) for row in range(kernel.rows)]

    def load_panel_offsets(self) -> list[Value]:
        """The distance of each panel from the first."""
        panels = self.groups[-1].panel + 1
        if panels == 1:
            return [I64(0)]
        stride = self.shape("b_panel")
        return [I64(0), stride, *(self.builder.mul(stride, I64(panel)) for panel in range(2, panels))]

    def prefetch_b(self, b: Value) -> None:
        """Prefetch all lines of B of the product that is `prefetch` bytes ahead.

        A tile of one row prefetches nothing: it is bound by what a cache delivers. Panels that lie in L1 lose nothing
        by it (docs/measurements.md, prefetch of B).
        """
        kernel = self.kernel
        if not kernel.prefetch or kernel.terms or kernel.rows == 1:
            return
        width, line = kernel.panel_vectors * kernel.lanes, LINE_BYTES * 8 // BITS[kernel.dtype]
        distance = kernel.prefetch * 8 // BITS[kernel.dtype]
        for offset in self.panel_offsets:
            for start in range(0, width, line):
                prefetch(self.builder, self.offset(self.offset(b, offset), I64(distance + start)), locality=3)

    def prefetch_a(self, a: Value) -> None:
        """Prefetch the lines of A of the product A_STEPS_AHEAD ahead, in the layout in which each product reads others.

        8 products ahead would be too late for packed rows in L2 (docs/measurements.md, prefetch of A).
        """
        if self.kernel.a_layout != "columns" or self.kernel.terms or not self.kernel.prefetch:
            return
        distance = self.builder.mul(self.shape("a0"), I64(A_STEPS_AHEAD))
        for row in sorted({0, self.kernel.rows - 1}):
            prefetch(self.builder, self.offset(self.offset(a, distance), I64(row)), locality=3)

    def prefetch_ahead(self, far: Value) -> Value:
        """Prefetch a few lines from DRAM into L2; returns the address of the next ones."""
        line = LINE_BYTES * 8 // BITS[self.kernel.dtype]
        for i in range(LINES_AHEAD):
            prefetch(self.builder, self.offset(far, I64(i * line)), locality=2)
        return self.offset(far, self.shape("ahead_step"))

    def fetch_c(self, c: Value) -> None:
        """Prefetch the lines of C, if it is large: the stores of one tile would wait for each of them in turn.

        They go into L2: prefetches into L1 take the miss buffers that the loads of the sums need (docs/measurements.md,
        prefetch of C).
        """
        line = LINE_BYTES * 8 // BITS[self.kernel.dtype]
        with self.builder.if_then(self.builder.icmp_signed(">=", self.shape("c_size"), I64(FAR_ELEMENTS))):
            stride = self.shape("c_row")
            for row in range(self.kernel.rows):
                c = self.offset(c, stride) if row else c
                for start in range(0, self.kernel.width, line):
                    prefetch(self.builder, self.offset(c, I64(start)), locality=2)

    def load_b(self, b: Value, group: _Group, vector: ir.VectorType) -> Value:
        if group.panel:
            b = self.offset(b, self.panel_offsets[group.panel])
        b = self.offset(b, I64(group.within * self.kernel.lanes))
        if group.masked and self.kernel.b_masked:
            assert self.mask is not None
            return _masked_load(self.builder, b, vector, self.mask)
        return self.builder.load(b, align=_element_bytes(vector), typ=vector)

    def fragments(self, row: int) -> list[Fragment]:
        """The fragments of a row, from left to right."""
        kernel = self.kernel
        columns = [(g.panel * kernel.panel_vectors + g.within) * kernel.lanes for g in self.groups]
        masks = [self.mask if g.masked else None for g in self.groups]
        return [Fragment(row, *rest) for rest in zip(columns, self.fragment_types, masks, strict=True)]

    def initial_row(self, row: int) -> list[Value]:
        if not self.kernel.accumulate:
            return [ir.Constant(t, None) for t in self.fragment_types]
        start = self.offset(self.function.args[2], self.builder.mul(self.shape("c_row"), I64(row)))
        return [f.load(self.builder, self.offset(start, I64(f.column))) for f in self.fragments(row)]

    def store_tile(self, c: Value, totals: list[list[Value]], epilogue: Epilogue | None) -> None:
        stride = self.shape("c_row")
        for row, values in enumerate(totals):
            c = self.offset(c, stride) if row else c
            for value, fragment in zip(values, self.fragments(row), strict=True):
                result = epilogue(self.builder, value, fragment) if epilogue else value
                fragment.store(self.builder, result, self.offset(c, I64(fragment.column)))

    def lane_mask(self) -> Value:
        """The mask of the first `active` lanes of one vector."""
        builder, lanes = self.builder, self.kernel.lanes
        index = ir.IntType(BITS[self.kernel.dtype])
        active = self.shape("active")
        active = builder.trunc(active, index) if index.width < 64 else active
        vector = ir.VectorType(index, lanes)
        first = builder.insert_element(ir.Constant(vector, ir.Undefined), active, ir.IntType(32)(0))
        splat = builder.shuffle_vector(first, first, _ZeroMask(ir.VectorType(ir.IntType(32), lanes), 0))
        return builder.icmp_signed("<", ir.Constant(vector, list(range(lanes))), splat)

    def fma(self, x: Value, y: Value, z: Value) -> Value:
        """Emit `x*y + z`, rounded once where the target can."""
        if not self.fused:
            return self.builder.fadd(self.builder.fmul(x, y), z)
        fma = declared(self.function.module, f"llvm.fma.{_suffix(z.type)}", z.type, [z.type] * 3)
        return self.builder.call(fma, [x, y, z])

    def shape(self, key: str) -> Value:
        return self.load_i64(self.function.args[3], SHAPE.index(key))

    def load_i64(self, table: Value, index: int) -> Value:
        pointer = self.builder.gep(table, [I64(index)], source_etype=I64) if index else table
        return self.builder.load(pointer, align=8, typ=I64)

    def offset(self, pointer: Value, elements: Value) -> Value:
        if isinstance(elements, ir.Constant) and elements.constant == 0:
            return pointer
        return self.builder.gep(pointer, [elements], source_etype=self.element)


def _element_bytes(vector: ir.VectorType) -> int:
    return 8 if isinstance(vector.element, ir.DoubleType) else 4


def _suffix(vector: ir.VectorType) -> str:
    return f"v{vector.count}f{8 * _element_bytes(vector)}"


def prefetch(builder: ir.IRBuilder, pointer: Value, locality: int) -> None:
    """Prefetch a line that will be read, into cache number 4 - `locality` and those behind it."""
    i32 = ir.IntType(32)
    function = declared(builder.module, "llvm.prefetch.p0", ir.VoidType(), [POINTER, i32, i32, i32])
    builder.call(function, [pointer, i32(0), i32(locality), i32(1)])


def _masked_load(builder: ir.IRBuilder, pointer: Value, vector: ir.VectorType, mask: Value) -> Value:
    name = f"llvm.masked.load.{_suffix(vector)}.p0"
    load = declared(builder.module, name, vector, [POINTER, mask.type, vector])
    call = builder.call(load, [pointer, mask, ir.Constant(vector, None)])
    call.arg_attributes[0] = _alignment(vector)
    return call


def _masked_store(builder: ir.IRBuilder, value: Value, pointer: Value, mask: Value) -> None:
    name = f"llvm.masked.store.{_suffix(value.type)}.p0"
    store = declared(builder.module, name, ir.VoidType(), [value.type, POINTER, mask.type])
    call = builder.call(store, [value, pointer, mask])
    call.arg_attributes[1] = _alignment(value.type)


def _alignment(vector: ir.VectorType) -> ArgumentAttributes:
    attributes = ArgumentAttributes()
    attributes.align = _element_bytes(vector)
    return attributes
