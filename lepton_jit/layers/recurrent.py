"""Recurrent layers: LSTM, GRU, SimpleRNN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from lepton_jit import activations, initializers, regularizers
from lepton_jit.common import arguments
from lepton_jit.errors import ArgumentError, ShapeError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Value
from lepton_jit.ir.loops import scan
from lepton_jit.ir.types import TensorType
from lepton_jit.layers.base.layer import Layer, Spec
from lepton_jit.layers.base.registry import registry
from lepton_jit.layers.base.symbolic import ShapeTuple
from lepton_jit.layers.core import drop
from lepton_jit.random import check_seed
from lepton_jit.tracing import Tracer
from lepton_jit.tracing.weight import Weight

__all__ = ["GRU", "LSTM", "SimpleRNN"]


class _Recurrent(Layer):
    """`x: [N, T, C]` step by step: the projection `x_t @ kernel + bias` and the states before give the states after.

    Kernels hold `gates` blocks of columns. The first of the `states` is the output. A masked step (`mask: bool[N, T]`)
    keeps the states; its output is the one before, or 0 with `zero_output_for_mask`. The loop is one `scan` over all
    steps with the projections before it, as one product.
    """

    fields = (
        "units",
        "activation",
        "use_bias",
        "kernel_initializer",
        "recurrent_initializer",
        "bias_initializer",
        "kernel_regularizer",
        "recurrent_regularizer",
        "bias_regularizer",
        "dropout",
        "recurrent_dropout",
        "seed",
        "return_sequences",
        "return_state",
        "go_backwards",
        "unroll",
        "zero_output_for_mask",
    )
    accepts = (
        "stateful",
        "activity_regularizer",
        "kernel_constraint",
        "recurrent_constraint",
        "bias_constraint",
        "implementation",
        "use_cudnn",
    )
    rank = 3
    supports_masking = True
    gates: ClassVar[int] = 1
    states: ClassVar[int] = 1
    cell: ClassVar[str]  # Keras has the weights in a layer of this name

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.units = arguments.integer(self.label, "units", units)
        self.activation = activations.get(activation)
        self.use_bias = arguments.boolean(self.label, "use_bias", use_bias)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.recurrent_initializer = initializers.get(recurrent_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.recurrent_regularizer = regularizers.get(recurrent_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.dropout = arguments.number(self.label, "dropout", dropout, low=0, high=1)
        self.recurrent_dropout = arguments.number(self.label, "recurrent_dropout", recurrent_dropout, low=0, high=1)
        self.seed = check_seed(self.label, seed)
        self.return_sequences = arguments.boolean(self.label, "return_sequences", return_sequences)
        self.return_state = arguments.boolean(self.label, "return_state", return_state)
        self.go_backwards = arguments.boolean(self.label, "go_backwards", go_backwards)
        self.unroll = arguments.boolean(self.label, "unroll", unroll)
        self.zero_output_for_mask = arguments.boolean(self.label, "zero_output_for_mask", zero_output_for_mask)
        self.bias: Weight | None = None

    # Shapes

    def build(self, input_shape: ShapeTuple) -> None:
        channels, columns = input_shape[-1], self.gates * self.units
        self.kernel = self._weight("kernel", (channels, columns), self.kernel_initializer, self.kernel_regularizer)
        self.recurrent_kernel = self._weight(
            "recurrent_kernel", (self.units, columns), self.recurrent_initializer, self.recurrent_regularizer
        )
        if self.use_bias:
            self.bias = self._weight("bias", self._bias_shape(), self._first_bias(), self.bias_regularizer)

    def _weight(self, name: str, shape: Sequence[int | None], initializer: Any, regularizer: Any) -> Weight:
        return self.add_weight(f"{self.cell}/{name}", shape, initializer, regularizer)

    def _bias_shape(self) -> tuple[int, ...]:
        return (self.gates * self.units,)

    def _first_bias(self) -> initializers.Initializer:
        return self.bias_initializer

    def compute_output_shape(self, input_shape: ShapeTuple) -> Any:
        if self.built:
            self.check_input("features", self.kernel.shape[0], input_shape[-1], input_shape)
        state = (input_shape[0], self.units)
        output = (*input_shape[:2], self.units) if self.return_sequences else state
        return (output, *[state] * self.states) if self.return_state else output

    def output_specs(self, inputs: Sequence[Spec], **arguments: Any) -> list[Spec]:
        found = self.compute_output_shape(inputs[0][0])
        shapes = found if self.return_state else [found]
        return [(shape, self.compute_dtype.numpy.name) for shape in shapes]

    # Tracing

    def trace(self, t: Tracer, sequences: Value, initial_state: Any = None, mask: Value | None = None) -> Any:
        # Time first: a round then reads and writes one block of memory.
        projected = self._projected(t, t("transpose", sequences, permutation=(1, 0, 2)))
        scanned = [projected] if mask is None else [projected, t("transpose", mask, permutation=(1, 0))]
        states = self._initial_states(t, sequences, initial_state)
        captured = self._captured(t, states[0].type)

        def body(
            b: Builder, carries: Sequence[Value], slices: Sequence[Value], captured: Sequence[Value]
        ) -> tuple[Sequence[Value], Sequence[Value]]:
            inner = Tracer(b, training=t.training)
            new = self._step(inner, slices[0], carries, captured)
            if mask is None:
                return new, [new[0]]
            counts = inner.b.broadcast(slices[1], new[0].type.shape, (0,))
            kept = [inner("select", counts, after, before) for after, before in zip(new, carries, strict=True)]
            return kept, [inner("select", counts, new[0], 0.0) if self.zero_output_for_mask else kept[0]]

        finals, (outputs,) = scan(t.b, body, states, scanned, captured, reverse=self.go_backwards)
        output = self._output(t, finals[0], outputs, zeroed=mask is not None and self.zero_output_for_mask)
        return (output, *finals) if self.return_state else output

    def _output(self, t: Tracer, last: Value, outputs: Value, zeroed: bool) -> Value:
        """All outputs, in the order in which they came, or the last one."""
        if self.return_sequences:
            ordered = t("reverse", outputs, dimensions=(0,)) if self.go_backwards else outputs
            return t("transpose", ordered, permutation=(1, 0, 2))
        if not zeroed:
            return last
        length, *shape = outputs.type.shape
        at = 0 if self.go_backwards else length - 1
        one = t("slice", outputs, start=(at, 0, 0), limit=(at + 1, *shape), strides=(1, 1, 1))
        return t.reshape(one, tuple(shape))

    def _initial_states(self, t: Tracer, sequences: Value, given: Any) -> list[Value]:
        expected = TensorType(sequences.type.dtype, (sequences.type.shape[0], self.units))
        if given is None:
            return [t.b.full(0.0, expected)] * self.states
        states = list(given) if isinstance(given, (list, tuple)) else [given]
        if len(states) != self.states:
            raise ArgumentError(f"{self.label}: initial_state: expected {self.states} tensors, got {len(states)}")
        for state in states:
            if state.type.shape != expected.shape:
                raise ShapeError(f"{self.label}: initial_state: expected {expected}, got {state.type}")
        return states

    def _projected(self, t: Tracer, steps: Value) -> Value:
        """`x_t @ kernel + bias` of all steps: [T, N, gates * units]; dropout leaves out the same of every step."""
        _, n, channels = steps.type.shape
        masks = self._dropout_masks(t, TensorType(steps.type.dtype, (n, channels)), self.dropout)
        repeated = [t.b.broadcast(mask, steps.type.shape, (1, 2)) for mask in masks]
        projected = self._product(t, steps, t.weight(self.kernel), repeated)
        bias = self._input_bias(t)
        return projected if bias is None else t("add", projected, t.along(bias, projected))

    def _input_bias(self, t: Tracer) -> Value | None:
        return None if self.bias is None else t.weight(self.bias)

    def _dropout_masks(self, t: Tracer, type: TensorType, rate: float) -> list[Value]:
        """None, one, or with `recurrent_dropout` one for every gate, as in Keras."""
        if not t.training or not 0 < rate < 1:
            return []
        count = self.gates if self.recurrent_dropout else 1
        return [drop(t, t.b.full(1.0, type), rate, self.seed) for _ in range(count)]

    def _captured(self, t: Tracer, state: TensorType) -> list[Value]:
        """The values that every round reads: the recurrent kernel, and the masks of `recurrent_dropout`."""
        masks = self._dropout_masks(t, state, self.recurrent_dropout)
        return [t.weight(self.recurrent_kernel), *masks]

    def _step(self, t: Tracer, x: Value, states: Sequence[Value], captured: Sequence[Value]) -> list[Value]:
        """The states after a step, from its projection `x: [N, gates * units]` and the states before."""
        raise NotImplementedError(f"{type(self).__name__}._step")

    def _product(self, t: Tracer, x: Value, kernel: Value, masks: Sequence[Value]) -> Value:
        """`x @ kernel`; with masks, gate by gate, each with the elements of x that its own mask leaves."""
        if len(masks) == 1:
            x, masks = t("multiply", x, masks[0]), ()
        if not masks:
            return _dot(t, x, kernel)
        parts = [
            _dot(t, t("multiply", x, mask), _columns(t, kernel, gate * self.units, self.units))
            for gate, mask in enumerate(masks)
        ]
        return t("concatenate", *parts, dimension=x.type.rank - 1)

    def _gates(self, t: Tracer, z: Value) -> list[Value]:
        return [_columns(t, z, start, self.units) for start in range(0, z.type.shape[-1], self.units)]  # pyright: ignore[reportArgumentType]

    def trace_mask(self, t: Tracer, inputs: Sequence[Value], masks: Sequence[Value | None]) -> list[Value | None]:
        """All outputs have the input's mask; the last one and the states have none."""
        return [masks[0] if self.return_sequences else None, *[None] * (self.states if self.return_state else 0)]


