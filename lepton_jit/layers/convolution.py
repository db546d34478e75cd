"""Conv2D and DepthwiseConv2D on channels-last images: `x: [N, H, W, C]`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lepton_jit import activations, initializers, regularizers
from lepton_jit.common import arguments
from lepton_jit.errors import ArgumentError, ShapeError
from lepton_jit.ir.graph import Value
from lepton_jit.layers.base.layer import Layer
from lepton_jit.layers.base.registry import registry
from lepton_jit.layers.base.symbolic import ShapeTuple
from lepton_jit.layers.window import same_padding, window_output
from lepton_jit.tracing import Tracer
from lepton_jit.tracing.weight import Weight

__all__ = ["Conv2D", "DepthwiseConv2D"]

_ACCEPTS = ("data_format", "activity_regularizer", "kernel_constraint", "depthwise_constraint", "bias_constraint")


class _Convolution(Layer):
    rank = 4
    kernel: Weight
    kernel_size: tuple[int, int]

    def _configure(
        self,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int],
        padding: str,
        dilation_rate: int | Sequence[int],
        activation: Any,
        use_bias: bool,
        bias_initializer: Any,
        bias_regularizer: Any,
    ) -> None:
        self.kernel_size = arguments.pair(self.label, "kernel_size", kernel_size)
        self.strides = arguments.pair(self.label, "strides", strides)
        self.padding = arguments.choice(self.label, "padding", padding, ("valid", "same"))
        self.dilation_rate = arguments.pair(self.label, "dilation_rate", dilation_rate)
        if max(self.strides) > 1 and max(self.dilation_rate) > 1:
            raise ArgumentError(
                f"{self.label}: strides {self.strides} and dilation_rate {self.dilation_rate}: only one can be above 1"
            )
        self.activation = activations.get(activation)
        self.use_bias = arguments.boolean(self.label, "use_bias", use_bias)
        self.bias_initializer = initializers.get(bias_initializer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.bias: Weight | None = None

    def _outputs(self, channels: int) -> int:
        """The number of output channels."""
        raise NotImplementedError

    def _input_channels(self) -> int:
        """The number of channels that the kernel was made for."""
        raise NotImplementedError

    def compute_output_shape(self, input_shape: ShapeTuple) -> ShapeTuple:
        batch, _, _, channels = input_shape
        assert channels is not None
        if self.built:
            self.check_input("channels", self._input_channels(), channels, input_shape)
        size = window_output(self.label, input_shape, self.kernel_size, self.strides, self.padding, self.dilation_rate)
        return (batch, *size, self._outputs(channels))

    def _convolve(self, t: Tracer, x: Value, kernel: Value, groups: int) -> Value:
        size = x.type.shape[1:3]
        y = t(
            "convolution",
            x,
            kernel,
            lhs_spec=(0, 3, 1, 2),
            rhs_spec=(3, 2, 0, 1),
            out_spec=(0, 3, 1, 2),
            strides=self.strides,
            padding=same_padding(size, self.kernel_size, self.strides, self.dilation_rate)
            if self.padding == "same"
            else ((0, 0), (0, 0)),
            lhs_dilation=(1, 1),
            rhs_dilation=self.dilation_rate,
            window_reversal=(False, False),
            feature_group_count=groups,
            batch_group_count=1,
        )
        if self.bias is not None:
            y = t("add", y, t.along(t.weight(self.bias), y))
        return self.activation.trace(t, y)


@registry.register
class Conv2D(_Convolution):
    """`activation(convolution(x, kernel) + bias)` with `kernel: [kh, kw, C / groups, filters]`."""

    fields = (
        "filters",
        "kernel_size",
        "strides",
        "padding",
        "dilation_rate",
        "groups",
        "activation",
        "use_bias",
        "kernel_initializer",
        "bias_initializer",
        "kernel_regularizer",
        "bias_regularizer",
    )
    accepts = _ACCEPTS

    def __init__(
        self,
        filters: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: str = "valid",
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = (1, 1),
        groups: int = 1,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(data_format=data_format, **options)
        self.filters = arguments.integer(self.label, "filters", filters)
        self.groups = arguments.integer(self.label, "groups", groups)
        if self.filters % self.groups:
            raise ArgumentError(
                f"{self.label}: expected filters to be a multiple of groups, got {filters} and {groups}"
            )
        self._configure(
            kernel_size, strides, padding, dilation_rate, activation, use_bias, bias_initializer, bias_regularizer
        )
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)

    def build(self, input_shape: ShapeTuple) -> None:
        channels = input_shape[-1]
        assert channels is not None
        if channels % self.groups:
            raise ShapeError(
                f"{self.label}: expected a number of input channels that is a multiple of groups={self.groups}, "
                f"got shape {input_shape}"
            )
        self.compute_output_shape(input_shape)
        shape = (*self.kernel_size, channels // self.groups, self.filters)
        self.kernel = self.add_weight("kernel", shape, self.kernel_initializer, self.kernel_regularizer)
        if self.use_bias:
            self.bias = self.add_weight("bias", (self.filters,), self.bias_initializer, self.bias_regularizer)

    def _outputs(self, channels: int) -> int:
        return self.filters

    def _input_channels(self) -> int:
        return self.kernel.shape[2] * self.groups

    def trace(self, t: Tracer, x: Value) -> Value:
        return self._convolve(t, x, t.weight(self.kernel), self.groups)


@registry.register
class DepthwiseConv2D(_Convolution):
    """A convolution of each channel by itself, `kernel: [kh, kw, C, depth_multiplier]`."""

    fields = (
        "kernel_size",
        "strides",
        "padding",
        "depth_multiplier",
        "dilation_rate",
        "activation",
        "use_bias",
        "depthwise_initializer",
        "bias_initializer",
        "depthwise_regularizer",
        "bias_regularizer",
    )
    accepts = _ACCEPTS

    def __init__(
        self,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = (1, 1),
        padding: str = "valid",
        depth_multiplier: int = 1,
        data_format: str | None = None,
        dilation_rate: int | Sequence[int] = (1, 1),
        activation: Any = None,
        use_bias: bool = True,
        depthwise_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        depthwise_regularizer: Any = None,
        bias_regularizer: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(data_format=data_format, **options)
        self.depth_multiplier = arguments.integer(self.label, "depth_multiplier", depth_multiplier)
        self._configure(
            kernel_size, strides, padding, dilation_rate, activation, use_bias, bias_initializer, bias_regularizer
        )
        self.depthwise_initializer = initializers.get(depthwise_initializer)
        self.depthwise_regularizer = regularizers.get(depthwise_regularizer)

    def build(self, input_shape: ShapeTuple) -> None:
        self.compute_output_shape(input_shape)
        channels = input_shape[-1]
        assert channels is not None
        shape = (*self.kernel_size, channels, self.depth_multiplier)
        self.kernel = self.add_weight("kernel", shape, self.depthwise_initializer, self.depthwise_regularizer)
        if self.use_bias:
            outputs = (channels * self.depth_multiplier,)
            self.bias = self.add_weight("bias", outputs, self.bias_initializer, self.bias_regularizer)

    def _outputs(self, channels: int) -> int:
        return channels * self.depth_multiplier

    def _input_channels(self) -> int:
        return self.kernel.shape[2]

    def trace(self, t: Tracer, x: Value) -> Value:
        channels = self._input_channels()
        kernel = t.reshape(t.weight(self.kernel), (*self.kernel_size, 1, channels * self.depth_multiplier))
        return self._convolve(t, x, kernel, channels)
