"""What a case is written in: a few layers, that every peer builds in its own way from the same weights.

Weights have Keras' layouts: a convolution's kernel is f32[kh, kw, in, out], a dense one f32[in, out].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

import numpy as np

__all__ = ["Layers", "Recorder", "Shape", "Weights", "channels_first_rows"]

T = TypeVar("T")


class Layers(Protocol, Generic[T]):
    """Layers on values of type T, which stand for a whole batch. Images are channels-last in meaning, not in memory."""

    def conv2d(self, x: T, name: str, filters: int, kernel: int, *, stride: int = 1, padding: int = 0) -> T: ...
    def dense(self, x: T, name: str, units: int) -> T: ...
    def relu(self, x: T) -> T: ...
    def max_pool(self, x: T, size: int) -> T: ...
    def flatten(self, x: T) -> T: ...
    def softmax(self, x: T) -> T: ...


@dataclass(frozen=True)
class Weights:
    """Arrays by name, and for a dense layer behind `flatten` the shape (h, w, c) of what was flattened."""

    arrays: Mapping[str, np.ndarray]
    flattened: Mapping[str, tuple[int, ...]]


def channels_first_rows(kernel: np.ndarray, image: tuple[int, ...]) -> np.ndarray:
    """A dense kernel's rows in the order in which a channels-first image is flattened."""
    h, w, c = image
    return kernel.reshape(h, w, c, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)


@dataclass(frozen=True)
class Shape:
    """A value without its batch axis, and the shape that it had before it was flattened."""

    dims: tuple[int, ...]
    image: tuple[int, ...] | None = None


@dataclass
class Recorder:
    """Runs a network on shapes: draws its weights, always the same, and counts its contractions' operations."""

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    flattened: dict[str, tuple[int, ...]] = field(default_factory=dict)
    contractions: list[int] = field(default_factory=list)
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    @property
    def inference_flops(self) -> int:
        """Of one sample: two for each product that a contraction sums."""
        return sum(self.contractions)

    @property
    def training_flops(self) -> int:
        """Of one sample: forward, gradients of the weights, and of the inputs but for the first layer's."""
        return 3 * sum(self.contractions) - self.contractions[0]

    def conv2d(self, x: Shape, name: str, filters: int, kernel: int, *, stride: int = 1, padding: int = 0) -> Shape:
        h, w, c = x.dims
        rows, columns = ((d + 2 * padding - kernel) // stride + 1 for d in (h, w))
        self._add(name, (kernel, kernel, c, filters), fan_in=kernel * kernel * c, times=rows * columns)
        return Shape((rows, columns, filters))

    def dense(self, x: Shape, name: str, units: int) -> Shape:
        *rows, depth = x.dims
        self._add(name, (depth, units), fan_in=depth, times=int(np.prod(rows, dtype=int)))
        if x.image is not None:
            self.flattened[name] = x.image
        return Shape((*rows, units))

    def relu(self, x: Shape) -> Shape:
        return x

    def max_pool(self, x: Shape, size: int) -> Shape:
        h, w, c = x.dims
        return Shape((h // size, w // size, c))

    def flatten(self, x: Shape) -> Shape:
        return Shape((int(np.prod(x.dims)),), image=x.dims)

    def softmax(self, x: Shape) -> Shape:
        return x

    def _add(self, name: str, kernel: tuple[int, ...], fan_in: int, times: int) -> None:
        values = self.random.normal(size=kernel) * np.sqrt(2 / fan_in)
        self.arrays[f"{name}/kernel"] = values.astype(np.float32)
        self.arrays[f"{name}/bias"] = (self.random.normal(size=kernel[-1]) * 0.1).astype(np.float32)
        self.contractions.append(2 * int(np.prod(kernel)) * times)
