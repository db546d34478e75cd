"""Names and integer types of a user are never taken for the compiler's own: the same program comes out."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.types import TensorType
from lepton_jit.runtime.wrapper import function_name

# What graphs, kernels, programs, files and C headers call their own, what a language means by it, and what is hard to
# print: a model for each line, whose parts are called so.
NAMES = (
    ("prepared", "a0", "o0", "s0", "N", "0", "1", "prepared 0"),
    ("step", "seed", "loss", "metrics", "target", "kernel", "bias", "optimizer"),
    ("learning_rate", "sample_weight", "weights", "state", "params", "input", "output", "N_"),
    ("main", "prepare", "graph", "return", "frame", "ctx", "dims", "region"),
    ("int", "class", "int8_t", "m", "h", "n", "float", "m_message"),
    ("%x", 'q"u"o"te', "back\\slash", "é ☃ 𝕏", "²", "\u2028", "{0}", "#define x"),
    ("nan", "none", "f32", "inf", "true", "select", "composite", "x" * 300),
)
PLAIN = ("x", "ids", "table", "inner", "hidden", "normal", "one", "two")


def model_of(names: Sequence[str]) -> Any:
    """Two inputs, one of integers; a table, a nested model, moving statistics, dropout; two outputs."""
    lpt.set_random_seed(1)
    first, second, table, inner, hidden, normal, one, two = names
    x, ids = lpt.Input((4,), name=first), lpt.Input((2,), dtype="uint8", name=second)
    block = lpt.Sequential(
        [lpt.Dense(3, activation="tanh", name=hidden), lpt.BatchNormalization(name=normal)], name=inner
    )
    words = lpt.Flatten()(lpt.Embedding(9, 2, name=table)(ids))
    h = lpt.Concatenate()([block(x), lpt.Dropout(0.2, name=inner + normal)(words)])
    outputs = [lpt.Dense(2, activation="softmax", name=one)(h), lpt.Dense(1, name=two)(h)]
    model = lpt.Model([x, ids], outputs, name=inner)
    model.compile("adam", ["sparse_categorical_crossentropy", "mse"], metrics=[[named_loss(one)], []])
    return model


def named_loss(name: str) -> Any:
    return lpt.metrics.SparseCategoricalAccuracy(name="loss" if name == "bias" else name)


X = [np.random.default_rng(0).normal(size=(6, 4)).astype("float32"), np.arange(12).reshape(6, 2).astype("uint8") % 9]
Y = [np.arange(6) % 2, np.random.default_rng(1).normal(size=(6, 1)).astype("float32")]


def assert_equal(actual: Sequence[np.ndarray], expected: Sequence[np.ndarray]) -> None:
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, e)


def after_training(model: Any) -> list[np.ndarray]:
    return [np.asarray(model.train_on_batch(X, Y)), *model.get_weights()]


@pytest.fixture(scope="module")
def expected() -> list[np.ndarray]:
    return after_training(model_of(PLAIN))


@pytest.mark.parametrize(
    "names",
    [pytest.param(n, marks=pytest.mark.soak) if n[0] in ("learning_rate", "main", "nan") else n for n in NAMES],
    ids=lambda names: names[0],
)
def test_a_model_of_any_names_is_the_same_model(
    expected: list[np.ndarray], tmp_path: Path, names: tuple[str, ...]
) -> None:
    model = model_of(names)

    assert_equal(after_training(model), expected)
    fast, graph = lpt.compile(model), model.trace()
    answers = fast({entry.name: x for entry, x in zip(fast.inputs, X, strict=True)})
    assert lpt.parse(str(graph)) == graph
    model.save(tmp_path / "m")
    assert_equal(lpt.load(tmp_path / "m").predict(X, verbose=0), answers)
    fast.export(tmp_path / "m.so")
    assert_equal(lpt.load(tmp_path / "m.so")(*X), answers)


def test_weights_that_are_called_like_what_is_prepared_are_a_snapshot() -> None:
    model = lpt.Sequential([lpt.Embedding(3, 2, input_shape=(1,), name="prepared")])
    fast = lpt.compile(model)
    before = fast([[0]])

    model.set_weights([np.ones((3, 2))])

    np.testing.assert_array_equal(fast([[0]]), before)


def test_a_parameter_that_is_called_like_what_is_prepared_keeps_its_name() -> None:
    b = Builder("g")
    x, w = b.input("x", TensorType.of("f32", "N")), b.input("prepared/0", TensorType.of("f32"), "parameter")
    b.output(b("add", b("add", x, b("exponential", w)), w), "y")

    class Traced:
        def trace(self) -> Any:
            return b.build()

        def weights_by_name(self) -> dict[str, np.ndarray]:
            return {"prepared/0": np.zeros((), "float32")}

    np.testing.assert_array_equal(lpt.compile(Traced())(np.float32([1, 2])), [2, 3])


class Pull(lpt.optimizers.Optimizer):
    """Momentum whose slot is called as Adam calls its squares."""

    slot_names = ("velocity",)

    def rule(self, t: Any, weight: Any, gradient: Any, slots: Any, step: Any) -> Any:
        velocity = t("add", t("multiply", slots["velocity"], 0.5), gradient)
        return t("subtract", weight, velocity), {"velocity": velocity}


def test_a_slot_of_any_name_keeps_its_negative_values() -> None:
    model = lpt.Sequential([lpt.Dense(1, use_bias=False, input_shape=(1,), name="d")])
    model.set_weights([[[0.0]]])
    model.compile(Pull(0.1), "mse")

    model.train_on_batch([[1.0]], [[1.0]])

    assert model.optimizer.slots["d/kernel/velocity"] == -2.0


def test_weights_of_a_model_with_other_names_are_refused() -> None:
    fast = lpt.compile(lpt.Sequential([lpt.Dense(2, input_shape=(3,), name="a")]))
    other = lpt.Sequential([lpt.Dense(2, input_shape=(3,), name="b")])

    with pytest.raises(lpt.ArgumentError, match=r"update_weights: .* missing \['a/kernel', 'a/bias'\], got \['b/"):
        fast.update_weights(other)
    with pytest.raises(lpt.ShapeError, match=r"a/kernel'?: expected f32\[3,2\], got f32\[4,2\]"):
        fast.update_weights(lpt.Sequential([lpt.Dense(2, input_shape=(4,), name="a")]))


@pytest.mark.parametrize("name", ["main", "int", "write", "log", "lepton_module", "lpt_plan", "affine_run", "a,b -o c"])
def test_a_library_of_any_name_links_and_runs(tmp_path: Path, name: str) -> None:
    fast = lpt.compile(lpt.Sequential([lpt.Dense(1, use_bias=False, kernel_initializer="ones", input_shape=(2,))]))

    library, header = fast.export(tmp_path / f"{name}.so")

    np.testing.assert_array_equal(lpt.load(library)([[1.0, 2.0]]), [[3.0]])
    function = function_name(name, fast.executable.program.manifest)
    body = f"float x[2] = {{1, 2}}, y; return {function}(1, x, &y) || y != 3;"
    (tmp_path / "program.c").write_text(f'#include "{header.name}"\nint main(void) {{ {body} }}\n')
    subprocess.run(["cc", "program.c", f"./{library.name}", "-o", "program"], cwd=tmp_path, check=True)
    subprocess.run(["./program"], cwd=tmp_path, env={"LD_LIBRARY_PATH": "."}, check=True)


INTEGERS = ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "bool")


@pytest.mark.parametrize("dtype", INTEGERS)
def test_an_input_of_any_integers_gives_the_same_answers(tmp_path: Path, dtype: str) -> None:
    lpt.set_random_seed(1)
    x = lpt.Input((2,), dtype=dtype, name="x")
    rows = lpt.Flatten(name="f")(lpt.Embedding(300, 3, name="e")(x))
    model = lpt.Model(x, lpt.Dense(2, name="d")(lpt.Concatenate(name="c")([rows, lpt.Dense(1, name="s")(x)])), name="m")
    model.compile("sgd", "mse")
    ids = np.array([[0, 1], [1, 0], [1, 1]], dtype)
    w = model.weights_by_name()
    scores = ids.astype("float32") @ w["s/kernel"] + w["s/bias"]
    hidden = np.concatenate([w["e/embeddings"][ids.astype(int)].reshape(3, 6), scores], 1)

    answers = lpt.compile(model)(ids)

    np.testing.assert_allclose(answers, hidden @ w["d/kernel"] + w["d/bias"], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(model.predict(ids, verbose=0), answers)
    model.save(tmp_path / "m")
    loaded = lpt.load(tmp_path / "m")
    assert loaded.inputs[0].dtype == dtype
    np.testing.assert_array_equal(loaded.predict(ids, verbose=0), answers)
    lpt.compile(model).export(tmp_path / "m.so")
    np.testing.assert_array_equal(lpt.load(tmp_path / "m.so")(ids), answers)
    graph = model.trace()
    assert lpt.parse(str(graph)) == graph
    for _ in range(2):
        loss = model.train_on_batch(ids, np.zeros((3, 2)))
    assert np.isfinite(loss)