@registry.register
class LSTM(_Recurrent):
    """Long short-term memory, `units` wide, over `x: [N, T, C]`.

    Gates i, f, g, o are columns of `z = x_t @ kernel + h @ recurrent_kernel + bias`, in this order;
    `c' = sigmoid(f) * c + sigmoid(i) * tanh(g)` and `h' = sigmoid(o) * tanh(c')`, where `recurrent_activation` and
    `activation` may be others. The result is the last h, or every one with `return_sequences`; with `return_state` the
    last h and c follow.
    """

    fields = (*_Recurrent.fields, "recurrent_activation", "unit_forget_bias")
    gates = 4
    states = 2
    cell = "lstm_cell"

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        *,
        unit_forget_bias: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(units, activation, **options)
        self.recurrent_activation = activations.get(recurrent_activation)
        self.unit_forget_bias = arguments.boolean(self.label, "unit_forget_bias", unit_forget_bias)

    def _first_bias(self) -> initializers.Initializer:
        return _ForgetBias(self.bias_initializer) if self.unit_forget_bias else self.bias_initializer

    def _step(self, t: Tracer, x: Value, states: Sequence[Value], captured: Sequence[Value]) -> list[Value]:
        (h, c), (kernel, *masks) = states, captured
        i, f, g, o = self._gates(t, t("add", x, self._product(t, h, kernel, masks)))
        kept = t("multiply", self.recurrent_activation.trace(t, f), c)
        added = t("multiply", self.recurrent_activation.trace(t, i), self.activation.trace(t, g))
        new_c = t("add", kept, added)
        return [t("multiply", self.recurrent_activation.trace(t, o), self.activation.trace(t, new_c)), new_c]


