"""MaxPooling2D and AveragePooling2D on `x: [N, H, W, C]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from lepton_jit.common import arguments
from lepton_jit.ir.graph import Value
from lepton_jit.layers.base.layer import Layer
from lepton_jit.layers.base.registry import registry
from lepton_jit.layers.base.symbolic import ShapeTuple
from lepton_jit.layers.window import window_inside, window_output
from lepton_jit.tracing import Tracer

__all__ = ["AveragePooling2D", "MaxPooling2D"]


class _Pooling(Layer):
    fields = ("pool_size", "strides", "padding")
    accepts = ("data_format",)
    rank = 4
    _operation: ClassVar[str]

    def __init__(
        self,
        pool_size: int | Sequence[int] = (2, 2),
        strides: int | Sequence[int] | None = None,
        padding: str = "valid",
        data_format: str | None = None,
        **options: Any,
    ) -> None:
        super().__init__(data_format=data_format, **options)
        self.pool_size = arguments.pair(self.label, "pool_size", pool_size)
        self.strides = self.pool_size if strides is None else arguments.pair(self.label, "strides", strides)
        self.padding = arguments.choice(self.label, "padding", padding, ("valid", "same"))

    def compute_output_shape(self, input_shape: ShapeTuple) -> ShapeTuple:
        size = window_output(self.label, input_shape, self.pool_size, self.strides, self.padding)
        return (input_shape[0], *size, input_shape[3])

    def trace(self, t: Tracer, x: Value) -> Value:
        window, padding = self.pool_size, ((0, 0), (0, 0))
        if self.padding == "same":
            window, padding = window_inside(x.type.shape[1:3], self.pool_size, self.strides)
        return t(self._operation, x, window=window, strides=self.strides, padding=padding)


@registry.register
class MaxPooling2D(_Pooling):
    """The maximum of every window; padding is never chosen."""

    _operation = "max_pool"


@registry.register
class AveragePooling2D(_Pooling):
    """The mean of every window; padding is not counted."""

    _operation = "average_pool"
