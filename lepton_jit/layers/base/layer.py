"""The base of all layers: names, weights, configuration, symbolic calls and the way into a trace."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np

from lepton_jit import initializers, regularizers
from lepton_jit.common import arguments
from lepton_jit.common.configurable import check_arguments, plain
from lepton_jit.errors import ArgumentError, DTypeError, OutOfMemoryError, ShapeError, UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import DTYPES, DType, TensorType, dtype_of
from lepton_jit.layers.base.calling import CallSignature, as_array, leaves, map_leaves, signature_of
from lepton_jit.layers.base.mask_flow import compute_mask, convert_arguments, hand_on, masks_of, with_masks
from lepton_jit.layers.base.parameterized import Parameterized
from lepton_jit.layers.base.symbolic import Call, ShapeTuple, SymbolicTensor, as_list
from lepton_jit.layers.base.trainable import Trainable
from lepton_jit.tracing import Tracer
from lepton_jit.tracing.weight import Weight

__all__ = ["Layer", "layer_of"]

Spec = tuple[ShapeTuple, str]

# Arguments of Keras that only their default is supported of.
_ONLY_DEFAULT: dict[str, tuple[Any, ...]] = {
    "data_format": (None, "channels_last"),
    "activity_regularizer": (None,),
    "kernel_constraint": (None,),
    "bias_constraint": (None,),
    "depthwise_constraint": (None,),
    "embeddings_constraint": (None,),
    "beta_constraint": (None,),
    "gamma_constraint": (None,),
    "lora_rank": (None,),
    "lora_alpha": (None,),
    "quantization_config": (None,),
    "noise_shape": (None,),
    "sparse": (False,),
    "ragged": (False,),
    "synchronized": (False,),
    "renorm": (False,),
    "renorm_clipping": (None,),
    "renorm_momentum": (0.99,),
    "rms_scaling": (False,),
    "attention_axes": (1, (1,), [1], None),
    "flash_attention": (False, None),
    "recurrent_constraint": (None,),
    "stateful": (False,),
    "implementation": (1, 2),
    "use_cudnn": (False, "auto"),
}


class Layer(Parameterized):
    """A function with weights.

    A subclass has `fields` (the constructor's arguments that make its configuration), `build(input_shape)`, which
    adds weights, `compute_output_shape(input_shape)` and `trace(t, *inputs, **arguments)`, which adds operations to a
    graph and whose parameters are what the layer can be called on. Shapes are Keras': tuples whose first entry, the
    batch, is None.

    Masks, `bool[N, T]`, follow the tensors through a trace: a layer whose `trace` has a parameter `mask` (with several
    inputs: `<input>_mask`) gets its input's, and one that `supports_masking` passes it on to its first result.
    """

    fields: ClassVar[tuple[str, ...]] = ()
    accepts: ClassVar[tuple[str, ...]] = ()  # further arguments of Keras, at their default only
    takes_list: ClassVar[bool] = False  # a merging layer: called on a list of tensors
    keeps_integers: ClassVar[bool] = False  # moves data only, so that integer tensors stay what they are
    rank: ClassVar[int | None] = None  # of the input, batch included
    supports_masking: bool = False  # what `trace_mask` returns is the mask of the result

    def __init__(
        self,
        *,
        name: str | None = None,
        trainable: bool = True,
        dtype: Any = None,
        input_shape: Sequence[int] | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__(name)
        self._refuse(unknown)
        self._trainable = arguments.boolean(self.label, "trainable", trainable)
        self.dtype = None if dtype is None else _dtype_name(self.label, dtype)
        self.declared_input_shape = (
            None if input_shape is None else arguments.integer_tuple(self.label, "input_shape", input_shape)
        )
        self.built = False
        self.compute_dtype: DType = DTYPES["f32"] if self.dtype is None else dtype_of(self.dtype)
        self.calls: list[Call] = []

    @property
    def implicit_dtype(self) -> str | None:
        """The element type of an input that nobody declares; None if the layers behind this one decide."""
        if self.dtype is not None:
            return self.dtype
        return None if self.keeps_integers else "float32"

    # Weights

    def add_weight(
        self,
        name: str,
        shape: Sequence[int | None],
        initializer: Any = "glorot_uniform",
        regularizer: Any = None,
        trainable: bool = True,
    ) -> Weight:
        """A new weight of the layer's element type."""
        sizes = arguments.integer_tuple(self.label, f"shape of {name}", shape, low=0)
        self._check_size(f"weight {name!r}", sizes, self.compute_dtype)
        make = partial(
            Weight,
            _checked_weight_name(self.label, name),
            sizes,
            self.compute_dtype,
            initializers.get(initializer),
            regularizer=regularizers.get(regularizer),
            trainable=trainable,
        )
        try:
            weight = make()
        except MemoryError as error:
            raise OutOfMemoryError(f"{self.label}: weight {name!r}: {error}") from None
        (self._weights if trainable else self._statistics).append(weight)
        return weight

    @property
    def trainable_weights(self) -> list[Weight]:
        """The weights that a `compile` at this moment would have trained."""
        return Trainable(self).weights

    @property
    def non_trainable_weights(self) -> list[Weight]:
        trained = set(self.trainable_weights)
        return [w for w in self.weights if w not in trained]

    def count_params(self) -> int:
        """The number of elements of all weights."""
        self._require_built()
        return sum(w.size for w in self.weights)

    @property
    def sublayers(self) -> Sequence[Layer]:
        return ()

    # Shapes

    def build(self, input_shape: Any) -> None:
        """Add the weights that an input of this shape needs."""

    def compute_output_shape(self, input_shape: Any) -> Any:
        """The output's shape for an input's."""
        return input_shape

    def output_specs(self, inputs: Sequence[Spec], **arguments: Any) -> list[Spec]:
        """Shapes and element types of the outputs; tensors among the arguments are such pairs too."""
        shape = self.compute_output_shape(self._shapes(inputs))
        return [(shape, self._input_dtype([d for _, d in inputs]).numpy.name)]

    def ensure_built(self, inputs: Sequence[Spec], **arguments: Any) -> None:
        """Check the inputs' shapes; the first time, add the weights."""
        self._check_rank(inputs)
        if not self.built:
            self.compute_dtype = self._resolve_dtype([d for _, d in inputs])
            self._build_or_undo(self._shapes(inputs))

    def _build_or_undo(self, shape: Any) -> None:
        """`build`, of which no weight stays if an exception ends it: the next one starts from where this one did."""
        before = len(self._weights), len(self._statistics)
        try:
            self.build(shape)
            self.built = True
        except BaseException:
            self.built = False
            del self._weights[before[0] :], self._statistics[before[1] :]
            raise

    def check_input(self, what: str, expected: Any, got: Any, shape: Any) -> None:
        """ShapeError unless one dimension is what the weights were made for."""
        if expected != got:
            raise ShapeError(f"{self.label}: expected an input with {expected} {what}, got shape {shape}")

    # Calls and traces

    def __call__(self, *tensors: Any, **arguments: Any) -> Any:
        """The layer on symbolic tensors or on arrays; a merging layer takes a list of them.

        Arguments are those of `trace`, and `training`: False makes the layer behave as in inference wherever it stands.
        """
        if "inputs" in arguments and not tensors:
            tensors = (arguments.pop("inputs"),)
        flat = [*as_list(tensors[0]), *tensors[1:]] if tensors else []
        inputs, named = self.call_signature().bind(self.label, flat, arguments)
        if "training" in named:
            named["training"] = _boolean(self.label, "training", named["training"])
        if not any(isinstance(x, SymbolicTensor) for x in leaves([*inputs, *named.values()])):
            return _call_on_arrays(self, inputs, named)
        if not all(isinstance(x, SymbolicTensor) for x in inputs):
            raise ArgumentError(f"{self.label}: expected symbolic tensors or arrays, got some of each")
        return self.call_symbolically(inputs, named)

    @classmethod
    def call_signature(cls) -> CallSignature:
        """The signature of the layer's call."""
        return signature_of(cls.trace, cls.takes_list)

    @property
    def input(self) -> SymbolicTensor | list[SymbolicTensor]:
        """The tensors that the layer's only call got."""
        inputs = self._only_call().inputs
        return inputs[0] if len(inputs) == 1 else list(inputs)

    @property
    def output(self) -> SymbolicTensor | list[SymbolicTensor]:
        """The tensors that the layer's only call returned, with which another model can begin."""
        outputs = self._only_call().outputs
        return outputs[0] if len(outputs) == 1 else list(outputs)

    def trace(self, t: Tracer, *inputs: Any, **_: Any) -> Any:
        """Add the layer's operations to the graph; inputs have the layer's element type."""
        raise NotImplementedError(f"{type(self).__name__}.trace")

    def trace_call(
        self, t: Tracer, *inputs: Value, training: bool | None = None, **arguments: Any
    ) -> tuple[Value, ...]:
        """Trace under the layer's name, with inputs converted and masks handed on."""
        with t.b.layer(self.name), t.mode(training):
            dtype, signature = self._input_dtype([v.type.dtype.numpy.name for v in inputs]), self.call_signature()
            operands = [t.convert(v, dtype) for v in inputs]
            given = with_masks(t, signature, operands, convert_arguments(t, arguments, dtype))
            masks = masks_of(t, signature, operands, given)
            results = self.trace(t, *operands, **given)
            return hand_on(self, t, operands, masks, results if isinstance(results, tuple) else (results,))

    # Masks

    def trace_mask(
        self, t: Tracer, inputs: Sequence[Value], masks: Sequence[Value | None]
    ) -> Value | Sequence[Value | None] | None:
        """The mask of the result, or of each, from the inputs and theirs; asked for if the layer supports masking."""
        return masks[0]

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """The mask of the result for arrays, or None; of a merging layer, `mask` is a list."""
        return compute_mask(self, inputs, mask)

    # Configuration

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON values."""
        base: dict[str, Any] = {"name": self.name, "trainable": self.trainable, "dtype": self.dtype}
        if self.declared_input_shape is not None:
            base["input_shape"] = list(self.declared_input_shape)
        return base | {name: plain(getattr(self, name)) for name in self.fields}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A new layer from what `get_config` returned; without weights' values."""
        check_arguments(cls, config)
        return cls(**config)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} name={self.name}, built={self.built}>"

    # Internals

    def _shapes(self, inputs: Sequence[Spec]) -> Any:
        return [shape for shape, _ in inputs] if self.takes_list else inputs[0][0]

    def _resolve_dtype(self, dtypes: Sequence[str]) -> DType:
        if self.dtype is not None:
            return dtype_of(self.dtype)
        floats = [d for d in dtypes if dtype_of(d).is_float]
        return dtype_of(np.result_type(*floats)) if floats else DTYPES["f32"]

    def _input_dtype(self, dtypes: Sequence[str]) -> DType:
        if self.keeps_integers and len(set(dtypes)) == 1 and not dtype_of(dtypes[0]).is_float:
            return dtype_of(dtypes[0])
        return self.compute_dtype

    def _check_rank(self, inputs: Sequence[Spec]) -> None:
        for shape, _ in inputs:
            if self.rank is not None and len(shape) != self.rank:
                raise ShapeError(f"{self.label}: expected an input of rank {self.rank} (batch included), got {shape}")

    def _check_output(self, shape: ShapeTuple, dtype: str) -> None:
        if any(d is not None and d < 0 for d in shape):
            raise ShapeError(f"{self.label}: the output would have the negative shape {shape}")
        self._check_size("the output", [d for d in shape if d is not None], dtype_of(dtype))

    def _check_size(self, what: str, shape: Sequence[int], dtype: DType) -> None:
        try:
            TensorType(dtype, tuple(shape)).checked_size()
        except ShapeError as error:
            raise ShapeError(f"{self.label}: {what}: {error}") from None

    def call_symbolically(self, inputs: Sequence[SymbolicTensor], arguments: Mapping[str, Any]) -> Any:
        """Note the call, for a model to trace."""
        for name, value in arguments.items():
            for leaf in leaves(value):
                if not isinstance(leaf, (SymbolicTensor, bool, int, float, str)):
                    raise ArgumentError(f"{self.label}: {name}: expected a symbolic tensor or an option, got {leaf!r}")
        specs = [(x.shape, x.dtype) for x in inputs]
        named = {k: map_leaves(_spec, v) for k, v in arguments.items()}
        self.ensure_built(specs, **named)
        call = Call(self, inputs, self.output_specs(specs, **named), arguments)
        for x in call.outputs:
            self._check_output(x.shape, x.dtype)
        self.calls.append(call)
        return call.outputs[0] if len(call.outputs) == 1 else list(call.outputs)

    def _only_call(self) -> Call:
        if len(self.calls) != 1:
            raise ArgumentError(f"{self.label}: expected a layer that was called once, got {len(self.calls)} calls")
        return self.calls[0]

    def _require_built(self) -> None:
        if not self.built:
            raise ArgumentError(f"{self.label}: has no weights yet; call it on an input, or give input_shape")

    def _refuse(self, unknown: Mapping[str, Any]) -> None:
        for name, value in unknown.items():
            if name not in self.accepts:
                known = [p for p in inspect.signature(type(self)).parameters if p not in ("options", "unknown")]
                common = ["name", "trainable", "dtype", "input_shape"]
                raise ArgumentError(
                    f"{self.label}: {type(self).__name__} has no argument {name!r}; expected "
                    f"{', '.join(dict.fromkeys([*known, *common]))}"
                )
            if value not in _ONLY_DEFAULT[name]:
                raise UnsupportedError(
                    f"{self.label}: {name}={value!r} is not supported, only {_ONLY_DEFAULT[name][-1]!r}"
                )


