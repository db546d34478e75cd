"""Emit micro-kernels and their calls: each tile is compiled once in a program, and shared by all calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from lepton_jit.codegen.llvm.emit_kernel import KernelEmitter
from lepton_jit.codegen.llvm.emit_primitives import (
    I64_TYPE,
    POINTER,
    Builder,
    Primitives,
    Text,
    Value,
    memory_type,
    splat_constant,
)
from lepton_jit.codegen.llvm.microkernel import (
    SHAPE,
    ALayout,
    Fragment,
    MicroKernel,
    emit_microkernel,
    prefetch,
)
from lepton_jit.codegen.llvm.module_parts import SHARED
from lepton_jit.codegen.loops.ir import Affine, Apply, Atom, Const, Contract, TileShape
from lepton_jit.codegen.target import LINE_BYTES, Target
from lepton_jit.errors import GraphError
from lepton_jit.ir.types import DType

MICROKERNEL_TYPE = ir.FunctionType(ir.VoidType(), [POINTER] * 6 + [I64_TYPE] * 2)
# Sums of up to this many products are unrolled: first convolutions of 3 x 3 x 3, 1 x 1 ones of up to 32 channels.
WRITTEN_OUT = 32
# Behind `extras`: a pointer and a row step for each operand of the epilogue.
EXTRA_SLOTS = 2


class ContractUnit:
    """Holds the micro-kernels of one module, and emits calls of them."""

    def __init__(self, module: ir.Module, target: Target) -> None:
        self.module = module
        self.target = target
        self._made: dict[object, ir.Function] = {}
        self._tables: dict[object, ir.GlobalVariable] = {}

    def emit(self, kernel: KernelEmitter, contract: Contract) -> None:
        """Fill the tables of one call and call the micro-kernel for its number of rows."""
        layout = _layout(contract)
        pointers = [kernel.address(*side) for side in (contract.lhs, contract.rhs, contract.out)]
        shape = self._shape(kernel, contract)
        offsets = self._offsets(kernel, contract) if layout == "rows" else ir.Constant(POINTER, None)
        extras = self._extras(kernel, contract)
        function = self._function(kernel, contract, layout)
        zero = I64_TYPE(0)
        kernel.builder.call(function, [*pointers, shape, offsets, extras, zero, zero])

    def _function(self, kernel: KernelEmitter, contract: Contract, layout: ALayout) -> Value:
        if isinstance(contract.rows, int):
            return self._microkernel(contract, contract.rows, layout)
        table = self._table(contract, layout)
        builder = kernel.builder
        index = kernel.value_of(contract.rows)
        slot = builder.gep(_address(table), [index], source_etype=POINTER)
        loaded = builder.load(slot, align=8, typ=POINTER)
        return _Callee(loaded)  # pyright: ignore[reportReturnType]

    def _table(self, contract: Contract, layout: ALayout) -> ir.GlobalVariable:
        """The table of micro-kernels by their number of rows."""
        key = (
            contract.tile,
            contract.heights,
            layout,
            contract.accumulate,
            _terms(contract),
            contract.rows_apart,
            contract.ahead is not None,
            contract.fetch,
        )
        if key not in self._tables:
            null = ir.Constant(POINTER, None)
            entries: list[Any] = [null] * (max(contract.heights) + 1)
            for height in contract.heights:
                entries[height] = self._microkernel(contract, height, layout)
            value = ir.Constant(ir.ArrayType(POINTER, len(entries)), entries)
            self._tables[key] = self._global(f"tiles_{len(self._tables)}", value)
        return self._tables[key]

    def _global(self, name: str, value: ir.Constant) -> ir.GlobalVariable:
        table = ir.GlobalVariable(self.module, value.type, f"{self.module.name}_{name}")
        table.initializer = value  # pyright: ignore[reportAttributeAccessIssue]
        table.global_constant = True
        table.linkage = SHARED
        return table

    def _microkernel(self, contract: Contract, rows: int, layout: ALayout) -> ir.Function:
        tile = contract.tile
        terms = _terms(contract)
        row_step = contract.rows_apart if terms and isinstance(contract.rows_apart, int) else 0
        fetched = tuple(extra.row_step != 0 and extra.column_step == 1 for extra in contract.extras)
        # whether or not this call does, where a sum begins; blocks of a sum that goes on are rarer
        ahead = contract.ahead is not None or not contract.accumulate
        ahead = ahead and tile.vectors == tile.panel_vectors and not terms
        fetch = contract.fetch and rows > 1 and not terms
        key = (tile, rows, layout, contract.accumulate, terms, row_step, fetched, ahead, fetch)
        if key not in self._made:
            dtype: Any = tile.dtype.name
            kernel = MicroKernel(
                self.target,
                dtype,
                rows,
                tile.vectors,
                tile.panel_vectors,
                a_layout=layout,
                masked=tile.masked,
                b_masked=tile.rhs_masked,
                accumulate=contract.accumulate,
                ahead=ahead,
                fetch=fetch,
                terms=terms,
                row_step=row_step,
            )
            name = f"{self.module.name}_tile_{len(self._made)}"
            epilogue = _EpilogueEmitter(tile, self.target, fetched) if tile.epilogue else None
            prologue = epilogue.prefetch if epilogue and any(fetched) else None
            function = emit_microkernel(self.module, kernel, name, epilogue, prologue)
            function.linkage = SHARED
            self._made[key] = function
        return self._made[key]

    def _shape(self, kernel: KernelEmitter, contract: Contract) -> Value:
        """The i64 table of trip counts and steps."""
        sums = [(Affine.of(1), 0, 0)] * (3 - len(contract.sums)) + list(contract.sums)
        lanes = self.target.lanes(contract.tile.dtype.bytes * 8)
        values = {
            "b_panel": Affine.of(contract.rhs_panel),
            "c_row": Affine.of(contract.out_row),
            "active": contract.columns - (contract.tile.vectors - 1) * lanes,
        }
        (size,) = (buffer.size for buffer in kernel.kernel.buffers if buffer.name == contract.out[0])
        values["c_size"] = Affine.of(size)
        far, index, step = contract.ahead or (*contract.rhs, Affine())
        values |= {"ahead": Affine(), "ahead_step": step}
        for level, (extent, lhs, rhs) in zip((2, 1, 0), sums, strict=True):
            values |= {f"n{level}": extent, f"a{level}": Affine.of(lhs), f"b{level}": Affine.of(rhs)}
        table = kernel.table([values[name] for name in SHAPE])
        slot = kernel.builder.gep(table, [I64_TYPE(SHAPE.index("ahead"))], source_etype=I64_TYPE)
        kernel.builder.store(kernel.address(far, index), slot, align=8)
        return table

    def _offsets(self, kernel: KernelEmitter, contract: Contract) -> Value:
        """The table of row offsets: made on entry for rows at equal distances, else a constant of the module."""
        apart = contract.rows_apart
        if not isinstance(apart, tuple):
            return kernel.table([Affine.of(apart) * i for i in range(max(contract.heights))])
        if apart not in self._tables:
            typ = ir.ArrayType(I64_TYPE, len(apart))
            value = ir.Constant(typ, [I64_TYPE(offset) for offset in apart])
            self._tables[apart] = self._global(f"rows_{len(self._tables)}", value)
        start = kernel.affine(contract.row_start)
        return kernel.builder.gep(_address(self._tables[apart]), [start], source_etype=I64_TYPE)

    def _extras(self, kernel: KernelEmitter, contract: Contract) -> Value:
        if not contract.extras:
            return ir.Constant(POINTER, None)
        builder = kernel.builder
        slots = kernel.allocate(POINTER, EXTRA_SLOTS * len(contract.extras))
        for i, extra in enumerate(contract.extras):
            slot = builder.gep(slots, [I64_TYPE(EXTRA_SLOTS * i)], source_etype=POINTER)
            builder.store(kernel.address(extra.buffer, extra.index), slot, align=8)
            step = builder.gep(slots, [I64_TYPE(EXTRA_SLOTS * i + 1)], source_etype=POINTER)
            builder.store(kernel.dim(extra.row_step), step, align=8)
        return slots


class _Callee:
    """A loaded function pointer that llvmlite lets us call."""

    def __init__(self, value: Value) -> None:
        self.function_type = MICROKERNEL_TYPE
        self._value = value
        self.type = value.type
        self.attributes: frozenset[str] = frozenset()
        self.calling_convention = ""
        self.args = ()

    def get_reference(self) -> str:
        return self._value.get_reference()


def _layout(contract: Contract) -> ALayout:
    """How A lies: in "columns" if its rows are contiguous and K is not, else in "rows"."""
    return "columns" if contract.rows_apart == 1 and contract.sums[-1][1] != 1 else "rows"


def _terms(contract: Contract) -> tuple[tuple[int, int], ...]:
    """The products of a short sum, as distances in A and B; () where loops are better, or needed."""
    if not isinstance(contract.rows_apart, int):
        return ()
    terms = [(0, 0)]
    for extent, lhs, rhs in contract.sums:
        count = extent.constant
        if extent.terms or not isinstance(count, int) or not isinstance(lhs, int) or not isinstance(rhs, int):
            return ()
        if len(terms) * count > WRITTEN_OUT:
            return ()
        terms = [(a + i * lhs, b + i * rhs) for a, b in terms for i in range(count)]
    return tuple(terms)


def _address(table: ir.GlobalVariable) -> Value:
    """The address of a global as a plain pointer; llvmlite still types it by its content."""
    return Text(POINTER, table.get_reference())


class _EpilogueEmitter:
    """Emits the statements of an epilogue for one accumulator."""

    def __init__(self, tile: TileShape, target: Target, fetched: Sequence[bool]) -> None:
        assert tile.epilogue is not None
        self.tile = tile
        self.fetched = fetched
        self.epilogue = tile.epilogue
        self.target = target
        self._pointers: dict[tuple[Value, int, int], Value] = {}  # block, operand, row

    def __call__(self, builder: Builder, accumulator: Value, fragment: Fragment) -> Value:
        primitives = Primitives(builder, self.target)
        lanes = fragment.type.count
        values: dict[str, tuple[Value, int]] = {self.epilogue.args[0].name: (accumulator, lanes)}
        for i, (var, step) in enumerate(zip(self.epilogue.args[1:], self.tile.extra_steps, strict=True)):
            values[var.name] = self._extra(builder, i, var.dtype, step, fragment)

        def wide(atom: Atom) -> Value:
            if isinstance(atom, Const):
                return splat_constant(atom.value, atom.dtype, lanes)
            value, have = values[atom.name]
            return value if have == lanes else primitives.splat(value, lanes)

        for let in self.epilogue.body:
            if not isinstance(let.expr, Apply):
                raise GraphError(f"epilogue: expected machine primitives, got {let.expr}")
            args = [wide(a) for a in let.expr.args]
            result = primitives.apply(let.expr.op, args, let.expr.args, let.var.dtype, lanes, let.expr.detail)
            values[let.var.name] = (result, lanes)
        return wide(self.epilogue.result)

    def prefetch(self, builder: Builder, fragment: Fragment) -> None:
        """Prefetch, before the sums, what the epilogue reads of operands that have rows of their own.

        An operand that comes from DRAM, such as an LSTM's projected inputs, then arrives in L2 while the sums are
        formed (docs/measurements.md, prefetch of C).
        """
        for i, (var, fetched) in enumerate(zip(self.epilogue.args[1:], self.fetched, strict=True)):
            if fetched:
                pointer = self._address(builder, i, var.dtype, 1, fragment)
                for line in range(0, fragment.type.count * var.dtype.bytes, LINE_BYTES):
                    prefetch(builder, builder.gep(pointer, [I64_TYPE(line)], source_etype=ir.IntType(8)), locality=2)

    def _extra(
        self, builder: Builder, number: int, dtype: DType, column_step: int, fragment: Fragment
    ) -> tuple[Value, int]:
        pointer = self._address(builder, number, dtype, column_step, fragment)
        primitives = Primitives(builder, self.target)
        if not column_step:
            return primitives.load(pointer, dtype, 1, None, None), 1
        lanes = fragment.type.count
        return primitives.load(pointer, dtype, lanes, fragment.mask, None), lanes

    def _address(self, builder: Builder, number: int, dtype: DType, column_step: int, fragment: Fragment) -> Value:
        """The address of a fragment's part of an operand; fragments of one row share what they have in common."""
        element = memory_type(dtype)
        pointer = self._row(builder, number, element, fragment.row)
        if not column_step or not fragment.column:
            return pointer
        return builder.gep(pointer, [I64_TYPE(fragment.column)], source_etype=element)

    def _row(self, builder: Builder, number: int, element: ir.Type, row: int) -> Value:
        key = builder.block, number, row
        if key not in self._pointers:
            self._pointers[key] = self._row_pointer(builder, number, element, row)
        return self._pointers[key]

    def _row_pointer(self, builder: Builder, number: int, element: ir.Type, row: int) -> Value:
        table = builder.function.args[5]
        if not row:
            slot = builder.gep(table, [I64_TYPE(EXTRA_SLOTS * number)], source_etype=POINTER)
            return builder.load(slot, align=8, typ=POINTER)
        slot = builder.gep(table, [I64_TYPE(EXTRA_SLOTS * number + 1)], source_etype=POINTER)
        offset = builder.mul(builder.load(slot, align=8, typ=I64_TYPE), I64_TYPE(row))
        return builder.gep(self._row(builder, number, element, 0), [offset], source_etype=element)
