"""Random models with branches against Keras: outputs, losses of three training steps, weights after SGD."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from tests.keras_peer import functional_pair, keras, relative_error


def random_model(seed: int) -> Any:
    """A function from a namespace of layers to inputs and outputs, the same for every namespace."""

    def make(layers: Any) -> tuple[Any, Any]:
        rng = random.Random(seed)
        images = layers.Input((9, 8, 3), name="images")
        x = images
        for _ in range(rng.randint(2, 4)):
            x = rng.choice([chain, skip, fork])(layers, rng, x)
        x = layers.Flatten()(x) if rng.random() < 0.5 else layers.GlobalAveragePooling2D()(x)
        if rng.random() < 0.5:
            x = layers.Reshape((-1,))(layers.Dense(6, activation=rng.choice(["elu", "gelu", "silu"]))(x))
        return images, layers.Dense(4, name="logits")(x)

    return make


def convolution(layers: Any, rng: random.Random, x: Any, filters: int) -> Any:
    kind = rng.randrange(4)
    if kind == 0:
        return layers.Conv2D(filters, rng.choice([1, 3, (2, 3)]), padding="same", activation="relu")(x)
    if kind == 1:
        return layers.Conv2D(filters, 3, padding="same", dilation_rate=2, use_bias=False)(x)
    if kind == 2:
        x = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2)(x)
    return layers.Conv2D(filters, 1, kernel_initializer="he_normal")(x)


def chain(layers: Any, rng: random.Random, x: Any) -> Any:
    x = convolution(layers, rng, x, rng.choice([3, 4]))
    kind = rng.randrange(4)
    if kind == 0:
        return layers.BatchNormalization(momentum=0.7)(x)
    if kind == 1:
        return layers.MaxPooling2D(2, padding="same")(x)
    if kind == 2:
        return layers.AveragePooling2D(3, strides=1, padding="same")(x)
    return layers.Conv2D(4, 3, strides=2, activation="tanh")(layers.ZeroPadding2D(((2, 1), (1, 1)))(x))


def skip(layers: Any, rng: random.Random, x: Any) -> Any:
    y = convolution(layers, rng, x, x.shape[-1])
    return layers.Activation("relu")(layers.Add()([x, y]))


def fork(layers: Any, rng: random.Random, x: Any) -> Any:
    branches = [convolution(layers, rng, x, 2) for _ in range(rng.randint(2, 3))]
    return layers.Concatenate()([*branches, x])


@pytest.mark.parametrize("seed", range(5))
def test_a_random_model_computes_what_keras_computes(seed: int) -> None:
    peer, ours = functional_pair(random_model(seed))
    x = np.random.default_rng(seed).normal(size=(3, 9, 8, 3)).astype("float32")

    assert ours.output_shape == peer.output_shape
    assert relative_error(ours(x), peer.predict(x, verbose=0)) < 2e-5


@pytest.mark.parametrize("seed", range(20, 22))
def test_three_steps_of_a_random_model_are_those_of_keras(seed: int) -> None:
    peer, ours = functional_pair(random_model(seed))
    rng = np.random.default_rng(seed)
    x, y = rng.normal(0, 0.3, (8, 9, 8, 3)).astype("float32"), rng.integers(0, 4, 8)
    losses = []
    for model, library in ((ours, lpt), (peer, keras)):
        # From logits: Keras clips probabilities below 1e-7, and their gradients are gone.
        loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(library.optimizers.SGD(0.003), loss, metrics=["accuracy"])
        losses.append([float(model.train_on_batch(x, y)[0]) for _ in range(3)])

    assert losses[0] == pytest.approx(losses[1], rel=2e-5)
    for actual, expected in zip(ours.get_weights(), peer.get_weights(), strict=True):
        assert relative_error(actual, expected) < 5e-5


def random_text_model(seed: int) -> Any:
    """The same for words, some of which are padding: lookups, attention, normalization, merging, pooling.

    With one attention at most: in Keras it takes the masks off its inputs, so that a second one attends to padding.
    """

    def make(layers: Any) -> tuple[Any, Any]:
        rng = random.Random(seed)
        words = layers.Input((7,), dtype="int32", name="words")
        x = layers.Embedding(13, 6, mask_zero=True)(words)
        for block in rng.sample([attention, gated, average], rng.randint(1, 3)):
            y = block(layers, rng, x)
            x = layers.LayerNormalization(center=rng.random() < 0.7, scale=rng.random() < 0.7)(layers.Add()([x, y]))
        return words, layers.Dense(4, name="logits")(layers.GlobalAveragePooling1D(keepdims=rng.random() < 0.3)(x))

    return make


def attention(layers: Any, rng: random.Random, x: Any) -> Any:
    causal = rng.random() < 0.5
    return layers.MultiHeadAttention(rng.choice([1, 3]), 2, use_bias=rng.random() < 0.5)(x, x, use_causal_mask=causal)


def gated(layers: Any, rng: random.Random, x: Any) -> Any:
    return layers.Multiply()([layers.Dense(6)(x), layers.Dense(6, activation="sigmoid")(x)])


def average(layers: Any, rng: random.Random, x: Any) -> Any:
    merge = rng.choice([layers.Average, layers.Maximum, layers.Minimum, layers.Subtract])
    return merge()([x, layers.Dense(6, activation=rng.choice(["tanh", "gelu"]))(x)])


@pytest.mark.parametrize("seed", [5])
def test_three_steps_of_a_random_text_model_are_those_of_keras(seed: int) -> None:
    peer, ours = functional_pair(random_text_model(seed))
    rng = np.random.default_rng(seed)
    x = rng.integers(1, 13, (8, 7)) * (np.arange(7) < rng.integers(1, 8, (8, 1)))
    y = rng.integers(0, 4, (8, *ours.output_shape[1:-1]))
    losses = []
    for model, library in ((ours, lpt), (peer, keras)):
        model.compile(library.optimizers.SGD(0.03), library.losses.SparseCategoricalCrossentropy(from_logits=True))
        losses.append([float(model.train_on_batch(x, y)) for _ in range(3)])

    assert losses[0] == pytest.approx(losses[1], rel=2e-5)
    for actual, expected in zip(ours.get_weights(), peer.get_weights(), strict=True):
        assert relative_error(actual, expected) < 5e-5
