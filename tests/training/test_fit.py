"""fit, evaluate and predict: checks, history, validation, freezing, learning rates, interruption."""

from __future__ import annotations

import io
import os
import signal
from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.training import progress

RNG = np.random.default_rng(0)
X = RNG.normal(size=(11, 4)).astype("float32")
LABELS = RNG.integers(0, 3, 11)


def classifier(**options: Any) -> Any:
    lpt.set_random_seed(1)
    model = lpt.Sequential(
        [lpt.Dense(5, activation="relu", input_shape=(4,), name="a"), lpt.Dense(3, activation="softmax", name="b")]
    )
    model.compile(**({"optimizer": "sgd", "loss": "categorical_crossentropy", "metrics": ["accuracy"]} | options))
    return model


def test_fit_returns_keras_history() -> None:
    history = classifier().fit(X, LABELS, epochs=3, batch_size=4, validation_split=0.3, verbose=0)

    assert list(history.history) == ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert [len(v) for v in history.history.values()] == [3] * 4
    assert history.epoch == [0, 1, 2]


def test_validation_split_takes_the_last_rows_before_shuffling() -> None:
    model = classifier(optimizer=lpt.optimizers.SGD(0.0))
    expected = model.evaluate(X[7:], LABELS[7:], verbose=0)

    history = model.fit(X, LABELS, batch_size=3, validation_split=0.3, verbose=0).history

    assert [history["val_loss"][0], history["val_accuracy"][0]] == pytest.approx(expected)


def test_a_layer_behind_a_dropout_of_everything_trains() -> None:
    model = lpt.Sequential(
        [lpt.Dropout(1.0, input_shape=(4,)), lpt.Dense(4, activation="relu"), lpt.BatchNormalization()]
    )
    model.compile("sgd", "mse")

    assert model.train_on_batch(X, 2 * np.ones((11, 4))) == pytest.approx(4.0)


def test_the_loss_of_a_ragged_epoch_is_the_mean_over_samples() -> None:
    model = classifier(optimizer=lpt.optimizers.SGD(0.0))

    history = model.fit(X, LABELS, batch_size=4, verbose=0).history

    assert [history["loss"][0], history["accuracy"][0]] == pytest.approx(model.evaluate(X, LABELS, verbose=0))


def test_categorical_crossentropy_takes_one_hot_and_integer_labels() -> None:
    results = []
    for y in (LABELS, LABELS[:, None], LABELS.astype("float64"), np.eye(3)[LABELS], np.eye(3, dtype=bool)[LABELS]):
        model = classifier()
        model.fit(X, y, batch_size=4, shuffle=False, verbose=0)
        results.append(model.evaluate(X, y, verbose=0))

    for result in results[1:]:
        assert result == pytest.approx(results[0], rel=1e-6)


def test_softmax_followed_by_crossentropy_is_computed_from_logits() -> None:
    model = lpt.Sequential([lpt.Activation("softmax", input_shape=(2,))])
    binary = lpt.Sequential([lpt.Activation("sigmoid", input_shape=(1,))])
    model.compile("sgd", "sparse_categorical_crossentropy")
    binary.compile("sgd", "binary_crossentropy")

    assert model.evaluate(np.array([[0.0, 200.0]]), np.array([0]), verbose=0) == pytest.approx(200)
    assert binary.evaluate(np.array([[-150.0]]), np.array([1.0]), verbose=0) == pytest.approx(150)


@pytest.mark.parametrize(
    "x, y, message",
    [
        (X, np.where(np.arange(11) == 4, np.nan, LABELS), r"fit: y for output 'output': expected finite .* at row 4"),
        (X, np.where(np.arange(11) == 2, 3, LABELS), r"expected labels of 0 to 2, got 3 at row 2"),
        (X, np.where(np.arange(11) < 2, -1, LABELS), r"expected labels of 0 to 2, got -1 at row 0 \(2 such values\)"),
        (X, LABELS + 0.5, r"expected integers, got .*\.5 at row 0"),
        (X, LABELS[:5], r"got 11 rows of x and 5 of y"),
        (X, np.eye(4)[LABELS], r"expected values of shape \(N, 3\), got \(11, 4\)"),
        (X, np.eye(3)[LABELS] * np.nan, r"expected finite values, got nan at row \(0, 0\)"),
        (X, None, r"expected y, the labels, got None"),
        (X, np.array(["a"] * 11), r"expected an array of numbers, got <U1"),
        (X[:, :3], LABELS, r"input 'input': expected shape \(N, 4\), got \(11, 3\)"),
        (X[:0], LABELS[:0], r"expected at least one row, got empty arrays"),
        (X.astype(str), LABELS, r"expected an array of numbers"),
        (X[0], LABELS[:1], r"expected shape \(N, 4\), got \(4,\)"),
    ],
)
def test_data_that_do_not_fit_are_refused_before_anything_changes(x: Any, y: Any, message: str) -> None:
    model = classifier()
    before = model.get_weights()

    for method in (model.fit, model.train_on_batch, model.evaluate):
        with pytest.raises(lpt.LeptonError, match=message.replace("fit: ", "")):
            method(x, y)

    assert model.optimizer.iterations == 0
    assert all((a == b).all() for a, b in zip(model.get_weights(), before, strict=True))


