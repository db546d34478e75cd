"""Everything that is registered against Keras: a new member of a family is compared without a line here.

Arguments are drawn as tests/model_arguments.py says: one object with what it must have, one for each option, one with
all options that go together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from tests.keras_peer import Peer, copy_weights, keras, relative_error
from tests.model_arguments import (
    ACTIVATIONS,
    EVERY_LAYER,
    INITIALIZERS,
    LAYERS,
    LOSSES,
    METRICS,
    OPTIMIZERS,
    REGULARIZERS,
    SCHEDULES,
    TABLES,
    Call,
    Place,
    Text,
    all_options,
    an_option_each,
    registry_of,
)
from tests.model_text import MERGING
from tests.random_draft import SeededChoices

# What Keras has nothing to compare with, and why.
WITHOUT_PEER = {
    "layers.InputLayer": "computes nothing",
    "layers.Model": "is compared with layers in it, in tests/training and by random models",
    "layers.Sequential": "is compared with layers in it, in tests/training and by random models",
    "metrics.Mean": "takes no labels",
}
RNG = np.random.default_rng(11)
ROWS, CLASSES = 6, 4
PROBABILITIES = RNG.dirichlet(np.ones(CLASSES), ROWS).astype("float32")
NUMBERS = RNG.normal(0, 3, (ROWS, CLASSES)).astype("float32")
ONE_HOT = np.eye(CLASSES, dtype="float32")[[0, 3, 1, 1, 2, 0]]
FLAGS = (RNG.uniform(size=(ROWS, CLASSES)) > 0.5).astype("float32")
UNIT = RNG.uniform(size=(ROWS, CLASSES)).astype("float32")


def both(call: Call) -> tuple[Any, Any]:
    """What a call makes in Keras, and here."""
    return eval(repr(call), {"lpt": Peer(), "np": np}), eval(repr(call), {"lpt": lpt, "np": np})


def every_option(where: str, table: Any, without: Sequence[str] = ()) -> list[Call]:
    """Calls for each class of a family, each of them once."""
    found = [
        call
        for kind in table
        if f"{where}.{kind}" not in WITHOUT_PEER
        for calls in (all_options, an_option_each)
        for call in calls(where, kind, Place((4,)), without)
    ]
    return list({repr(call): call for call in found}.values())


def test_every_family_is_compared_whole() -> None:
    assert lpt.Model  # whose import registers it as a layer
    compared = {f"{where}.{kind}" for where, table in TABLES.items() for kind in table}
    registered = {f"{where}.{kind}" for where in TABLES for kind in registry_of(where).entries}

    assert registered - compared <= set(WITHOUT_PEER)
    assert set(WITHOUT_PEER) <= registered


def needed(where: str, kind: str) -> Call:
    """An object with what it must have alone; of functions their names, which is what Keras can write down."""
    place = Place((5, 4, 6)[: max(LAYERS[kind].ranks, default=1)] if where == "layers" else (4,), words=9)
    call = all_options(where, kind, place)[0]
    return Call(call.path, {k: "relu" if isinstance(v, Text) else v for k, v in call.arguments.items()})


@pytest.mark.parametrize("where", TABLES)
def test_default_arguments_are_keras_defaults(where: str) -> None:
    for kind in [kind for kind in TABLES[where] if f"{where}.{kind}" not in WITHOUT_PEER]:
        theirs, ours = (plain(made.get_config()) for made in both(needed(where, kind)))
        for key in set(ours) & set(theirs) - {"name", "dtype"}:
            expected = pytest.approx(theirs[key], rel=1e-6) if isinstance(theirs[key], float) else theirs[key]
            assert ours[key] == expected, f"{where}.{kind}.{key}"


def plain(value: Any) -> Any:
    """A configuration with lists for tuples, and of an object's its class alone."""
    if isinstance(value, dict):
        return value["class_name"] if "class_name" in value else {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


# Losses and metrics


def predictions_and_labels(form: Any, logits: bool) -> list[tuple[np.ndarray, np.ndarray]]:
    """Predictions with labels that have the form: at its bounds, and between them."""
    if form.kind == "classes":
        return [(NUMBERS if logits else PROBABILITIES, ONE_HOT.argmax(axis=1))]
    if form.low < 0:
        return [(NUMBERS, UNIT)]
    if form.high > 1:
        return [(NUMBERS if logits else PROBABILITIES, labels) for labels in (ONE_HOT, PROBABILITIES[::-1])]
    return [(NUMBERS if logits else UNIT, labels) for labels in (FLAGS, UNIT[::-1])]


@pytest.mark.parametrize("call", every_option("losses", LOSSES, ["reduction", "name"]), ids=repr)
def test_a_loss_is_keras_loss_where_all_weights_are_zero_too(call: Call) -> None:
    for reduction in ("sum_over_batch_size", "sum", "mean_with_sample_weight"):
        peer, ours = both(Call(call.path, {**call.arguments, "reduction": reduction}))
        form = ours.target("y_pred", (ROWS, CLASSES), (None, CLASSES), "float32")
        for y_pred, y_true in predictions_and_labels(form, call.arguments.get("from_logits", False)):
            assert relative_error(ours(y_true, y_pred), peer(y_true, y_pred)) < 2e-6
            for numbers in ([1, 2, 0, 0.5, 1, 3], [0] * 6, [0, 1, -1, 0, 0, 0]):
                weights = np.array(numbers, "float32")
                assert relative_error(ours(y_true, y_pred, weights), peer(y_true, y_pred, sample_weight=weights)) < 2e-6


@pytest.mark.parametrize("call", every_option("metrics", METRICS), ids=repr)
def test_a_metric_is_keras_metric(call: Call) -> None:
    _, ours = both(call)
    form = ours.target((ROWS, CLASSES), (None, CLASSES), "float32")
    for y_pred, y_true in predictions_and_labels(form, call.arguments.get("from_logits", False)):
        peer, ours = both(call)
        assert ours.name == peer.name
        for metric in (peer, ours):
            metric.update_state(y_true, y_pred)
            metric.update_state(y_true[:2], y_pred[:2], sample_weight=np.array([3.0, 1.0], "float32"))

        assert ours.result() == pytest.approx(float(peer.result()), rel=2e-6)


# Optimizers and schedules


def optimizers() -> list[Any]:
    """Each as it is, with all options that go together, and with each of the others; in long runs with each alone."""
    calls: list[Any] = []
    for kind in OPTIMIZERS:
        plain, together = all_options("optimizers", kind)
        each = an_option_each("optimizers", kind, without=["name"])
        alone = [call for call in each if not call.arguments.keys() & together.arguments.keys()]
        first = alone if not calls else []  # the base class has them, for all
        calls += [plain, together, *first]
        calls += [pytest.param(call, marks=pytest.mark.soak) for call in each if call not in first]
    return calls


@pytest.mark.parametrize("call", optimizers(), ids=repr)
def test_three_steps_of_an_optimizer_are_those_of_keras(call: Call) -> None:
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(8, 5)).astype("float32"), rng.normal(size=(8, 3)).astype("float32")
    kernel, bias = rng.normal(size=(5, 3)).astype("float32"), rng.normal(size=3).astype("float32")
    peer, ours = both(call)
    model = lpt.Sequential([lpt.Dense(3, input_shape=(5,))])
    model.set_weights([kernel, bias])
    model.compile(ours, "mse")
    variables = [keras.Variable(kernel, name="kernel"), keras.Variable(bias, name="bias")]
    for _ in range(3):
        k, b = (np.asarray(v.value) for v in variables)
        error = (x @ k + b - y) * 2 / y.size
        peer.apply([keras.ops.array(x.T @ error), keras.ops.array(error.sum(axis=0))], variables)

        model.train_on_batch(x, y)

    for weight, start, variable in zip(model.get_weights(), (kernel, bias), variables, strict=True):
        # The change is what the optimizer decides; the weight itself would hide an error of it.
        assert relative_error(weight - start, np.asarray(variable.value) - start) < 1e-4


