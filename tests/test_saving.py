"""Model files: everything comes back, nothing half written, and whatever is damaged is refused."""

from __future__ import annotations

import copy
import functools
import json
import os
import pickle
import pickletools
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
from safetensors.numpy import load_file, save_file

import lepton_jit as lpt
from lepton_jit.common import writing
from lepton_jit.layers.base.registry import serialize
from lepton_jit.models import model_file
from lepton_jit.tracing.weight import without_values

X = np.random.default_rng(0).normal(size=(12, 6, 6, 1)).astype("float32")
Y = np.random.default_rng(1).integers(0, 3, 12)


def small() -> Any:
    lpt.set_random_seed(1)
    model = lpt.Sequential(
        [
            lpt.Conv2D(2, 3, activation="relu", input_shape=(6, 6, 1), name="c"),
            lpt.BatchNormalization(name="b"),
            lpt.Flatten(name="f"),
            lpt.Dropout(0.2, name="r"),
            lpt.Dense(3, activation="softmax", kernel_regularizer="l2", name="d"),
        ],
        name="small",
    )
    model.compile(lpt.optimizers.Adam(0.01), "sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def assert_same_weights(actual: Any, expected: Any) -> None:
    for a, e in zip(actual.get_weights(), expected.get_weights(), strict=True):
        np.testing.assert_array_equal(a, e)


@pytest.fixture(scope="module")
def trained() -> Any:
    model = small()
    model.fit(X, Y, batch_size=5, epochs=1, verbose=0)
    return model


def test_a_saved_model_comes_back_whole(trained: Any, tmp_path: Path) -> None:
    trained.save(tmp_path / "m.lepton")

    loaded = lpt.load(tmp_path / "m.lepton")

    assert serialize(loaded) == serialize(trained)
    assert loaded.optimizer.get_config() == trained.optimizer.get_config()
    assert loaded.optimizer.iterations == trained.optimizer.iterations == 3
    assert sorted(loaded.optimizer.slots) == sorted(trained.optimizer.slots)
    np.testing.assert_array_equal(loaded.predict(X, verbose=0), trained.predict(X, verbose=0))
    assert loaded.evaluate(X, Y, verbose=0) == trained.evaluate(X, Y, verbose=0)


def test_training_goes_on_from_a_file_as_if_nothing_had_happened(tmp_path: Path) -> None:
    straight, stopped = small(), small()
    straight.set_weights(stopped.get_weights())
    for model in (straight, stopped):
        lpt.set_random_seed(5)
        model.compile(lpt.optimizers.Adam(0.01), "sparse_categorical_crossentropy")
        model.train_on_batch(X, Y)
    stopped.save(tmp_path / "m")
    continued = lpt.load(tmp_path / "m")

    for model in (straight, continued):
        model.train_on_batch(X, Y)

    for actual, expected in zip(continued.get_weights(), straight.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_model_with_branches_and_a_schedule_comes_back(tmp_path: Path) -> None:
    a, b = lpt.Input((4,), name="a"), lpt.Input((4,), name="b")
    shared = lpt.Sequential([lpt.Dense(4, activation="tanh", input_shape=(4,), name="d")], name="shared")
    outputs = [lpt.Dense(3, activation="softmax", name="y")(lpt.Add()([shared(a), shared(b)])), shared(a)]
    model = lpt.Model([a, b], outputs, name="twin")
    schedule = lpt.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    model.compile(
        lpt.optimizers.SGD(schedule, momentum=0.9),
        loss=[lpt.losses.CategoricalCrossentropy(label_smoothing=0.1), None],
        metrics=[["accuracy", lpt.metrics.BinaryAccuracy(threshold=0.3)], "mse"],
    )
    rng = np.random.default_rng(0)
    x = [rng.normal(size=(5, 4)), rng.normal(size=(5, 4))]
    y = [np.eye(3)[[0, 1, 2, 0, 1]], rng.normal(size=(5, 4))]
    model.train_on_batch(x, y)
    model.save(tmp_path / "m")

    loaded = lpt.load_model(tmp_path / "m")

    assert loaded.optimizer.learning_rate == model.optimizer.learning_rate
    assert loaded.evaluate(x, y, verbose=0, return_dict=True) == model.evaluate(x, y, verbose=0, return_dict=True)


def test_weights_alone_are_read_into_a_model_of_the_same_shape(trained: Any, tmp_path: Path) -> None:
    trained.save_weights(tmp_path / "w")
    other = small()

    other.load_weights(tmp_path / "w")

    for actual, expected in zip(other.get_weights(), trained.get_weights(), strict=True):
        np.testing.assert_array_equal(actual, expected)
    with pytest.raises(lpt.FileFormatError, match="expected a model, got a file of weights"):
        lpt.load(tmp_path / "w")


def test_weights_of_another_model_are_refused_and_change_nothing(trained: Any, tmp_path: Path) -> None:
    trained.save_weights(tmp_path / "w")
    other = lpt.Sequential([lpt.Conv2D(2, 3, input_shape=(6, 6, 1), name="c")])
    before = other.get_weights()

    with pytest.raises(lpt.FileFormatError, match=r"expected the model's weights: missing \[\], not known \['b/beta'"):
        other.load_weights(tmp_path / "w")

    assert all((a == b).all() for a, b in zip(other.get_weights(), before, strict=True))


def test_a_file_is_plain_safetensors(trained: Any, tmp_path: Path) -> None:
    trained.save(tmp_path / "m")

    tensors = load_file(tmp_path / "m")

    np.testing.assert_array_equal(tensors["weights/c/kernel"], trained.weights_by_name()["c/kernel"])
    with safetensors.safe_open(tmp_path / "m", "numpy") as file:
        config = json.loads(file.metadata()["config"])
    assert config["model"]["class_name"] == "Sequential"


def test_saving_leaves_the_old_file_if_it_fails(trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "m").write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(writing.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        trained.save(tmp_path / "m")

    assert (tmp_path / "m").read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    with pytest.raises(lpt.ArgumentError, match="exists; pass overwrite=True"):
        trained.save(tmp_path / "m", overwrite=False)


def rewritten(source: Path, target: Path, change: Any) -> Path:
    """The file with a changed configuration and a checksum that fits it."""
    with safetensors.safe_open(source, "numpy") as file:
        metadata = file.metadata()
    tensors = load_file(source)
    config = json.loads(metadata["config"])
    change(config, tensors)
    document = json.dumps(config)
    crc = str(model_file._checksum(document, tensors))
    save_file(tensors, target, {**metadata, "config": document, "crc32": crc})
    return target


def _layer(config: Any, name: str) -> Any:
    return next(x for x in config["model"]["config"]["layers"] if x["config"]["name"] == name)


DEFECTS: list[tuple[Any, str]] = [
    (lambda c, t: _layer(c, "d").update(class_name="Lambda"), "layer: expected one of .*, got 'Lambda'"),
    (lambda c, t: _layer(c, "d")["config"].update(code="import os"), "layer 'd': Dense has no argument 'code'"),
    (lambda c, t: _layer(c, "d")["config"].update(units=4), r"weight 'd/kernel': expected float32\[32, 4\], got"),
    (lambda c, t: _layer(c, "d")["config"].update(units=10**12), r"weight 'd/kernel': expected float32\[32, 1000"),
    (lambda c, t: _layer(c, "d")["config"].update(units="3"), "units: expected a positive integer, got '3'"),
    (lambda c, t: _layer(c, "c")["config"].update(kernel_size=[9, 9]), "layer 'c': expected an input of at least"),
    (lambda c, t: t.pop("weights/b/beta"), r"missing \['b/beta'\]"),
    (lambda c, t: t.update({"weights/x/y": np.zeros(3)}), r"not known \['x/y'\]"),
    (lambda c, t: t.update({"weights/d/bias": np.zeros(3)}), r"weight 'd/bias': expected float32\[3\], got float64"),
    (lambda c, t: t.update({"optimizer/d/bias/speed": np.zeros(3)}), "not a slot of Adam: 'd/bias/speed'"),
    (lambda c, t: t.pop("state/step"), "expected the tensor 'state/step'"),
    (lambda c, t: c["compile"].update(loss=["huge"]), "loss: expected one of .*, got 'huge'"),
    (lambda c, t: c["compile"].update(loss=[]), "loss: expected one entry for one output, got 0"),
    (lambda c, t: c["compile"].pop("optimizer"), "compile: expected loss, "),
    (lambda c, t: c.update(kind="zip"), "expected kind 'model' or 'weights', got 'zip'"),
    (lambda c, t: c.update(model=[]), "expected a configuration with a class_name"),
    (lambda c, t: c["model"]["config"].pop("layers"), "expected a configuration with name, trainable, layers"),
]


@pytest.mark.parametrize("change, message", DEFECTS)
def test_a_file_whose_parts_do_not_fit_is_refused(trained: Any, tmp_path: Path, change: Any, message: str) -> None:
    trained.save(tmp_path / "m")

    with pytest.raises(lpt.FileFormatError, match=message):
        lpt.load(rewritten(tmp_path / "m", tmp_path / "n", change))


def test_what_is_not_a_model_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m"
    deep = json.dumps({"__metadata__": {}}).encode()[:-1] + b', "x": ' + b"[" * 9000
    for data in (
        b"", b"short", b"PK\x03\x04" + bytes(60), b"\x80\x04pickle", bytes(100), b"\xff" * 100,
        (2).to_bytes(8, "little") + b"{}", len(deep).to_bytes(8, "little") + deep,
        (1 << 62).to_bytes(8, "little") + b"{",
    ):  # fmt: skip
        path.write_bytes(data)
        with pytest.raises(lpt.FileFormatError, match=str(path)):
            lpt.load(path)
    with pytest.raises(FileNotFoundError):
        lpt.load(tmp_path / "missing")


def test_a_flipped_bit_is_found(trained: Any, tmp_path: Path) -> None:
    trained.save(tmp_path / "m")
    data = bytearray((tmp_path / "m").read_bytes())
    data[-1] ^= 4
    (tmp_path / "m").write_bytes(data)

    with pytest.raises(lpt.FileFormatError, match="the checksum does not fit: the file is damaged"):
        lpt.load(tmp_path / "m")


def mutated(data: bytes, rng: random.Random) -> bytes:
    """Flipped, removed, repeated, inserted or exchanged bytes."""
    result = bytearray(data)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(result))
        end = min(len(result), at + rng.randint(1, 12))
        kind = rng.randrange(6)
        if kind == 0:
            result[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del result[at:end]
        elif kind == 2:
            result[at:at] = result[at:end]
        elif kind == 3:
            result[at:at] = rng.choice([b"9", b"-", b"[", b'"', b"}", b"e308", b"null", b"\xff"])
        elif kind == 4:
            del result[at:]
            result += bytes(1)
        else:
            other = rng.randrange(len(result))
            result[at], result[other] = result[other], result[at]
    return bytes(result)


@pytest.mark.parametrize("checked", [True, False], ids=["as read", "checksum ignored"])
def test_a_thousand_mutated_files_raise_our_errors_or_load(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checked: bool
) -> None:
    trained.save(tmp_path / "m")
    data, path, rng = (tmp_path / "m").read_bytes(), tmp_path / "n", random.Random(3)
    if not checked:
        monkeypatch.setattr(model_file, "_compare_checksum", lambda *_: None)
    refused = loaded = 0
    for _ in range(500):
        # Half of the changes fall into the header, which is a small part of the file.
        header = 8 + int.from_bytes(data[:8], "little")
        head, body = data[:header], data[header:]
        path.write_bytes(mutated(head, rng) + body if rng.random() < 0.8 else head + mutated(body, rng))
        try:
            lpt.load(path).count_params()
        except lpt.LeptonError as error:
            refused += str(path) in str(error)
        else:
            loaded += 1
    assert refused + loaded == 500
    assert refused > 300


def test_threads_that_load_at_once_leave_later_models_with_values(trained: Any, tmp_path: Path) -> None:
    trained.save(tmp_path / "m")

    with ThreadPoolExecutor(4) as threads:
        loaded = list(threads.map(lpt.load, [tmp_path / "m"] * 8))

    assert np.any(lpt.Sequential([lpt.Dense(8, input_shape=(8,))]).get_weights()[0])
    for model in loaded:
        assert_same_weights(model, trained)


def test_a_thread_that_builds_while_another_loads_gets_values() -> None:
    entered, built = threading.Event(), threading.Event()

    def make() -> Any:
        entered.set()
        built.wait(10)
        return lpt.Dense(4, input_shape=(4,))

    with ThreadPoolExecutor(1) as threads:
        threads.submit(without_values, make)
        entered.wait(10)
        model = lpt.Sequential([lpt.Dense(8, input_shape=(8,))])
        built.set()

    assert np.any(model.get_weights()[0])


WRITER = """
import sys
import lepton_jit as lpt
lpt.set_random_seed(3)
x = lpt.Input((4,), name="x")
h = lpt.Dense(8, name="h")(x)
outputs = [lpt.Dense(n, name=f"y{n}")(h) for n in (1, 2, 3)]
model = lpt.Model(x, outputs, name="m")
model.compile("adam", {f"y{n}": "mse" for n in (3, 1, 2)})
model.optimizer.build(model.weight_paths())
model.save(sys.argv[1])
"""


def test_the_same_model_has_the_same_bytes_in_every_process(tmp_path: Path) -> None:
    for seed in "123":
        command = [sys.executable, "-c", WRITER, tmp_path / seed]
        subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": seed}, check=True)

    assert len({(tmp_path / seed).read_bytes() for seed in "123"}) == 1


def nested(levels: int) -> Any:
    model = lpt.Sequential([lpt.Dense(2, input_shape=(2,))], name="m0")
    for level in range(1, levels):
        model = lpt.Sequential([model], name=f"m{level}")
    return model


@pytest.mark.parametrize("levels", [19, 60])
def test_models_in_models_come_back(tmp_path: Path, levels: int) -> None:
    model = nested(levels)
    model.save(tmp_path / "m")

    assert serialize(lpt.load(tmp_path / "m")) == serialize(model)


def test_a_model_that_no_file_could_describe_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_file, "_MAX_JSON", 3000)

    with pytest.raises(lpt.UnsupportedError, match="save: the model is too large or too deeply nested"):
        nested(19).save(tmp_path / "m")

    assert list(tmp_path.iterdir()) == []


NAMES = ["[" * 22, "]" * 30 + "{" * 70, '"', "\\", "weights", "état ☃", "a b", "optimizer", "%x", "0", "." * 300]


@pytest.mark.parametrize("name", NAMES)
def test_a_layer_of_any_name_comes_back(tmp_path: Path, name: str) -> None:
    model = lpt.Sequential([lpt.Dense(2, input_shape=(3,), name=name)], name=name)
    model.compile("adam", "mse")
    model.train_on_batch(np.ones((4, 3)), np.ones((4, 2)))
    model.save(tmp_path / "m")

    loaded = lpt.load(tmp_path / "m")

    assert (loaded.name, loaded.layers[0].name) == (name, name)
    assert_same_weights(loaded, model)
    assert sorted(loaded.optimizer.slots) == sorted(model.optimizer.slots)


def test_a_name_that_is_no_text_is_refused_when_it_is_given() -> None:
    with pytest.raises(lpt.ArgumentError, match=r"Dense: name: expected a name, got '\\ud800'"):
        lpt.Dense(1, name="\ud800")


@pytest.mark.parametrize("path", [None, 3, "", "a\0b", "\ud800", b"m", "."])
@pytest.mark.parametrize("method", ["save", "save_weights", "load_weights"])
def test_what_is_no_path_of_a_file_is_refused(trained: Any, method: str, path: Any) -> None:
    with pytest.raises(lpt.ArgumentError, match="expected the path of a file, got "):
        getattr(trained, method)(path)
    with pytest.raises(lpt.ArgumentError, match="load: expected the path of a file, got "):
        lpt.load(path)


@pytest.mark.parametrize("path", ["", "."])
def test_an_export_to_what_is_no_path_of_a_file_is_refused(path: str) -> None:
    fast = lpt.compile(lpt.Sequential([lpt.Dense(1, input_shape=(1,))]))

    with pytest.raises(lpt.ArgumentError, match="export: expected the path of a file, got "):
        fast.export(path)


# Copies


def by_pickle(model: Any) -> Any:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, by_pickle])
def test_a_copy_goes_on_training_as_the_original_does_and_apart_from_it(copied: Any) -> None:
    model = small()
    model.fit(X, Y, batch_size=5, epochs=1, verbose=0)
    before = model.get_weights()

    other = copied(model)
    for _ in range(3):
        other.train_on_batch(X, Y)

    for weights, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(weights, old)
    for _ in range(3):
        model.train_on_batch(X, Y)
    assert_same_weights(other, model)


