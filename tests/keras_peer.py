"""Keras as a second implementation: the same layer or model there and here, with the same weights."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

# The peer's answers matter here, not its speed, and most of its time goes into compiling.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
os.environ.setdefault("KERAS_BACKEND", "jax")  # for what runs without conftest.py

import keras
import numpy as np

import lepton_jit as lpt


def _add_weight(self: Any, shape: Any = None, initializer: Any = None, *rest: Any, **options: Any) -> Any:
    """Keras draws weights by a program for each shape, which takes 0.2 s to compile; tests replace them anyway."""
    known = keras.initializers.get(initializer)
    random = isinstance(known, keras.initializers.Initializer) and not isinstance(known, _CONSTANT)
    return _keras_add_weight(self, shape, _drawn_by_numpy if random else initializer, *rest, **options)


def _drawn_by_numpy(shape: tuple[int, ...], dtype: Any = None, **_: Any) -> np.ndarray:
    return np.random.default_rng(shape).normal(0, 0.1, shape).astype(dtype)


_CONSTANT = (keras.initializers.Zeros, keras.initializers.Ones, keras.initializers.Constant)
_keras_add_weight = keras.layers.Layer.add_weight
keras.layers.Layer.add_weight = _add_weight


def relative_error(actual: Any, expected: Any) -> float:
    """max|a - b| / max|b|"""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    if not expected.size:
        return 0.0
    return float(np.abs(actual - expected).max() / max(np.abs(expected).max(), 1e-6))


def copy_weights(peer: Any, ours: Any) -> None:
    """Give Keras' weights, made different from each other, to ours."""
    rng = np.random.default_rng(7)
    weights = [rng.normal(0.1, 0.3, w.shape).astype(w.dtype) for w in peer.get_weights()]
    # Variances stay positive.
    for i, w in enumerate(peer.weights):
        if "variance" in w.name:
            weights[i] = np.abs(weights[i]) + 0.5
    peer.set_weights(weights)
    ours.set_weights(weights)


def sequential_pair(make: Any, input_shape: tuple[int, ...]) -> tuple[Any, Any]:
    """`make(layers)` is a list of layers; the model of it in Keras and here, with the same weights."""
    peer = keras.Sequential([keras.Input(input_shape), *make(keras.layers)])
    ours = lpt.Sequential([lpt.Input(input_shape), *make(lpt.layers)])
    copy_weights(peer, ours)
    return peer, ours


class _Function:
    """A function of Keras, which takes options as ours do."""

    def __init__(self, function: Any) -> None:
        self.function = function

    def with_options(self, **options: Any) -> Any:
        return partial(self.function, **options)


class _Functions:
    """`activations.relu.with_options(...)`"""

    def __getattr__(self, name: str) -> _Function:
        return _Function(getattr(keras.activations, name))


class Peer:
    """Keras in the place of `lpt`: what a program with our names builds there."""

    activations = _Functions()

    def __getattr__(self, name: str) -> Any:
        return getattr(keras, name)


def freeze_attention(model: Any) -> None:
    """Keras trains what `MultiHeadAttention(trainable=False)` is made of, and counts its penalties: the flag of the
    constructor does not reach the layers inside, that of the setter does.
    """
    for layer in model._flatten_layers():
        if isinstance(layer, keras.layers.MultiHeadAttention) and not layer.trainable:
            layer.trainable = False


def functional_pair(make: Any) -> tuple[Any, Any]:
    """`make(namespace)` returns inputs and outputs; the model of them in Keras and here, with the same weights."""
    peer = keras.Model(*make(keras.layers))
    ours = lpt.Model(*make(lpt.layers))
    copy_weights(peer, ours)
    return peer, ours
