"""Masks: where they come from, how they follow the tensors, and what they do to losses and metrics, as in Keras."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.layers.base.registry import registry, serialize
from tests.keras_peer import copy_weights, relative_error, sequential_pair

RNG = np.random.default_rng(5)


def steps(*shape: int) -> np.ndarray:
    """Random numbers, and zeros in the last steps of every second row."""
    x = RNG.normal(size=shape).astype("float32")
    x[::2, shape[1] // 2 :] = 0
    return x


def test_masking_is_keras_masking() -> None:
    x = steps(4, 6, 3)
    peer, ours = keras.layers.Masking(), lpt.layers.Masking()

    np.testing.assert_array_equal(ours(x), np.asarray(peer(x)))
    np.testing.assert_array_equal(ours.compute_mask(x), np.asarray(peer.compute_mask(x)))
    np.testing.assert_array_equal(lpt.Masking(1.0).compute_mask(np.ones((2, 3, 4))), np.zeros((2, 3), bool))


def test_merging_layers_merge_masks_as_keras_does() -> None:
    xs = [steps(4, 6, 3), RNG.normal(size=(4, 6, 3)).astype("float32")]
    masks = [RNG.uniform(size=(4, 6)) > 0.5, RNG.uniform(size=(4, 6)) > 0.5]
    for kind, arguments in (("Add", {}), ("Concatenate", {}), ("Concatenate", {"axis": 1})):
        ours, peer = getattr(lpt.layers, kind)(**arguments), getattr(keras.layers, kind)(**arguments)
        for given in (masks, [masks[0], None], [None, None]):
            actual = ours.compute_mask(xs, given)
            expected = peer.compute_mask(xs, given)
            assert (actual is None) == (expected is None)
            if expected is not None:
                np.testing.assert_array_equal(actual, np.asarray(expected))


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "sum", "mean_with_sample_weight"])
def test_masked_positions_cost_nothing(reduction: str) -> None:
    def layers(namespace: Any) -> list[Any]:
        return [
            namespace.Masking(),
            namespace.Dense(5, activation="tanh"),
            namespace.Dropout(0.0),
            namespace.Dense(3, activation="softmax"),
        ]

    peer, ours = sequential_pair(layers, (6, 4))
    x, y = steps(8, 6, 4), RNG.integers(0, 3, (8, 6))
    results = []
    for model, library in ((peer, keras), (ours, lpt)):
        loss = library.losses.SparseCategoricalCrossentropy(reduction=reduction)
        model.compile(library.optimizers.SGD(0.1), loss, metrics=["accuracy"])
        # Keras on JAX loses the mask between the loss and the metrics of a training step; an evaluation keeps it.
        losses = [model.train_on_batch(x, y)[0] for _ in range(3)]
        results.append(np.asarray([*losses, *model.evaluate(x, y, verbose=0)], "float64"))

    np.testing.assert_allclose(results[1], results[0], rtol=2e-5)
    for actual, expected in zip(ours.get_weights(), peer.get_weights(), strict=True):
        assert relative_error(actual, expected) < 2e-5


def test_batch_normalization_leaves_masked_positions_out() -> None:
    def layers(namespace: Any) -> list[Any]:
        return [namespace.Masking(), namespace.BatchNormalization(momentum=0.5), namespace.Dense(2)]

    peer, ours = sequential_pair(layers, (6, 4))
    x, y = steps(8, 6, 4), RNG.normal(size=(8, 6, 2)).astype("float32")
    for model, library in ((peer, keras), (ours, lpt)):
        model.compile(library.optimizers.SGD(0.1), "mse")
        for _ in range(2):
            model.train_on_batch(x, y)

    for actual, expected in zip(ours.get_weights(), peer.get_weights(), strict=True):
        assert relative_error(actual, expected) < 2e-5


@pytest.mark.parametrize("keepdims", [False, True])
def test_a_mean_over_words_leaves_padding_out(keepdims: bool) -> None:
    def layers(namespace: Any) -> list[Any]:
        return [
            namespace.Embedding(20, 5, mask_zero=True),
            namespace.LayerNormalization(),
            namespace.GlobalAveragePooling1D(keepdims=keepdims),
            namespace.Dense(3),
        ]

    peer = keras.Sequential([keras.Input((6,), dtype="int32"), *layers(keras.layers)])
    ours = lpt.Sequential([lpt.Input((6,), dtype="int32"), *layers(lpt.layers)])
    copy_weights(peer, ours)
    x = RNG.integers(1, 20, (8, 6)) * (np.arange(6) < RNG.integers(1, 7, (8, 1)))
    y = RNG.normal(size=ours(x).shape).astype("float32")
    losses = []
    for model, library in ((peer, keras), (ours, lpt)):
        model.compile(library.optimizers.Adam(0.01), "mse")
        losses.append([model.train_on_batch(x, y) for _ in range(3)])

    np.testing.assert_allclose(losses[1], losses[0], rtol=2e-5)
    assert relative_error(ours(x), peer.predict(x, verbose=0)) < 2e-5


def test_a_mask_can_be_given_to_the_call() -> None:
    x, mask = RNG.normal(size=(4, 6, 3)).astype("float32"), np.array([[True] * 4 + [False] * 2] * 4)

    np.testing.assert_allclose(lpt.GlobalAveragePooling1D()(x, mask=mask), x[:, :4].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(lpt.GlobalAveragePooling1D()(x, mask=mask.tolist()), x[:, :4].mean(axis=1), rtol=1e-5)


def test_a_layer_without_masking_says_that_the_mask_ends_there() -> None:
    model = lpt.Sequential([lpt.Input((6, 4)), lpt.Masking(), lpt.Flatten(name="flat")])

    with pytest.warns(UserWarning, match="layer 'flat': Flatten got an input with a mask, but does not support"):
        model.trace()


def test_call_arguments_are_those_of_the_layer() -> None:
    x = lpt.Input((4,))
    with pytest.raises(
        lpt.ArgumentError, match=r"layer 'd': has no call argument 'mask'; expected some of x, training"
    ):
        lpt.Dense(2, name="d")(x, mask=x)
    with pytest.raises(lpt.ArgumentError, match=r"layer 'd': expected one tensor, got 2"):
        lpt.Dense(2, name="d")(x, x)
    with pytest.raises(lpt.ArgumentError, match=r"layer 'd': training: expected True or False, got 'no'"):
        lpt.Dense(2, name="d")(x, training="no")


def test_arguments_of_calls_are_kept_in_a_configuration() -> None:
    x, mask = lpt.Input((6, 4), name="x"), lpt.Input((6,), dtype="bool", name="mask")
    y = lpt.BatchNormalization(name="norm")(x, mask=mask, training=True)
    model = lpt.Model([x, mask], lpt.Dropout(0.9, name="drop")(y, training=False))
    again = registry.deserialize(serialize(model))
    arrays = [steps(5, 6, 4), RNG.uniform(size=(5, 6)) > 0.5]

    assert again.get_config() == model.get_config()
    assert again.get_config()["calls"][0]["arguments"] == {"mask": {"tensor": [1, 0]}, "training": True}
    np.testing.assert_array_equal(again(arrays, training=True), model(arrays))
    counted = model(arrays)[arrays[1]]
    np.testing.assert_allclose(counted.mean(axis=0), np.zeros(4), atol=1e-5)


def test_a_call_with_training_false_is_inference_wherever_it_stands() -> None:
    x = lpt.Input((4,))
    y = lpt.BatchNormalization()(x, training=False)
    model = lpt.Model(x, lpt.Dense(3)(lpt.Dropout(0.5)(y, training=False)))
    data = RNG.normal(size=(8, 4)).astype("float32")
    before = model(data)

    np.testing.assert_array_equal(model(data, training=True), before)
    np.testing.assert_array_equal(model(data), before)


def test_random_numbers_outside_of_training_are_refused() -> None:
    x = lpt.Input((4,))
    model = lpt.Model(x, lpt.Dropout(0.5, name="always")(x, training=True))

    with pytest.raises(lpt.UnsupportedError, match="layer 'always': random numbers outside of training"):
        model(np.ones((2, 4), "float32"))
