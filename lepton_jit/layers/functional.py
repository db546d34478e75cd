"""A layer made of layers: the calls between symbolic inputs and outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from lepton_jit.common import arguments
from lepton_jit.common.naming import uniquify
from lepton_jit.errors import ArgumentError, ShapeError, UnsupportedError
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import DTYPES
from lepton_jit.layers.base.calling import CallSignature, map_leaves
from lepton_jit.layers.base.layer import Layer, Spec
from lepton_jit.layers.base.registry import registry, serialize
from lepton_jit.layers.base.symbolic import Call, ShapeTuple, SymbolicTensor, as_list
from lepton_jit.layers.core import InputLayer
from lepton_jit.layers.network import Network
from lepton_jit.tracing import Tracer

__all__ = ["Functional", "expect_keys"]


class Functional(Layer):
    """A model as other layers and traces see it: inputs, outputs, the calls between them, and their weights."""

    def __init__(self, inputs: Any, outputs: Any, **options: Any) -> None:
        super().__init__(**options)
        self._network: Network | None = None
        self._input_keys: list[str] | None = None
        if inputs is not None:
            if isinstance(outputs, Mapping):
                raise UnsupportedError(f"{self.label}: outputs: expected a tensor or a list of them, got a dict")
            keys = [arguments.text(self.label, "inputs", k) for k in inputs] if isinstance(inputs, Mapping) else None
            tensors = list(inputs.values()) if isinstance(inputs, Mapping) else as_list(inputs)
            network = Network(self.label, tensors, as_list(outputs))
            self._set_network(network, network.outputs[0])
            self._input_keys = keys

    def _set_network(self, network: Network | None, output: SymbolicTensor) -> None:
        self._network = network
        self.compute_dtype = output.call.layer.compute_dtype
        self.built = True
        if not self._trainable:
            self.trainable = False

    @property
    def label(self) -> str:
        return f"model {self.name!r}"

    @property
    def network(self) -> Network:
        """The calls between inputs and outputs."""
        if self._network is None:
            raise ArgumentError(f"{self.label}: not built yet; give the first layer an input_shape, or call build")
        return self._network

    @property
    def layers(self) -> list[Layer]:
        """All layers, in the order of their weights."""
        return list(self.network.layers)

    @property
    def sublayers(self) -> Sequence[Layer]:
        return self.network.layers if self._network is not None else ()

    @property
    def inputs(self) -> list[SymbolicTensor]:
        return list(self.network.inputs)

    @property
    def outputs(self) -> list[SymbolicTensor]:
        return list(self.network.outputs)

    @property
    def input(self) -> SymbolicTensor | list[SymbolicTensor]:
        inputs = self.inputs
        return inputs[0] if len(inputs) == 1 else inputs

    @property
    def output(self) -> SymbolicTensor | list[SymbolicTensor]:
        outputs = self.outputs
        return outputs[0] if len(outputs) == 1 else outputs

    @property
    def input_names(self) -> list[str]:
        """The names of the traced graph's inputs."""
        return [x.name for x in self.network.inputs]

    @property
    def input_keys(self) -> list[str]:
        """The keys of a dict of inputs."""
        return self._input_keys or self.input_names

    @property
    def output_names(self) -> list[str]:
        """The names of the traced graph's outputs: those of the layers that compute them."""
        return uniquify([x.name for x in self.network.outputs])

    @property
    def input_shape(self) -> ShapeTuple | list[ShapeTuple]:
        shapes = [x.shape for x in self.inputs]
        return shapes[0] if len(shapes) == 1 else shapes

    @property
    def output_shape(self) -> ShapeTuple | list[ShapeTuple]:
        shapes = [x.shape for x in self.outputs]
        return shapes[0] if len(shapes) == 1 else shapes

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """A layer by its name or its place in `layers`."""
        if (name is None) == (index is None):
            raise ArgumentError(f"{self.label}: get_layer: expected a name or an index")
        if name is not None:
            for layer in self.layers:
                if layer.name == name:
                    return layer
            raise ArgumentError(f"{self.label}: expected one of {[x.name for x in self.layers]}, got {name!r}")
        assert index is not None
        if not -len(self.layers) <= index < len(self.layers):
            raise ArgumentError(f"{self.label}: get_layer: expected an index below {len(self.layers)}, got {index}")
        return self.layers[index]

    def weights_by_name(self) -> dict[str, np.ndarray]:
        """The weights' arrays, not copies, under the names that the traced graph has for them."""
        return {path: weight.array for path, weight in self.weight_paths().items()}

    # A model as a layer

    def ensure_built(self, inputs: Sequence[Spec], **arguments: Any) -> None:
        wanted = self.network.inputs
        if len(inputs) != len(wanted):
            raise ArgumentError(f"{self.label}: expected {len(wanted)} inputs, got {len(inputs)}")
        for x, (shape, _) in zip(wanted, inputs, strict=True):
            if len(shape) != len(x.shape) or shape[1:] != x.shape[1:]:
                raise ShapeError(f"{self.label}: input {x.name!r}: expected shape {x.shape}, got {shape}")

    def compute_output_shape(self, input_shape: Any) -> Any:
        return self.output_shape

    def output_specs(self, inputs: Sequence[Spec], **arguments: Any) -> list[Spec]:
        batch = inputs[0][0][0]
        return [((batch, *x.shape[1:]), x.dtype) for x in self.network.outputs]

    @classmethod
    def call_signature(cls) -> CallSignature:
        return CallSignature((), {"mask": None}, many=True)

    def trace_call(
        self, t: Tracer, *inputs: Value, training: bool | None = None, mask: Any = None, **_: Any
    ) -> tuple[Value, ...]:
        with t.b.layer(self.name), t.mode(training):
            for x, own in zip(inputs, as_list(mask), strict=False):
                if own is not None:
                    t.set_mask(x, t.convert(own, DTYPES["bool"]))
            return self.trace_network(t, inputs)

    def trace_network(self, t: Tracer, inputs: Sequence[Value]) -> tuple[Value, ...]:
        """Trace every call, without a layer path of the model's own."""
        values: dict[SymbolicTensor, Value] = {}

        def value(x: Any) -> Any:
            return values[x] if isinstance(x, SymbolicTensor) else x

        for x, given in zip(self.network.inputs, inputs, strict=True):
            values[x] = t.convert(given, x.call.layer.compute_dtype)
        for call in self.network.calls:
            named = {name: map_leaves(value, argument) for name, argument in call.arguments.items()}
            results = call.layer.trace_call(t, *map(value, call.inputs), **named)
            values.update(zip(call.outputs, results, strict=True))
        return tuple(values[x] for x in self.network.outputs)

    # Configuration

    def _with_trainable(self, trainable: Any) -> Self:
        """The model with this flag of its own; its layers have theirs, which may have been set after it."""
        self._trainable = arguments.boolean(self.label, "trainable", trainable)
        return self

    def get_config(self) -> dict[str, Any]:
        """Layers, and which of them is called on what, as JSON values.

        A reference `[i, j]` is the j-th output of the i-th entry of inputs and calls, taken together.
        """
        calls = self.network.calls
        position = {c: i for i, c in enumerate([*(x.call for x in self.network.inputs), *calls])}

        def reference(x: SymbolicTensor) -> list[int]:
            return [position[x.call], x.index]

        def described(call: Call) -> dict[str, Any]:
            entry = {"layer": call.layer.name, "inputs": [reference(x) for x in call.inputs]}
            named = {
                name: map_leaves(lambda x: {"tensor": reference(x)} if isinstance(x, SymbolicTensor) else x, value)
                for name, value in call.arguments.items()
            }
            return {**entry, "arguments": named} if named else entry

        return {
            "name": self.name,
            "trainable": self._trainable,
            "layers": [serialize(layer) for layer in self.layers],
            "inputs": [x.name for x in self.network.inputs],
            "calls": [described(c) for c in calls],
            "outputs": [reference(x) for x in self.network.outputs],
            "input_keys": self._input_keys,
        }

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """A new model from what `get_config` returned; weights get first values."""
        expect_keys("Model", config, ("name", "trainable", "layers", "inputs", "calls", "outputs", "input_keys"))
        layers = _named_layers(config["layers"])
        inputs = [_input_named(layers, name) for name in arguments.sequence("Model", "inputs", config["inputs"])]
        produced = [[x] for x in inputs]

        def resolve(reference: Any) -> SymbolicTensor:
            call, index = arguments.integer_tuple("Model", "reference", reference, length=2, low=0)
            if call >= len(produced) or index >= len(produced[call]):
                raise ArgumentError(f"Model: expected a reference to an input or an earlier call, got {reference!r}")
            return produced[call][index]

        def resolve_leaf(leaf: Any) -> Any:
            if not isinstance(leaf, Mapping):
                return leaf
            expect_keys("Model: argument", leaf, ("tensor",))
            return resolve(leaf["tensor"])

        for call in arguments.sequence("Model", "calls", config["calls"]):
            named = call.get("arguments", {}) if isinstance(call, Mapping) else {}
            expect_keys("Model: call", call, ("layer", "inputs", "arguments")[: 3 if named else 2])
            if not isinstance(named, Mapping):
                raise ArgumentError(f"Model: expected a call's arguments by name, got {named!r}")
            if not isinstance(call["layer"], str) or call["layer"] not in layers:
                raise ArgumentError(f"Model: expected a call of one of {list(layers)}, got {call['layer']!r}")
            tensors = [resolve(r) for r in arguments.sequence("Model", "inputs", call["inputs"])]
            given = {str(name): map_leaves(resolve_leaf, value) for name, value in named.items()}
            produced.append(as_list(layers[call["layer"]](tensors, **given)))
        outputs = [resolve(r) for r in arguments.sequence("Model", "outputs", config["outputs"])]
        if config["input_keys"] is not None:
            keys = arguments.sequence("Model", "input_keys", config["input_keys"])
            if len(set(keys)) != len(inputs):
                raise ArgumentError(f"Model: expected {len(inputs)} different input_keys, got {keys!r}")
            inputs = dict(zip(keys, inputs, strict=True))
        return cls(inputs, outputs, name=config["name"])._with_trainable(config["trainable"])


def expect_keys(owner: str, config: Any, keys: Sequence[str]) -> None:
    """ArgumentError unless `config` is a mapping with exactly these keys."""
    if not isinstance(config, Mapping) or set(config) != set(keys):
        got = sorted(map(str, config)) if isinstance(config, Mapping) else config
        raise ArgumentError(f"{owner}: expected a configuration with {', '.join(keys)}, got {got!r}")


def _named_layers(configs: Any) -> dict[str, Layer]:
    layers = [registry.deserialize(c) for c in arguments.sequence("Model", "layers", configs)]
    return {layer.name: layer for layer in layers}


def _input_named(layers: Mapping[str, Layer], name: Any) -> SymbolicTensor:
    layer = layers.get(name) if isinstance(name, str) else None
    if not isinstance(layer, InputLayer):
        raise ArgumentError(f"Model: expected the name of an InputLayer, got {name!r}")
    return layer.calls[0].outputs[0]