def test_a_bad_value_in_the_last_batch_is_found_before_the_first_step() -> None:
    model = classifier()
    y = LABELS.copy()
    y[-1] = 7

    with pytest.raises(lpt.ArgumentError, match="got 7 at row 10"):
        model.fit(X, y, batch_size=2, verbose=0)
    with pytest.raises(lpt.ArgumentError, match="fit: validation_data: y for output 'output'"):
        model.fit(X, LABELS, validation_data=(X, y), verbose=0)

    assert model.optimizer.iterations == 0


def test_binary_labels_are_probabilities() -> None:
    model = lpt.Sequential([lpt.Dense(1, activation="sigmoid", input_shape=(4,))])
    model.compile("sgd", "binary_crossentropy")

    with pytest.raises(lpt.ArgumentError, match=r"expected values in \[0, 1\], got -1"):
        model.fit(X, np.where(LABELS, 1, -1), verbose=0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"epochs": -1}, "epochs: expected an integer of at least 0, got -1"),
        ({"batch_size": 0}, "batch_size: expected a positive integer, got 0"),
        ({"validation_split": 1.5}, "validation_split: expected a number between 0 and 1, got 1.5"),
        ({"validation_split": 0.95}, "validation_split: expected rows on both sides"),
        ({"validation_data": X}, r"validation_data: expected \(x, y\)"),
        ({"sample_weight": np.ones(3)}, r"sample_weight: expected shape \(11,\), got \(3,\)"),
        ({"sample_weight": np.full(11, np.inf)}, "sample_weight: expected finite numbers"),
        ({"sample_weight": np.ones(11), "class_weight": {0: 1.0}}, "one of class_weight and sample_weight, got both"),
        ({"class_weight": {"a": 1.0}}, "class_weight: expected integers to finite numbers, got 'a'"),
        ({"callbacks": ["stop"]}, "callbacks: expected instances of Callback, got 'stop'"),
        ({"steps_per_epoch": 2}, "fit: steps_per_epoch=2 is not supported, only None"),
        ({"workers": 2}, "fit: has no argument 'workers'"),
        ({"verbose": np.ones(2)}, "verbose: expected 0, 1, 2 or 'auto', got array"),
        ({"verbose": 7}, "verbose: expected 0, 1, 2 or 'auto', got 7"),
        ({"shuffle": "batch"}, "shuffle: expected True or False, got 'batch'"),
    ],
)
def test_a_wrong_argument_of_fit_is_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(lpt.LeptonError, match=message):
        classifier().fit(X, LABELS, **({"verbose": 0} | arguments))


def test_a_wrong_argument_of_compile_is_named() -> None:
    model = classifier()
    for arguments, message in (
        ({"optimizer": "sdg"}, "optimizer: expected one of .*SGD.*, got 'sdg'"),
        ({"loss": "hinge"}, "loss: expected one of .*, got 'hinge'"),
        ({"metrics": ["f2"]}, "metric: expected one of .*, got 'f2'"),
        ({"loss": ["mse", "mse"]}, "loss: expected one for each of"),
        ({"loss": {"left": "mse"}}, r"loss: expected outputs of \['output'\], got \['left'\]"),
        ({"run_eagerly": True}, "training is always compiled"),
        ({"steps_per_execution": 4}, "compile: steps_per_execution=4 is not supported, only 1"),
        ({"jit": True}, "compile: has no argument 'jit'"),
        ({"loss": lambda y, p: p}, "expected a name or an instance of a Loss"),
    ):
        with pytest.raises(lpt.LeptonError, match=message):
            model.compile(**arguments)
    with pytest.raises(lpt.UnsupportedError, match="Adam: amsgrad=True is not supported"):
        lpt.optimizers.Adam(amsgrad=True)
    with pytest.raises(lpt.ArgumentError, match="SGD: has no argument 'decay'"):
        lpt.optimizers.SGD(decay=0.1)
    with pytest.raises(lpt.ArgumentError, match=r"expected compile\(optimizer, loss\) to be called first"):
        lpt.Sequential([lpt.Dense(1, input_shape=(2,))]).fit(X, LABELS)


