"""This project, through the interface that its users have."""

from __future__ import annotations

from typing import Any

import numpy as np

import lepton_jit as lpt
from benchmarks.case import EPSILON, LEARNING_RATE, Problem
from benchmarks.contender import Contender, trainer
from benchmarks.network import Weights
from lepton_jit.runtime.threads import set_threads

__all__ = ["build", "build_model"]


class LeptonLayers:
    def conv2d(self, x: Any, name: str, filters: int, kernel: int, *, stride: int = 1, padding: int = 0) -> Any:
        same = stride == 1 and kernel == 2 * padding + 1
        if padding and not same:
            x = lpt.ZeroPadding2D(padding)(x)
        return lpt.Conv2D(filters, kernel, strides=stride, padding="same" if same else "valid", name=name)(x)

    def dense(self, x: Any, name: str, units: int) -> Any:
        return lpt.Dense(units, name=name)(x)

    def relu(self, x: Any) -> Any:
        return lpt.Activation("relu")(x)

    def max_pool(self, x: Any, size: int) -> Any:
        return lpt.MaxPooling2D(size)(x)

    def flatten(self, x: Any) -> Any:
        return lpt.Flatten()(x)

    def softmax(self, x: Any) -> Any:
        return lpt.Activation("softmax")(x)


def build_model(problem: Problem) -> lpt.Model:
    """The model with the case's weights."""
    layers = LeptonLayers()
    x = lpt.Input(problem.case.input_shape, name="input")
    model = lpt.Model(x, layers.softmax(problem.case.network(layers, x)))
    _set_weights(model, problem.weights)
    return model


def _set_weights(model: lpt.Model, weights: Weights) -> None:
    for name in dict.fromkeys(path.partition("/")[0] for path in weights.arrays):
        arrays = [array for path, array in weights.arrays.items() if path.startswith(f"{name}/")]
        model.get_layer(name).set_weights(arrays)


def build(problem: Problem, variant: str, threads: int) -> Contender:
    set_threads(threads)
    model = build_model(problem)
    x = problem.x
    if problem.mode == "inference":
        fast = lpt.compile(model, threads=threads)
        return Contender(lambda: fast(x), lambda: np.asarray(fast(x)))
    optimizer = lpt.optimizers.Adam(LEARNING_RATE, epsilon=EPSILON)
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")
    labels = problem.labels

    def set_learning_rate(value: float) -> None:
        optimizer.learning_rate = value

    return trainer(lambda: model.train_on_batch(x, labels), set_learning_rate)
