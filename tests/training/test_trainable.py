"""Freezing: a model trains as its flags were when it was compiled, weights and moving statistics alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from tests.keras_peer import copy_weights, keras, relative_error

RNG = np.random.default_rng(3)
X = RNG.normal(size=(8, 4)).astype("float32")
Y = RNG.normal(size=(8, 1)).astype("float32")


def normalized(**options: Any) -> Any:
    """A dense layer `d`, a batch normalization `n` and a dense layer `e`."""
    lpt.set_random_seed(1)
    model = lpt.Sequential(
        [
            lpt.Dense(3, name="d", input_shape=(4,)),
            lpt.BatchNormalization(name="n", momentum=0.5, **options),
            lpt.Dense(1, name="e"),
        ]
    )
    model.compile("sgd", "mse")
    return model


def changed(model: Any, before: list[np.ndarray]) -> dict[str, bool]:
    """Which weights are other ones than before."""
    return {
        path: bool((weight.array != old).any())
        for (path, weight), old in zip(model.weight_paths().items(), before, strict=True)
    }


def bits(model: Any) -> list[bytes]:
    return [w.tobytes() for w in model.get_weights()]


# What held at compile


def test_a_model_that_is_frozen_after_compile_trains_on_bit_for_bit() -> None:
    frozen, straight = normalized(), normalized()

    frozen.trainable = False
    for model in (frozen, straight):
        model.train_on_batch(X, Y)
        model.fit(X, Y, epochs=2, batch_size=3, shuffle=False, verbose=0)

    assert frozen.trainable_weights == []
    assert bits(frozen) == bits(straight)


def test_a_frozen_layer_does_not_change_and_is_thawed_by_the_next_compile() -> None:
    model = normalized()
    model.get_layer("d").trainable = False
    model.compile("sgd", "mse")
    before = model.get_weights()
    model.get_layer("d").trainable = True
    model.train_on_batch(X, Y)
    assert [path for path, moved in changed(model, before).items() if not moved] == ["d/kernel", "d/bias"]

    model.compile("sgd", "mse")
    model.train_on_batch(X, Y)

    assert all(changed(model, before).values())


@pytest.mark.parametrize("affine", [True, False])
def test_a_batch_normalization_is_frozen_by_the_next_compile_with_and_without_gamma_and_beta(affine: bool) -> None:
    model = normalized(center=affine, scale=affine)
    model.train_on_batch(X, Y)
    before = model.get_weights()
    model.get_layer("n").trainable = False
    model.train_on_batch(X, Y)
    assert all(changed(model, before).values())

    model.compile("sgd", "mse")
    before = model.get_weights()
    model.train_on_batch(X, Y)

    assert {path for path, moved in changed(model, before).items() if not moved} == {
        path for path in model.weight_paths() if path.startswith("n/")
    }


def test_a_weight_frozen_by_itself_waits_for_compile_too() -> None:
    model = normalized()
    order = [w.name for w in model.weights]
    model.get_layer("d").kernel.trainable = False
    before = model.get_weights()
    model.train_on_batch(X, Y)
    assert changed(model, before)["d/kernel"]

    model.compile("sgd", "mse")
    before = model.get_weights()
    model.train_on_batch(X, Y)

    assert [path for path, moved in changed(model, before).items() if not moved] == ["d/kernel"]
    assert [w.name for w in model.weights] == order


def test_flags_of_layers_that_are_not_built_at_compile_hold_as_well() -> None:
    model = lpt.Sequential([lpt.Dense(3, name="d"), lpt.BatchNormalization(name="n"), lpt.Dense(1, name="e")])
    model.get_layer("n").trainable = False
    model.compile("sgd", "mse")
    model.get_layer("n").trainable, model.get_layer("e").trainable = True, False
    model.build((None, 4))
    before = model.get_weights()

    model.train_on_batch(X, Y)

    assert {path for path, moved in changed(model, before).items() if moved} == {
        "d/kernel", "d/bias", "e/kernel", "e/bias"
    }  # fmt: skip


def test_penalties_are_those_of_the_weights_that_were_trained_at_compile() -> None:
    model = lpt.Sequential([lpt.Dense(1, kernel_regularizer="l2", input_shape=(4,))])
    model.compile("sgd", "mse")
    loss = model.evaluate(X, Y, verbose=0)

    model.trainable = False
    assert model.evaluate(X, Y, verbose=0) == loss
    model.compile("sgd", "mse")

    assert model.evaluate(X, Y, verbose=0) == pytest.approx(loss - 0.01 * (model.get_weights()[0] ** 2).sum(), rel=1e-5)


def test_a_layer_of_two_models_is_trained_by_the_one_that_was_compiled_with_it() -> None:
    shared, x = lpt.Dense(1, name="shared"), lpt.Input((4,))
    y = shared(x)
    trains, reads = lpt.Model(x, y), lpt.Model(x, lpt.Dense(1)(y))
    trains.compile("sgd", "mse")
    shared.trainable = False
    reads.compile("sgd", "mse")

    before = shared.get_weights()
    reads.train_on_batch(X, Y)
    assert not any(changed(shared, before).values())
    trains.train_on_batch(X, Y)
    assert all(changed(shared, before).values())


def test_a_call_is_no_training_and_goes_by_the_flags_as_they_are() -> None:
    model = normalized(center=False, scale=False)
    model.get_layer("n").trainable = False

    np.testing.assert_array_equal(model(X, training=True), model(X))
    model.get_layer("n").trainable = True
    before = model.get_weights()
    model(X, training=True)

    assert [path for path, moved in changed(model, before).items() if moved] == ["n/moving_mean", "n/moving_variance"]


@pytest.mark.parametrize("thaw", [False, True])
def test_a_loaded_model_trains_what_the_saved_one_was_compiled_with(thaw: bool, tmp_path: Path) -> None:
    model = normalized()
    model.trainable = not thaw
    model.get_layer("d").bias.trainable = False
    model.compile("sgd", "mse")
    model.trainable = thaw
    model.save(tmp_path / "m")

    loaded = lpt.load(tmp_path / "m")
    for each in (model, loaded):
        each.fit(X, Y, epochs=2, batch_size=3, shuffle=False, verbose=0)

    assert bits(loaded) == bits(model)
    assert loaded.get_layer("d").trainable == thaw
    assert [w.name for w in loaded._trainer.trained.weights] == [w.name for w in model._trainer.trained.weights]


# Against Keras, whose flags are set before each step where it does not keep those of compile


def test_a_discriminator_frozen_behind_its_compile_trains_by_itself_and_not_in_the_combined_model() -> None:
    def make(library: Any) -> tuple[Any, Any, Any]:
        layers = library.layers
        generator = library.Sequential(
            [layers.Input((2,)), layers.Dense(5), layers.BatchNormalization(), layers.Dense(4)]
        )
        judge = library.Sequential(
            [layers.Input((4,)), layers.Dense(6), layers.BatchNormalization(momentum=0.8), layers.Activation("tanh"),
             layers.Dense(1, activation="sigmoid")]
        )  # fmt: skip
        judge.compile(library.optimizers.SGD(0.1, momentum=0.9), "binary_crossentropy", metrics=["accuracy"])
        judge.trainable = False
        both = library.Sequential([layers.Input((2,)), generator, judge])
        both.compile(library.optimizers.SGD(0.1, momentum=0.9), "binary_crossentropy")
        return generator, judge, both

    peers, ours = make(keras), make(lpt)
    copy_weights(peers[2], ours[2])
    rng = np.random.default_rng(8)
    for _ in range(3):
        noise, real = rng.normal(size=(6, 2)).astype("float32"), rng.normal(size=(6, 4)).astype("float32")
        labels = np.array([1, 0] * 6, "float32")
        results = []
        for (generator, judge, both), is_peer in ((peers, True), (ours, False)):
            shown = np.concatenate([real, np.asarray(generator(noise))])
            if is_peer:
                judge.trainable = True
            judged = judge.train_on_batch(shown, labels)
            if is_peer:
                judge.trainable = False
            results.append([*judged, both.train_on_batch(noise, np.ones(6, "float32"))])
        assert results[1] == pytest.approx([float(v) for v in results[0]], rel=2e-5)

    for actual, expected in zip(ours[2].get_weights(), peers[2].get_weights(), strict=True):
        assert relative_error(actual, expected) < 2e-5


def test_a_head_trained_on_a_frozen_base_and_both_fine_tuned_are_those_of_keras() -> None:
    def make(library: Any) -> tuple[Any, Any]:
        layers = library.layers
        base = library.Sequential(
            [layers.Input((4,)), layers.Dense(5, kernel_regularizer="l2"), layers.BatchNormalization(momentum=0.7),
             layers.BatchNormalization(center=False, scale=False, momentum=0.7)],
            name="base",
        )  # fmt: skip
        return base, library.Sequential([layers.Input((4,)), base, layers.Dense(1)])

    (peer_base, peer), (base, ours) = make(keras), make(lpt)
    copy_weights(peer, ours)
    start = ours.get_weights()
    for library, its_base, model in ((keras, peer_base, peer), (lpt, base, ours)):
        its_base.trainable = False
        model.compile(library.optimizers.SGD(0.05, momentum=0.9), "mse")
        model.fit(X, Y, epochs=3, batch_size=4, shuffle=False, verbose=0)
        if library is lpt:
            assert [moved for path, moved in changed(ours, start).items() if path.startswith("base/")] == [False] * 8
        its_base.trainable = True
        model.compile(library.optimizers.SGD(1e-3), "mse")
        model.fit(X, Y, epochs=3, batch_size=4, shuffle=False, verbose=0)

    for actual, expected in zip(ours.get_weights(), peer.get_weights(), strict=True):
        assert relative_error(actual, expected) < 2e-5
    assert ours.evaluate(X, Y, verbose=0) == pytest.approx(float(peer.evaluate(X, Y, verbose=0)), rel=2e-5)


def test_a_layer_thawed_inside_a_frozen_model_is_trained_as_in_keras() -> None:
    def make(library: Any) -> tuple[Any, Any]:
        layers = library.layers
        base = library.Sequential(
            [layers.Input((4,)), layers.Dense(3, name="a"), layers.BatchNormalization(name="n"), layers.Dense(2)],
            name="base",
        )
        base.trainable = False
        base.layers[-1].trainable = True
        base.get_layer("n").trainable = True
        model = library.Sequential([layers.Input((4,)), base, layers.Dense(1, name="head")])
        model.compile("sgd", "mse")
        return base, model

    (peer_base, peer), (base, ours) = make(keras), make(lpt)
    copy_weights(peer, ours)
    assert len(base.trainable_weights) == len(peer_base.trainable_weights) == 0
    assert [w.shape for w in ours.trainable_weights] == [tuple(w.shape) for w in peer.trainable_weights]
    for model in (peer, ours):
        model.fit(X, Y, epochs=2, batch_size=4, shuffle=False, verbose=0)

    for actual, expected in zip(ours.get_weights(), peer.get_weights(), strict=True):
        assert relative_error(actual, expected) < 2e-5
