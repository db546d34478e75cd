"""Read the text of kernels: recursive descent. Any text gives kernels or an error of ours."""

from __future__ import annotations

import re
from dataclasses import dataclass, field, fields

from lepton_jit.codegen.loops.ir import (
    I64,
    Affine,
    Apply,
    Atom,
    Buffer,
    Carry,
    Const,
    Contract,
    Epilogue,
    Expr,
    Extra,
    Fetch,
    Horizontal,
    If,
    Index,
    Kernel,
    Let,
    Load,
    Loop,
    Progress,
    Reach,
    Report,
    Slices,
    Stmt,
    Store,
    TileShape,
    Trn,
    Var,
)
from lepton_jit.codegen.loops.terms import (
    read_affine,
    read_dim,
    read_dtype,
    read_extent,
    read_lanes,
    read_type,
    read_variable,
)
from lepton_jit.codegen.loops.verifier import ITERATION, verify_kernel
from lepton_jit.ir.tokens import Reader, Token
from lepton_jit.ir.types import Dim

__all__ = ["parse_kernel", "parse_kernels"]

# Far above what any kernel needs, far below what Python's stack bears.
MAX_NESTING = 60

_ATOM_START = ("value", "number", "-", "inf", "nan", "true", "false")


def parse_kernel(text: str) -> Kernel:
    """The kernel that a text stands for; `parse_kernel(print_kernel(kernel)) == kernel`.

    Raises ParseError, with line and column, for text that does not follow the grammar or names an unknown variable;
    GraphError for what the verifier finds.

    >>> parse_kernel("kernel @zero(o0: f32[N]) parallel %t in 0 to N grain 64 { store o0[%t] = 0.0:f32 }").extent
    N
    """
    reader = Reader(text)
    kernel = _kernel(reader)
    reader.expect_end()
    return kernel


def parse_kernels(text: str) -> list[Kernel]:
    """The kernels of a text, in order."""
    reader = Reader(text)
    kernels = []
    while not reader.at("end"):
        kernels.append(_kernel(reader))
    return kernels


def _kernel(reader: Reader) -> Kernel:
    reader.expect("kernel")
    reader.expect("@")
    name = reader.string() if reader.at("string") else reader.next("word", "number").text
    buffers = tuple(reader.separated("(", ")", lambda: _buffer(reader)))
    for word in ("parallel", f"%{ITERATION}", "in", "0", "to"):
        if reader.next("word", "value", "number").text != word:
            raise reader.error(f"expected `parallel %{ITERATION} in 0 to` behind the buffers")
    extent = read_extent(reader)
    reader.expect("grain")
    grain = reader.integer()
    layer = reader.string() if reader.accept("layer") else ""
    flops = read_dim(reader) if reader.accept("flops") else 0
    slices = _slices(reader) if reader.accept("slices") else None
    progress = _progress(reader) if reader.accept("rows") else None
    turning = read_dim(reader) if reader.accept("turning") else 0
    parser = _Body(reader)
    parser.known[ITERATION] = Var(ITERATION, I64)
    kernel = Kernel(name, buffers, extent, grain, parser.block(), layer, flops, slices, progress, turning)
    verify_kernel(kernel)
    return kernel


def _slices(reader: Reader) -> Slices:
    count = reader.integer()
    reader.expect("local")
    return Slices(count, frozenset(reader.separated("[", "]", lambda: reader.next("word").text)))


def _progress(reader: Reader) -> Progress:
    count = read_dim(reader)
    reader.expect("width")
    width = reader.integer()
    reader.expect("each")
    each = reader.integer()
    reader.expect("unit")
    unit = reader.integer()
    reader.expect("reads")

    def reach() -> tuple[str, Reach]:
        return reader.next("word").text, Reach(*(reader.integer() for _ in fields(Reach)))

    return Progress(each, count, width, tuple(reader.separated("[", "]", reach)), unit)


def _buffer(reader: Reader) -> Buffer:
    name = reader.next("word").text
    reader.expect(":")
    dtype = read_dtype(reader)
    reader.expect("[")
    size = read_dim(reader)
    reader.expect("]")
    return Buffer(name, dtype, size)


