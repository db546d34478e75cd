"""Remember what training changes: the `trainable` flags of a model's layers and weights at one moment."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lepton_jit.errors import ArgumentError
from lepton_jit.layers.base.parameterized import Parameterized
from lepton_jit.tracing.weight import Weight

__all__ = ["Trainable"]


class Trainable:
    """A snapshot of the flags. `compile` takes one, and setting a flag afterwards waits for the next `compile`.

    A weight is trained if its own flag, that of its layer and that of the model are set. Flags of what a model in
    between contains are set together with its own, and may differ from it afterwards, as in Keras.
    """

    def __init__(self, model: Parameterized) -> None:
        self._model = model
        self._flags = {part: part.trainable for _, part in self._parts()}

    def holds(self, part: Parameterized | Weight) -> bool:
        """Tell whether the flag was set; of what has been built since, the flag as it is."""
        return self._flags.get(part, part.trainable)

    @property
    def weights(self) -> list[Weight]:
        """The weights that are trained, in Keras' order, each once."""
        if not self.holds(self._model):
            return []
        layers = [layer for _, layer in self._model.named_layers() if self.holds(layer)]
        return list(dict.fromkeys(w for layer in layers for w in layer.own_weights() if self.holds(w)))

    @property
    def weight_paths(self) -> dict[str, Weight]:
        """The weights that are trained, under the paths that the whole model has for them."""
        trained = set(self.weights)
        return {path: weight for path, weight in self._model.weight_paths().items() if weight in trained}

    @property
    def frozen(self) -> list[str]:
        """The paths of the parts whose flag is not set: `block/dense/` is a layer, `block/dense/bias` a weight."""
        return [path for path, part in self._parts() if not self.holds(part)]

    @frozen.setter
    def frozen(self, paths: Sequence[str]) -> None:
        parts = dict(self._parts())
        unknown = [path for path in paths if path not in parts]
        if unknown:
            raise ArgumentError(f"{self._model.label}: frozen: has no layer and no weight at {unknown}")
        self._flags = {part: path not in paths for path, part in parts.items()}

    def _parts(self) -> Iterator[tuple[str, Parameterized | Weight]]:
        for path, layer in self._model.named_layers():
            yield path, layer
            for weight in layer.own_weights():
                yield f"{path}{weight.name}", weight
