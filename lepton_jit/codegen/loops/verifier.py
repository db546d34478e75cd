"""Check the invariants of a kernel: names, scopes, types, lanes, buffers and micro-kernel calls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from lepton_jit.codegen.loops.ir import (
    BOOL,
    I64,
    Affine,
    Apply,
    Atom,
    CeilDiv,
    Const,
    Contract,
    Epilogue,
    Expr,
    Fetch,
    Horizontal,
    If,
    Index,
    Kernel,
    Let,
    Load,
    Loop,
    Report,
    Stmt,
    Store,
    Trn,
    Var,
)
from lepton_jit.codegen.loops.printer import print_statement
from lepton_jit.errors import GraphError
from lepton_jit.ir.ops.reduction import KINDS
from lepton_jit.ir.types import DType

__all__ = ["ITERATION", "verify_kernel"]

ITERATION = "t"
MAX_HEIGHT = 64
MAX_SUMS = 3
MAX_CODE = 127  # docs/runtime.md

_FLOAT_ONLY = {"sqrt": 1, "floor": 1, "ceil": 1, "round_nearest_even": 1, "fma": 3}
_INTEGER_ONLY = {
    "and": 2,
    "or": 2,
    "xor": 2,
    "not": 1,
    "shift_left": 2,
    "shift_right_logical": 2,
    "shift_right_arithmetic": 2,
}
_INDEX_ONLY = {"floor_divide": 2, "modulo": 2}
_ANY = {"abs": 1, "negate": 1, "add": 2, "subtract": 2, "multiply": 2, "divide": 2, "remainder": 2}
_ANY |= {"maximum": 2, "minimum": 2, "compare": 2, "select": 3, "convert": 1, "bitcast_convert": 1}
ARITY = {**_FLOAT_ONLY, **_INTEGER_ONLY, **_INDEX_ONLY, **_ANY}
DIRECTIONS = ("EQ", "NE", "LT", "LE", "GT", "GE")


def verify_kernel(kernel: Kernel) -> None:
    """Raise GraphError, naming the kernel and the statement, where one of these does not hold:

    - every variable is defined once, and before its uses, in the block of the use or one around it
    - what a primitive reads and gives has the dtypes of its rule; operands have one lane or those of the result
    - indices are sums of scalar i64 variables, and every buffer is one of the kernel's
    - steps of loops, grain and divisor are positive; loops carry values of the carried variable's type
    - a contraction has up to three sums, heights in increasing order, and an epilogue of primitives
    """
    _Verifier(kernel).run()


class _Verifier:
    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.buffers = {b.name: b.dtype for b in kernel.buffers}
        self.names: set[str] = set()
        self.scopes: list[dict[str, Var]] = [{}]
        self.stmt: Stmt | None = None

    def run(self) -> None:
        kernel = self.kernel
        self.check(len(self.buffers) == len(kernel.buffers), "two buffers have the same name")
        self.check(kernel.grain >= 1, f"expected a positive grain, got {kernel.grain}")
        if isinstance(kernel.extent, CeilDiv):
            self.check(kernel.extent.divisor >= 1, f"expected a positive divisor, got {kernel.extent.divisor}")
        if kernel.slices is not None:
            self.check(kernel.slices.count >= 1, f"expected at least one iteration a slice, got {kernel.slices.count}")
            unknown = sorted(kernel.slices.local - set(self.buffers))
            self.check(not unknown, f"no buffer is called {', '.join(unknown)}")
        if kernel.progress is not None:
            self.check(kernel.progress.each >= 1, f"expected at least one iteration a row, got {kernel.progress.each}")
            unknown = sorted({name for name, _ in kernel.progress.reads} - set(self.buffers))
            self.check(not unknown, f"no buffer is called {', '.join(unknown)}")
        self.define(Var(ITERATION, I64))
        self.block(kernel.body)

    def check(self, holds: bool, message: str) -> None:
        if not holds:
            where = f" `{print_statement(self.stmt).splitlines()[0]}`:" if self.stmt is not None else ""
            raise GraphError(f"kernel {self.kernel.name}:{where} {message}")

    @contextmanager
    def scope(self) -> Iterator[None]:
        self.scopes.append({})
        yield
        self.scopes.pop()

    def define(self, var: Var) -> None:
        self.check(var.name not in self.names, f"%{var.name} is defined twice")
        self.check(var.lanes >= 1, f"expected at least one lane, got {var.lanes}")
        self.names.add(var.name)
        self.scopes[-1][var.name] = var

    def block(self, body: Iterable[Stmt]) -> None:
        for stmt in body:
            self.stmt = stmt
            match stmt:
                case Let():
                    self.expression(stmt.var, stmt.expr)
                    self.define(stmt.var)
                case Store():
                    self.store(stmt)
                case Loop():
                    self.loop(stmt)
                case If():
                    self.atom(stmt.condition, BOOL, 1)
                    for side in (stmt.then, stmt.orelse):
                        with self.scope():
                            self.block(side)
                case Report():
                    self.check(1 <= stmt.code <= MAX_CODE, f"expected a code from 1 to {MAX_CODE}, got {stmt.code}")
                    self.affine(stmt.index)
                case Fetch():
                    self.place(stmt.buffer, stmt.index)
                case Contract():
                    self.contract(stmt)

    def store(self, stmt: Store) -> None:
        dtype = self.place(stmt.buffer, stmt.index)
        self.atom(stmt.value, dtype, stmt.lanes)
        if stmt.mask is not None:
            self.atom(stmt.mask, BOOL, stmt.lanes)

    def loop(self, loop: Loop) -> None:
        self.affine(loop.start)
        self.affine(loop.stop)
        self.check(loop.step >= 1, f"expected a positive step, got {loop.step}")
        for carry in loop.carries:
            self.atom(carry.init, carry.var.dtype, carry.var.lanes)
        for carry in loop.carries:
            self.define(carry.var)
        with self.scope():
            self.define(Var(loop.var, I64))
            self.block(loop.body)
            self.stmt = loop
            for carry in loop.carries:
                self.atom(carry.next, carry.var.dtype, carry.var.lanes)

    # Atoms, indices, expressions

    def atom(self, atom: Atom, dtype: DType, lanes: int) -> None:
        """An operand for a value of `dtype` and `lanes`; a scalar is repeated."""
        self.known(atom)
        self.check(atom.dtype == dtype, f"expected {dtype}, got {atom.dtype} of {_shown(atom)}")
        self.check(atom.lanes in (1, lanes), f"expected 1 or {lanes} lanes, got {atom.lanes} of {_shown(atom)}")

    def known(self, atom: Atom) -> None:
        if isinstance(atom, Var):
            found = self.lookup(atom.name)
            self.check(found == atom, f"%{atom.name} is {found}, but was read as {atom}")

    def lookup(self, name: str) -> Var | None:
        found = next((scope[name] for scope in reversed(self.scopes) if name in scope), None)
        elsewhere = " in this block" if name in self.names else ""
        self.check(found is not None, f"%{name} is read, but nothing before defines it{elsewhere}")
        return found

    def affine(self, index: Affine) -> None:
        names = [name for name, _ in index.terms]
        self.check(len(set(names)) == len(names), f"a variable occurs twice in {index!r}")
        for name in names:
            var = self.lookup(name)
            self.check(var == Var(name, I64), f"expected a scalar i64 in an index, got {var}")

    def place(self, buffer: str, index: Affine) -> DType:
        self.check(buffer in self.buffers, f"no buffer is called {buffer!r}; there are {', '.join(self.buffers)}")
        self.affine(index)
        return self.buffers[buffer]

    def expression(self, var: Var, expr: Expr) -> None:
        match expr:
            case Apply():
                self.apply(var, expr)
            case Load():
                dtype = self.place(expr.buffer, expr.index)
                self.check(var.dtype == dtype, f"expected {dtype}, the dtype of {expr.buffer}, got {var.dtype}")
                if expr.offsets is not None:
                    same = expr.offsets.lanes == var.lanes and expr.step == 1
                    self.check(same, f"expected an offset for each of {var.lanes} lanes and no step")
                    self.atom(expr.offsets, I64, var.lanes)
                if expr.mask is not None:
                    self.atom(expr.mask, BOOL, var.lanes)
                if expr.other is not None:
                    self.atom(expr.other, dtype, var.lanes)
            case Index():
                self.affine(expr.index)
                self.check(var.dtype == I64, f"an index is an i64, got {var.dtype}")
            case Horizontal(op, arg):
                self.atom(arg, var.dtype, arg.lanes)
                self.check(op in KINDS, f"expected one of {', '.join(KINDS)}, got {op!r}")
                self.check(arg.lanes & (arg.lanes - 1) == 0, f"expected a power of two of lanes, got {arg.lanes}")
                self.check(var.lanes == 1, f"all lanes combined are one lane, got {var.lanes}")

            case Trn(first, second, width, _):
                for arg in (first, second):
                    self.atom(arg, var.dtype, var.lanes)
                self.check(first.lanes == second.lanes == var.lanes, "both vectors have the lanes of the result")
                self.check(width >= 1 and var.lanes % (2 * width) == 0, f"{var.lanes} lanes are no pairs of {width}")

    def apply(self, var: Var, expr: Apply) -> None:
        op, args = expr.op, expr.args
        self.check(op in ARITY, f"no primitive is called {op!r}")
        self.check(len(args) == ARITY[op], f"{op} takes {ARITY[op]} operands, got {len(args)}")
        self.check((op == "compare") == (expr.detail in DIRECTIONS), f"{op} with the detail {expr.detail!r}")
        for arg, dtype in zip(args, self._operand_dtypes(var, op, args), strict=True):
            self.atom(arg, dtype, var.lanes)
        if op in _FLOAT_ONLY:
            self.check(var.dtype.is_float, f"{op} is of floats, got {var.dtype}")
        if op in _INTEGER_ONLY:
            self.check(not var.dtype.is_float, f"{op} is of integers or booleans, got {var.dtype}")
        if op in _INDEX_ONLY:
            self.check(var.dtype == I64, f"{op} is of indices, i64, got {var.dtype}")

    def _operand_dtypes(self, var: Var, op: str, args: Sequence[Atom]) -> list[DType]:
        if op == "compare":
            self.check(var.dtype == BOOL, f"a comparison is a bool, got {var.dtype}")
            return [args[0].dtype] * 2
        if op == "select":
            return [BOOL, var.dtype, var.dtype]
        if op == "bitcast_convert":
            same = args[0].dtype.bytes == var.dtype.bytes and BOOL not in (var.dtype, args[0].dtype)
            self.check(same, f"bits of {args[0].dtype} are no bits of {var.dtype}")
        if op in ("convert", "bitcast_convert"):
            return [args[0].dtype]
        return [var.dtype] * len(args)

    # Micro-kernels

    def contract(self, stmt: Contract) -> None:
        tile, heights = stmt.tile, stmt.heights
        if isinstance(stmt.rows, Var):
            self.known(stmt.rows)
            self.check(stmt.rows == Var(stmt.rows.name, I64), f"expected a scalar i64 of rows, got {stmt.rows}")
        else:
            self.check(heights == (stmt.rows,), f"{stmt.rows} rows, but heights {heights}")
        sane = min(heights, default=0) >= 1 and max(heights, default=0) <= MAX_HEIGHT
        self.check(sane and list(heights) == sorted(set(heights)), f"expected increasing heights, got {heights}")
        self.check(min(tile.vectors, tile.panel_vectors) >= 1, "expected at least one vector in a tile and in a panel")
        self.check(tile.masked or not tile.rhs_masked, "expected `masked` with `rhs_masked`")
        self.check(1 <= len(stmt.sums) <= MAX_SUMS, f"expected one to {MAX_SUMS} sums, got {len(stmt.sums)}")
        self.check(tile.dtype.is_float, f"tiles are of floats, got {tile.dtype}")
        for index in (
            stmt.columns,
            stmt.row_start,
            *(extent for extent, _, _ in stmt.sums),
            *(stmt.ahead[2:] if stmt.ahead else ()),
        ):
            self.affine(index)
        ahead = [("ahead", stmt.ahead[:2])] if stmt.ahead else []
        for side, place in (("out", stmt.out), ("lhs", stmt.lhs), ("rhs", stmt.rhs), *ahead):
            dtype = self.place(*place)
            self.check(dtype == tile.dtype, f"{side}: expected {tile.dtype}, got {dtype}")
        self.check(
            tile.extra_steps == tuple(e.column_step for e in stmt.extras),
            f"the tile has the column steps {tile.extra_steps}, the extras others",
        )
        self.check(all(s in (0, 1) for s in tile.extra_steps), f"column steps are 0 or 1, got {tile.extra_steps}")
        dtypes = [self.place(e.buffer, e.index) for e in stmt.extras]
        self.check(tile.epilogue is not None or not dtypes, "extras without an epilogue that reads them")
        if tile.epilogue is not None:
            self.epilogue(tile.epilogue, [tile.dtype, *dtypes])

    def epilogue(self, epilogue: Epilogue, dtypes: Sequence[DType]) -> None:
        """Its variables are its own."""
        found = [a.dtype for a in epilogue.args]
        self.check(found == list(dtypes), f"epilogue: expected arguments of {dtypes}, got {found}")
        inner = _Verifier(self.kernel)
        inner.stmt = self.stmt
        for arg in epilogue.args:
            inner.define(arg)
        for let in epilogue.body:
            inner.stmt = let
            inner.check(isinstance(let.expr, Apply), "epilogue: expected primitives only")
        inner.block(epilogue.body)
        inner.atom(epilogue.result, dtypes[0], epilogue.args[0].lanes)


def _shown(atom: Atom) -> str:
    return f"{atom.value!r}" if isinstance(atom, Const) else f"%{atom.name}"
