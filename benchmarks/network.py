"""What a case is written in: layers, that every peer builds in its own way from the same weights.

Weights have Keras' layouts: a convolution's kernel is f32[kh, kw, in, out], a depthwise one f32[kh, kw, c, 1], a dense
one f32[in, out], an LSTM's f32[in, 4 * units] with the gates in the order input, forget, cell, output, and an
attention's query/kernel f32[width, heads, size].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np

__all__ = ["EPSILON", "MOMENTUM", "Layers", "Weights", "channels_first_rows", "is_trained"]

T = TypeVar("T")

# Of batch and layer normalization, and what a moving statistic keeps of itself.
EPSILON = 1e-5
MOMENTUM = 0.9


class Layers(Protocol, Generic[T]):
    """Layers on values of type T, which stand for a whole batch. Images are channels-last in meaning, not in memory."""

    def conv2d(
        self, x: T, name: str, filters: int, kernel: int, *, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> T: ...
    def depthwise_conv2d(self, x: T, name: str, kernel: int, *, stride: int = 1, padding: int = 0) -> T:
        """Without a bias."""
        ...

    def batch_norm(self, x: T, name: str) -> T:
        """Over channels: with the batch's moments in training, where it moves its moving ones."""
        ...

    def dense(self, x: T, name: str, units: int) -> T: ...
    def embedding(self, x: T, name: str, vocabulary: int, width: int) -> T: ...
    def embedding_mean(self, x: T, name: str, vocabulary: int, width: int) -> T:
        """The mean of the tokens' vectors."""
        ...

    def lstm(self, x: T, name: str, units: int) -> T:
        """The output after the last token."""
        ...

    def self_attention(self, x: T, name: str, heads: int) -> T: ...
    def layer_norm(self, x: T, name: str) -> T: ...
    def relu(self, x: T) -> T: ...
    def relu6(self, x: T) -> T: ...
    def gelu(self, x: T) -> T:
        """The exact one, with erf."""
        ...

    def add(self, x: T, y: T) -> T: ...
    def max_pool(self, x: T, size: int, *, stride: int | None = None, padding: int = 0) -> T:
        """Of values from 0 up, so that padding may be zeros."""
        ...

    def image_mean(self, x: T) -> T:
        """Over height and width."""
        ...

    def token_mean(self, x: T) -> T: ...
    def flatten(self, x: T) -> T: ...
    def softmax(self, x: T) -> T: ...


@dataclass(frozen=True)
class Weights:
    """Arrays by path, `layer/kernel`; for a dense layer behind `flatten`, the shape (h, w, c) that was flattened."""

    arrays: Mapping[str, np.ndarray]
    flattened: Mapping[str, tuple[int, ...]]

    def with_joined_attention(self) -> dict[str, np.ndarray]:
        """The arrays, `attention/query/kernel` and its like as one f32[width, 3 * width]: what fast attention reads."""
        joined: dict[str, np.ndarray] = {}
        for path, array in self.arrays.items():
            layer, _, rest = path.partition("/")
            part, _, kind = rest.partition("/")
            if part == "query":
                parts = [self.arrays[f"{layer}/{p}/{kind}"] for p in ("query", "key", "value")]
                wide = [p.reshape(p.shape[0], -1) if kind == "kernel" else p.ravel() for p in parts]
                joined[f"{layer}/qkv/{kind}"] = np.concatenate(wide, axis=-1)
            elif part == "attention_output" and kind == "kernel":
                joined[path] = array.reshape(-1, array.shape[-1])
            elif part not in ("key", "value"):
                joined[path] = array
        return joined


def is_trained(path: str) -> bool:
    """Whether an optimizer moves it."""
    return "moving_" not in path


def channels_first_rows(kernel: np.ndarray, image: tuple[int, ...]) -> np.ndarray:
    """A dense kernel's rows in the order in which a channels-first image is flattened."""
    h, w, c = image
    return kernel.reshape(h, w, c, -1).transpose(2, 0, 1, 3).reshape(kernel.shape)
