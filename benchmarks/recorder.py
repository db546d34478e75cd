"""A network on shapes: draws its weights, always the same, and counts the operations of its contractions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

__all__ = ["Recorder", "Shape"]


@dataclass(frozen=True)
class Shape:
    """A value without its batch axis.

    `image` is the shape before it was flattened; `power` about the mean square of its elements, of which `positive`
    comes from terms that are never negative; `trained`, whether weights stand before it, so that training asks for its
    gradient.
    """

    dims: tuple[int, ...]
    image: tuple[int, ...] | None = None
    power: float = 1.0
    positive: float = 0.0
    trained: bool = False

    def behind_weights(self, dims: tuple[int, ...], power: float) -> Shape:
        return Shape(dims, power=power, trained=True)


@dataclass
class Recorder:
    """`inference_flops` and `training_flops` are of one sample: two for each product that a contraction sums.

    Training: forward, gradients of the weights, and of the inputs where anything before them is trained.
    """

    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    flattened: dict[str, tuple[int, ...]] = field(default_factory=dict)
    inference_flops: int = 0
    training_flops: int = 0
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def conv2d(
        self,
        x: Shape,
        name: str,
        filters: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> Shape:
        h, w, c = x.dims
        rows, columns = ((d + 2 * padding - kernel) // stride + 1 for d in (h, w))
        self._kernel(f"{name}/kernel", (kernel, kernel, c, filters), fan_in=kernel * kernel * c)
        if bias:
            self._bias(f"{name}/bias", (filters,))
        self._count(x, kernel * kernel * c * filters * rows * columns)
        return x.behind_weights((rows, columns, filters), 2 * x.power)

    def depthwise_conv2d(self, x: Shape, name: str, kernel: int, *, stride: int = 1, padding: int = 0) -> Shape:
        h, w, c = x.dims
        rows, columns = ((d + 2 * padding - kernel) // stride + 1 for d in (h, w))
        self._kernel(f"{name}/kernel", (kernel, kernel, c, 1), fan_in=kernel * kernel)
        self._count(x, kernel * kernel * c * rows * columns)
        return x.behind_weights((rows, columns, c), 2 * x.power)

    def batch_norm(self, x: Shape, name: str) -> Shape:
        """The moving moments are near the true ones, so that activations stay in range however deep the network is."""
        channels = x.dims[-1:]
        self._scale_and_offset(name, channels)
        mean = self.random.normal(size=channels) * 0.1 * np.sqrt(x.power)
        variance = self.random.uniform(0.8, 1.25, size=channels) * x.power
        self.arrays[f"{name}/moving_mean"] = mean.astype(np.float32)
        self.arrays[f"{name}/moving_variance"] = variance.astype(np.float32)
        return x.behind_weights(x.dims, 1.0)

    def layer_norm(self, x: Shape, name: str) -> Shape:
        self._scale_and_offset(name, x.dims[-1:])
        return x.behind_weights(x.dims, 1.0)

    def dense(self, x: Shape, name: str, units: int) -> Shape:
        *rows, depth = x.dims
        self._kernel(f"{name}/kernel", (depth, units), fan_in=depth)
        self._bias(f"{name}/bias", (units,))
        self._count(x, depth * units * int(np.prod(rows, dtype=int)))
        if x.image is not None:
            self.flattened[name] = x.image
        return x.behind_weights((*rows, units), 2 * x.power)

    def embedding(self, x: Shape, name: str, vocabulary: int, width: int) -> Shape:
        self.arrays[f"{name}/embeddings"] = self.random.normal(size=(vocabulary, width)).astype(np.float32)
        return x.behind_weights((*x.dims, width), 1.0)

    def embedding_mean(self, x: Shape, name: str, vocabulary: int, width: int) -> Shape:
        return self.token_mean(self.embedding(x, name, vocabulary, width))

    def lstm(self, x: Shape, name: str, units: int) -> Shape:
        steps, depth = x.dims
        self._kernel(f"{name}/kernel", (depth, 4 * units), fan_in=2 * depth)
        self._kernel(f"{name}/recurrent_kernel", (units, 4 * units), fan_in=2 * units)
        self._bias(f"{name}/bias", (4 * units,))
        self._count(x, steps * depth * 4 * units)
        self._count(replace(x, trained=True), steps * units * 4 * units)
        return x.behind_weights((units,), 0.1)

    def self_attention(self, x: Shape, name: str, heads: int) -> Shape:
        tokens, width = x.dims
        for part in ("query", "key", "value"):
            self._kernel(f"{name}/{part}/kernel", (width, heads, width // heads), fan_in=2 * width)
            self._bias(f"{name}/{part}/bias", (heads, width // heads))
        self._kernel(f"{name}/attention_output/kernel", (heads, width // heads, width), fan_in=2 * width)
        self._bias(f"{name}/attention_output/bias", (width,))
        self._count(x, 3 * tokens * width * width)
        # Scores, the values' sums, and the output's product.
        self._count(replace(x, trained=True), 2 * tokens * tokens * width + tokens * width * width)
        return x.behind_weights(x.dims, x.power)

    def relu(self, x: Shape) -> Shape:
        kept = x.positive + (x.power - x.positive) / 2
        return replace(x, power=kept, positive=kept)

    relu6 = gelu = relu

    def add(self, x: Shape, y: Shape) -> Shape:
        positive = x.positive + y.positive
        return replace(x, power=x.power + y.power, positive=positive, trained=x.trained or y.trained)

    def max_pool(self, x: Shape, size: int, *, stride: int | None = None, padding: int = 0) -> Shape:
        h, w, c = x.dims
        rows, columns = ((d + 2 * padding - size) // (stride or size) + 1 for d in (h, w))
        return replace(x, dims=(rows, columns, c), power=2 * x.power)

    def image_mean(self, x: Shape) -> Shape:
        return replace(x, dims=x.dims[2:])

    def token_mean(self, x: Shape) -> Shape:
        return replace(x, dims=x.dims[1:])

    def flatten(self, x: Shape) -> Shape:
        return replace(x, dims=(int(np.prod(x.dims)),), image=x.dims)

    def softmax(self, x: Shape) -> Shape:
        return x

    def _kernel(self, path: str, shape: tuple[int, ...], fan_in: int) -> None:
        self.arrays[path] = (self.random.normal(size=shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    def _bias(self, path: str, shape: tuple[int, ...]) -> None:
        self.arrays[path] = (self.random.normal(size=shape) * 0.1).astype(np.float32)

    def _scale_and_offset(self, name: str, shape: tuple[int, ...]) -> None:
        self.arrays[f"{name}/gamma"] = self.random.uniform(0.8, 1.2, size=shape).astype(np.float32)
        self._bias(f"{name}/beta", shape)

    def _count(self, x: Shape, products: int) -> None:
        """Two operations a product; once more for the weights' gradient, and once for that of `x`."""
        self.inference_flops += 2 * products
        self.training_flops += 2 * products * (3 if x.trained else 2)
