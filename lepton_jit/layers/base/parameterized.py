"""Define what owns weights: a name, weights of its own and of layers inside, a flag whether training changes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lepton_jit.common import arguments
from lepton_jit.common.naming import auto_name
from lepton_jit.errors import ArgumentError
from lepton_jit.tracing.weight import Weight, assign_all

__all__ = ["Parameterized"]


class Parameterized:
    """The half of a layer that knows nothing of calls and shapes: its weights, under their paths."""

    def __init__(self, name: str | None) -> None:
        self.name = _checked_name(type(self).__name__, name) if name is not None else auto_name(type(self).__name__)
        self._trainable = True
        self._weights: list[Weight] = []
        self._statistics: list[Weight] = []

    @property
    def label(self) -> str:
        """The name of this layer in errors."""
        return f"layer {self.name!r}"

    @property
    def sublayers(self) -> Sequence[Parameterized]:
        """The layers inside, in order; a model has some."""
        return ()

    def own_weights(self) -> list[Weight]:
        """This layer's weights without those of the layers inside: those made to be trained first."""
        return [*self._weights, *self._statistics]

    def named_layers(self, prefix: str = "") -> Iterator[tuple[str, Parameterized]]:
        """This layer and those inside, in Keras' order, with what their weights' paths begin with: `block/dense/`."""
        yield prefix, self
        for layer in self.sublayers:
            yield from layer.named_layers(f"{prefix}{layer.name}/")

    def weight_paths(self) -> dict[str, Weight]:
        """The weights under their paths, which leave out this layer's own name; a shared one under the first."""
        paths: dict[Weight, str] = {}
        for prefix, layer in self.named_layers():
            for weight in layer.own_weights():
                paths.setdefault(weight, f"{prefix}{weight.name}")
        return {path: weight for weight, path in paths.items()}

    @property
    def weights(self) -> list[Weight]:
        """All weights, each once."""
        return list(self.weight_paths().values())

    @property
    def trainable(self) -> bool:
        """The flag whether training changes the weights; setting it sets it for the layers inside too.

        A model trains as the flags were when it was compiled: set them first, or compile again.
        """
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        self._trainable = arguments.boolean(self.label, "trainable", value)
        for layer in self.sublayers:
            layer.trainable = value

    def get_weights(self) -> list[np.ndarray]:
        """Copies of the weights' arrays, in Keras' order."""
        return [w.numpy() for w in self.weights]

    def set_weights(self, weights: Sequence[Any]) -> None:
        """Overwrite all weights; nothing is changed if one does not fit."""
        own = self.weights
        if len(weights) != len(own):
            raise ArgumentError(f"{self.label}: expected {len(own)} weight arrays, got {len(weights)}")
        arrays = [w.check(v, f"{self.label}, weight {w.name!r}") for w, v in zip(own, weights, strict=True)]
        assign_all(own, arrays)


def _checked_name(kind: str, name: Any) -> str:
    arguments.text(kind, "name", name)
    if "/" in name or any(ord(c) < 32 for c in name):
        raise ArgumentError(f"{kind}: name: expected a name without '/' and control characters, got {name!r}")
    return name