class _ForgetBias(initializers.Initializer):
    """1 for the forget gate, the second of four; another initializer's values for the others."""

    fields = ("other",)

    def __init__(self, other: initializers.Initializer) -> None:
        self.other = other

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        units = shape[0] // 4
        return np.concatenate([self.other.values((units,)), np.ones(units), self.other.values((2 * units,))])


@registry.register
class GRU(_Recurrent):
    """Gated recurrent unit, `units` wide, over `x: [N, T, C]`.

    Columns are z, r, g: `z = sigmoid(x_z + h_z)`, `r = sigmoid(x_r + h_r)`, `g = tanh(x_g + r * h_g)` with
    `x_* = x_t @ kernel + bias[0]` and `h_* = h @ recurrent_kernel + bias[1]`; `h' = z * h + (1 - z) * g`. Without
    `reset_after`, `h_g = (r * h) @ recurrent_kernel_g`, and there is one bias.
    """

    fields = (*_Recurrent.fields, "recurrent_activation", "reset_after")
    gates = 3
    cell = "gru_cell"

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        *,
        reset_after: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(units, activation, **options)
        self.recurrent_activation = activations.get(recurrent_activation)
        self.reset_after = arguments.boolean(self.label, "reset_after", reset_after)

    def _bias_shape(self) -> tuple[int, ...]:
        return (2, self.gates * self.units) if self.reset_after else (self.gates * self.units,)

    def _input_bias(self, t: Tracer) -> Value | None:
        return None if self.bias is None else self._bias_row(t, self.bias, 0)

    def _bias_row(self, t: Tracer, bias: Weight, row: int) -> Value:
        if not self.reset_after:
            return t.weight(bias)
        columns = self.gates * self.units
        found = t("slice", t.weight(bias), start=(row, 0), limit=(row + 1, columns), strides=(1, 1))
        return t.reshape(found, (columns,))

    def _captured(self, t: Tracer, state: TensorType) -> list[Value]:
        bias = [] if self.bias is None or not self.reset_after else [self._bias_row(t, self.bias, 1)]
        return [*bias, *super()._captured(t, state)]

    def _step(self, t: Tracer, x: Value, states: Sequence[Value], captured: Sequence[Value]) -> list[Value]:
        (h,), captured = states, list(captured)
        bias = captured.pop(0) if self.bias is not None and self.reset_after else None
        kernel, *masks = captured
        x_z, x_r, x_g = self._gates(t, x)
        if self.reset_after:
            inner = self._product(t, h, kernel, masks)
            inner = inner if bias is None else t("add", inner, t.along(bias, inner))
            h_z, h_r, h_g = self._gates(t, inner)
        else:
            h_z, h_r = self._gates(t, self._product(t, h, _columns(t, kernel, 0, 2 * self.units), masks[:2]))
            h_g = None
        z = self.recurrent_activation.trace(t, t("add", x_z, h_z))
        r = self.recurrent_activation.trace(t, t("add", x_r, h_r))
        if h_g is None:
            h_g = self._product(t, t("multiply", r, h), _columns(t, kernel, 2 * self.units, self.units), masks[2:])
        else:
            h_g = t("multiply", r, h_g)
        g = self.activation.trace(t, t("add", x_g, h_g))
        return [t("add", t("multiply", z, h), t("multiply", t("subtract", 1.0, z), g))]


@registry.register
class SimpleRNN(_Recurrent):
    """`h' = activation(x_t @ kernel + bias + h @ recurrent_kernel)`, `units` wide, over `x: [N, T, C]`."""

    cell = "simple_rnn_cell"

    def _step(self, t: Tracer, x: Value, states: Sequence[Value], captured: Sequence[Value]) -> list[Value]:
        (h,), (kernel, *masks) = states, captured
        return [self.activation.trace(t, t("add", x, self._product(t, h, kernel, masks)))]


def _dot(t: Tracer, x: Value, kernel: Value) -> Value:
    contracting = {"lhs_contracting": (x.type.rank - 1,), "rhs_contracting": (0,)}
    return t("dot_general", x, kernel, lhs_batching=(), rhs_batching=(), **contracting)


def _columns(t: Tracer, x: Value, start: int, count: int) -> Value:
    """Columns `start` to `start + count` of the last dimension."""
    *others, _ = x.type.shape
    zeros, ones = (0,) * len(others), (1,) * x.type.rank
    return t("slice", x, start=(*zeros, start), limit=(*others, start + count), strides=ones)
