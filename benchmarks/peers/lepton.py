"""This project, through the interface that its users have."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

import lepton_jit as lpt
from benchmarks.case import ADAM_EPSILON, TIMED_LEARNING_RATE, Problem
from benchmarks.contender import Contender, trainer
from benchmarks.network import EPSILON, MOMENTUM, Weights
from lepton_jit.compiler.executable import Executable
from lepton_jit.runtime.plan import MemoryPlan
from lepton_jit.runtime.profile import Profile
from lepton_jit.runtime.threads import set_threads

__all__ = ["Native", "build", "build_model", "build_native"]


class LeptonLayers:
    def conv2d(
        self, x: Any, name: str, filters: int, kernel: int, *, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> Any:
        x, mode = _padded(x, kernel, stride, padding)
        return lpt.Conv2D(filters, kernel, strides=stride, padding=mode, use_bias=bias, name=name)(x)

    def depthwise_conv2d(self, x: Any, name: str, kernel: int, *, stride: int = 1, padding: int = 0) -> Any:
        x, mode = _padded(x, kernel, stride, padding)
        return lpt.DepthwiseConv2D(kernel, strides=stride, padding=mode, use_bias=False, name=name)(x)

    def batch_norm(self, x: Any, name: str) -> Any:
        return lpt.BatchNormalization(momentum=MOMENTUM, epsilon=EPSILON, name=name)(x)

    def dense(self, x: Any, name: str, units: int) -> Any:
        return lpt.Dense(units, name=name)(x)

    def embedding(self, x: Any, name: str, vocabulary: int, width: int) -> Any:
        return lpt.Embedding(vocabulary, width, name=name)(x)

    def embedding_mean(self, x: Any, name: str, vocabulary: int, width: int) -> Any:
        return self.token_mean(self.embedding(x, name, vocabulary, width))

    def lstm(self, x: Any, name: str, units: int) -> Any:
        return lpt.LSTM(units, name=name)(x)

    def self_attention(self, x: Any, name: str, heads: int) -> Any:
        return lpt.MultiHeadAttention(heads, x.shape[-1] // heads, name=name)(x, x)

    def layer_norm(self, x: Any, name: str) -> Any:
        return lpt.LayerNormalization(epsilon=EPSILON, name=name)(x)

    def relu(self, x: Any) -> Any:
        return lpt.Activation("relu")(x)

    def relu6(self, x: Any) -> Any:
        return lpt.Activation("relu6")(x)

    def gelu(self, x: Any) -> Any:
        return lpt.Activation("gelu")(x)

    def add(self, x: Any, y: Any) -> Any:
        return lpt.Add()([x, y])

    def max_pool(self, x: Any, size: int, *, stride: int | None = None, padding: int = 0) -> Any:
        if padding:
            x = lpt.ZeroPadding2D(padding)(x)
        return lpt.MaxPooling2D(size, strides=stride)(x)

    def image_mean(self, x: Any) -> Any:
        return lpt.GlobalAveragePooling2D()(x)

    def token_mean(self, x: Any) -> Any:
        return lpt.GlobalAveragePooling1D()(x)

    def flatten(self, x: Any) -> Any:
        return lpt.Flatten()(x)

    def softmax(self, x: Any) -> Any:
        return lpt.Activation("softmax")(x)


def _padded(x: Any, kernel: int, stride: int, padding: int) -> tuple[Any, str]:
    """The input and the name of the padding: Keras' "same" is another one where the stride is not 1."""
    if not padding:
        return x, "valid"
    if stride == 1 and kernel == 2 * padding + 1:
        return x, "same"
    return lpt.ZeroPadding2D(padding)(x), "valid"


def build_model(problem: Problem) -> lpt.Model:
    """The model with the case's weights."""
    layers = LeptonLayers()
    dtype = "float32" if problem.case.vocabulary is None else "int32"
    batch = problem.batch if problem.fixed else None
    x = lpt.Input(problem.case.input_shape, batch, dtype=dtype, name="input")
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
    optimizer = _compile_for_training(model, problem.case.learning_rate)
    labels = problem.labels

    def set_learning_rate(value: float) -> None:
        optimizer.learning_rate = value

    return trainer(lambda: model.train_on_batch(x, labels), set_learning_rate)


def _compile_for_training(model: lpt.Model, learning_rate: float) -> Any:
    optimizer = lpt.optimizers.Adam(learning_rate, epsilon=ADAM_EPSILON)
    model.compile(optimizer=optimizer, loss="sparse_categorical_crossentropy")
    return optimizer


@dataclass(frozen=True)
class Native:
    """The native program of a problem, below everything that its users see, and the arrays of one call."""

    executable: Executable
    arrays: tuple[np.ndarray, ...]

    def run(self) -> None:
        self.executable.run(*self.arrays)

    def profile(self, calls: int) -> Profile:
        """The average time of every step."""
        return self.executable.program.profile(*self.arrays, parameters=self.executable.parameters, calls=calls)

    def plan(self) -> MemoryPlan:
        """The memory plan at the problem's batch."""
        program = self.executable.program
        return program.plan(**dict.fromkeys(program.manifest.symbols, len(self.arrays[0])))


def build_native(problem: Problem, threads: int) -> Native:
    set_threads(threads)
    model = build_model(problem)
    if problem.mode == "inference":
        return Native(lpt.compile(model, threads=threads).executable, (problem.x,))
    _compile_for_training(model, TIMED_LEARNING_RATE)
    data = model._trainer._checked_data("benchmark", problem.x, problem.labels)
    program = model._trainer._training_program(data)
    arrays = (problem.x, problem.labels, np.asarray(TIMED_LEARNING_RATE, np.float32))
    native = Native(program._executable, arrays)
    program.run(*native.arrays)  # which gives it the weights
    return native
