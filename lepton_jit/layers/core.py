"""InputLayer and Input, Dense, Activation, Dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lepton_jit import activations, initializers, regularizers
from lepton_jit.common import arguments
from lepton_jit.errors import ArgumentError, ShapeError, UnsupportedError
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import DTYPES
from lepton_jit.layers.base.layer import Layer
from lepton_jit.layers.base.registry import registry
from lepton_jit.layers.base.symbolic import Call, ShapeTuple, SymbolicTensor
from lepton_jit.random import check_seed
from lepton_jit.tracing import Tracer

__all__ = ["Activation", "Dense", "Dropout", "Input", "InputLayer"]


@registry.register
class InputLayer(Layer):
    """Where data enters a model: `shape` without the batch, which is any number unless `batch_size` fixes it."""

    fields = ("shape", "batch_size")
    accepts = ("sparse", "ragged")

    def __init__(
        self, shape: Sequence[int] | None = None, batch_size: int | None = None, dtype: Any = None, **options: Any
    ) -> None:
        super().__init__(dtype="float32" if dtype is None else dtype, **options)
        if shape is None:
            raise ArgumentError(f"{self.label}: expected a shape, such as (28, 28, 1)")
        if any(d is None for d in arguments.sequence(self.label, "shape", shape)):
            raise UnsupportedError(f"{self.label}: shape {tuple(shape)}: only the batch can be of any size")
        self.shape = arguments.integer_tuple(self.label, "shape", shape)
        self.batch_size = None if batch_size is None else arguments.integer(self.label, "batch_size", batch_size)
        self.built = True
        self._check_output(self.batch_shape, self.compute_dtype.numpy.name)
        self.calls.append(Call(self, (), [(self.batch_shape, self.compute_dtype.numpy.name)]))

    @property
    def batch_shape(self) -> ShapeTuple:
        return (self.batch_size, *self.shape)

    def compute_output_shape(self, input_shape: Any = None) -> ShapeTuple:
        return self.batch_shape


def Input(  # noqa: N802  Keras' name
    shape: Sequence[int] | None = None,
    batch_size: int | None = None,
    dtype: Any = None,
    name: str | None = None,
    **options: Any,
) -> SymbolicTensor:
    """A symbolic tensor of `shape` (without the batch) and `dtype`, float32 by default.

    >>> Input((28, 28, 1), name="image")
    <SymbolicTensor of layer 'image': shape=(None, 28, 28, 1), dtype=float32>
    """
    return InputLayer(shape, batch_size, dtype, name=name, **options).calls[0].outputs[0]


@registry.register
class Dense(Layer):
    """`activation(x @ kernel + bias)` over the last axis: `x: [N, ..., C]`, `kernel: [C, units]`."""

    supports_masking = True
    fields = (
        "units",
        "activation",
        "use_bias",
        "kernel_initializer",
        "bias_initializer",
        "kernel_regularizer",
        "bias_regularizer",
    )
    accepts = (
        "activity_regularizer",
        "kernel_constraint",
        "bias_constraint",
        "lora_rank",
        "lora_alpha",
        "quantization_config",
    )

    def __init__(
        self,
        units: int,
        activation: Any = None,
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.units = arguments.integer(self.label, "units", units)
        self.activation = activations.get(activation)
        self.use_bias = arguments.boolean(self.label, "use_bias", use_bias)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.bias = None

    def build(self, input_shape: ShapeTuple) -> None:
        self.compute_output_shape(input_shape)
        channels = input_shape[-1]
        self.kernel = self.add_weight(
            "kernel",
            (channels, self.units),
            self.kernel_initializer,
            self.kernel_regularizer,
        )
        if self.use_bias:
            self.bias = self.add_weight("bias", (self.units,), self.bias_initializer, self.bias_regularizer)

    def compute_output_shape(self, input_shape: ShapeTuple) -> ShapeTuple:
        if len(input_shape) < 2:
            raise ShapeError(f"{self.label}: expected an input of rank 2 or more (batch included), got {input_shape}")
        if self.built:
            self.check_input("features", self.kernel.shape[0], input_shape[-1], input_shape)
        return (*input_shape[:-1], self.units)

    def trace(self, t: Tracer, x: Value) -> Value:
        y = t(
            "dot_general",
            x,
            t.weight(self.kernel),
            lhs_batching=(),
            rhs_batching=(),
            lhs_contracting=(x.type.rank - 1,),
            rhs_contracting=(0,),
        )
        if self.bias is not None:
            y = t("add", y, t.along(t.weight(self.bias), y))
        return self.activation.trace(t, y)


@registry.register
class Activation(Layer):
    """An activation function as a layer: `Activation("relu")`."""

    supports_masking = True
    fields = ("activation",)
    accepts = ("activity_regularizer",)

    def __init__(self, activation: Any, **options: Any) -> None:
        super().__init__(**options)
        self.activation = activations.get(activation)

    def trace(self, t: Tracer, x: Value) -> Value:
        return self.activation.trace(t, x)


@registry.register
class Dropout(Layer):
    """In training, sets a share `rate` of the elements to 0 and divides the others by `1 - rate`."""

    supports_masking = True
    fields = ("rate", "seed")
    accepts = ("activity_regularizer", "noise_shape")

    def __init__(self, rate: float, seed: int | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.rate = arguments.number(self.label, "rate", rate, low=0, high=1)
        self.seed = check_seed(self.label, seed)

    def trace(self, t: Tracer, x: Value) -> Value:
        return drop(t, x, self.rate, self.seed)


def drop(t: Tracer, x: Value, rate: float, seed: int | None) -> Value:
    """`x` in inference; in training, without a share `rate` of its elements and the others divided by `1 - rate`."""
    if not t.training or rate == 0:
        return x
    bits, step, stream = t.random()
    if seed is not None:
        bits = t.b.constant(seed, DTYPES["u64"])
    if rate == 1:
        return t.b.full(0.0, x.type)
    return t("dropout", x, bits, step, rate=rate, stream=stream)