@pytest.mark.parametrize("copied", [copy.deepcopy, by_pickle])
def test_a_model_without_weights_or_training_can_be_copied(copied: Any) -> None:
    built = copied(lpt.Sequential([lpt.Dense(2, input_shape=(3,))]))
    unbuilt = copied(lpt.Sequential([lpt.Dense(2, name="d")], name="s"))

    assert (built.built, built.compiled) == (True, False)
    assert (unbuilt.built, unbuilt.name, unbuilt.layers[0].name) == (False, "s", "d")
    unbuilt.build((None, 3))
    assert unbuilt.count_params() == 8


def test_a_model_in_a_container_is_copied_with_it(trained: Any) -> None:
    original = {"model": trained, "again": trained, "scores": [1.0]}

    copied = copy.deepcopy(original)

    assert copied["model"] is copied["again"] is not trained
    assert_same_weights(copied["model"], trained)


def test_a_pickle_names_one_function_of_this_package_and_holds_data(trained: Any) -> None:
    names = [a for op, a, _ in pickletools.genops(pickle.dumps(trained, protocol=3)) if op.name == "GLOBAL"]

    assert names == ["lepton_jit.models.saving model_of_bytes"]


def test_a_damaged_pickle_is_refused(trained: Any) -> None:
    function, (data,) = trained.__reduce__()

    with pytest.raises(lpt.FileFormatError, match="the checksum does not fit"):
        function(data[:-1] + bytes([data[-1] ^ 1]))