@pytest.mark.parametrize("call", every_option("optimizers.schedules", SCHEDULES), ids=repr)
def test_a_schedule_is_keras_schedule(call: Call) -> None:
    peer, ours = both(call)
    for step in range(10):
        assert ours(step) == pytest.approx(float(peer(step)), abs=1e-7)


# Activations, initializers, regularizers


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_keras_activation_with_other_options_too(name: str) -> None:
    x = np.random.default_rng(3).normal(0, 2, (3, 5)).astype("float32")
    peer, ours = getattr(keras.activations, name), lpt.activations.get(name)
    options = {k: draw(SeededChoices(3), Place((5,))) for k, draw in ACTIVATIONS[name].arguments.items()}

    for chosen in ({}, options):
        assert relative_error(ours(x, **chosen), peer(x, **chosen)) < 2e-6
    layer = keras.layers.Activation(name)
    assert relative_error(lpt.Activation(name)(x), layer(x)) < 2e-6


def test_other_names_of_activations_are_those_of_keras() -> None:
    for name, function in lpt.activations.registry.aliases.items():
        assert getattr(keras.activations, function.name) is keras.activations.get(name)


@pytest.mark.parametrize("call", every_option("initializers", INITIALIZERS, ["seed"]), ids=repr)
def test_first_values_have_keras_distribution(call: Call) -> None:
    """5,400 numbers: two means differ by 0.02 standard deviations, two standard deviations by 0.014 of them."""
    shape = (40, 40) if call.kind == "Identity" else (3, 3, 20, 30)
    keras.utils.set_random_seed(1)
    lpt.set_random_seed(1)
    theirs, ours = (np.asarray(made(shape), np.float64) for made in both(call))

    assert ours.shape == theirs.shape
    assert ours.mean() == pytest.approx(theirs.mean(), abs=0.1 * theirs.std() + 1e-7)
    assert ours.std() == pytest.approx(theirs.std(), rel=0.07)
    assert np.abs(ours).max() == pytest.approx(np.abs(theirs).max(), rel=0.3)


