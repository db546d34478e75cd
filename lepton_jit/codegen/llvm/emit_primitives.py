"""The machine primitives of the loop IR as LLVM instructions.

Nothing is relaxed: no fast-math flag is set, so NaN, infinities, denormals and signed zeros stay.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from llvmlite.ir.values import ArgumentAttributes

from lepton_jit.codegen.loops.ir import Atom, Const
from lepton_jit.codegen.target import Target
from lepton_jit.errors import UnsupportedError
from lepton_jit.ir.types import DType

# llvmlite's annotations give values no type and instructions no result.
Value = Any
Builder = Any

POINTER = ir.PointerType()
I64_TYPE = ir.IntType(64)
I32_TYPE = ir.IntType(32)
_ARITHMETIC = {"add": "add", "subtract": "sub", "multiply": "mul"}
_BITWISE = {"and": "and_", "or": "or_", "xor": "xor"}
_SHIFTS = {"shift_left": "shl", "shift_right_logical": "lshr", "shift_right_arithmetic": "ashr"}
_PREDICATES = {"EQ": "==", "NE": "!=", "LT": "<", "LE": "<=", "GT": ">", "GE": ">="}
_ROUNDING = {"floor": "floor", "ceil": "ceil", "round_nearest_even": "roundeven", "sqrt": "sqrt", "abs": "fabs"}


class Text(ir.Constant):
    """A constant with a text of its own."""

    def __init__(self, typ: ir.Type, text: str) -> None:
        super().__init__(typ, None)
        self._text = text

    def get_reference(self) -> str:
        return self._text


def memory_type(dtype: DType) -> ir.Type:
    """The LLVM type of an element in memory."""
    if dtype.is_float:
        return ir.FloatType() if dtype.bytes == 4 else ir.DoubleType()
    return ir.IntType(dtype.bytes * 8)


def value_type(dtype: DType, lanes: int) -> ir.Type:
    """The LLVM type of a value: booleans are i1."""
    element = ir.IntType(1) if dtype.kind == "bool" else memory_type(dtype)
    return element if lanes == 1 else ir.VectorType(element, lanes)


def constant(value: float | int | bool, dtype: DType) -> ir.Constant:
    element = value_type(dtype, 1)
    if dtype.is_float:
        return ir.Constant(element, float(dtype.numpy.type(value)))
    if dtype.kind == "bool":
        return ir.Constant(element, int(bool(value)))
    bits = dtype.bytes * 8
    wrapped = int(value) & (2**bits - 1)
    return ir.Constant(element, wrapped - 2**bits if wrapped >= 2 ** (bits - 1) else wrapped)


def splat_constant(value: float | int | bool, dtype: DType, lanes: int) -> ir.Constant:
    """The same constant in every lane, in LLVM's short form."""
    if lanes == 1:
        return constant(value, dtype)
    return Text(value_type(dtype, lanes), f"splat ({constant(value, dtype)})")


def allocate(builder: Builder, element: ir.Type, count: int) -> Value:
    """Stack memory for `count` elements; llvmlite still gives it a typed pointer."""
    memory = builder.alloca(ir.ArrayType(element, count))
    memory.type = POINTER
    return memory


def declared(module: ir.Module, name: str, result: ir.Type, arguments: Sequence[ir.Type]) -> ir.Function:
    """A function from outside, such as one of LLVM's intrinsics, declared when it is first used."""
    known = module.globals.get(name)
    return known or ir.Function(module, ir.FunctionType(result, arguments), name)


