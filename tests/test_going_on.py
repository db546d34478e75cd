"""A saved model goes on exactly as the unsaved one: what configurations hold, and bits after further steps."""

from __future__ import annotations

import copy
import json
import pickle
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.common.configurable import Configurable
from tests.model_arguments import LAYERS, OPTIMIZERS, TABLES, Call, Place, all_options, an_option_each, draw_object
from tests.random_draft import SeededChoices

ENTRIES = [(where, kind) for where, table in TABLES.items() for kind in table]
# What a layer is for its model: made by calls, and no argument.
OF_THE_CALLS = {"calls"}
# An embedding's first values are weights, which a file holds as such.
VALUES = {"weights"}


def built(call: Call) -> Any:
    return eval(repr(call), {"lpt": lpt, "np": np})


def attributes(value: Any) -> Any:
    """Everything that an object holds, down to plain values."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {key: attributes(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [attributes(part) for part in value]
    if isinstance(value, re.Pattern):
        return value.pattern
    if isinstance(value, (Configurable, lpt.layers.Layer)):
        return {"class": type(value), **{k: attributes(v) for k, v in vars(value).items() if k not in OF_THE_CALLS}}
    return value


def drawn(where: str, kind: str) -> list[Call]:
    ranks = LAYERS[kind].ranks if where == "layers" else ()
    place, choices = Place((5, 5, 4)[: ranks[-1] if ranks else 2], words=9), SeededChoices(1)
    calls = [draw_object(choices, where, kind, place) for _ in range(30)]
    return [Call(c.path, {k: v for k, v in c.arguments.items() if k not in VALUES}) for c in calls]


@pytest.mark.parametrize("where, kind", ENTRIES)
def test_configurations_and_copies_hold_every_attribute(where: str, kind: str) -> None:
    for call in drawn(where, kind):
        original = built(call)
        config = json.loads(json.dumps(original.get_config(), allow_nan=False))

        for again in (
            type(original).from_config(config),
            copy.deepcopy(original),
            pickle.loads(pickle.dumps(original)),
        ):
            assert attributes(again) == attributes(original), call


@pytest.mark.parametrize("where, kind", ENTRIES)
def test_numbers_of_numpy_are_arguments_like_any_others(where: str, kind: str) -> None:
    numbers = {bool: np.bool_, int: np.int64, float: np.float64}
    for call in drawn(where, kind):
        wrapped = {k: numbers[type(v)](v) if type(v) in numbers else v for k, v in call.arguments.items()}
        original = built(Call(call.path, wrapped))

        json.dumps(original.get_config(), allow_nan=False)


X = np.random.default_rng(0).normal(size=(12, 5)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 12)


def model_of(optimizer: Any) -> Any:
    """Moving statistics, randomness of two seeds, penalties: what a step can depend on."""
    lpt.set_random_seed(2)
    model = lpt.Sequential(
        [
            lpt.Dense(6, activation="tanh", kernel_regularizer="l2", input_shape=(5,), name="a"),
            lpt.BatchNormalization(momentum=0.8, name="b"),
            lpt.Dropout(0.3, name="c"),
            lpt.Dropout(0.3, seed=4, name="d"),
            lpt.Dense(3, activation="softmax", name="e"),
        ],
        name="m",
    )
    model.compile(optimizer, "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def assert_goes_on(model: Any, tmp_path: Path) -> None:
    """Three more steps in random order and one forward pass of training, of the model and of the saved one."""
    model.save(tmp_path / "m")
    loaded = lpt.load(tmp_path / "m")
    for one in (model, loaded):
        lpt.set_random_seed(7)
        one.fit(X, Y, batch_size=4, epochs=1, verbose=0)
        one(X, training=True)
    assert attributes(loaded.optimizer.get_config()) == attributes(model.optimizer.get_config())
    assert loaded.optimizer.iterations == model.optimizer.iterations
    for name, slot in model.optimizer.slots.items():
        np.testing.assert_array_equal(loaded.optimizer.slots[name], slot, name)
    for name, weight in model.weights_by_name().items():
        np.testing.assert_array_equal(loaded.weights_by_name()[name], weight, name)


@pytest.mark.parametrize(
    "call",
    [c for kind in OPTIMIZERS for c in all_options("optimizers", kind)]
    + [pytest.param(c, marks=pytest.mark.soak) for kind in OPTIMIZERS for c in an_option_each("optimizers", kind)],
    ids=repr,
)
def test_an_optimizer_with_any_option_goes_on(tmp_path: Path, call: Call) -> None:
    model = model_of(built(call))
    model.train_on_batch(X, Y)

    assert_goes_on(model, tmp_path)


@pytest.mark.parametrize("kind", TABLES["optimizers.schedules"])
def test_a_schedule_goes_on(tmp_path: Path, kind: str) -> None:
    schedule = draw_object(SeededChoices(2), "optimizers.schedules", kind)
    model = model_of(built(Call("optimizers.SGD", {"learning_rate": schedule})))
    model.train_on_batch(X, Y)

    assert_goes_on(model, tmp_path)


def another_rate(model: Any) -> None:
    model.optimizer.learning_rate = 0.123456789


def a_callback_that_stops(model: Any) -> None:
    class Stop(lpt.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            self.model.stop_training = True

    model.fit(X, Y, batch_size=4, callbacks=[Stop()], verbose=0)


def a_frozen_layer(model: Any) -> None:
    model.get_layer("b").trainable = False
    model.compile(model.optimizer, "sparse_categorical_crossentropy")
    model.get_layer("b").trainable = True


def a_frozen_weight(model: Any) -> None:
    model.get_layer("a").bias.trainable = False
    model.compile(model.optimizer, "sparse_categorical_crossentropy")


def a_thawed_layer(model: Any) -> None:
    model.trainable = False
    model.get_layer("e").trainable = True
    model.trainable, model.get_layer("a").trainable = True, False
    model.compile(model.optimizer, "sparse_categorical_crossentropy")


def forward_passes(model: Any) -> None:
    for _ in range(3):
        model(X, training=True)


def weights_without_decay(model: Any) -> None:
    optimizer = lpt.optimizers.AdamW(0.01, weight_decay=0.5)
    optimizer.exclude_from_weight_decay(var_names=["bias", "^a/ker", "gamma|beta"])
    model.compile(optimizer, "sparse_categorical_crossentropy")


CHANGES = (
    another_rate,
    a_callback_that_stops,
    a_frozen_layer,
    a_frozen_weight,
    a_thawed_layer,
    forward_passes,
    weights_without_decay,
)


@pytest.mark.parametrize("change", CHANGES)
def test_what_was_changed_after_compile_goes_on(tmp_path: Path, change: Callable[[Any], None]) -> None:
    model = model_of("adam")
    model.train_on_batch(X, Y)
    change(model)
    model.train_on_batch(X, Y)

    assert_goes_on(model, tmp_path)
    assert [w.trainable for w in lpt.load(tmp_path / "m").weights] == [w.trainable for w in model.weights]


def test_a_model_that_was_not_compiled_goes_on(tmp_path: Path) -> None:
    model = lpt.Sequential([lpt.Dropout(0.5, input_shape=(5,))])
    model(X, training=True)
    model.save(tmp_path / "m")

    np.testing.assert_array_equal(lpt.load(tmp_path / "m")(X, training=True), model(X, training=True))


def test_the_names_of_a_dict_of_inputs_come_back(tmp_path: Path) -> None:
    x, y = lpt.Input((2,)), lpt.Input((3,))
    model = lpt.Model({"left": x, "right": y}, lpt.Concatenate()([x, y]))
    model.save(tmp_path / "m")

    arrays = {"right": np.ones((1, 3), "float32"), "left": np.zeros((1, 2), "float32")}
    np.testing.assert_array_equal(lpt.load(tmp_path / "m").predict(arrays, verbose=0), [[0, 0, 1, 1, 1]])


def test_loading_draws_no_seed(tmp_path: Path) -> None:
    model_of("adam").save(tmp_path / "m")
    lpt.set_random_seed(9)
    expected = lpt.Dense(2)(np.ones((1, 2), "float32"))
    lpt.set_random_seed(9)
    lpt.load(tmp_path / "m")

    np.testing.assert_array_equal(lpt.Dense(2)(np.ones((1, 2), "float32")), expected)
