"""JAX: one jitted function for inference, one for the whole training step, with donated state."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.case import ADAM_EPSILON, Problem
from benchmarks.contender import Contender, trainer

__all__ = ["build"]

BETA_1, BETA_2 = 0.9, 0.999


class JaxLayers:
    def __init__(self, weights: dict[str, jax.Array]) -> None:
        self.weights = weights

    def conv2d(
        self, x: jax.Array, name: str, filters: int, kernel: int, *, stride: int = 1, padding: int = 0
    ) -> jax.Array:
        y = lax.conv_general_dilated(
            x,
            self.weights[f"{name}/kernel"],
            (stride, stride),
            [(padding, padding)] * 2,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return y + self.weights[f"{name}/bias"]

    def dense(self, x: jax.Array, name: str, units: int) -> jax.Array:
        return x @ self.weights[f"{name}/kernel"] + self.weights[f"{name}/bias"]

    def relu(self, x: jax.Array) -> jax.Array:
        return jax.nn.relu(x)

    def max_pool(self, x: jax.Array, size: int) -> jax.Array:
        window = (1, size, size, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, window, "VALID")

    def flatten(self, x: jax.Array) -> jax.Array:
        return x.reshape(x.shape[0], -1)

    def softmax(self, x: jax.Array) -> jax.Array:
        return jax.nn.softmax(x)


def build(problem: Problem, variant: str, threads: int) -> Contender:
    # XLA takes as many threads as the process has processors; the worker has seen to that.
    x = jnp.asarray(problem.x)
    weights = {name: jnp.asarray(array) for name, array in problem.weights.arrays.items()}
    return _inference(problem, weights, x) if problem.mode == "inference" else _training(problem, weights, x)


def _inference(problem: Problem, weights: dict[str, jax.Array], x: jax.Array) -> Contender:
    @jax.jit
    def run(values: jax.Array) -> jax.Array:
        layers = JaxLayers(weights)
        return layers.softmax(problem.case.network(layers, values))

    return Contender(lambda: run(x).block_until_ready(), lambda: np.asarray(run(x)))


def _training(problem: Problem, weights: dict[str, jax.Array], x: jax.Array) -> Contender:
    labels = jnp.asarray(problem.labels)

    def loss_of(values: dict[str, jax.Array]) -> jax.Array:
        logits = problem.case.network(JaxLayers(values), x)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], axis=1).mean()

    @partial(jax.jit, donate_argnums=0)
    def update(state: Any, rate: jax.Array) -> tuple[Any, jax.Array]:
        values, m, v, count = state
        loss, gradients = jax.value_and_grad(loss_of)(values)
        count = count + 1
        a = rate * jnp.sqrt(1 - BETA_2**count) / (1 - BETA_1**count)
        m = jax.tree.map(lambda m, g: m + (1 - BETA_1) * (g - m), m, gradients)
        v = jax.tree.map(lambda v, g: v + (1 - BETA_2) * (g * g - v), v, gradients)
        values = jax.tree.map(lambda w, m, v: w - a * m / (jnp.sqrt(v) + ADAM_EPSILON), values, m, v)
        return (values, m, v, count), loss

    zeros = [jax.tree.map(jnp.zeros_like, weights) for _ in range(2)]
    rate = jnp.float32(problem.case.learning_rate)
    held: dict[str, Any] = {"state": (weights, *zeros, jnp.zeros((), jnp.float32)), "rate": rate}

    def step() -> float:
        held["state"], loss = update(held["state"], held["rate"])
        return float(loss)

    return trainer(step, lambda rate: held.update(rate=jnp.float32(rate)))