Keys = tuple[Any, ...]
STRANGE = (
    None, True, 0, -1, 3, 10**6, 2**31, 2**62, 10**30, -0.5, 1e308, "", "relu", "Adam", "float64", [], [1], [2, 2, 2],
    [[1, 2], [3, 4]], {}, {"class_name": "Dense", "config": {}}, [0] * 1000,
)  # fmt: skip


def places(value: Any, keys: Keys = ()) -> list[Keys]:
    """Where the parts of a JSON value stand."""
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, child in children for place in [(*keys, key), *places(child, (*keys, key))]]


def at(value: Any, keys: Keys) -> Any:
    return functools.reduce(lambda part, key: part[key], keys, value)


def test_a_configuration_with_strange_values_raises_our_errors_or_loads(trained: Any, tmp_path: Path) -> None:
    (data,) = trained.__reduce__()[1]
    config, tensors = model_file.decode(data)
    rng, refused, count = random.Random(5), 0, 120
    for _ in range(count):
        changed = json.loads(json.dumps(config))
        *keys, last = rng.choice(places(changed))
        at(changed, tuple(keys))[last] = rng.choice([*STRANGE, at(changed, rng.choice(places(changed)))])
        (tmp_path / "m").write_bytes(b"".join(model_file.encode(changed.pop("kind", "model"), changed, tensors)))
        try:
            lpt.load(tmp_path / "m").count_params()
        except lpt.LeptonError:
            refused += 1
    assert count / 2 < refused < count
