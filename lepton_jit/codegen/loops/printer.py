"""Kernels of the loop IR as text; docs/loop_ir.md has the grammar, `parser.py` reads it back."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple

from lepton_jit.codegen.loops.ir import (
    Affine,
    Apply,
    Atom,
    CeilDiv,
    Const,
    Contract,
    Epilogue,
    Expr,
    Extent,
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
from lepton_jit.errors import GraphError
from lepton_jit.ir.types import Dim, DType, Poly

__all__ = ["print_affine", "print_kernel", "print_kernels", "print_statement"]


def print_kernel(kernel: Kernel) -> str:
    """The text of a kernel.

    >>> from lepton_jit.codegen.loops.ir import Buffer
    >>> from lepton_jit.ir.types import DTYPES, Poly
    >>> x, f32 = Var("v1", DTYPES["f32"]), DTYPES["f32"]
    >>> body = (Let(x, Load("a0", Affine.var("t"))), Store("o0", Affine.var("t"), x))
    >>> n = Poly.symbol("N")
    >>> print(print_kernel(Kernel("copy", (Buffer("a0", f32, n), Buffer("o0", f32, n)), n, 64, body)), end="")
    kernel @copy(a0: f32[N], o0: f32[N]) parallel %t in 0 to N grain 64 {
      %v1: f32 = load a0[%t]
      store o0[%t] = %v1
    }
    """
    buffers = ", ".join(f"{_word(b.name)}: {b.dtype}[{_dim(b.size)}]" for b in kernel.buffers)
    head = f"kernel {_symbol(kernel.name)}({buffers}) parallel %t in 0 to {_extent(kernel.extent)} grain {kernel.grain}"
    if kernel.layer:
        head += f" layer {_string(kernel.layer)}"
    if kernel.flops != 0:
        head += f" flops {_dim(kernel.flops)}"
    if kernel.slices:
        head += f" slices {kernel.slices.count} local [{', '.join(map(_word, sorted(kernel.slices.local)))}]"
    if kernel.progress:
        p = kernel.progress
        reads = ", ".join(f"{_word(name)} {' '.join(map(str, astuple(reach)))}" for name, reach in p.reads)
        head += f" rows {_dim(p.count)} width {p.width} each {p.each} unit {p.unit} reads [{reads}]"
    if kernel.turning != 0:
        head += f" turning {_dim(kernel.turning)}"
    return "\n".join([f"{head} {{", *_indented(_body(kernel.body)), "}", ""])


def print_kernels(kernels: Iterable[Kernel]) -> str:
    """The texts of kernels, a blank line between them."""
    return "\n".join(map(print_kernel, kernels))


def print_statement(stmt: Stmt) -> str:
    """The text of a statement, of several lines where it has others inside."""
    return "\n".join(_statement(stmt))


def print_affine(index: Affine) -> str:
    """An index: `32*%t + (4*N + 1)*%i2 - 1`.

    >>> print_affine(Affine.var("t") * -32 + Affine.var("i2") * (4 * Poly.symbol("N") + 1) - 1)
    '-32*%t + (4*N + 1)*%i2 - 1'
    """
    text = ""
    for name, coefficient in index.terms:
        text = _plus(text, _product(coefficient, _variable(name)))
    if index.constant != 0 or not text:
        text = _plus(text, _dim(index.constant))
    return text


def _plus(text: str, term: str) -> str:
    if not text:
        return term
    return f"{text} - {term[1:]}" if term.startswith("-") else f"{text} + {term}"


def _product(coefficient: Dim, variable: str) -> str:
    if isinstance(coefficient, Poly):
        return f"({coefficient!r})*{variable}" if len(coefficient.terms) > 1 else f"{coefficient!r}*{variable}"
    return variable if coefficient == 1 else f"-{variable}" if coefficient == -1 else f"{coefficient}*{variable}"


def _dim(dim: Dim) -> str:
    return repr(dim)


def _extent(extent: Extent) -> str:
    if not isinstance(extent, CeilDiv):
        return _dim(extent)
    text = f"ceildiv({_dim(extent.dividend)}, {extent.divisor})"
    return text if extent.factor == 1 else f"{text}*({_dim(extent.factor)})"


def _body(body: Iterable[Stmt]) -> Iterator[str]:
    for stmt in body:
        yield from _statement(stmt)


def _indented(lines: Iterable[str]) -> Iterator[str]:
    return (f"  {line}" for line in lines)


def _statement(stmt: Stmt) -> Iterator[str]:
    match stmt:
        case Let():
            yield _let(stmt)
        case Store():
            lanes = f" x{stmt.lanes}" if stmt.lanes != 1 else ""
            yield f"store {_at(stmt.buffer, stmt.index)}{lanes} = {_atom(stmt.value)}{_where(stmt.mask)}"
        case Loop():
            yield from _loop(stmt)
        case If():
            yield f"if {_atom(stmt.condition)} {{"
            yield from _indented(_body(stmt.then))
            if stmt.orelse:
                yield "} else {"
                yield from _indented(_body(stmt.orelse))
            yield "}"
        case Report(code, index):
            yield f"report {code} at {print_affine(index)}"
        case Fetch(buffer, index):
            yield f"fetch {_at(buffer, index)}"
        case Contract():
            yield from _contract(stmt)


def _let(let: Let) -> str:
    return f"{_definition(let.var)} = {_expression(let.expr)}"


def _expression(expr: Expr) -> str:
    match expr:
        case Apply(op, args, detail):
            return f"{_word(op)}({_atoms(args)})" + (f" {_word(detail)}" if detail else "")
        case Load():
            step = f" step {_dim(expr.step)}" if expr.step != 1 else ""
            step = f" at {_atom(expr.offsets)}" if expr.offsets is not None else step
            other = f" else {_atom(expr.other)}" if expr.other is not None else ""
            return f"load {_at(expr.buffer, expr.index)}{step}{_where(expr.mask)}{other}"
        case Index(index, step):
            return f"index {print_affine(index)}" + (f" step {_dim(step)}" if step != 0 else "")
        case Horizontal(op, arg):
            return f"horizontal {_word(op)}({_atom(arg)})"
        case Trn(first, second, width, odd):
            return f"{'trn2' if odd else 'trn1'} {width}({_atoms((first, second))})"


def _loop(loop: Loop) -> Iterator[str]:
    head = f"for {_variable(loop.var)} in {print_affine(loop.start)} to {print_affine(loop.stop)} step {loop.step}"
    if loop.carries:
        head += f" carry {', '.join(f'{_definition(c.var)} = {_atom(c.init)}' for c in loop.carries)}"
    yield f"{head} {{"
    yield from _indented(_body(loop.body))
    if loop.carries:
        yield f"  next {_atoms([c.next for c in loop.carries])}"
    yield "}"


def _contract(stmt: Contract) -> Iterator[str]:
    tile = stmt.tile
    if tile.extra_steps != tuple(e.column_step for e in stmt.extras):
        raise GraphError(f"contract: the tile has {tile.extra_steps} for the extras {stmt.extras}")
    heights = f" of [{', '.join(map(str, stmt.heights))}]" if isinstance(stmt.rows, Var) else ""
    if not heights and stmt.heights != (stmt.rows,):
        raise GraphError(f"contract: {stmt.rows} rows with the heights {stmt.heights}")
    masks = " masked" * tile.masked + " rhs_masked" * tile.rhs_masked
    rows = stmt.rows if isinstance(stmt.rows, int) else _atom(stmt.rows)
    yield f"contract {rows}{heights} by {print_affine(stmt.columns)} {{"
    yield f"  tile {tile.dtype} vectors {tile.vectors} panel {tile.panel_vectors}{masks}"
    yield f"  out {_at(*stmt.out)} row {_dim(stmt.out_row)}" + " accumulate" * stmt.accumulate + " fetch" * stmt.fetch
    apart = stmt.rows_apart
    table = f"[{', '.join(map(str, apart))}]" if isinstance(apart, tuple) else _dim(apart)
    yield f"  lhs {_at(*stmt.lhs)} row {table} from {print_affine(stmt.row_start)}"
    yield f"  rhs {_at(*stmt.rhs)} panel {_dim(stmt.rhs_panel)}{_ahead(stmt)}"
    for extent, lhs, rhs in stmt.sums:
        yield f"  sum {print_affine(extent)} lhs {_dim(lhs)} rhs {_dim(rhs)}"
    for extra in stmt.extras:
        place = _at(extra.buffer, extra.index)
        yield f"  extra {place} row {_dim(extra.row_step)} column {extra.column_step}"
    if tile.epilogue:
        yield from _indented(_epilogue(tile.epilogue))
    yield "}"


def _epilogue(epilogue: Epilogue) -> Iterator[str]:
    yield f"epilogue({', '.join(map(_definition, epilogue.args))}) {{"
    yield from _indented(_body(epilogue.body))
    yield f"  return {_atom(epilogue.result)}"
    yield "}"


def _ahead(stmt: Contract) -> str:
    if stmt.ahead is None:
        return ""
    buffer, index, step = stmt.ahead
    return f" ahead {_at(buffer, index)} step {print_affine(step)}"


def _at(buffer: str, index: Affine) -> str:
    return f"{_word(buffer)}[{print_affine(index)}]"


def _where(mask: Atom | None) -> str:
    return "" if mask is None else f" where {_atom(mask)}"


def _atoms(atoms: Sequence[Atom]) -> str:
    return ", ".join(map(_atom, atoms))


def _atom(atom: Atom) -> str:
    if isinstance(atom, Var):
        return _variable(atom.name)
    return f"{_number(atom)}:{_type(atom.dtype, atom.lanes)}"


def _number(const: Const) -> str:
    value = const.value
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value).lower()
    return repr(value)


def _definition(var: Var) -> str:
    return f"{_variable(var.name)}: {_type(var.dtype, var.lanes)}"


def _type(dtype: DType, lanes: int) -> str:
    return f"{dtype}x{lanes}" if lanes != 1 else repr(dtype)


def _variable(name: str) -> str:
    return f"%{_word(name)}"


def _word(name: str) -> str:
    if not re.fullmatch(r"\w+", name):
        raise GraphError(f"loop IR: expected a name of letters, digits and underscores, got {name!r}")
    return name


def _symbol(name: str) -> str:
    return f"@{name}" if re.fullmatch(r"\w+", name) else f"@{_string(name)}"


def _string(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
