"""The loop IR: one kernel at a time, as loops over buffers with affine indices, scalars and explicit vectors.

    kernel    = name(buffer...) parallel t in 0..extent grain g { stmt... }
    stmt      = let | store | loop | if | report | fetch | contract
    let       = var = expr
    expr      = op(atom...) | load | index | horizontal | trn
    load      = buffer[affine] (lane i reads affine + i*step, or affine + offsets[i]) where mask else other
    store     = buffer[affine] = atom where mask
    loop      = for var in affine..affine step int carry (var = init -> next)... { stmt... }
    if        = if atom { stmt... } else { stmt... }
    report    = report code at affine                 bad data; the run ends after this kernel
    fetch     = fetch buffer[affine]                   prefetch of a cache line
    contract  = call of a micro-kernel: a register tile of a contraction
    atom      = var | constant
    affine    = dim + dim*var + ...          with i64 variables; dims are polynomials of the program's symbols

Every variable is defined once. Nothing here decides: schedules do, and emission only translates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lepton_jit.ir.types import DTYPES, THREADS_NAME, Dim, DType, Poly, dim_value

I64 = DTYPES["i64"]
BOOL = DTYPES["bool"]


@dataclass(frozen=True)
class Var:
    """A scalar or vector that a statement defines."""

    name: str
    dtype: DType
    lanes: int = 1

    def __hash__(self) -> int:
        return hash(self.name)


@dataclass(frozen=True)
class Const:
    """A number, the same in every lane; 0.0 and -0.0 are different ones."""

    value: float | int | bool
    dtype: DType
    lanes: int = 1

    def _key(self) -> tuple[str, DType, int]:
        return repr(self.value), self.dtype, self.lanes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Const) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(repr(self.value))


Atom = Var | Const


@dataclass(frozen=True)
class Affine:
    """`constant + sum(coefficient * variable)`.

    >>> Affine.var("i") * 32 + 4
    32*i + 4
    """

    terms: tuple[tuple[str, Dim], ...] = ()
    constant: Dim = 0

    @staticmethod
    def var(name: str) -> Affine:
        return Affine(((name, 1),))

    @staticmethod
    def of(value: Affine | Dim) -> Affine:
        return value if isinstance(value, Affine) else Affine((), value)

    def __add__(self, other: Affine | Dim) -> Affine:
        other = Affine.of(other)
        terms = dict(self.terms)
        for name, coefficient in other.terms:
            terms[name] = coefficient + terms.get(name, 0)
        return Affine(tuple((n, c) for n, c in terms.items() if c != 0), self.constant + other.constant)

    def __mul__(self, factor: Dim) -> Affine:
        if factor == 0:
            return Affine()
        return Affine(tuple((n, c * factor) for n, c in self.terms), self.constant * factor)

    def __sub__(self, other: Affine | Dim) -> Affine:
        return self + Affine.of(other) * -1

    def coefficient(self, name: str) -> Dim:
        return dict(self.terms).get(name, 0)

    def value(self, variables: Mapping[str, int], symbols: Mapping[str, int]) -> int:
        return dim_value(self.constant, symbols) + sum(dim_value(c, symbols) * variables[n] for n, c in self.terms)

    def __repr__(self) -> str:
        parts = [n if c == 1 else f"({c})*{n}" if isinstance(c, Poly) else f"{c}*{n}" for n, c in self.terms]
        if self.constant != 0 or not parts:
            parts.append(repr(self.constant))
        return " + ".join(parts)


@dataclass(frozen=True)
class Apply:
    """A machine primitive on atoms; scalars are repeated to the result's lanes. `detail` is a comparison's relation."""

    op: str
    args: tuple[Atom, ...]
    detail: str = ""


@dataclass(frozen=True)
class Load:
    """Lane i reads `buffer[index + i*step]`; lanes whose mask is false read nothing and give `other`.

    With `offsets`, a vector of i64, lane i reads `buffer[index + offsets[i]]` in place of that.
    """

    buffer: str
    index: Affine
    step: Dim = 1
    mask: Atom | None = None
    other: Atom | None = None
    offsets: Var | None = None


@dataclass(frozen=True)
class Index:
    """The i64 values `index + i*step` of the lanes i."""

    index: Affine
    step: Dim = 0


@dataclass(frozen=True)
class Horizontal:
    """The lanes of a vector combined by `op`, halves first: ((0+4)+(2+6)) + ((1+5)+(3+7))."""

    op: str
    arg: Atom


@dataclass(frozen=True)
class Trn:
    """Interleaves two vectors by parts of `width` lanes: parts 0 of both, parts 2 of both, ...; `odd`: 1, 3, ...

    These are AArch64's TRN1 and TRN2, of which transpositions are made.
    """

    first: Atom
    second: Atom
    width: int
    odd: bool


Expr = Apply | Load | Index | Horizontal | Trn


@dataclass(frozen=True)
class Let:
    var: Var
    expr: Expr


@dataclass(frozen=True)
class Store:
    """Lane i writes `buffer[index + i]`; a scalar is repeated to `lanes`."""

    buffer: str
    index: Affine
    value: Atom
    lanes: int = 1
    mask: Atom | None = None


@dataclass(frozen=True)
class Carry:
    """A variable that a loop carries: `init` at first, `next` after each iteration, the last value after the loop."""

    var: Var
    init: Atom
    next: Atom


@dataclass(frozen=True)
class Loop:
    """A loop that runs from `start` while var < stop; `step` is positive."""

    var: str
    start: Affine
    stop: Affine
    step: int
    body: tuple[Stmt, ...]
    carries: tuple[Carry, ...] = ()


@dataclass(frozen=True)
class If:
    condition: Atom
    then: tuple[Stmt, ...]
    orelse: tuple[Stmt, ...] = ()


@dataclass(frozen=True)
class Report:
    """Reports bad data at the element `index`: the program ends after this kernel, with the error code `code`."""

    code: int
    index: Affine


@dataclass(frozen=True)
class Fetch:
    """Prefetches the cache line of `buffer[index]`, which may lie outside of the buffer; changes no value."""

    buffer: str
    index: Affine


@dataclass(frozen=True)
class Extra:
    """An operand of a tile's epilogue: element (i, j) reads `buffer[index + row_step*i + column_step*j]`."""

    buffer: str
    index: Affine
    row_step: Dim
    column_step: int  # 0 or 1


