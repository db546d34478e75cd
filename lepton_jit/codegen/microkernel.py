"""The micro-kernel of every contraction: one register tile of C = epilogue(sum of A * B), as explicit vector code.

Each element of C is one sequential chain of multiply-adds over (k2, k1, k0), k0 fastest, whatever the tile: its bits do
not depend on tile height or width, on masks, or on how K is cut into blocks (`accumulate` goes on from C).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from llvmlite import ir

from lepton_jit.codegen.target import Target
from lepton_jit.errors import ArgumentError

I64 = ir.IntType(64)
POINTER = ir.PointerType()
ELEMENTS = {"f32": ir.FloatType(), "f64": ir.DoubleType()}
BITS = {"f32": 32, "f64": 64}

ARGUMENTS = ("a", "b", "c", "shape", "row_offsets", "extras", "row", "column")

# The i64 table behind the argument `shape`; steps and strides count elements.
SHAPE = (
    *("n2", "a2", "b2"),  # outermost sum: trip count (at least 1), step of A, step of B
    *("n1", "a1", "b1"),
    *("n0", "a0", "b0"),  # innermost; a0 and b0 are read only where the kernel does not fix them
    "a_row",  # from one row of A to the next (layout "strided")
    "b_panel",  # from one panel of B to the next
    "c_row",  # from one row of C to the next
    "active",  # lanes of the last vector that exist (masked kernels), 1..lanes
)

ALayout = Literal["strided", "rows", "table", "columns"]


@dataclass(frozen=True)
class Fragment:
    """The part of a tile that one accumulator holds, as an epilogue sees it.

    `row` and `column` (in elements) are relative to the tile; `mask` says which lanes exist, None for all of them.
    """

    row: int
    column: int
    type: ir.VectorType
    mask: ir.Value | None

    def load(self, builder: ir.IRBuilder, pointer: ir.Value) -> ir.Value:
        """Read the lanes of this fragment that exist; the others are zero."""
        if self.mask is None:
            return builder.load(pointer, align=_element_bytes(self.type), typ=self.type)
        return _masked_load(builder, pointer, self.type, self.mask)

    def store(self, builder: ir.IRBuilder, value: ir.Value, pointer: ir.Value) -> None:
        """Write the lanes of this fragment that exist."""
        if self.mask is None:
            builder.store(value, pointer, align=_element_bytes(self.type))
        else:
            _masked_store(builder, value, pointer, self.mask)


Epilogue = Callable[[ir.IRBuilder, ir.Value, Fragment], ir.Value]


@dataclass(frozen=True)
class MicroKernel:
    """What is fixed when a micro-kernel is compiled; all else (trip counts, strides) is read from `shape` at run time.

    Element (row i, k) of A lies at `a +`

    - `"strided"`: `i*a_row + k2*a2 + k1*a1 + k0`
    - `"rows"`: `row_offsets[i] + k2*a2 + k1*a1 + k0`, so that a tile's rows may jump (convolution across image lines)
    - `"table"`: `row_offsets[i] + k2*a2 + k1*a1 + k0*a0`
    - `"columns"`: `i + k2*a2 + k1*a1 + k0*a0` (the weight gradient)

    and vector v of B at `b + (v // panel_vectors)*b_panel + (v % panel_vectors)*lanes + k2*b2 + k1*b1 + k0*b0`, where
    `b_packed` fixes b0 to the width of a panel. With `masked`, only `active` lanes of the last vector of C are read and
    written; with `b_masked` the same lanes of B. `accumulate` starts from C instead of zero.
    """

    target: Target
    dtype: Literal["f32", "f64"]
    rows: int
    vectors: int
    panel_vectors: int
    a_layout: ALayout = "rows"
    b_packed: bool = True
    masked: bool = False
    b_masked: bool = False
    accumulate: bool = False

    def __post_init__(self) -> None:
        if self.dtype not in ELEMENTS:
            raise ArgumentError(f"micro-kernel: dtype: expected 'f32' or 'f64', got {self.dtype!r}")
        if self.a_layout not in ALayout.__args__:
            raise ArgumentError(f"micro-kernel: a_layout: expected one of {ALayout.__args__}, got {self.a_layout!r}")
        if min(self.rows, self.vectors, self.panel_vectors) < 1:
            sizes = f"{self.rows} x {self.vectors}, panels of {self.panel_vectors}"
            raise ArgumentError(f"micro-kernel: expected at least one row, vector and vector a panel, got {sizes}")
        if self.b_masked and not self.masked:
            raise ArgumentError("micro-kernel: expected `masked` with `b_masked`, got `b_masked` alone")

    @property
    def lanes(self) -> int:
        """Elements of one vector."""
        return self.target.lanes(BITS[self.dtype])

    @property
    def width(self) -> int:
        """Columns of C that the tile covers."""
        return self.vectors * self.lanes


def emit_microkernel(
    module: ir.Module, kernel: MicroKernel, name: str, epilogue: Epilogue | None = None
) -> ir.Function:
    """Add `void name(ptr a, ptr b, ptr c, ptr shape, ptr row_offsets, ptr extras, i64 row, i64 column)` to `module`.

    `epilogue` is called while emitting, once for each accumulator, row by row and after the sums; what it returns is
    stored. It reaches the arguments by `builder.function.args` (order: ARGUMENTS), and a value that it emitted for row 0
    may be used for the rows below.
    """
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [POINTER] * 6 + [I64] * 2), name)
    function.attributes.add("nounwind")
    for argument, argument_name in zip(function.args, ARGUMENTS, strict=True):
        argument.name = argument_name
    _Emitter(kernel, function).emit(epilogue)
    return function


@dataclass(frozen=True)
class _Group:
    """Neighbouring vectors of one panel as one wide value, which LLVM splits into registers.

    Half the instructions to emit, parse and select, and the same machine code: 14 x 2 vectors take 2.8 ms to emit and
    9 ms to compile, against 3.1 and 12 ms with one value a register.
    """

    panel: int
    vector: int
    vectors: int
    masked: bool


def _groups(kernel: MicroKernel) -> list[_Group]:
    """Groups of 2**n vectors (others are not split evenly); a masked last vector stands alone."""
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


@dataclass
class _Variable:
    """A loop-carried value: its phi in the body and what each block that jumps there hands on."""

    phi: ir.PhiInstr
    start: ir.Value
    step0: ir.Value | None = None
    step1: ir.Value | None = None
    step2: ir.Value | None = None


class _ZeroMask(ir.Constant):
    """A shuffle mask of zeros (broadcast), printed short: the text of 32 zeros costs more than the instruction."""

    def get_reference(self) -> str:
        return "zeroinitializer"
