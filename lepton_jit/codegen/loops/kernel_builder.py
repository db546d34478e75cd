"""Write a kernel of the loop IR statement by statement; equal expressions of a scope are computed once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from lepton_jit.codegen.loops.ir import (
    BOOL,
    I64,
    Affine,
    Apply,
    Atom,
    Buffer,
    Carry,
    Const,
    Expr,
    Fetch,
    Horizontal,
    If,
    Index,
    Let,
    Load,
    Loop,
    Report,
    Stmt,
    Store,
    Trn,
    Var,
)
from lepton_jit.ir.ops.reduction import identity
from lepton_jit.ir.types import DTYPES, Dim, DType


def identity_of(kind: str, dtype: DType) -> Const:
    """The value that leaves a reduction of this kind as it is.

    >>> identity_of("maximum", DTYPES["i8"]).value
    -128
    """
    return Const(identity(kind, dtype.numpy), dtype)


class KernelBuilder:
    """Collects statements; it is also the machine (`m.add`, `m.fma`, ...) on which native forms are written."""

    def __init__(self) -> None:
        self._scopes: list[list[Stmt]] = [[]]
        # What open scopes have remembered, each scope's keys, and those of loads by their buffer.
        self._memo: dict[object, Atom] = {}
        self._keys: list[list[object]] = [[]]
        self._loads: dict[str, list[object]] = {}
        self._count = 0
        self.buffers: dict[str, Buffer] = {}

    def fresh(self, prefix: str = "v") -> str:
        self._count += 1
        return f"{prefix}{self._count}"

    @property
    def statements(self) -> tuple[Stmt, ...]:
        (top,) = self._scopes
        return tuple(top)

    def let(self, expr: Expr, dtype: DType, lanes: int = 1) -> Var:
        """Bind an expression, or return the variable that has it already."""
        key = (expr, dtype, lanes)
        found = self.recall(key)
        if isinstance(found, Var):
            return found
        var = Var(self.fresh(), dtype, lanes)
        self._scopes[-1].append(Let(var, expr))
        self.remember(key, var)
        if isinstance(expr, Load):
            self._loads.setdefault(expr.buffer, []).append(key)
        return var

    def recall(self, key: object) -> Atom | None:
        """The value remembered under this key in a scope that is still open, or None."""
        return self._memo.get(key)

    def remember(self, key: object, atom: Atom) -> None:
        self._memo[key] = atom
        self._keys[-1].append(key)

    def append(self, stmt: Stmt) -> None:
        self._scopes[-1].append(stmt)

    def load(
        self,
        buffer: str,
        index: Affine,
        lanes: int = 1,
        step: Dim = 1,
        mask: Atom | None = None,
        other: Atom | None = None,
        offsets: Var | None = None,
    ) -> Var:
        return self.let(Load(buffer, index, step, mask, other, offsets), self.buffers[buffer].dtype, lanes)

    def store(self, buffer: str, index: Affine, value: Atom, lanes: int = 1, mask: Atom | None = None) -> None:
        self._scopes[-1].append(Store(buffer, index, value, lanes, mask))
        # what was loaded may have changed
        for key in self._loads.pop(buffer, ()):
            self._memo.pop(key, None)

    def report(self, code: int, index: Affine) -> None:
        """Report that the data is bad at this element."""
        self.append(Report(code, index))

    def fetch(self, buffer: str, index: Affine) -> None:
        """Prefetch the cache line of an element."""
        self.append(Fetch(buffer, index))

    def index(self, index: Affine, lanes: int = 1, step: Dim = 0) -> Var:
        """The index as an i64 value."""
        return self.let(Index(index, step), I64, lanes)

    def horizontal(self, op: str, arg: Atom) -> Atom:
        return arg if arg.lanes == 1 else self.let(Horizontal(op, arg), arg.dtype, 1)

    def trn(self, first: Atom, second: Atom, width: int, odd: bool) -> Atom:
        return self.let(Trn(first, second, width, odd), first.dtype, first.lanes)

    def apply(self, op: str, *args: Atom, dtype: DType | None = None, detail: str = "") -> Var:
        result = dtype or args[0].dtype
        return self.let(Apply(op, args, detail), result, max(a.lanes for a in args))

    @contextmanager
    def scope(self) -> Iterator[list[Stmt]]:
        """Collect the statements of a nested block."""
        self._scopes.append([])
        self._keys.append([])
        try:
            yield self._scopes[-1]
        finally:
            for key in self._keys.pop():
                self._memo.pop(key, None)
            self._scopes.pop()

    @contextmanager
    def loop(self, start: Affine | Dim, stop: Affine | Dim, step: int = 1, prefix: str = "i") -> Iterator[Affine]:
        """A loop without carried values; gives the loop variable."""
        with self.carried_loop(start, stop, step, (), prefix) as (var, _, _):
            yield var

    @contextmanager
    def carried_loop(
        self,
        start: Affine | Dim,
        stop: Affine | Dim,
        step: int,
        inits: Sequence[Atom],
        prefix: str = "i",
    ) -> Iterator[tuple[Affine, list[Var], list[Atom]]]:
        """A loop with carried variables: put each one's next value into the given list before the block ends.

        After the loop the same variables hold the last values.
        """
        name = self.fresh(prefix)
        carried = [Var(self.fresh("c"), a.dtype, a.lanes) for a in inits]
        following: list[Atom] = list(carried)
        with self.scope() as body:
            yield Affine.var(name), carried, following
        carries = tuple(Carry(v, i, n) for v, i, n in zip(carried, inits, following, strict=True))
        self.append(Loop(name, Affine.of(start), Affine.of(stop), step, tuple(body), carries))

    @contextmanager
    def when(self, condition: Atom) -> Iterator[None]:
        with self.scope() as body:
            yield
        self.append(If(condition, tuple(body)))

    @contextmanager
    def otherwise(self) -> Iterator[None]:
        """Collect the statements of the other branch of the last `when`."""
        with self.scope() as body:
            yield
        last = self._scopes[-1][-1]
        if not isinstance(last, If):
            raise AssertionError("otherwise() follows when()")
        self._scopes[-1][-1] = replace(last, orelse=tuple(body))

    # The machine's primitives, under the names that native forms use.

    def constant(self, value: float | int | bool, dtype: DType | str | Atom) -> Const:
        if isinstance(dtype, str):
            dtype = DTYPES[dtype]
        return Const(value, dtype if isinstance(dtype, DType) else dtype.dtype)

    def compare(self, a: Atom, b: Atom, direction: str) -> Atom:
        return self.apply("compare", a, b, dtype=BOOL, detail=direction)

    def select(self, p: Atom, a: Atom, b: Atom) -> Atom:
        return self.apply("select", p, a, b, dtype=a.dtype)

    def convert(self, x: Atom, dtype: DType | str) -> Atom:
        wanted = DTYPES[dtype] if isinstance(dtype, str) else dtype
        return x if x.dtype == wanted else self.apply("convert", x, dtype=wanted)

    def bitcast_convert(self, x: Atom, dtype: DType | str) -> Atom:
        return self.apply("bitcast_convert", x, dtype=DTYPES[dtype] if isinstance(dtype, str) else dtype)


def _primitive(op: str, arity: int) -> object:
    def method(self: KernelBuilder, *args: Atom) -> Atom:
        if len(args) != arity:
            raise TypeError(f"{op} takes {arity} operands, got {len(args)}")
        return self.apply(op, *args)

    return method


for _name, _arity in {
    **dict.fromkeys(("abs", "negate", "sqrt", "floor", "ceil", "round_nearest_even", "not_"), 1),
    **dict.fromkeys(("add", "subtract", "multiply", "divide", "maximum", "minimum", "remainder"), 2),
    **dict.fromkeys(("and_", "or_", "xor", "shift_left", "shift_right_logical", "shift_right_arithmetic"), 2),
    "fma": 3,
}.items():
    setattr(KernelBuilder, _name, _primitive(_name.rstrip("_"), _arity))