@dataclass(frozen=True)
class Epilogue:
    """The operations on each accumulator before it is stored: `body` computes `result` from `args`.

    args[0] is the accumulator, args[1:] are the values of the extras.
    """

    args: tuple[Var, ...]
    body: tuple[Let, ...]
    result: Atom


@dataclass(frozen=True)
class TileShape:
    """The shape of a micro-kernel: what is compiled once and shared by all calls of one program."""

    dtype: DType
    vectors: int
    panel_vectors: int
    masked: bool  # only part of the last vector's lanes exist
    rhs_masked: bool  # B may not be read beyond them: it is not padded
    epilogue: Epilogue | None
    extra_steps: tuple[int, ...] = ()  # column_step of every extra


@dataclass(frozen=True)
class Contract:
    """A call of a micro-kernel: out[out_index + out_row*i + j] = epilogue(sum_{k2,k1,k0} lhs * rhs), `rows` rows of it.

    lhs element: lhs_index + row_offset(i) + sum(k * lhs_step); rhs element: rhs_index + column(j) + sum(k * rhs_step),
    where column j of a tile of several panels of width w lies at j // w * rhs_panel + j % w.
    row_offset(i) is `rows_apart * i`, or entry `row_start + i` of the table `rows_apart`. `accumulate`: the sum goes on
    from what `out` holds. With `ahead` = (buffer, index, step), the tile prefetches, after its n-th innermost sum, the
    lines of that buffer at `index + n*step`, which a later tile will need; with step 0 it asks for the same ones again.
    With `fetch` it prefetches its lines of a large result before the sums. Neither changes a value.
    """

    tile: TileShape
    rows: int | Var
    heights: tuple[int, ...]  # the values that `rows` can have
    columns: Affine  # active columns, at most vectors * lanes
    lhs: tuple[str, Affine]
    rhs: tuple[str, Affine]
    out: tuple[str, Affine]
    out_row: Dim
    sums: tuple[tuple[Affine, Dim, Dim], ...]  # (extent, lhs step, rhs step), outermost first; at most three
    rows_apart: Dim | tuple[int, ...]
    row_start: Affine
    accumulate: bool
    rhs_panel: Dim = 0
    extras: tuple[Extra, ...] = ()
    ahead: tuple[str, Affine, Affine] | None = None
    fetch: bool = False


