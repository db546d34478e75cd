"""Emit one kernel of the loop IR as one LLVM function: a translation that decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from llvmlite import ir

from lepton_jit.codegen.llvm.emit_frame import FRAME_BUFFERS, KERNEL_TYPE, pointer_at
from lepton_jit.codegen.llvm.emit_primitives import (
    I32_TYPE,
    I64_TYPE,
    POINTER,
    Builder,
    Primitives,
    Value,
    allocate,
    constant,
    declared,
    memory_type,
    splat_constant,
    value_type,
)
from lepton_jit.codegen.llvm.microkernel import prefetch
from lepton_jit.codegen.llvm.module_parts import SHARED
from lepton_jit.codegen.loops.ir import (
    Affine,
    Apply,
    Atom,
    Const,
    Contract,
    Dim,
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
from lepton_jit.codegen.target import Target
from lepton_jit.ir.types import Poly

ContractEmitter = Callable[["KernelEmitter", Contract], None]


def emit_kernel(
    module: ir.Module, kernel: Kernel, target: Target, symbols: Sequence[str], emit_contract: ContractEmitter
) -> ir.Function:
    """Add the function of a kernel to a module; `symbols` is the order of the program's symbols."""
    function = ir.Function(module, KERNEL_TYPE, kernel.name)
    function.linkage = SHARED
    KernelEmitter(function, kernel, target, symbols, emit_contract).emit()
    return function


class _Scope:
    """A block of statements. `outside` is the block that leads into it: what does not change inside goes to its end."""

    def __init__(self, outside: Value | None) -> None:
        self.outside = outside
        self.names: set[str] = set()
        self.values: dict[object, Value] = {}


