"""Masking: time steps that hold one value throughout do not count."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lepton_jit.common import arguments
from lepton_jit.errors import ShapeError
from lepton_jit.ir.graph import Value
from lepton_jit.layers.base.layer import Layer
from lepton_jit.layers.base.registry import registry
from lepton_jit.layers.base.symbolic import ShapeTuple
from lepton_jit.tracing import Tracer

__all__ = ["Masking"]


@registry.register
class Masking(Layer):
    """`x: [N, T, ..., C]` with zeros where all C entries are `mask_value`; these positions are masked in what follows.

    >>> Masking().compute_mask([[[0.0, 1.0], [0.0, 0.0]]])
    array([[ True, False]])
    """

    fields = ("mask_value",)
    supports_masking = True

    def __init__(self, mask_value: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.mask_value = arguments.number(self.label, "mask_value", mask_value)

    def compute_output_shape(self, input_shape: ShapeTuple) -> ShapeTuple:
        if len(input_shape) < 3:
            raise ShapeError(f"{self.label}: expected an input of rank 3 or more (batch included), got {input_shape}")
        return input_shape

    def trace(self, t: Tracer, x: Value) -> Value:
        counts = t.b.broadcast(self._counts(t, x), x.type.shape, dimensions=tuple(range(x.type.rank - 1)))
        return t("select", counts, x, 0.0)

    def trace_mask(self, t: Tracer, inputs: Sequence[Value], masks: Sequence[Value | None]) -> Value:
        """The mask of positions with an entry that is not `mask_value`; it replaces the input's."""
        return self._counts(t, inputs[0])

    def _counts(self, t: Tracer, x: Value) -> Value:
        differs = t("compare", x, self.mask_value, direction="NE")
        return t("reduce", differs, dimensions=(x.type.rank - 1,), kind="or")
