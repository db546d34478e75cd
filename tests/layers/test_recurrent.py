"""LSTM, GRU and SimpleRNN against Keras: weights, outputs, states, masks, training."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.layers.base.registry import registry, serialize
from tests.keras_peer import copy_weights, functional_pair, relative_error

RNG = np.random.default_rng(12)
X = RNG.normal(size=(3, 5, 4)).astype("float32")
MASK = np.array([[1, 1, 1, 0, 0], [0, 1, 0, 1, 0], [1, 0, 1, 1, 1]], bool)

CASES: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {}),
    ("LSTM", {"return_sequences": True, "return_state": True, "go_backwards": True}),
    ("LSTM", {"use_bias": False, "recurrent_activation": "hard_sigmoid", "activation": "relu"}),
    ("LSTM", {"return_sequences": True, "unroll": True, "unit_forget_bias": False, "implementation": 1}),
    ("GRU", {}),
    ("GRU", {"return_sequences": True, "return_state": True, "go_backwards": True}),
    ("GRU", {"reset_after": False}),
    ("GRU", {"reset_after": False, "use_bias": False, "return_state": True}),
    ("GRU", {"use_bias": False, "recurrent_activation": "tanh"}),
    ("SimpleRNN", {}),
    ("SimpleRNN", {"return_sequences": True, "return_state": True, "activation": "sigmoid", "use_bias": False}),
]


def pair(name: str, **arguments: Any) -> tuple[Any, Any]:
    peer, ours = getattr(keras.layers, name)(6, **arguments), getattr(lpt, name)(6, **arguments)
    peer.build(X.shape)
    ours(X)
    copy_weights(peer, ours)
    return peer, ours


def agree(actual: Any, expected: Any) -> None:
    actual, expected = (r if isinstance(r, (list, tuple)) else [r] for r in (actual, expected))
    for a, b in zip(actual, expected, strict=True):
        assert relative_error(a, b) < 3e-6


@pytest.mark.parametrize(("name", "arguments"), CASES)
def test_a_layer_is_that_of_keras(name: str, arguments: dict[str, Any]) -> None:
    peer, ours = pair(name, **arguments)

    assert [(w.path.partition("/")[2], tuple(w.shape)) for w in peer.weights] == [
        (path, w.shape) for path, w in ours.weight_paths().items()
    ]
    assert ours.compute_output_shape((None, 5, 4)) == peer.compute_output_shape((None, 5, 4))
    agree(ours(X), peer(X))
    agree(ours(X, mask=MASK), peer(X, mask=MASK))


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_masked_steps_may_give_zeros(sequences: bool, backwards: bool) -> None:
    options = {"zero_output_for_mask": True, "return_sequences": sequences, "go_backwards": backwards}
    peer, ours = pair("LSTM", return_state=True, **options)
    agree(ours(X, mask=MASK), peer(X, mask=MASK))


@pytest.mark.parametrize(("name", "states"), [("LSTM", 2), ("GRU", 1), ("SimpleRNN", 1)])
def test_states_may_be_given(name: str, states: int) -> None:
    peer, ours = pair(name, return_state=True)
    first = [RNG.normal(size=(3, 6)).astype("float32") for _ in range(states)]
    agree(ours(X, initial_state=first), peer(X, initial_state=first))


def test_keras_configurations_are_read() -> None:
    for name in ("LSTM", "GRU", "SimpleRNN"):
        config = getattr(keras.layers, name)(6, return_state=True, seed=3).get_config()
        config = {key: value for key, value in config.items() if not isinstance(value, dict)}
        again = getattr(lpt, name).from_config(config)
        assert {key: again.get_config()[key] for key in config if key in again.get_config()} == {
            key: value for key, value in config.items() if key in again.get_config()
        }


def test_the_forget_gate_starts_open() -> None:
    layer: Any = lpt.LSTM(2)
    layer(X)
    kernel, recurrent, bias = layer.get_weights()
    assert bias.tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    np.testing.assert_allclose(recurrent @ recurrent.T, np.eye(2), atol=1e-6)
    assert kernel.shape == (4, 8)


def sentences(layers: Any) -> tuple[Any, Any]:
    """Words to a class, with a mask, and a second time from the states of the first.

    Given states take the mask off the input in Keras, but for a mask that is given too; here they do not.
    """
    tokens = layers.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(11, 5, mask_zero=True)(tokens)
    x, h, c = layers.LSTM(7, return_sequences=True, return_state=True)(x)
    x = layers.LSTM(7, go_backwards=True)(x)
    again = layers.LSTM(7)(layers.Reshape((1, 7))(x), initial_state=[h, c])
    return tokens, layers.Dense(3, name="classes")(layers.Concatenate()([x, again]))


def stacked(layers: Any) -> tuple[Any, Any]:
    """Every layer, one after the other."""
    x = inputs = layers.Input((6, 3), name="x")
    x = layers.GRU(4, return_sequences=True)(x)
    x = layers.SimpleRNN(5, return_sequences=True, go_backwards=True)(x)
    x = layers.GRU(4, reset_after=False)(x)
    return inputs, layers.Dense(3, name="classes")(x)


def padded(rows: int, steps: int) -> np.ndarray:
    return RNG.integers(1, 11, (rows, steps)) * (np.arange(steps) < RNG.integers(1, steps + 1, (rows, 1)))


@pytest.mark.parametrize("make", [sentences, stacked])
def test_three_steps_of_training_are_those_of_keras(make: Any) -> None:
    peer, ours = functional_pair(make)
    x = padded(8, 6) if make is sentences else RNG.normal(size=(8, 6, 3)).astype("float32")
    y = RNG.integers(0, 3, 8)
    losses = []
    for model, library in ((peer, keras), (ours, lpt)):
        loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(library.optimizers.SGD(0.1), loss)
        losses.append([float(model.train_on_batch(x, y)) for _ in range(3)])

    assert losses[1] == pytest.approx(losses[0], rel=2e-5)
    assert relative_error(ours.predict(x, verbose=0), peer.predict(x, verbose=0)) < 5e-5
    for actual, expected in zip(ours.get_weights(), peer.get_weights(), strict=True):
        assert relative_error(actual, expected) < 5e-5


def test_a_model_comes_back_from_its_configuration() -> None:
    for make in (sentences, stacked):
        model = lpt.Model(*make(lpt.layers))

        again: Any = registry.deserialize(serialize(model))

        assert again.get_config() == model.get_config()
        assert str(again.trace()) == str(model.trace())


@pytest.mark.parametrize(("name", "rate"), [("LSTM", "dropout"), ("GRU", "recurrent_dropout")])
def test_dropout_drops_in_training_only(name: str, rate: str) -> None:
    x = lpt.Input((5, 4))
    model = lpt.Model(x, getattr(lpt, name)(6, **{rate: 0.5})(x))

    np.testing.assert_array_equal(model(X), model(X))
    assert (model(X, training=True) != model(X, training=True)).any()


def test_dropout_leaves_out_the_same_elements_of_every_step() -> None:
    x = lpt.Input((5, 4))
    layer: Any = lpt.SimpleRNN(4, dropout=0.5, activation="linear", use_bias=False, return_sequences=True)
    model: Any = lpt.Model(x, layer(x))
    layer.set_weights([np.eye(4), np.zeros((4, 4))])
    found = model(np.ones((3, 5, 4), "float32"), training=True)
    assert set(np.unique(found).tolist()) == {0.0, 2.0}
    assert (found == found[:, :1]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: lpt.LSTM(6, name="a")(X[0]), "layer 'a': expected an input of rank 3"),
        (lambda: lpt.LSTM(6, name="a")(X, initial_state=[X[:, 0]]), "layer 'a': initial_state: expected 2 tensors"),
        (
            lambda: lpt.GRU(6, name="a")(X, initial_state=X[:, 0]),
            r"layer 'a': initial_state: expected f32\[3,6\], got f32\[3,4\]",
        ),
        (lambda: lpt.LSTM(6, name="a", stateful=True), "layer 'a': stateful=True is not supported"),
        (lambda: lpt.LSTM(0, name="a"), "layer 'a'"),
    ],
)
def test_a_wrong_call_names_layer_expected_and_got(call: Any, message: str) -> None:
    with pytest.raises(lpt.LeptonError, match=message):
        call()