class KernelEmitter:
    def __init__(
        self,
        function: ir.Function,
        kernel: Kernel,
        target: Target,
        symbols: Sequence[str],
        emit_contract: ContractEmitter,
    ) -> None:
        self.function = function
        self.kernel = kernel
        self.target = target
        self.builder: Builder = ir.IRBuilder(function.append_basic_block("entry"))
        self.primitives = Primitives(self.builder, target)
        self._emit_contract = emit_contract
        self._values: dict[str, Value] = {}
        self._scopes = [_Scope(None)]
        self._dtypes = {b.name: b.dtype for b in kernel.buffers}
        frame = function.args[0]
        self.buffers = {
            b.name: pointer_at(self.builder, frame, FRAME_BUFFERS + i) for i, b in enumerate(kernel.buffers)
        }
        dims = pointer_at(self.builder, frame, 1) if symbols else None
        self.symbols = {
            name: self.builder.load(self._gep(dims, i, I64_TYPE), align=8, typ=I64_TYPE)
            for i, name in enumerate(symbols)
        }

    def emit(self) -> None:
        _, begin, end = self.function.args
        self._loop("t", begin, end, 1, self.kernel.body, ())
        self.builder.ret_void()

    # Statements

    def _block(self, body: Sequence[Stmt]) -> None:
        for stmt in body:
            match stmt:
                case Let():
                    self._define(stmt.var.name, self._expression(stmt))
                case Store():
                    self._store(stmt)
                case Loop():
                    start, stop = self.affine(stmt.start), self.affine(stmt.stop)
                    self._loop(stmt.var, start, stop, stmt.step, stmt.body, stmt.carries)
                case If():
                    self._if(stmt)
                case Report():
                    self._report(stmt)
                case Fetch():
                    prefetch(self.builder, self.address(stmt.buffer, stmt.index), locality=2)
                case Contract():
                    self._emit_contract(self, stmt)

    def _define(self, name: str, value: Value) -> None:
        self._values[name] = value
        self._scopes[-1].names.add(name)

    def _loop(self, name: str, start: Value, stop: Value, step: int, body: Sequence[Stmt], carries: Sequence) -> None:
        builder = self.builder
        inits = [self.atom(c.init, c.var.lanes) for c in carries]
        outside = builder.block
        header = self.function.append_basic_block("loop")
        inside = self.function.append_basic_block("body")
        after = self.function.append_basic_block("after")
        builder.branch(header)
        builder.position_at_end(header)
        index = builder.phi(I64_TYPE)
        index.add_incoming(start, outside)
        phis = [builder.phi(value_type(c.var.dtype, c.var.lanes)) for c in carries]
        for phi, carry, init in zip(phis, carries, inits, strict=True):
            phi.add_incoming(init, outside)
            self._define(carry.var.name, phi)
        builder.cbranch(builder.icmp_signed("<", index, stop), inside, after)
        builder.position_at_end(inside)
        self._scopes.append(_Scope(outside))
        self._define(name, index)
        self._block(body)
        following = [self.atom(c.next, c.var.lanes) for c in carries]
        index.add_incoming(builder.add(index, I64_TYPE(step)), builder.block)
        for phi, value in zip(phis, following, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(header)
        self._scopes.pop()
        builder.position_at_end(after)

    def _if(self, stmt: If) -> None:
        builder = self.builder
        condition = self.atom(stmt.condition, 1)
        outside = builder.block
        branches = [stmt.then, stmt.orelse] if stmt.orelse else [stmt.then]
        blocks = [self.function.append_basic_block("side") for _ in branches]
        after = self.function.append_basic_block("after")
        builder.cbranch(condition, blocks[0], blocks[1] if stmt.orelse else after)
        for block, statements in zip(blocks, branches, strict=True):
            builder.position_at_end(block)
            self._scopes.append(_Scope(outside))
            self._block(statements)
            self._scopes.pop()
            builder.branch(after)
        builder.position_at_end(after)

    def _store(self, store: Store) -> None:
        dtype = self._dtypes[store.buffer]
        lanes = store.lanes
        value = self.primitives.to_memory(self.atom(store.value, lanes), dtype, lanes)
        pointer = self.address(store.buffer, store.index)
        mask = None if store.mask is None else self.atom(store.mask, lanes)
        self.primitives.store(value, pointer, dtype, mask)

    def _report(self, report: Report) -> None:
        """Call `lpt_report` of docs/runtime.md; the context stands first in the frame."""
        signature = [POINTER, I32_TYPE, I64_TYPE]
        function = declared(self.builder.module, "lpt_report", ir.VoidType(), signature)
        context = pointer_at(self.builder, self.function.args[0], 0)
        self.builder.call(function, [context, I32_TYPE(report.code), self.affine(report.index)])

    # Expressions

    def _expression(self, let: Let) -> Value:
        dtype, lanes = let.var.dtype, let.var.lanes
        match let.expr:
            case Apply(op, args, detail):
                operands = [self.atom(a, lanes) for a in args]
                return self.primitives.apply(op, operands, args, dtype, lanes, detail)
            case Load():
                return self._load(let.expr, lanes)
            case Index(index, step):
                return self._index(index, step, lanes)
            case Horizontal(op, arg):
                return self.primitives.horizontal(op, self.atom(arg, arg.lanes), arg)
            case Trn(first, second, width, odd):
                return self.primitives.trn(self.atom(first, lanes), self.atom(second, lanes), lanes, width, odd)

    def _load(self, load: Load, lanes: int) -> Value:
        dtype = self._dtypes[load.buffer]
        pointer = self.address(load.buffer, load.index)
        mask = None if load.mask is None else self.atom(load.mask, lanes)
        other = None if load.other is None else self.atom(load.other, lanes)
        if load.offsets is not None or (lanes > 1 and load.step != 1):
            table = load.offsets
            offsets = self._index(Affine(), load.step, lanes) if table is None else self.value_of(table)
            return self.primitives.gather(pointer, offsets, dtype, lanes, mask, other)
        return self.primitives.load(pointer, dtype, lanes, mask, other)

    def _index(self, index: Affine, step: Dim, lanes: int) -> Value:
        base = self.affine(index)
        if lanes == 1:
            return base
        ramp = ir.Constant(ir.VectorType(I64_TYPE, lanes), [I64_TYPE(i) for i in range(lanes)])
        if step != 1:
            ramp = self.builder.mul(ramp, self.splat(self.dim(step), lanes))
        return self.builder.add(self.splat(base, lanes), ramp)

    def atom(self, atom: Atom, lanes: int) -> Value:
        """The value of an atom, repeated to `lanes` if it is a scalar."""
        if isinstance(atom, Const):
            return constant(atom.value, atom.dtype) if lanes == 1 else splat_constant(atom.value, atom.dtype, lanes)
        value = self._values[atom.name]
        return value if atom.lanes == lanes else self.splat(value, lanes, atom.name)

    def splat(self, value: Value, lanes: int, key: str | None = None) -> Value:
        if lanes == 1:
            return value
        if key is None:
            return self.primitives.splat(value, lanes)
        for scope in self._scopes:
            if ("splat", key, lanes) in scope.values:
                return scope.values["splat", key, lanes]
        result = self.primitives.splat(value, lanes)
        self._scopes[-1].values["splat", key, lanes] = result
        return result

    # Addresses: sums are formed from the outermost variable inwards, each part where its variables first exist

    def address(self, buffer: str, index: Affine) -> Value:
        element = memory_type(self._dtypes[buffer])
        moving = index - index.constant
        depth = max((self._depth(name) for name, _ in moving.terms), default=0)
        pointer = self._hoisted(
            (buffer, moving), depth, lambda: self._gep(self.buffers[buffer], self.affine(moving), element)
        )
        if index.constant == 0:
            return pointer
        base = self._hoisted(("base", buffer, moving), depth, lambda: self._opaque(pointer))
        return self._gep(base, self.dim(index.constant), element)

    def _opaque(self, pointer: Value) -> Value:
        """Emit a copy of a pointer, into which LLVM's loop strength reduction does not look.

        Addresses at a fixed distance from it stay that. Otherwise each of them is considered for a variable of its own,
        which takes long, and slows the 36 results of a Winograd tile down (docs/measurements.md, compile time).
        """
        launder = declared(self.function.module, "llvm.launder.invariant.group.p0", POINTER, [POINTER])
        return self.builder.call(launder, [pointer])

    def affine(self, index: Affine) -> Value:
        """The i64 value of an affine index."""
        ordered = sorted(index.terms, key=lambda t: self._depth(t[0]))
        total = self.dim(index.constant)
        for count, (name, coefficient) in enumerate(ordered, 1):
            partial = Affine(tuple(ordered[:count]), index.constant)
            previous = total
            total = self._hoisted(
                partial, self._depth(name), lambda n=name, c=coefficient, p=previous: self._sum(p, n, c)
            )
        return total

    def _sum(self, total: Value, name: str, coefficient: Dim) -> Value:
        value = self._values[name]
        term = value
        if coefficient != 1:
            depth = self._depth(name)
            term = self._hoisted((name, coefficient), depth, lambda: self.builder.mul(value, self.dim(coefficient)))
        return term if isinstance(total, ir.Constant) and total.constant == 0 else self.builder.add(total, term)

    def table(self, values: Sequence[Affine]) -> Value:
        """An i64 table on the stack. What loops do not change is stored once, on entry."""
        slots = self.allocate(I64_TYPE, len(values))
        for i, value in enumerate(values):
            if value.terms:
                self.builder.store(self.affine(value), self._gep(slots, i, I64_TYPE), align=8)
                continue
            number = self.dim(value.constant)
            with self._at_entry():
                self.builder.store(number, self._gep(slots, i, I64_TYPE), align=8)
        return slots

    def allocate(self, element: ir.Type, count: int) -> Value:
        """Stack memory of the whole kernel."""
        with self._at_entry():
            return allocate(self.builder, element, count)

    @contextmanager
    def _at_entry(self) -> Iterator[None]:
        outside = self._scopes[1].outside
        assert outside is not None
        with self._before_end(outside):
            yield

    @contextmanager
    def _before_end(self, block: Value) -> Iterator[None]:
        """Emit in front of a block's branch, then go on where the builder was."""
        here = self.builder.block
        nested = here.is_terminated
        self.builder.position_before(block.terminator)
        try:
            yield
        finally:
            if nested:
                self.builder.position_before(here.terminator)
            else:
                self.builder.position_at_end(here)

    def dim(self, dim: Dim) -> Value:
        """The i64 value of a dimension."""
        if not isinstance(dim, Poly):
            return I64_TYPE(dim)
        return self._hoisted(dim, 0, lambda: self._polynomial(dim))

    def _polynomial(self, dim: Poly) -> Value:
        total: Value | None = None
        for monomial, coefficient in dim.terms:
            term: Value = I64_TYPE(coefficient)
            for name in monomial:
                symbol = self.symbols[name]
                term = (
                    symbol if isinstance(term, ir.Constant) and term.constant == 1 else self.builder.mul(term, symbol)
                )
            total = term if total is None else self.builder.add(total, term)
        assert total is not None
        return total

    def _hoisted(self, key: object, depth: int, emit: Callable[[], Value]) -> Value:
        """Emit what uses variables of scopes up to `depth` at the end of that scope's block so far."""
        home = min(depth + 1, len(self._scopes) - 1)
        for scope in self._scopes[: home + 1]:
            if key in scope.values:
                return scope.values[key]
        outside = self._scopes[home].outside if depth < len(self._scopes) - 1 else None
        if outside is None:
            value = emit()
            self._scopes[-1].values[key] = value
            return value
        with self._before_end(outside):
            value = emit()
        self._scopes[home].values[key] = value
        return value

    def _depth(self, name: str) -> int:
        return next(i for i in reversed(range(len(self._scopes))) if name in self._scopes[i].names)

    def _gep(self, pointer: Value, index: Value | int, element: ir.Type) -> Value:
        index = I64_TYPE(index) if isinstance(index, int) else index
        if isinstance(index, ir.Constant) and index.constant == 0:
            return pointer
        return self.builder.gep(pointer, [index], source_etype=element)

    def value_of(self, var: Var) -> Value:
        return self._values[var.name]