@pytest.mark.parametrize("call", every_option("regularizers", REGULARIZERS), ids=repr)
def test_a_regularizer_is_keras_regularizer(call: Call) -> None:
    peer, ours = both(call)

    assert relative_error(ours(NUMBERS), peer(NUMBERS)) < 2e-6


# Layers


def layers() -> list[tuple[Call, tuple[int, ...]]]:
    """Each layer with what it must have, and with all options, on the largest rank that it takes."""
    found = []
    for kind in [kind for kind in LAYERS if f"layers.{kind}" not in WITHOUT_PEER]:
        shape = (6, 5, 4)[-max(LAYERS[kind].ranks, default=1) :]
        calls = all_options("layers", kind, Place(shape, words=9), list(EVERY_LAYER))
        found += [(call, shape) for call in calls]
    return found


@pytest.mark.parametrize("call, shape", layers(), ids=repr)
def test_a_layer_computes_what_keras_computes(call: Call, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    x = rng.normal(0, 2, (3, *shape)).astype("float32")
    if call.kind == "Embedding":
        x = rng.integers(0, 9, (3, *shape))
    inputs = ([x, x[::-1]],) if call.kind in MERGING else (x, x[::-1]) if call.kind == "MultiHeadAttention" else (x,)
    peer, ours = both(call)
    peer(*inputs), ours(*inputs)
    assert [w.shape for w in ours.weights] == [tuple(w.shape) for w in peer.weights]
    assert [w.name.rpartition("/")[2] for w in ours.weights] == [w.name for w in peer.weights]
    copy_weights(peer, ours)

    for actual, expected in zip(results(ours(*inputs)), results(peer(*inputs)), strict=True):
        assert relative_error(actual, expected) < 5e-6


def results(value: Any) -> list[Any]:
    return list(value) if isinstance(value, (list, tuple)) else [value]
