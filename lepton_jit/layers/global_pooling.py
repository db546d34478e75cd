"""One number for all steps or pixels of a channel: `x: [N, T, C]` or `[N, H, W, C]` becomes `[N, C]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lepton_jit.common import arguments
from lepton_jit.ir.graph import Value
from lepton_jit.layers.base.layer import Layer
from lepton_jit.layers.base.registry import registry
from lepton_jit.layers.base.symbolic import ShapeTuple
from lepton_jit.tracing import Tracer

__all__ = ["GlobalAveragePooling1D", "GlobalAveragePooling2D", "GlobalMaxPooling1D", "GlobalMaxPooling2D"]


class _GlobalPooling(Layer):
    fields = ("keepdims",)
    accepts = ("data_format",)

    def __init__(self, data_format: str | None = None, keepdims: bool = False, **options: Any) -> None:
        super().__init__(data_format=data_format, **options)
        self.keepdims = arguments.boolean(self.label, "keepdims", keepdims)

    def compute_output_shape(self, input_shape: ShapeTuple) -> ShapeTuple:
        batch, *space, channels = input_shape
        return (batch, *[1] * len(space), channels) if self.keepdims else (batch, channels)

    def _shaped(self, t: Tracer, pooled: Value, x: Value) -> Value:
        """`pooled: [N, C]`, with dimensions of 1 where `keepdims` wants them."""
        batch, *space, channels = x.type.shape
        return t.reshape(pooled, (batch, *[1] * len(space), channels)) if self.keepdims else pooled


class _GlobalAverage(_GlobalPooling):
    def trace(self, t: Tracer, x: Value) -> Value:
        return self._shaped(t, t.mean(x, range(1, x.type.rank - 1)), x)


class _GlobalMaximum(_GlobalPooling):
    def trace(self, t: Tracer, x: Value) -> Value:
        largest = t("reduce", x, dimensions=tuple(range(1, x.type.rank - 1)), kind="maximum")
        return self._shaped(t, largest, x)


@registry.register
class GlobalAveragePooling1D(_GlobalAverage):
    """The mean over the steps, `[N, C]`, or `[N, 1, C]` with `keepdims`.

    With a mask, the mean over those that count: NaN, as in Keras, where none does.
    """

    rank = 3
    supports_masking = True

    def trace(self, t: Tracer, x: Value, mask: Value | None = None) -> Value:  # pyright: ignore[reportIncompatibleMethodOverride]
        if mask is None:
            return super().trace(t, x)
        total = t.sum(t("select", t.b.broadcast(mask, x.type.shape, dimensions=(0, 1)), x, 0.0), (1,))
        count = t.sum(t.convert(mask, x.type.dtype), (1,))
        return self._shaped(t, t("divide", total, t.along(count, total, 0)), x)

    def trace_mask(self, t: Tracer, inputs: Sequence[Value], masks: Sequence[Value | None]) -> None:
        """Return no mask: no steps are left."""


@registry.register
class GlobalAveragePooling2D(_GlobalAverage):
    """The mean over height and width: `[N, C]`, or `[N, 1, 1, C]` with `keepdims`."""

    rank = 4


@registry.register
class GlobalMaxPooling1D(_GlobalMaximum):
    """The maximum over the steps: `[N, C]`, or `[N, 1, C]` with `keepdims`."""

    rank = 3


@registry.register
class GlobalMaxPooling2D(_GlobalMaximum):
    """The maximum over height and width: `[N, C]`, or `[N, 1, 1, C]` with `keepdims`."""

    rank = 4
