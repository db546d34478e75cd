"""Whole training runs against Keras; tests/test_keras_families.py has losses, metrics and optimizers by themselves."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from tests.keras_peer import copy_weights, functional_pair, keras, relative_error, sequential_pair


def convolutional(layers: Any) -> list[Any]:
    return [
        layers.Conv2D(4, 3, padding="same", activation="relu", kernel_regularizer="l2"),
        layers.BatchNormalization(momentum=0.8),
        layers.MaxPooling2D(),
        layers.Flatten(),
        layers.Dense(3, activation="softmax", bias_regularizer="l1"),
    ]


def branched(layers: Any) -> tuple[Any, Any]:
    left, right = layers.Input((6,), name="left"), layers.Input((4,), name="right")
    shared = layers.Dense(5, activation="tanh", name="shared")
    a, b = shared(left), shared(layers.Dense(6, name="widen")(right))
    both = layers.Concatenate(name="both")([layers.Add(name="sum")([a, b]), b])
    classes = layers.Dense(3, activation="softmax", name="classes")(both)
    return [left, right], [classes, layers.Dense(1, activation="sigmoid", name="flag")(a)]


def test_three_steps_and_an_evaluation_of_a_convolutional_model() -> None:
    peer, ours = sequential_pair(convolutional, (6, 6, 2))
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(12, 6, 6, 2)).astype("float32"), rng.integers(0, 3, 12)
    for model, library in ((peer, keras), (ours, lpt)):
        loss = "sparse_categorical_crossentropy"
        model.compile(library.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    assert relative_error(ours.predict(x), peer.predict(x, verbose=0)) < 1e-5

    losses = [(ours.train_on_batch(x[i : i + 4], y[i : i + 4]), peer.train_on_batch(x[i : i + 4], y[i : i + 4]))
              for i in (0, 4, 8)]  # fmt: skip

    for actual, expected in losses:
        assert actual == pytest.approx([float(v) for v in expected], rel=1e-5)
    for actual, expected in zip(ours.get_weights(), peer.get_weights(), strict=True):
        assert relative_error(actual, expected) < 2e-5
    assert ours.evaluate(x, y, batch_size=5) == pytest.approx(peer.evaluate(x, y, batch_size=5, verbose=0), rel=1e-5)


def test_fit_of_a_model_with_branches_gives_keras_history() -> None:
    peer, ours = functional_pair(branched)
    rng = np.random.default_rng(5)
    x = {"left": rng.normal(size=(10, 6)).astype("float32"), "right": rng.normal(size=(10, 4)).astype("float32")}
    y = {
        "classes": np.eye(3, dtype="float32")[rng.integers(0, 3, 10)],
        "flag": rng.integers(0, 2, 10).astype("float32"),
    }
    histories = []
    for model, library in ((peer, keras), (ours, lpt)):
        model.compile(
            library.optimizers.Adam(0.01),
            loss={"classes": "categorical_crossentropy", "flag": "binary_crossentropy"},
            loss_weights={"classes": 1.0, "flag": 0.5},
            metrics={"classes": ["accuracy"], "flag": ["mae", "accuracy"]},
        )
        histories.append(model.fit(x, y, batch_size=4, epochs=2, shuffle=False, validation_data=(x, y), verbose=0))
    expected, actual = (h.history for h in histories)

    assert list(actual) == list(expected)
    for key in expected:
        assert actual[key] == pytest.approx(expected[key], rel=1e-4), key
    for mine, theirs in zip(ours.get_weights(), peer.get_weights(), strict=True):
        assert relative_error(mine, theirs) < 1e-4


@pytest.fixture(scope="module")
def weighing_pair() -> tuple[Any, Any]:
    """A classifier in Keras and here, compiled once for all kinds of weights."""
    models = sequential_pair(lambda layers: [layers.Dense(3, activation="softmax")], (4,))
    for model in models:
        model.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"], weighted_metrics=["acc"])
    return models


@pytest.mark.parametrize("how", ["sample_weight", "class_weight"])
@pytest.mark.parametrize("validation", [None, "split", "data", "weighted data"])
def test_weights_of_samples_and_classes_act_as_in_keras(
    how: str, validation: str | None, weighing_pair: tuple[Any, Any]
) -> None:
    """Those of samples in the validation as well, those of classes never there."""
    copy_weights(*weighing_pair)
    rng = np.random.default_rng(5)
    x, y = rng.normal(size=(20, 4)).astype("float32"), rng.integers(0, 3, 20)
    validations: dict[str | None, dict[str, Any]] = {
        None: {},
        "split": {"validation_split": 0.3},
        "data": {"validation_data": (x, y)},
        "weighted data": {"validation_data": (x, y, rng.uniform(size=20))},
    }
    options = {"batch_size": 4, "epochs": 2, "shuffle": False, "verbose": 0, **validations[validation]}
    options[how] = rng.uniform(size=20) if how == "sample_weight" else {0: 10.0, 2: 0.1}  # class 1 counts once
    expected, found = (model.fit(x, y, **options).history for model in weighing_pair)

    assert list(found) == list(expected)
    for key in expected:
        assert found[key] == pytest.approx(expected[key], rel=1e-5), key


@pytest.mark.parametrize("reduction", ["sum_over_batch_size", "mean_with_sample_weight"])
def test_a_batch_in_which_nothing_counts_costs_nothing_and_changes_nothing(reduction: str) -> None:
    model = lpt.Sequential(
        [lpt.Input((5,), dtype="int32"), lpt.Embedding(6, 3, mask_zero=True), lpt.LayerNormalization(), lpt.Dense(2)]
    )
    loss = lpt.losses.MeanSquaredError(reduction=reduction)
    model.compile(lpt.optimizers.SGD(0.1), loss, metrics=["mae"], weighted_metrics=["mse"])
    before = model.get_weights()
    rng = np.random.default_rng(5)
    tokens, padding, y = rng.integers(1, 6, (8, 5)), np.zeros((8, 5), "int32"), rng.normal(size=(8, 5, 2))
    for x, weights in ((tokens, np.zeros(8)), (padding, None), (padding, np.ones(8))):
        history = model.fit(x, y, batch_size=4, sample_weight=weights, verbose=0).history
        assert [history["loss"], history["mse"]] == [[0.0], [0.0]]

    assert [w.tobytes() for w in model.get_weights()] == [w.tobytes() for w in before]


def test_a_batch_that_is_padding_alone_goes_through_a_normalization_as_in_keras() -> None:
    def make(layers: Any) -> list[Any]:
        return [layers.Embedding(6, 3, mask_zero=True), layers.BatchNormalization(momentum=0.5), layers.Dense(2)]

    peer = keras.Sequential([keras.Input((5,), dtype="int32"), *make(keras.layers)])
    ours = lpt.Sequential([lpt.Input((5,), dtype="int32"), *make(lpt.layers)])
    copy_weights(peer, ours)
    rng = np.random.default_rng(5)
    x, y = rng.integers(0, 6, (8, 5)).astype("int32"), rng.normal(size=(8, 5, 2)).astype("float32")
    x[:4] = 0
    for model in (peer, ours):
        model.compile("sgd", "mse")
        model.fit(x, y, batch_size=4, shuffle=False, verbose=0)

    for actual, expected in zip(ours.get_weights(), peer.get_weights(), strict=True):
        assert relative_error(actual, expected) < 2e-5


def test_order_of_weights_is_keras_order_whatever_the_graph() -> None:
    def make(layers: Any) -> tuple[Any, Any]:
        x = layers.Input((4,), name="x")
        early, late = layers.Dense(2, name="early"), layers.Dense(3, name="late")
        a = layers.Dense(5, name="a")(x)
        b = layers.Dense(2, name="b")(layers.Dense(6, name="c")(a))
        d = early(x)
        return x, [late(layers.Add(name="add")([d, b])), layers.Dense(7, name="tail")(a)]

    peer, ours = keras.Model(*make(keras.layers)), lpt.Model(*make(lpt.layers))
    copy_weights(peer, ours)

    assert [w.shape for w in ours.weights] == [tuple(w.shape) for w in peer.weights]
    assert [layer.name for layer in ours.layers] == [layer.name for layer in peer.layers]
    x = np.ones((2, 4), "float32")
    for mine, theirs in zip(ours(x), peer(x), strict=True):
        assert relative_error(mine, theirs) < 1e-5


def of_two_outputs(layers: Any) -> tuple[Any, Any]:
    x = layers.Input((4,), name="x")
    return x, [layers.Dense(1, name="b")(x), layers.Dense(1, name="a")(x)]


NAMED_METRICS: dict[str, Any] = {
    "one output": lambda metrics: {
        "metrics": ["mse", "mae", "mse", metrics.MeanAbsoluteError(name="weighted_mse")],
        "weighted_metrics": ["mse", "mse", "mae"],
    },
    "lists": lambda metrics: {
        "loss": ["mse", "mse"],
        "loss_weights": [0.5, 0.0],
        "metrics": [["mse", "mae"], ["mse"]],
        "weighted_metrics": [["mse"], ["mae", "mse"]],
    },
    "dicts": lambda metrics: {
        "loss": ["mse", "mae"],
        "metrics": {"a": ["mse", "mae"]},
        "weighted_metrics": {"b": ["mse"]},
    },
    "one loss of two outputs": lambda metrics: {"loss": ["mse", None], "metrics": [["mse"], None]},
}


@pytest.mark.parametrize("case", NAMED_METRICS)
def test_metrics_of_the_same_name_are_told_apart_as_in_keras(case: str) -> None:
    several = case != "one output"
    rng = np.random.default_rng(5)
    x, y, weights = (rng.uniform(size=(8, *shape)).astype("float32") for shape in ((4,), (1,), ()))
    labels = [y, y] if several else y
    if several:
        peer, ours = functional_pair(of_two_outputs)
    else:
        peer, ours = sequential_pair(lambda layers: [layers.Dense(1)], (4,))
    histories, results, lists = [], [], []
    for model, library in ((peer, keras), (ours, lpt)):
        model.compile("sgd", **({"loss": "mse"} | NAMED_METRICS[case](library.metrics)))
        histories.append(model.fit(x, labels, batch_size=4, shuffle=False, sample_weight=weights, verbose=0).history)
        results.append(model.evaluate(x, labels, sample_weight=weights, verbose=0, return_dict=True))
        lists.append(model.evaluate(x, labels, sample_weight=weights, verbose=0))

    assert list(histories[1]) == list(histories[0])
    assert set(results[1]) == set(results[0])
    for actual, expected in ((histories[1], histories[0]), (results[1], results[0])):
        for key in expected:
            assert actual[key] == pytest.approx(expected[key], rel=1e-5), key
    assert lists[1] == list(results[1].values())
    if several:  # of one output Keras lists the first of a repeated name twice
        assert lists[1] == pytest.approx(lists[0], rel=1e-5)


def test_one_metric_object_in_two_places_has_sums_of_its_own_in_each() -> None:
    metric = lpt.metrics.MeanSquaredError()
    model = lpt.Model(*of_two_outputs(lpt.layers))
    model.compile("sgd", "mse", metrics=[[metric], [metric]], weighted_metrics=[[metric], []])
    x, y = np.ones((4, 4)), [np.zeros((4, 1)), np.full((4, 1), 5.0)]

    found = model.evaluate(x, y, sample_weight=np.ones(4), verbose=0, return_dict=True)

    assert found["b_mean_squared_error"] == pytest.approx(found["b_loss"], rel=1e-5)
    assert found["a_mean_squared_error"] == pytest.approx(found["a_loss"], rel=1e-5)
    assert found["b_weighted_mean_squared_error"] == found["b_mean_squared_error"] == metric.result()
    assert found["a_loss"] != found["b_loss"]


def test_a_metric_that_is_called_loss_does_not_hide_the_loss() -> None:
    model = lpt.Sequential([lpt.Dense(1, input_shape=(4,))])
    model.compile("sgd", "mse", metrics=[lpt.metrics.MeanAbsoluteError(name="loss")])

    assert list(model.evaluate(np.ones((4, 4)), np.ones(4), verbose=0, return_dict=True)) == ["loss", "loss_1"]
