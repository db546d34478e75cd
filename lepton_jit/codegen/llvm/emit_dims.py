"""Emit the native values of dimensions."""

from __future__ import annotations

from lepton_jit.codegen.llvm.emit_primitives import I32_TYPE, I64_TYPE, Builder, Value, declared
from lepton_jit.codegen.loops.ir import CeilDiv, Extent
from lepton_jit.ir.types import Dim, Poly


class Symbols:
    """Emits native values of dimensions, from the array of the symbols' values."""

    def __init__(self, builder: Builder, dims: Value, symbols: tuple[str, ...]) -> None:
        self.builder = builder
        self.values = {
            name: builder.load(builder.gep(dims, [I64_TYPE(i)], source_etype=I64_TYPE), align=8, typ=I64_TYPE)
            for i, name in enumerate(symbols)
        }

    def value(self, dim: Dim, saturate: bool = False) -> Value:
        """The value of a dimension; with `saturate`, products that overflow become the largest i64."""
        if not isinstance(dim, Poly):
            return I64_TYPE(dim)
        total: Value = I64_TYPE(0)
        for monomial, coefficient in dim.terms:
            term: Value = I64_TYPE(coefficient)
            for name in monomial:
                saturated = saturate and len(monomial) > 1
                term = (
                    self._saturating(term, self.values[name])
                    if saturated
                    else self.builder.mul(term, self.values[name])
                )
            total = self.builder.add(total, term)
        return total

    def extent(self, builder: Builder, extent: Extent) -> Value:
        """The native value of an extent, at the position of `builder`."""
        self.builder = builder
        if not isinstance(extent, CeilDiv):
            return self.value(extent)
        raised = self.builder.add(self.value(extent.dividend), I64_TYPE(extent.divisor - 1))
        return self.builder.mul(self.builder.udiv(raised, I64_TYPE(extent.divisor)), self.value(extent.factor))

    def _saturating(self, a: Value, b: Value) -> Value:
        function = declared(self.builder.module, "llvm.smul.fix.sat.i64", I64_TYPE, [I64_TYPE, I64_TYPE, I32_TYPE])
        return self.builder.call(function, [a, b, I32_TYPE(0)])