Stmt = Let | Store | Loop | If | Report | Fetch | Contract

# The number of threads that share the iterations of a kernel: a symbol of every program. Kernels decide by it which
# iteration computes what, and nothing else.
THREADS = Poly((((THREADS_NAME,), 1),))


Role = Literal["operand", "result", "scratch"]
_ROLES: dict[str, Role] = {"a": "operand", "o": "result", "s": "scratch"}


@dataclass(frozen=True)
class Buffer:
    """An array of `size` elements, whose name begins with the letter of its role: `a0`, `a1`, `o0`, `s0`."""

    name: str
    dtype: DType
    size: Dim

    @property
    def role(self) -> Role:
        return _ROLES[self.name[0]]


@dataclass(frozen=True)
class CeilDiv:
    """An extent of ceil(dividend / divisor) times a factor."""

    dividend: Dim
    divisor: int
    factor: Dim = 1

    def value(self, symbols: Mapping[str, int]) -> int:
        return -(-dim_value(self.dividend, symbols) // self.divisor) * dim_value(self.factor, symbols)


Extent = Dim | CeilDiv


@dataclass(frozen=True)
class Slices:
    """The batch slices of a kernel: iterations n*count ... (n+1)*count - 1 compute index n of the leading dimension.

    They read only index n of the buffers in `local`, so two such kernels can run slice by slice.
    """

    count: int
    local: frozenset[str]


def slices_of(kernel: Kernel) -> Dim:
    """The number of slices of a kernel that has any: its iterations over those of one slice."""
    assert kernel.slices is not None
    assert not isinstance(kernel.extent, CeilDiv)
    return kernel.extent // kernel.slices.count


@dataclass(frozen=True)
class Reach:
    """The part of an operand that a row reads: row r lies in line y = r // per % lines of image r // per // lines.

    It reads the operand's lines y*stride - low up to y*stride - low + taps of the same image, as far as they exist in
    0..size; each has `width` elements, and images of the operand lie one behind the other.
    """

    per: int
    lines: int
    size: int
    width: int
    stride: int = 1
    low: int = 0
    taps: int = 1


@dataclass(frozen=True)
class Progress:
    """The order in which a kernel finishes rows of its result, so that it and its reader can run strip by strip.

    Iterations g*each ... (g+1)*each - 1 finish the units g*U//G up to (g+1)*U//G, each of `unit` rows, where G is
    extent / each. There are `count` rows of `width` elements one behind the other, which are U units; the last one may
    be smaller. `reads` says which rows of which operands a row reads.
    """

    each: int
    count: Dim
    width: int
    reads: tuple[tuple[str, Reach], ...]
    unit: int = 1


@dataclass(frozen=True)
class Kernel:
    """A parallel loop: `body` runs for every value of the i64 variable `t` in 0..extent, in any order, on any thread.

    Where `turning` is 1, iterations run in serpentine order: every other run on one thread begins at the end, so that
    it reads first what the run before has left in a cache.
    """

    name: str
    buffers: tuple[Buffer, ...]
    extent: Extent
    grain: int
    body: tuple[Stmt, ...]
    layer: str = ""
    flops: Dim = 0
    slices: Slices | None = None
    progress: Progress | None = None
    turning: Dim = 0


def walk(body: Iterable[Stmt]) -> Iterable[Stmt]:
    """Yield all statements, outer before inner."""
    for stmt in body:
        yield stmt
        if isinstance(stmt, Loop):
            yield from walk(stmt.body)
        elif isinstance(stmt, If):
            yield from walk(stmt.then)
            yield from walk(stmt.orelse)
