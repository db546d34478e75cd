"""JAX: one jitted function for inference, one for the whole training step, with donated state."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.case import ADAM_EPSILON, Problem
from benchmarks.contender import Contender, trainer
from benchmarks.network import EPSILON, MOMENTUM, is_trained

__all__ = ["build"]

BETA_1, BETA_2 = 0.9, 0.999

Arrays = dict[str, jax.Array]


class JaxLayers:
    """`moved` collects the new moving statistics, where there are any in training."""

    def __init__(self, weights: Mapping[str, jax.Array], *, training: bool) -> None:
        self.weights = weights
        self.training = training
        self.moved: dict[str, jax.Array] = {}

    def conv2d(
        self,
        x: jax.Array,
        name: str,
        filters: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> jax.Array:
        y = self._convolution(x, self.weights[f"{name}/kernel"], stride, padding)
        return y + self.weights[f"{name}/bias"] if bias else y

    def depthwise_conv2d(self, x: jax.Array, name: str, kernel: int, *, stride: int = 1, padding: int = 0) -> jax.Array:
        # XLA wants [kh, kw, 1, c].
        weight = jnp.swapaxes(self.weights[f"{name}/kernel"], 2, 3)
        return self._convolution(x, weight, stride, padding, groups=x.shape[-1])

    def _convolution(self, x: jax.Array, kernel: jax.Array, stride: int, padding: int, groups: int = 1) -> jax.Array:
        return lax.conv_general_dilated(
            x,
            kernel,
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=groups,
        )

    def batch_norm(self, x: jax.Array, name: str) -> jax.Array:
        mean, variance = self.weights[f"{name}/moving_mean"], self.weights[f"{name}/moving_variance"]
        if self.training:
            moments = {"mean": x.mean((0, 1, 2)), "variance": x.var((0, 1, 2))}
            for kind, old in (("mean", mean), ("variance", variance)):
                new = lax.stop_gradient(moments[kind])
                self.moved[f"{name}/moving_{kind}"] = MOMENTUM * old + (1 - MOMENTUM) * new
            mean, variance = moments["mean"], moments["variance"]
        return self._scaled((x - mean) * lax.rsqrt(variance + EPSILON), name)

    def layer_norm(self, x: jax.Array, name: str) -> jax.Array:
        centered = x - x.mean(-1, keepdims=True)
        return self._scaled(centered * lax.rsqrt((centered**2).mean(-1, keepdims=True) + EPSILON), name)

    def _scaled(self, x: jax.Array, name: str) -> jax.Array:
        return x * self.weights[f"{name}/gamma"] + self.weights[f"{name}/beta"]

    def dense(self, x: jax.Array, name: str, units: int) -> jax.Array:
        return x @ self.weights[f"{name}/kernel"] + self.weights[f"{name}/bias"]

    def embedding(self, x: jax.Array, name: str, vocabulary: int, width: int) -> jax.Array:
        return self.weights[f"{name}/embeddings"][x]

    def embedding_mean(self, x: jax.Array, name: str, vocabulary: int, width: int) -> jax.Array:
        return self.token_mean(self.embedding(x, name, vocabulary, width))

    def lstm(self, x: jax.Array, name: str, units: int) -> jax.Array:
        # The inputs' products, of all steps at once.
        inputs = jnp.swapaxes(x, 0, 1) @ self.weights[f"{name}/kernel"] + self.weights[f"{name}/bias"]
        recurrent = self.weights[f"{name}/recurrent_kernel"]

        def step(state: tuple[jax.Array, jax.Array], given: jax.Array) -> tuple[tuple[jax.Array, jax.Array], None]:
            hidden, cell = state
            i, f, c, o = jnp.split(given + hidden @ recurrent, 4, axis=-1)
            cell = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(c)
            return (jax.nn.sigmoid(o) * jnp.tanh(cell), cell), None

        zeros = jnp.zeros((x.shape[0], units), x.dtype)
        (hidden, _), _ = lax.scan(step, (zeros, zeros), inputs)
        return hidden

    def self_attention(self, x: jax.Array, name: str, heads: int) -> jax.Array:
        n, tokens, width = x.shape
        joined = self.dense(x, f"{name}/qkv", 3 * width).reshape(n, tokens, 3, heads, width // heads)
        query, key, value = (joined[:, :, i] for i in range(3))
        y = jax.nn.dot_product_attention(query, key, value)
        return self.dense(y.reshape(n, tokens, width), f"{name}/attention_output", width)

    def relu(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x)

    def relu6(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu6(x)

    def gelu(self, x: jax.Array) -> jax.Array:
        return jax.nn.gelu(x, approximate=False)

    def add(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return x + y

    def max_pool(self, x: jax.Array, size: int, *, stride: int | None = None, padding: int = 0) -> jax.Array:
        step = stride or size
        around = [(0, 0), (padding, padding), (padding, padding), (0, 0)]
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, size, size, 1), (1, step, step, 1), around)

    def image_mean(self, x: jax.Array) -> jax.Array:
        return x.mean((1, 2))

    def token_mean(self, x: jax.Array) -> jax.Array:
        return x.mean(1)

    def flatten(self, x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], -1)

    def softmax(self, x: jax.Array) -> jax.Array:
        return jax.nn.softmax(x)


def build(problem: Problem, variant: str, threads: int) -> Contender:
    # XLA takes as many threads as the process has processors; the worker has seen to that.
    x = jnp.asarray(problem.x)
    weights = {name: jnp.asarray(array) for name, array in problem.weights.with_joined_attention().items()}
    return _inference(problem, weights, x) if problem.mode == "inference" else _training(problem, weights, x)


def _inference(problem: Problem, weights: Arrays, x: jax.Array) -> Contender:
    @jax.jit
    def run(values: jax.Array) -> jax.Array:
        layers = JaxLayers(weights, training=False)
        return layers.softmax(problem.case.network(layers, values))

    return Contender(lambda: run(x).block_until_ready(), lambda: np.asarray(run(x)))


def _training(problem: Problem, weights: Arrays, x: jax.Array) -> Contender:
    labels = jnp.asarray(problem.labels)

    trained = {name: weight for name, weight in weights.items() if is_trained(name)}
    moving = {name: weight for name, weight in weights.items() if not is_trained(name)}

    def loss_of(values: Arrays, statistics: Arrays) -> tuple[jax.Array, Arrays]:
        layers = JaxLayers({**values, **statistics}, training=True)
        logits = problem.case.network(layers, x)
        loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()
        return loss, layers.moved

    @partial(jax.jit, donate_argnums=0)
    def update(state: Any, rate: jax.Array) -> tuple[Any, jax.Array]:
        values, m, v, statistics, count = state
        (loss, statistics), gradients = jax.value_and_grad(loss_of, has_aux=True)(values, statistics)
        count = count + 1
        a = rate * jnp.sqrt(1 - BETA_2**count) / (1 - BETA_1**count)
        m = jax.tree.map(lambda m, g: m + (1 - BETA_1) * (g - m), m, gradients)
        v = jax.tree.map(lambda v, g: v + (1 - BETA_2) * (g * g - v), v, gradients)
        values = jax.tree.map(lambda w, m, v: w - a * m / (jnp.sqrt(v) + ADAM_EPSILON), values, m, v)
        return (values, m, v, statistics, count), loss

    zeros = [jax.tree.map(jnp.zeros_like, trained) for _ in range(2)]
    rate = jnp.float32(problem.case.learning_rate)
    held: dict[str, Any] = {"state": (trained, *zeros, moving, jnp.zeros((), jnp.float32)), "rate": rate}

    def step() -> float:
        held["state"], loss = update(held["state"], held["rate"])
        return float(loss)

    return trainer(step, lambda rate: held.update(rate=jnp.float32(rate)))