class Primitives:
    """Emits one instruction, or the few that a primitive needs, at the builder's position."""

    def __init__(self, builder: Builder, target: Target) -> None:
        self.builder = builder
        self.fused = target.name == "aarch64" or "fma" in target.required

    def apply(self, op: str, x: list[Value], atoms: Sequence[Atom], dtype: DType, lanes: int, detail: str) -> Value:
        b = self.builder
        kind = atoms[0].dtype
        if op in _ARITHMETIC:
            return getattr(b, ("f" if dtype.is_float else "") + _ARITHMETIC[op])(*x)
        if op in _BITWISE:
            return getattr(b, _BITWISE[op])(*x)
        if op in _SHIFTS:
            return self._shift(op, x, dtype, lanes)
        if op in _ROUNDING and dtype.is_float:
            return self._intrinsic(f"llvm.{_ROUNDING[op]}", x, dtype, lanes)
        match op:
            case "fma":
                return self._fma(x, dtype, lanes)
            case "divide" | "remainder":
                return self._divide(op, x, dtype, lanes)
            case "maximum" | "minimum":
                return self._extremum(op, x, atoms, dtype)
            case "compare":
                return self._compare(x, kind, detail)
            case "select":
                return b.select(*x)
            case "convert":
                return self._convert(x[0], kind, dtype, lanes)
            case "bitcast_convert":
                return b.bitcast(x[0], value_type(dtype, lanes))
            case "negate":
                return b.fneg(x[0]) if dtype.is_float else b.neg(x[0])
            case "not":
                return b.not_(x[0])
            case "abs":
                if dtype.kind in ("unsigned", "bool"):
                    return x[0]
                return b.select(b.icmp_signed("<", x[0], splat_constant(0, dtype, lanes)), b.neg(x[0]), x[0])
            case "floor_divide":  # of indices: a non-negative dividend and a positive divisor
                return b.udiv(*x)
            case "modulo":
                return b.urem(*x)
        raise UnsupportedError(f"loop IR: no machine primitive is called {op!r}")

    def _intrinsic(self, name: str, x: Sequence[Value], dtype: DType, lanes: int) -> Value:
        module = self.builder.module
        typ = value_type(dtype, lanes)
        suffix = f"f{dtype.bytes * 8}" if dtype.is_float else f"i{dtype.bytes * 8}"
        full = f"{name}.{f'v{lanes}' if lanes > 1 else ''}{suffix}"
        return self.builder.call(declared(module, full, typ, [typ] * len(x)), x)

    def _fma(self, x: list[Value], dtype: DType, lanes: int) -> Value:
        if not self.fused:
            return self.builder.fadd(self.builder.fmul(x[0], x[1]), x[2])
        return self._intrinsic("llvm.fma", x, dtype, lanes)

    def _shift(self, op: str, x: list[Value], dtype: DType, lanes: int) -> Value:
        """StableHLO: a shift by the width or more gives zero (or the sign); LLVM leaves it undefined."""
        b = self.builder
        bits = dtype.bytes * 8
        if isinstance(x[1], ir.Constant):  # native forms shift by constants within the width
            return getattr(b, _SHIFTS[op])(*x)
        inside = b.icmp_unsigned("<", x[1], splat_constant(bits, dtype, lanes))
        amount = b.select(inside, x[1], splat_constant(bits - 1 if op.endswith("arithmetic") else 0, dtype, lanes))
        shifted = getattr(b, _SHIFTS[op])(x[0], amount)
        return shifted if op.endswith("arithmetic") else b.select(inside, shifted, splat_constant(0, dtype, lanes))

    def _divide(self, op: str, x: list[Value], dtype: DType, lanes: int) -> Value:
        """Integers: x / 0 = -1, x % 0 = x and min / -1 = min (StableHLO leaves them open; the machine would trap)."""
        b = self.builder
        if dtype.is_float:
            return b.fdiv(*x) if op == "divide" else b.frem(*x)
        zero, one = splat_constant(0, dtype, lanes), splat_constant(1, dtype, lanes)
        by_zero = b.icmp_signed("==", x[1], zero)
        if dtype.kind == "unsigned":
            divisor = b.select(by_zero, one, x[1])
            result = b.udiv(x[0], divisor) if op == "divide" else b.urem(x[0], divisor)
        else:
            by_minus_one = b.icmp_signed("==", x[1], splat_constant(-1, dtype, lanes))
            divisor = b.select(b.or_(by_zero, by_minus_one), one, x[1])
            quotient = b.sdiv(x[0], divisor) if op == "divide" else b.srem(x[0], divisor)
            exact = b.neg(x[0]) if op == "divide" else zero
            result = b.select(by_minus_one, exact, quotient)
        return b.select(by_zero, splat_constant(-1, dtype, lanes) if op == "divide" else x[0], result)

    def _extremum(self, op: str, x: list[Value], atoms: Sequence[Atom], dtype: DType) -> Value:
        """NaN if either is NaN. x86's maxps gives its second operand then, so a constant goes first."""
        b = self.builder
        sign = ">" if op == "maximum" else "<"
        if not dtype.is_float:
            signed = dtype.kind == "signed"
            compare = b.icmp_signed if signed else b.icmp_unsigned
            return b.select(compare(sign, *x), *x)
        first, second = x
        if isinstance(atoms[1], Const) and not math.isnan(atoms[1].value):
            return b.select(b.fcmp_ordered(sign, second, first), second, first)
        if isinstance(atoms[0], Const) and not math.isnan(atoms[0].value):
            return b.select(b.fcmp_ordered(sign, first, second), first, second)
        larger = b.select(b.fcmp_ordered(sign, first, second), first, second)
        return b.select(b.fcmp_unordered("uno", first, first), first, larger)

    def _compare(self, x: list[Value], kind: DType, direction: str) -> Value:
        b = self.builder
        sign = _PREDICATES[direction]
        if kind.is_float:
            return b.fcmp_unordered(sign, *x) if direction == "NE" else b.fcmp_ordered(sign, *x)
        return b.icmp_signed(sign, *x) if kind.kind == "signed" else b.icmp_unsigned(sign, *x)

    def _convert(self, x: Value, source: DType, target: DType, lanes: int) -> Value:
        b = self.builder
        typ = value_type(target, lanes)
        if source == target:
            return x
        if target.kind == "bool":
            zero = splat_constant(0, source, lanes)
            return b.fcmp_unordered("!=", x, zero) if source.is_float else b.icmp_signed("!=", x, zero)
        if source.kind == "bool":
            return b.uitofp(x, typ) if target.is_float else b.zext(x, typ)
        if source.is_float and target.is_float:
            return b.fpext(x, typ) if target.bytes > source.bytes else b.fptrunc(x, typ)
        if source.is_float:
            return self._float_to_integer(x, target, lanes)
        if target.is_float:
            return b.sitofp(x, typ) if source.kind == "signed" else b.uitofp(x, typ)
        if target.bytes == source.bytes:
            return x
        if target.bytes < source.bytes:
            return b.trunc(x, typ)
        return b.sext(x, typ) if source.kind == "signed" else b.zext(x, typ)

    def _float_to_integer(self, x: Value, target: DType, lanes: int) -> Value:
        """Towards zero; what does not fit becomes the nearest integer that does, and NaN zero."""
        source = x.type
        element = source.element if isinstance(source, ir.VectorType) else source
        bits = 32 if isinstance(element, ir.FloatType) else 64
        typ = value_type(target, lanes)
        vector = f"v{lanes}" if lanes > 1 else ""
        sign = "s" if target.kind == "signed" else "u"
        name = f"llvm.fpto{sign}i.sat.{vector}i{target.bytes * 8}.{vector}f{bits}"
        return self.builder.call(declared(self.builder.module, name, typ, [source]), [x])

    def splat(self, value: Value, lanes: int) -> Value:
        typ = ir.VectorType(value.type, lanes)
        poison = Text(typ, "poison")
        first = self.builder.insert_element(poison, value, I32_TYPE(0))
        return self.builder.shuffle_vector(first, poison, Text(ir.VectorType(I32_TYPE, lanes), "zeroinitializer"))

    def horizontal(self, op: str, value: Value, atom: Atom) -> Value:
        """Combine the lanes by halves."""
        lanes = atom.lanes
        while lanes > 1:
            half = lanes // 2
            halves = [self._part(value, start, half, lanes) for start in (0, half)]
            value = self.apply(op, halves, (Const(math.nan, atom.dtype, half),) * 2, atom.dtype, half, "")
            lanes = half
        return value

    def trn(self, first: Value, second: Value, lanes: int, width: int, odd: bool) -> Value:
        """Even or odd parts of both by turns. LLVM selects shuffles of fewer, wider lanes in less time."""
        if width % 2 == 0 and isinstance(first.type.element, ir.FloatType):
            wide = ir.VectorType(ir.DoubleType(), lanes // 2)
            first_wide, second_wide = (self.builder.bitcast(x, wide) for x in (first, second))
            parts = self.trn(first_wide, second_wide, lanes // 2, width // 2, odd)
            return self.builder.bitcast(parts, first.type)
        part, within = zip(*(divmod(lane, width) for lane in range(lanes)), strict=True)
        lane = [(p % 2) * lanes + (p - p % 2 + odd) * width + i for p, i in zip(part, within, strict=True)]
        mask = ir.Constant(ir.VectorType(I32_TYPE, lanes), [I32_TYPE(i) for i in lane])
        return self.builder.shuffle_vector(first, second, mask)

    def _part(self, value: Value, start: int, count: int, lanes: int) -> Value:
        if count == 1:
            return self.builder.extract_element(value, I32_TYPE(start))
        mask = ir.Constant(ir.VectorType(I32_TYPE, count), [I32_TYPE(start + i) for i in range(count)])
        return self.builder.shuffle_vector(value, Text(value.type, "poison"), mask)

    # Memory

    def to_memory(self, value: Value, dtype: DType, lanes: int) -> Value:
        if dtype.kind != "bool":
            return value
        typ = memory_type(dtype)
        return self.builder.zext(value, typ if lanes == 1 else ir.VectorType(typ, lanes))

    def from_memory(self, value: Value, dtype: DType, lanes: int) -> Value:
        if dtype.kind != "bool":
            return value
        zero = ir.Constant(value.type, 0 if lanes == 1 else None)
        return self.builder.icmp_unsigned("!=", value, zero)

    def load(self, pointer: Value, dtype: DType, lanes: int, mask: Value | None, other: Value | None) -> Value:
        element = memory_type(dtype)
        typ = element if lanes == 1 else ir.VectorType(element, lanes)
        if mask is None:
            return self.from_memory(self.builder.load(pointer, align=dtype.bytes, typ=typ), dtype, lanes)
        if lanes == 1:
            return self._guarded_load(pointer, dtype, mask, other)
        passthrough = self._passthrough(other, dtype, lanes)
        function = self._masked("load", [POINTER, mask.type, typ], typ, dtype, lanes)
        loaded = self.builder.call(function, [pointer, mask, passthrough])
        loaded.arg_attributes[0] = _alignment(dtype)
        return self.from_memory(loaded, dtype, lanes)

    def _passthrough(self, other: Value | None, dtype: DType, lanes: int) -> Value:
        element = memory_type(dtype)
        if other is None:
            return Text(ir.VectorType(element, lanes), "zeroinitializer")
        return self.to_memory(other, dtype, lanes)

    def _guarded_load(self, pointer: Value, dtype: DType, mask: Value, other: Value | None) -> Value:
        """A scalar under a condition: a vector of one lane would be scalarized to the same branch."""
        b = self.builder
        before = b.block
        inside = b.append_basic_block("read")
        after = b.append_basic_block("join")
        b.cbranch(mask, inside, after)
        b.position_at_end(inside)
        loaded = self.from_memory(b.load(pointer, align=dtype.bytes, typ=memory_type(dtype)), dtype, 1)
        b.branch(after)
        b.position_at_end(after)
        phi = b.phi(loaded.type)
        phi.add_incoming(loaded, inside)
        phi.add_incoming(constant(0, dtype) if other is None else other, before)
        return phi

    def gather(
        self,
        pointer: Value,
        offsets: Value,
        dtype: DType,
        lanes: int,
        mask: Value | None,
        other: Value | None,
    ) -> Value:
        b = self.builder
        element = memory_type(dtype)
        typ = ir.VectorType(element, lanes)
        pointers_type = ir.VectorType(POINTER, lanes)
        addresses = b.gep(pointer, [offsets], source_etype=element)
        addresses.type = pointers_type  # llvmlite types a vector of addresses as one pointer
        masks = ir.VectorType(ir.IntType(1), lanes)
        mask = mask if mask is not None else Text(masks, "splat (i1 true)")
        suffix = f"v{lanes}{_suffix(dtype)}.v{lanes}p0"
        name = f"llvm.masked.gather.{suffix}"
        function = declared(b.module, name, typ, [pointers_type, masks, typ])
        loaded = b.call(function, [addresses, mask, self._passthrough(other, dtype, lanes)])
        loaded.arg_attributes[0] = _alignment(dtype)
        return self.from_memory(loaded, dtype, lanes)

    def store(self, value: Value, pointer: Value, dtype: DType, mask: Value | None) -> None:
        b = self.builder
        if mask is None:
            b.store(value, pointer, align=dtype.bytes)
            return
        if not isinstance(value.type, ir.VectorType):
            with b.if_then(mask):
                b.store(value, pointer, align=dtype.bytes)
            return
        typ = value.type
        function = self._masked("store", [typ, POINTER, mask.type], ir.VoidType(), dtype, typ.count)
        b.call(function, [value, pointer, mask]).arg_attributes[1] = _alignment(dtype)

    def _masked(self, kind: str, signature: list[ir.Type], result: ir.Type, dtype: DType, lanes: int) -> ir.Function:
        name = f"llvm.masked.{kind}.v{lanes}{_suffix(dtype)}.p0"
        return declared(self.builder.module, name, result, signature)


def _alignment(dtype: DType) -> ArgumentAttributes:
    attributes = ArgumentAttributes()
    attributes.align = dtype.bytes
    return attributes


def _suffix(dtype: DType) -> str:
    return f"{'f' if dtype.is_float else 'i'}{dtype.bytes * 8}"