def _dtype_name(owner: str, value: Any) -> str:
    """The NumPy name of an element type."""
    try:
        return dtype_of(value).numpy.name
    except DTypeError as error:
        raise DTypeError(f"{owner}: {error}") from None


def _checked_weight_name(owner: str, name: Any) -> str:
    arguments.text(owner, "weight", name)
    if name.startswith("/") or any(ord(c) < 32 for c in name):
        raise ArgumentError(
            f"{owner}: weight: expected a name without '/' in front and control characters, got {name!r}"
        )
    return name


def layer_of(call: Call) -> Layer:
    """The layer that was called: nothing else makes calls."""
    assert isinstance(call.layer, Layer)
    return call.layer


_boolean = arguments.boolean  # where `arguments` are a call's


def _spec(x: Any) -> Any:
    return (x.shape, x.dtype) if isinstance(x, SymbolicTensor) else x


def _call_on_arrays(layer: Layer, arrays: Sequence[Any], arguments: Mapping[str, Any]) -> Any:
    """The layer on NumPy arrays, through the graph interpreter: for trying things out, not for speed."""
    if arguments.get("training"):
        raise UnsupportedError(f"{layer.label}: training=True on arrays; put the layer into a model and call that")
    builder, feeds = Builder("eager"), {}

    def declare(array: Any) -> Any:
        if not isinstance(array, np.ndarray):
            return array
        feeds[name := f"x{len(feeds)}"] = _as_supported(array, layer.label)
        return builder.input(name, TensorType(dtype_of(array.dtype), array.shape))

    operands = [declare(np.asarray(a)) for a in arrays]
    named = {k: map_leaves(declare, as_array(v)) for k, v in arguments.items()}
    layer.ensure_built([_value_spec(x) for x in operands], **{k: map_leaves(_value_spec, v) for k, v in named.items()})
    weights = {}
    for path, weight in layer.weight_paths().items():
        weights[weight] = builder.input(path, weight.type, "parameter")
        feeds[path] = weight.array
    results = layer.trace_call(Tracer(builder, weights=weights), *operands, **named)
    for i, result in enumerate(results):
        builder.output(result, str(i))
    computed = run_graph(builder.build(), feeds)
    return computed["0"] if len(results) == 1 else [computed[str(i)] for i in range(len(results))]


def _value_spec(x: Any) -> Any:
    return ((None, *x.type.shape[1:]), x.type.dtype.numpy.name) if isinstance(x, Value) else x


def _as_supported(array: np.ndarray, owner: str) -> np.ndarray:
    if array.ndim == 0:
        raise ShapeError(f"{owner}: expected an array with a batch axis, got a scalar")
    try:
        dtype_of(array.dtype)
    except DTypeError:
        raise DTypeError(f"{owner}: expected an array of numbers, got {array.dtype}") from None
    return array
