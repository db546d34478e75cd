"""`Sequential([...])`: layers one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from lepton_jit.common import arguments
from lepton_jit.errors import ArgumentError
from lepton_jit.layers.base.layer import Layer, Spec, layer_of
from lepton_jit.layers.base.registry import registry, serialize
from lepton_jit.layers.base.symbolic import ShapeTuple, SymbolicTensor
from lepton_jit.layers.core import Input, InputLayer
from lepton_jit.layers.functional import Functional, expect_keys
from lepton_jit.layers.network import Network
from lepton_jit.models.model import Model

__all__ = ["Sequential"]


@registry.register
class Sequential(Model):
    """Layers one after the other, each with one input and one output.

    >>> import lepton_jit as lpt
    >>> model = Sequential([lpt.Dense(3, input_shape=(4,)), lpt.Dense(2)])
    >>> model.output_shape
    (None, 2)
    """

    def __init__(self, layers: Sequence[Any] | None = None, **options: Any) -> None:
        super().__init__(None, None, **options)
        self._stack: list[Layer] = []
        self._start: SymbolicTensor | None = None
        self._ends: list[SymbolicTensor] = []  # what the layers returned, as far as they have been called
        for layer in layers or ():
            self._push(layer)
        self._extend()

    def add(self, layer: Any) -> None:
        """Append a layer."""
        height = len(self._stack)
        self._push(layer)
        try:
            self._extend()
        except BaseException:
            del self._stack[height:], self._ends[height:]
            raise

    def _push(self, layer: Any) -> None:
        if isinstance(layer, SymbolicTensor) and isinstance(layer.call.layer, InputLayer):
            layer = layer.call.layer
        if not isinstance(layer, Layer):
            raise ArgumentError(f"{self.label}: expected a layer, got {layer!r}")
        if isinstance(layer, InputLayer):
            if self._stack or self._start is not None:
                raise ArgumentError(f"{self.label}: expected the input {layer.name!r} before all other layers")
            self._start = layer.calls[0].outputs[0]
            return
        others = self._stack if self._start is None else (self._start.call.layer, *self._stack)
        if any(layer.name == other.name for other in others):
            raise ArgumentError(f"{self.label}: expected layers of different names, got two called {layer.name!r}")
        if not self._stack and self._start is None:
            self._start = _start_of(layer)
        self._stack.append(layer)

    def pop(self) -> Layer:
        """Remove the last layer."""
        if not self._stack:
            raise ArgumentError(f"{self.label}: has no layer to remove")
        layer = self._stack.pop()
        layer.calls.clear()
        del self._ends[len(self._stack) :]
        self._network, self.built = None, False
        self._extend()
        return layer

    @property
    def implicit_dtype(self) -> str | None:
        return next((d for d in (layer.implicit_dtype for layer in self._stack) if d is not None), None)

    def build(self, input_shape: Any) -> None:
        """Add the weights for inputs of this shape, whose first entry is the batch."""
        self._build_for(tuple(input_shape), self.implicit_dtype or "float32")

    def ensure_built(self, inputs: Sequence[Spec], **arguments: Any) -> None:
        if not self._ends and len(inputs) == 1:
            self._build_for(*inputs[0])
        super().ensure_built(inputs, **arguments)

    def _build_for(self, shape: ShapeTuple, dtype: str) -> None:
        if self._ends:
            return
        if not self._stack:
            raise ArgumentError(f"{self.label}: expected at least one layer")
        self._start = Input(shape[1:], dtype=dtype)  # pyright: ignore[reportArgumentType]
        self._extend()

    def _extend(self) -> None:
        """Call the layers that have not been called; who asks for the network gets a new one."""
        if self._start is None or not self._stack:
            return
        for layer in self._stack[len(self._ends) :]:
            x = layer(self._ends[-1] if self._ends else self._start)
            if not isinstance(x, SymbolicTensor):
                raise ArgumentError(f"{self.label}: expected layers with one output, got {layer.name!r}")
            self._ends.append(x)
        self._set_network(None, self._ends[-1])

    @property
    def network(self) -> Network:
        if self._network is None and self._start is not None and self._ends:
            self._network = Network(self.label, [self._start], [self._ends[-1]])
        return super().network

    @property
    def layers(self) -> list[Layer]:
        return list(self._stack)

    @property
    def sublayers(self) -> Sequence[Layer]:
        return self._stack

    @property
    def input_names(self) -> list[str]:
        return ["input"]

    @property
    def output_names(self) -> list[str]:
        return ["output"]

    def get_config(self) -> dict[str, Any]:
        """The layers' configurations, an InputLayer first if the input's shape is known."""
        start = [] if self._start is None else [serialize(layer_of(self._start.call))]
        layers = [*start, *(serialize(layer) for layer in self._stack)]
        return {"name": self.name, "trainable": self._trainable, "layers": layers}

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        expect_keys("Sequential", config, ("name", "trainable", "layers"))
        layers = [registry.deserialize(c) for c in arguments.sequence("Sequential", "layers", config["layers"])]
        return cls(layers, name=config["name"])._with_trainable(config["trainable"])


def _start_of(layer: Layer) -> SymbolicTensor | None:
    """A new input for a first layer that knows its input's shape."""
    if isinstance(layer, Functional):
        if not layer.built:
            return None
        x = layer.inputs[0]
        return Input(x.shape[1:], x.shape[0], x.dtype)  # pyright: ignore[reportArgumentType]
    if layer.declared_input_shape is None:
        return None
    return Input(layer.declared_input_shape, dtype=layer.implicit_dtype)