def test_numbers_of_steps_are_refused_by_name() -> None:
    model = classifier()
    for run in (lambda: model.evaluate(X, LABELS, steps=2), lambda: model.predict(X, steps=2)):
        with pytest.raises(lpt.UnsupportedError, match="steps=2 is not supported, only None"):
            run()


def test_the_learning_rate_can_be_set_between_steps_without_compiling_again() -> None:
    model = classifier()
    model.train_on_batch(X, LABELS)
    programs, before = dict(model._trainer._programs), model.get_weights()

    model.optimizer.learning_rate = 0.0
    model.train_on_batch(X, LABELS)

    assert model._trainer._programs == programs
    assert all((a == b).all() for a, b in zip(model.get_weights(), before, strict=True))


@pytest.mark.parametrize(
    "name, arguments",
    [
        ("SGD", {"momentum": 0.9}),
        ("SGD", {"momentum": 0.9, "nesterov": True}),
        ("Adam", {}),
        ("RMSprop", {"momentum": 0.5, "centered": True}),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_slot_that_decays_ends_at_zero_and_not_at_a_denormal_number(
    name: str, arguments: dict[str, Any], dtype: str
) -> None:
    optimizer = getattr(lpt.optimizers, name)(**arguments)
    table = lpt.Embedding(3, 2, dtype=dtype)
    model = lpt.Sequential([lpt.Input((1,), dtype="int32"), table, lpt.Flatten(dtype=dtype)])
    model.compile(optimizer=optimizer, loss="mse")
    row, wanted = np.zeros((1, 1), np.int32), np.ones((1, 2), dtype)
    model.train_on_batch(row, wanted)
    least = np.finfo(dtype).tiny
    for slot in optimizer.slots.values():
        slot[1], slot[2] = least, -least
    model.train_on_batch(row, wanted)

    for slot in optimizer.slots.values():
        assert slot[0].any()
        assert slot[1:].tolist() == [[0, 0], [0, 0]]


def test_set_weights_between_steps_is_seen_by_the_next_step() -> None:
    model = classifier()
    start = model.get_weights()
    first = model.train_on_batch(X, LABELS)

    model.set_weights(start)

    assert model.train_on_batch(X, LABELS) == pytest.approx(first, rel=1e-6)


def test_dropout_differs_from_step_to_step_and_from_layer_to_layer() -> None:
    x = lpt.Input((64,))
    model = lpt.Model(x, lpt.Concatenate()([lpt.Dropout(0.5)(x), lpt.Dropout(0.5)(x)]))
    ones = np.ones((4, 64))

    first, second = model(ones, training=True), model(ones, training=True)

    assert (first[:, :64] != first[:, 64:]).any()
    assert (first != second).any()
    assert set(np.unique(first)) == {0.0, 2.0}


def test_shuffling_changes_the_order_not_the_rows() -> None:
    seen: list[float] = []

    class Watch(lpt.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append(logs["loss"])

    model = classifier(optimizer=lpt.optimizers.SGD(0.0))
    whole = model.evaluate(X, LABELS, verbose=0)[0]
    model.fit(X, LABELS, batch_size=2, epochs=2, callbacks=[Watch()], verbose=0)

    assert seen[0] != seen[6]
    assert [seen[5], seen[11]] == pytest.approx([whole, whole], rel=1e-5)


def test_regularization_is_part_of_the_loss() -> None:
    model = lpt.Sequential(
        [lpt.Dense(1, input_shape=(1,), kernel_regularizer=lpt.regularizers.L2(0.5), use_bias=False)]
    )
    model.set_weights([np.array([[3.0]])])
    model.compile(lpt.optimizers.SGD(1.0), "mse")

    assert model.evaluate(np.array([[0.0]]), np.array([0.0]), verbose=0) == pytest.approx(4.5)
    model.train_on_batch(np.array([[0.0]]), np.array([0.0]))
    np.testing.assert_allclose(model.get_weights()[0], [[0.0]], atol=1e-6)


def test_ctrl_c_ends_training_between_two_batches() -> None:
    model = classifier()

    class Press(lpt.callbacks.Callback):
        def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
            if batch == 2:
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        model.fit(X, LABELS, batch_size=2, callbacks=Press(), verbose=0)

    assert model.optimizer.iterations == 3
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_line_per_epoch_shows_loss_metrics_and_samples_per_second(capsys: pytest.CaptureFixture[str]) -> None:
    classifier().fit(X, LABELS, epochs=2, verbose=2, validation_data=(X, LABELS))
    lines = capsys.readouterr().out.splitlines()

    assert [line.split(" - ")[0] for line in lines] == ["Epoch 1/2", "Epoch 2/2"]
    for word in ("samples/s", "loss: ", "accuracy: ", "val_loss: ", "val_accuracy: "):
        assert word in lines[0]


def test_on_a_terminal_a_bar_is_drawn_at_most_four_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    clock = iter(np.arange(0.0, 10.0, 0.1))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(clock))
    asked: list[int] = []
    epoch = progress.EpochProgress(1, "Epoch 1/1", 100)
    for done in range(10, 101, 10):
        epoch.update(done, lambda done=done: asked.append(done) or {"loss": 0.5})  # type: ignore[func-returns-value]
    epoch.finish({"loss": 0.25})

    assert asked == [30, 60, 90]
    assert "Epoch 1/1" in terminal.getvalue()
    assert terminal.getvalue().splitlines()[-1].endswith("samples/s - loss: 0.2500")


def test_a_silent_run_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    model = classifier()
    model.fit(X, LABELS, verbose=0)
    model.evaluate(X, LABELS, verbose=0)
    model.predict(X, verbose=0)

    assert capsys.readouterr() == ("", "")


def test_a_model_with_a_fixed_batch_takes_multiples_of_it() -> None:
    x = lpt.Input((4,), batch_size=4)
    model = lpt.Model(x, lpt.Dense(2)(x))

    assert model.predict(X[:8], verbose=0).shape == (8, 2)
    with pytest.raises(lpt.ArgumentError, match="the model's input has the batch size 4"):
        model.predict(X, verbose=0)


@pytest.mark.parametrize("sizes", [(4, None), (None, 4)])
def test_a_batch_that_one_input_fixes_is_that_of_all(sizes: tuple[int | None, int | None]) -> None:
    a, b = (lpt.Input((4,), batch_size=size) for size in sizes)
    model = lpt.Model([a, b], [lpt.Dense(1, name="one")(a), lpt.Dense(1, name="other")(b)])
    model.compile("sgd", "mse")

    assert len(model.train_on_batch([X[:4], X[:4]], [X[:4, :1], X[:4, :1]])) == 3
    with pytest.raises(lpt.ArgumentError, match="the model's input has the batch size 4"):
        model.train_on_batch([X[:3], X[:3]], [X[:3, :1], X[:3, :1]])


def test_two_inputs_cannot_fix_two_batch_sizes() -> None:
    a, b = lpt.Input((4,), batch_size=4, name="a"), lpt.Input((4,), batch_size=5, name="b")
    with pytest.raises(lpt.ArgumentError, match=r"expected inputs of one batch size, got \{'a': 4, 'b': 5\}"):
        lpt.Model([a, b], [a, b])


def test_an_optimizer_belongs_to_one_model() -> None:
    optimizer = lpt.optimizers.Adam()
    classifier(optimizer=optimizer).train_on_batch(X, LABELS)

    with pytest.raises(lpt.ArgumentError, match="adam: optimizes another model"):
        classifier(optimizer=optimizer).train_on_batch(X, LABELS)


def test_steps_without_python_in_between_are_the_same_steps() -> None:
    for shuffle in (False, True):
        weights = []
        for callbacks in ([], [lpt.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None)]):
            model = classifier(optimizer="adam")
            history = model.fit(
                X, LABELS, batch_size=2, epochs=4, shuffle=shuffle, callbacks=callbacks, verbose=0
            ).history
            weights.append((history, [w.tobytes() for w in model.get_weights()]))

        assert weights[0] == weights[1]


def test_bad_data_in_a_later_batch_is_named_as_in_the_first() -> None:
    model = lpt.Sequential([lpt.Embedding(9, 2, input_shape=(3,)), lpt.GlobalAveragePooling1D(), lpt.Dense(2)])
    model.compile(optimizer="sgd", loss="mse")
    x = np.ones((12, 3), np.int32)  # the input's own element type
    x[7, 1] = 42

    for shuffle in (False, True):
        with pytest.raises(lpt.OutOfRangeError, match=r"got 42 at \[\d, 1\] of input"):
            model.fit(x, np.zeros((12, 2), np.float32), batch_size=2, shuffle=shuffle, verbose=0)


def test_what_is_stopped_before_the_first_batch_does_not_run_a_whole_epoch() -> None:
    class Stop(lpt.callbacks.Callback):
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.model.stop_training = True

    model = classifier()
    model.fit(X, LABELS, batch_size=2, epochs=3, callbacks=[Stop()], verbose=0)

    assert int(model.optimizer.iterations) == 1