@dataclass
class _Body:
    """Reads statements. Names are unique in a kernel, so one table holds them; the verifier checks scopes."""

    reader: Reader
    known: dict[str, Var] = field(default_factory=dict)
    depth: int = 0

    def block(self, end: str | None = None) -> tuple[Stmt, ...]:
        """`{ statement... }`; with `end`, that word stops it before the brace."""
        reader = self.reader
        reader.expect("{")
        self.depth += 1
        if self.depth > MAX_NESTING:
            raise reader.error(f"blocks nested more than {MAX_NESTING} deep")
        statements: list[Stmt] = []
        while not reader.at("}") and not (end and reader.at(end)):
            statements.append(self.statement())
        self.depth -= 1
        if end is None:
            reader.expect("}")
        return tuple(statements)

    def statement(self) -> Stmt:
        reader = self.reader
        if reader.at("value"):
            return self.let()
        token = reader.next("word")
        match token.text:
            case "store":
                return self.store()
            case "for":
                return self.loop()
            case "if":
                condition = self.atom()
                then = self.block()
                return If(condition, then, self.block() if reader.accept("else") else ())
            case "report":
                code = reader.integer()
                reader.expect("at")
                return Report(code, self.affine())
            case "fetch":
                return Fetch(*self.place())
            case "contract":
                return self.contract()
        raise reader.error(
            f"expected a definition, store, for, if, report, fetch or contract, got {token.text!r}", token
        )

    def let(self) -> Let:
        # the name is known behind its expression
        token, var = self.declared()
        self.reader.expect("=")
        expr = self.expression()
        return Let(self.define(token, var), expr)

    def declared(self) -> tuple[Token, Var]:
        token = self.reader.next("value")
        self.reader.expect(":")
        dtype, lanes = read_type(self.reader)
        return token, Var(token.text[1:], dtype, lanes)

    def define(self, token: Token, var: Var) -> Var:
        if var.name in self.known:
            raise self.reader.error(f"%{var.name} is defined twice", token)
        self.known[var.name] = var
        return var

    def expression(self) -> Expr:
        reader = self.reader
        op = reader.next("word").text
        match op:
            case "load":
                buffer, index = self.place()
                step = read_dim(reader) if reader.accept("step") else 1
                offsets = self.variable() if reader.accept("at") else None
                mask = self.atom() if reader.accept("where") else None
                other = self.atom() if reader.accept("else") else None
                return Load(buffer, index, step, mask, other, offsets)
            case "index":
                index = self.affine()
                return Index(index, read_dim(reader) if reader.accept("step") else 0)
            case "horizontal":
                kind = reader.next("word").text
                reader.expect("(")
                arg = self.atom()
                reader.expect(")")
                return Horizontal(kind, arg)
            case "trn1" | "trn2":
                width = reader.integer()
                reader.expect("(")
                first = self.atom()
                reader.expect(",")
                second = self.atom()
                reader.expect(")")
                return Trn(first, second, width, op == "trn2")
        args = tuple(reader.separated("(", ")", self.atom))
        return Apply(op, args, reader.next("word").text if op == "compare" else "")

    def store(self) -> Store:
        reader = self.reader
        buffer, index = self.place()
        lanes = 1
        if not reader.at("="):
            token = reader.next("word")
            if not re.fullmatch(r"x[1-9][0-9]{0,3}", token.text):
                raise reader.error(f"expected lanes as in x16, got {token.text!r}", token)
            lanes = read_lanes(reader, token, token.text[1:])
        reader.expect("=")
        value = self.atom()
        return Store(buffer, index, value, lanes, self.atom() if reader.accept("where") else None)

    def loop(self) -> Loop:
        reader = self.reader
        token = reader.next("value")
        reader.expect("in")
        start = self.affine()
        reader.expect("to")
        stop = self.affine()
        reader.expect("step")
        step = reader.integer()
        carried: list[tuple[Token, Var, Atom]] = []
        if reader.accept("carry"):
            carried.append(self.carried())
            while reader.accept(","):
                carried.append(self.carried())
        self.define(token, Var(token.text[1:], I64))
        for at, var, _ in carried:
            self.define(at, var)
        if not carried:
            return Loop(token.text[1:], start, stop, step, self.block())
        body = self.block("next")
        reader.expect("next")
        following = [self.atom()]
        while reader.accept(","):
            following.append(self.atom())
        if len(following) != len(carried):
            raise reader.error(f"expected {len(carried)} values behind `next`, got {len(following)}")
        reader.expect("}")
        carries = tuple(Carry(v, i, n) for (_, v, i), n in zip(carried, following, strict=True))
        return Loop(token.text[1:], start, stop, step, body, carries)

    def carried(self) -> tuple[Token, Var, Atom]:
        token, var = self.declared()
        self.reader.expect("=")
        return token, var, self.atom()

    def contract(self) -> Contract:
        reader = self.reader
        token = reader.token
        rows = reader.integer() if reader.at("number") else self.atom()
        if isinstance(rows, Const):
            raise reader.error("expected a number of rows or a variable", token)
        if isinstance(rows, int):
            heights = (rows,)
        else:
            reader.expect("of")
            heights = tuple(reader.separated("[", "]", reader.integer))
        reader.expect("by")
        columns = self.affine()
        reader.expect("{")
        reader.expect("tile")
        dtype = read_dtype(reader)
        reader.expect("vectors")
        vectors = reader.integer()
        reader.expect("panel")
        panel = reader.integer()
        masked, rhs_masked = reader.accept("masked"), reader.accept("rhs_masked")
        out, out_row = self.side("out")
        accumulate, fetch = reader.accept("accumulate"), reader.accept("fetch")
        reader.expect("lhs")
        lhs = self.place()
        reader.expect("row")
        apart = tuple(reader.separated("[", "]", self.offset)) if reader.at("[") else read_dim(reader)
        reader.expect("from")
        start = self.affine()
        reader.expect("rhs")
        rhs = self.place()
        reader.expect("panel")
        rhs_panel = read_dim(reader)
        ahead = self.ahead() if reader.accept("ahead") else None
        sums = []
        while reader.accept("sum"):
            extent = self.affine()
            reader.expect("lhs")
            step = read_dim(reader)
            reader.expect("rhs")
            sums.append((extent, step, read_dim(reader)))
        extras = []
        while reader.at("extra"):
            extras.append(self.extra())
        epilogue = self.epilogue() if reader.accept("epilogue") else None
        reader.expect("}")
        steps = tuple(e.column_step for e in extras)
        tile = TileShape(dtype, vectors, panel, masked, rhs_masked, epilogue, steps)
        return Contract(
            tile=tile,
            rows=rows,
            heights=heights,
            columns=columns,
            lhs=lhs,
            rhs=rhs,
            out=out,
            out_row=out_row,
            sums=tuple(sums),
            rows_apart=apart,
            row_start=start,
            accumulate=accumulate,
            rhs_panel=rhs_panel,
            extras=tuple(extras),
            ahead=ahead,
            fetch=fetch,
        )

    def ahead(self) -> tuple[str, Affine, Affine]:
        place = self.place()
        self.reader.expect("step")
        return *place, self.affine()

    def offset(self) -> int:
        return -self.reader.integer() if self.reader.accept("-") else self.reader.integer()

    def side(self, name: str) -> tuple[tuple[str, Affine], Dim]:
        self.reader.expect(name)
        place = self.place()
        self.reader.expect("row")
        return place, read_dim(self.reader)

    def extra(self) -> Extra:
        place, row_step = self.side("extra")
        self.reader.expect("column")
        return Extra(*place, row_step, self.reader.integer())

    def epilogue(self) -> Epilogue:
        """Its variables are its own: it is compiled apart from the kernel."""
        reader = self.reader
        inner = _Body(reader, depth=self.depth)
        args = tuple(reader.separated("(", ")", lambda: inner.define(*inner.declared())))
        body = inner.block("return")
        for stmt in body:
            if not isinstance(stmt, Let):
                raise reader.error("an epilogue holds definitions only")
        reader.expect("return")
        result = inner.atom()
        reader.expect("}")
        return Epilogue(args, tuple(s for s in body if isinstance(s, Let)), result)

    def place(self) -> tuple[str, Affine]:
        """`a0[32*%t]`"""
        buffer = self.reader.next("word").text
        self.reader.expect("[")
        index = self.affine()
        self.reader.expect("]")
        return buffer, index

    def affine(self) -> Affine:
        return read_affine(self.reader, self.known)

    def variable(self) -> Var:
        return self.known[read_variable(self.reader, self.known)]

    def atom(self) -> Atom:
        reader = self.reader
        if not reader.at(*_ATOM_START):
            raise reader.error("expected a variable or a number with its type, as in 0.5:f32")
        if reader.at("value"):
            return self.variable()
        value: float | int | bool
        if reader.at("true", "false"):
            value = reader.next("word").text == "true"
        else:
            number = reader.float()
            if number is None:
                sign = -1 if reader.accept("-") else 1
                number = sign * reader.integer()
            value = number
        reader.expect(":")
        dtype, lanes = read_type(reader)
        return Const(value, dtype, lanes)
