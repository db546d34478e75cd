"""MultiHeadAttention against Keras: weights, outputs, scores, every kind of mask, training."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.layers.base.registry import registry, serialize
from tests.keras_peer import copy_weights, functional_pair, relative_error

RNG = np.random.default_rng(9)
QUERY, VALUE, KEY = (RNG.normal(size=shape).astype("float32") for shape in ((3, 5, 6), (3, 4, 7), (3, 4, 8)))

CASES: list[dict[str, Any]] = [
    {},
    {"value_dim": 3, "use_bias": False},
    {"output_shape": 5},
    {"output_shape": (2, 4), "num_heads": 1},
    {"use_gate": True, "value_dim": 2},
    {"sliding_window": 2},
]


def pair(**arguments: Any) -> tuple[Any, Any]:
    arguments = {"num_heads": 2, "key_dim": 4, **arguments}
    peer, ours = keras.layers.MultiHeadAttention(**arguments), lpt.MultiHeadAttention(**arguments)
    peer.build(QUERY.shape, VALUE.shape, KEY.shape)
    ours(QUERY, VALUE, KEY)
    copy_weights(peer, ours)
    return peer, ours


@pytest.mark.parametrize("arguments", CASES)
def test_attention_is_that_of_keras(arguments: dict[str, Any]) -> None:
    peer, ours = pair(**arguments)

    assert [(w.path.partition("/")[2], tuple(w.shape)) for w in peer.weights] == [
        (path, w.shape) for path, w in ours.weight_paths().items()
    ]
    assert ours.compute_output_shape((None, 5, 6), (None, 4, 7)) == peer.compute_output_shape(
        (None, 5, 6), (None, 4, 7)
    )
    for actual, expected in zip(
        ours(QUERY, VALUE, KEY, return_attention_scores=True),
        peer(QUERY, VALUE, KEY, return_attention_scores=True),
        strict=True,
    ):
        assert relative_error(actual, expected) < 2e-6
    if "value_dim" not in arguments:  # where Keras on JAX cannot do without the scores
        assert relative_error(ours(query=QUERY, value=VALUE, key=KEY), peer(QUERY, VALUE, KEY)) < 2e-6


MASKS: list[dict[str, Any]] = [
    {"attention_mask": RNG.uniform(size=(3, 5, 4)) > 0.5},
    {"attention_mask": RNG.uniform(size=(5, 4)) > 0.3},
    {"attention_mask": RNG.uniform(size=(3, 2, 5, 4)) > 0.3},
    {"attention_mask": RNG.uniform(size=(3, 1, 4)) > 0.3},
    {"attention_mask": np.zeros((3, 5, 4), bool)},
    {"use_causal_mask": True},
    {"use_causal_mask": True, "attention_mask": RNG.uniform(size=(3, 5, 4)) > 0.5},
    {"value_mask": RNG.uniform(size=(3, 4)) > 0.3, "key_mask": RNG.uniform(size=(3, 4)) > 0.3},
]


@pytest.mark.parametrize("masks", MASKS, ids=lambda masks: "+".join(masks))
@pytest.mark.parametrize("scores", [False, True])
def test_masks_hide_what_they_hide_in_keras(masks: dict[str, Any], scores: bool) -> None:
    peer, ours = pair()

    actual = ours(QUERY, VALUE, KEY, return_attention_scores=scores, **masks)
    expected = peer(QUERY, VALUE, KEY, return_attention_scores=scores, **masks)

    for a, b in zip(actual, expected, strict=True) if scores else [(actual, expected)]:
        assert relative_error(a, b) < 2e-6


def encoder(layers: Any) -> tuple[Any, Any]:
    """Words to a class: post-norm attention and a wide layer; padding is masked all the way."""
    tokens = layers.Input((6,), dtype="int32", name="tokens")
    x = layers.Embedding(11, 8, mask_zero=True)(tokens)
    attended = layers.MultiHeadAttention(2, 4, name="attention")(x, x)
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, attended]))
    hidden = layers.Dense(8)(layers.Dense(12, activation="gelu")(x))
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Add()([x, hidden]))
    return tokens, layers.Dense(3, name="classes")(layers.GlobalAveragePooling1D()(x))


def decoder(layers: Any) -> tuple[Any, Any]:
    """Two masked sequences, cross attention, and a loss at every position that counts.

    Without residual connections: attention in Keras takes the masks off its inputs, for all who read them later.
    """
    inputs = [layers.Input((n,), dtype="int32", name=name) for n, name in ((6, "source"), (5, "target"))]
    source, x = (layers.Embedding(11, 8, mask_zero=True)(i) for i in inputs)
    x = layers.LayerNormalization()(layers.MultiHeadAttention(2, 4)(x, x, use_causal_mask=True))
    crossed, _ = layers.MultiHeadAttention(2, 4)(x, source, key=source, return_attention_scores=True)
    return inputs, layers.Dense(3, name="classes")(crossed)


def padded(rows: int, steps: int) -> np.ndarray:
    return RNG.integers(1, 11, (rows, steps)) * (np.arange(steps) < RNG.integers(1, steps + 1, (rows, 1)))


@pytest.mark.parametrize("make", [encoder, decoder])
def test_three_steps_of_a_transformer_are_those_of_keras(make: Any) -> None:
    peer, ours = functional_pair(make)
    x = [padded(8, 6), padded(8, 5)] if make is decoder else padded(8, 6)
    y = RNG.integers(0, 3, (8, *ours.output_shape[1:-1]))
    losses = []
    for model, library in ((peer, keras), (ours, lpt)):
        loss = library.losses.SparseCategoricalCrossentropy(from_logits=True)
        model.compile(library.optimizers.SGD(0.1), loss)
        losses.append([float(model.train_on_batch(x, y)) for _ in range(3)])

    assert losses[1] == pytest.approx(losses[0], rel=2e-5)
    assert relative_error(ours.predict(x, verbose=0), peer.predict(x, verbose=0)) < 5e-5
    for actual, expected in zip(ours.get_weights(), peer.get_weights(), strict=True):
        assert relative_error(actual, expected) < 5e-5


def test_nobody_attends_to_padding_behind_a_residual_connection() -> None:
    tokens = lpt.Input((6,), dtype="int32")
    x = lpt.Embedding(11, 8, mask_zero=True)(tokens)
    for _ in range(2):
        x = lpt.LayerNormalization()(lpt.Add()([x, lpt.MultiHeadAttention(2, 4)(x, x)]))
    model = lpt.Model(tokens, lpt.GlobalAveragePooling1D()(x))
    words = padded(8, 6)
    before = model(words)
    embeddings, *others = model.get_weights()
    embeddings[0] = 100

    model.set_weights([embeddings, *others])

    np.testing.assert_array_equal(model(words), before)


def test_a_model_with_attention_comes_back_from_its_configuration() -> None:
    for make in (encoder, decoder):
        model = lpt.Model(*make(lpt.layers))

        again = registry.deserialize(serialize(model))

        assert again.get_config() == model.get_config()
        assert str(again.trace()) == str(model.trace())


def test_dropout_drops_scores_in_training_only() -> None:
    x = lpt.Input((5, 6))
    model = lpt.Model(x, lpt.MultiHeadAttention(2, 4, dropout=0.5)(x, x))

    np.testing.assert_array_equal(model(QUERY), model(QUERY))
    assert (model(QUERY, training=True) != model(QUERY, training=True)).any()


def test_frozen_attention_has_no_trainable_weights() -> None:
    layer = lpt.MultiHeadAttention(2, 4, trainable=False)
    layer(QUERY, QUERY)
    assert (len(layer.weights), len(layer.trainable_weights)) == (8, 0)
    layer.trainable = True
    assert len(layer.trainable_weights) == 8


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda a: a(QUERY), r"layer 'a': expected a tensor for the call argument 'value', got none"),
        (lambda a: a(QUERY, VALUE[:, 0]), r"layer 'a': expected an input of rank 3"),
        (lambda a: a(QUERY, VALUE, KEY[:, :3]), r"layer 'a': expected a key of as many steps as the value"),
        (lambda a: a(QUERY, QUERY, VALUE[:, :, :3]), r"layer 'a': expected a key of as many steps as the value"),
        (
            lambda a: a(QUERY, VALUE, attention_mask=np.ones((3, 4, 5), bool)),
            r"layer 'a': attention_mask: expected dim",
        ),
        (lambda a: (a(QUERY, VALUE), a(VALUE, VALUE)), r"layer 'a': expected an input with 6 features as query, got"),
        (
            lambda a: a(QUERY, VALUE, causal=True),
            r"layer 'a': has no call argument 'causal'; expected some of query, v",
        ),
    ],
)
def test_a_wrong_call_names_layer_expected_and_got(call: Any, message: str) -> None:
    with pytest.raises((lpt.ArgumentError, lpt.ShapeError), match=message):
        call(lpt.MultiHeadAttention(2, 4, name="a"))
