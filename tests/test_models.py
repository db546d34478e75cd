"""Models: graphs, names, nesting, sharing, configuration, inputs of all kinds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.common import naming
from lepton_jit.layers.base.registry import registry, serialize
from lepton_jit.layers.base.symbolic import as_list


@pytest.fixture(autouse=True)
def _fresh_names() -> None:
    naming.reset_names()
    lpt.set_random_seed(1)


def digits() -> Any:
    return lpt.Sequential(
        [
            lpt.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 1)),
            lpt.MaxPooling2D(),
            lpt.Flatten(),
            lpt.Dropout(0.5),
            lpt.Dense(3, activation="softmax"),
        ]
    )


def nested() -> Any:
    x = lpt.Input((6,), name="x")
    inner = lpt.Sequential([lpt.Dense(6, activation="relu", input_shape=(6,), name="d")], name="inner")
    shared = lpt.Dense(6, name="shared")
    once = inner(x)
    twice = shared(lpt.Add(name="add")([inner(once), shared(x)]))
    return lpt.Model(x, [twice, lpt.Dense(2, name="head")(once)], name="outer")


def test_importing_the_package_is_quick_and_imports_no_compiler() -> None:
    program = (
        "import sys, time; start = time.perf_counter(); import lepton_jit; seconds = time.perf_counter() - start\n"
        "assert not {'llvmlite', 'networkx', 'numpy'} & set(sys.modules), sorted(sys.modules)\n"
        "assert seconds < 0.3, seconds\n"
        "assert set(lepton_jit.__all__) <= set(dir(lepton_jit))\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


def test_every_public_name_is_there() -> None:
    for name in lpt.__all__:
        assert getattr(lpt, name) is not None, name
    with pytest.raises(AttributeError, match="no attribute 'Denes'"):
        lpt.Denes


def test_a_sequential_traces_with_layer_paths_and_its_own_names() -> None:
    graph = digits().trace()

    assert [(i.name, i.role, repr(i.value.type)) for i in graph.inputs] == [
        ("input", "input", "f32[N,8,8,1]"),
        ("conv2d/kernel", "parameter", "f32[3,3,1,4]"),
        ("conv2d/bias", "parameter", "f32[4]"),
        ("dense/kernel", "parameter", "f32[36,3]"),
        ("dense/bias", "parameter", "f32[3]"),
    ]
    assert [o.name for o in graph.outputs] == ["output"]
    assert list(dict.fromkeys(n.layer for n in graph.nodes)) == ["conv2d", "max_pooling2d", "flatten", "dense"]


def test_a_functional_graph_has_the_names_of_inputs_and_output_layers() -> None:
    graph = nested().trace()

    assert [i.name for i in graph.inputs_of("input")] == ["x"]
    assert [o.name for o in graph.outputs] == ["shared", "head"]
    assert {n.layer for n in graph.nodes} == {"inner/d", "shared", "add", "head"}


def test_a_shared_layer_is_one_set_of_weights() -> None:
    model = nested()

    assert sorted(model.weights_by_name()) == [
        "head/bias", "head/kernel", "inner/d/bias", "inner/d/kernel", "shared/bias", "shared/kernel",
    ]  # fmt: skip
    assert model.count_params() == 2 * (6 * 6 + 6) + 6 * 2 + 2


def test_a_nested_model_computes_what_its_layers_compute() -> None:
    model = nested()
    x = np.random.default_rng(0).normal(size=(3, 6)).astype("float32")
    d, shared, head = (model.weights_by_name()[f"{n}/kernel"] for n in ("inner/d", "shared", "head"))
    once = np.maximum(x @ d, 0)

    results = model(x)

    np.testing.assert_allclose(results[1], once @ head, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(results[0], (np.maximum(once @ d, 0) + x @ shared) @ shared, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [digits, nested])
def test_a_configuration_makes_the_same_model_again(make: Any) -> None:
    model = make()
    config = serialize(model)

    again = registry.deserialize(config)

    assert serialize(again) == config
    again.set_weights(model.get_weights())
    x = np.random.default_rng(0).normal(size=(2, *model.input_shape[1:])).astype("float32")
    for actual, expected in zip(as_list(again(x)), as_list(model(x)), strict=True):
        np.testing.assert_array_equal(actual, expected)


def test_a_part_of_a_model_is_a_model() -> None:
    model = digits()
    features = lpt.Model(model.inputs, model.get_layer("flatten").output)

    assert features(np.ones((2, 8, 8, 1))).shape == (2, 36)
    assert features.get_layer(index=1) is model.layers[0]


def test_get_layer_says_what_there_is() -> None:
    with pytest.raises(lpt.ArgumentError, match=r"expected one of \['conv2d', .*'dense'\], got 'dense_1'"):
        digits().get_layer("dense_1")


def test_summary_is_an_aligned_table() -> None:
    lines: list[str] = []
    digits().summary(print_fn=lines.append)
    text = "\n".join(lines)

    assert 'Model: "sequential"' in text
    assert "conv2d (Conv2D)" in text
    assert "(None, 6, 6, 4)" in text
    assert "Total params: 151 (604.00 B)" in text
    rows = [line for line in text.splitlines() if line.startswith("│")]
    assert len({len(row) for row in rows}) == 1
    lines.clear()
    nested().summary(print_fn=lines.append)
    assert "Connected to" in lines[0]


def test_a_sequential_without_a_shape_is_built_by_its_first_data() -> None:
    model = lpt.Sequential([lpt.Flatten(), lpt.Dense(2)])
    with pytest.raises(lpt.ArgumentError, match="has no weights yet"):
        model.trace()

    assert model.predict(np.ones((3, 2, 2)), verbose=0).shape == (3, 2)
    assert model.get_layer("dense").kernel.shape == (4, 2)


def test_pop_and_add_change_the_end_of_a_sequential() -> None:
    model = digits()
    model.pop()
    model.add(lpt.Dense(5, name="five"))

    assert model.output_shape == (None, 5)
    assert model(np.ones((1, 8, 8, 1))).shape == (1, 5)


def test_a_layer_that_does_not_fit_is_not_added() -> None:
    model = digits()
    with pytest.raises(lpt.ShapeError, match="layer 'late'"):
        model.add(lpt.Conv2D(2, 3, name="late"))

    assert len(model.layers) == 5
    assert model(np.ones((1, 8, 8, 1))).shape == (1, 3)


def test_inputs_of_every_kind_are_cast_to_the_declared_type() -> None:
    model = digits()
    x = np.random.default_rng(0).integers(0, 2, (4, 8, 8, 1))
    expected = model.predict(x.astype("float32"), verbose=0)
    read_only = x.astype("float32")
    read_only.flags.writeable = False
    strided = np.repeat(x, 2, axis=1)[:, ::2].astype("float64")

    for kind in (x, x.astype(bool), x.astype("uint8"), x.astype("float16"), strided, read_only, x[..., 0], x.tolist()):
        np.testing.assert_array_equal(model.predict(kind, verbose=0), expected)


def test_one_sample_without_a_batch_axis_is_a_batch_of_one() -> None:
    model, x = digits(), np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype("float32")

    np.testing.assert_array_equal(model.predict(x[1], verbose=0), model.predict(x[1:2], verbose=0))
    np.testing.assert_array_equal(model(x[1]), model(x[1:2]))


def test_an_empty_batch_has_an_empty_result() -> None:
    model = digits()

    for result in (model.predict(np.empty((0, 8, 8, 1)), verbose=0), model(np.empty((0, 8, 8, 1)))):
        assert result.shape == (0, 3)
        assert result.dtype == np.float32


def test_predict_gives_the_same_bits_in_batches_of_any_size() -> None:
    model, x = digits(), np.random.default_rng(0).normal(size=(10, 8, 8, 1)).astype("float32")
    whole = model.predict_on_batch(x)

    for size in (1, 3, 10, 32):
        np.testing.assert_array_equal(model.predict(x, batch_size=size, verbose=0), whole)


def test_inputs_come_as_a_list_or_by_name() -> None:
    a, b = lpt.Input((2,), name="a"), lpt.Input((3,), name="b")
    model = lpt.Model([a, b], lpt.Concatenate()([a, b]))
    x, y = np.ones((4, 2), "float32"), np.zeros((4, 3), "float32")

    expected = np.concatenate([x, y], axis=1)

    np.testing.assert_array_equal(model([x, y]), expected)
    np.testing.assert_array_equal(model.predict({"b": y, "a": x}, verbose=0), expected)
    with pytest.raises(lpt.ArgumentError, match=r"expected a dict with \['a', 'b'\], got \['a', 'c'\]"):
        model.predict({"a": x, "c": y})
    with pytest.raises(lpt.ShapeError, match=r"input 'b': expected shape \(N, 3\), got \(4, 2\)"):
        model([x, x])
    with pytest.raises(lpt.ShapeError, match=r"the same number of rows, got \[4, 2\]"):
        model([x, y[:2]])


def test_a_float64_model_computes_in_float64() -> None:
    model = lpt.Sequential([lpt.Dense(3, dtype="float64", input_shape=(2,)), lpt.Dense(2, activation="softmax")])
    x = np.random.default_rng(0).normal(size=(5, 2))
    kernel, bias, kernel2, bias2 = model.get_weights()
    logits = (x @ kernel + bias) @ kernel2 + bias2
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    assert [w.dtype for w in model.get_weights()] == [np.float64] * 4
    np.testing.assert_allclose(model.predict(x, verbose=0), expected, rtol=1e-13)
    model.compile("sgd", "sparse_categorical_crossentropy")
    before = model.evaluate(x, np.array([0, 1, 0, 1, 1]), verbose=0)
    assert model.train_on_batch(x, np.array([0, 1, 0, 1, 1])) == pytest.approx(before, rel=1e-12)


def test_a_float64_input_makes_a_float64_model() -> None:
    x = lpt.Input((2,), dtype="float64")
    model = lpt.Model(x, lpt.Dense(2)(x))

    assert model.get_layer(index=1).kernel.numpy().dtype == np.float64
    assert model(np.ones((1, 2))).dtype == np.float64


def test_an_integer_input_takes_integers_only() -> None:
    x = lpt.Input((2,), dtype="int32")
    model = lpt.Model(x, lpt.Reshape((2, 1))(x))

    assert model(np.array([[1.0, 2.0]])).dtype == np.int32
    with pytest.raises(lpt.ArgumentError, match=r"expected integers that int32 can hold, got 1.5 at \[0, 0\]"):
        model(np.array([[1.5, 2.0]]))


def test_a_layer_of_ones_own_is_traced_and_trained_but_not_saved(tmp_path: Path) -> None:
    class Scale(lpt.Layer):
        """x * factor"""

        def build(self, input_shape: Any) -> None:
            self.factor = self.add_weight("factor", (input_shape[-1],), "ones")

        def trace(self, t: Any, x: Any) -> Any:
            return t("multiply", x, t.along(t.weight(self.factor), x))

    model = lpt.Sequential([Scale(input_shape=(2,), name="scale")])
    model.compile(lpt.optimizers.SGD(0.5), "mse")
    x = np.array([[1.0, 2.0]])

    np.testing.assert_array_equal(model(x), x)
    model.train_on_batch(x, 3 * x)
    np.testing.assert_allclose(model.get_weights()[0], [2.0, 5.0])
    with pytest.raises(lpt.UnsupportedError, match="layer 'scale': a configuration can only hold"):
        model.save(tmp_path / "m")


def test_weights_that_change_are_seen_by_the_next_call() -> None:
    model = lpt.Sequential([lpt.Dense(1, input_shape=(1,), use_bias=False, name="d")])
    model.set_weights([np.array([[2.0]])])
    assert model(np.array([[3.0]])).item() == 6

    model.get_layer("d").kernel.assign([[5.0]])

    assert model(np.array([[3.0]])).item() == 15


def test_the_same_seed_gives_the_same_bits() -> None:
    def run(seed: int) -> list[np.ndarray]:
        naming.reset_names()  # the same graph, so that it is compiled once
        lpt.set_random_seed(seed)
        model = digits()
        model.compile("adam", "sparse_categorical_crossentropy")
        rng = np.random.default_rng(0)
        model.fit(rng.normal(size=(12, 8, 8, 1)), rng.integers(0, 3, 12), batch_size=5, epochs=2, verbose=0)
        return model.get_weights()

    first, second, other = run(3), run(3), run(4)

    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert not all((a == b).all() for a, b in zip(first, other, strict=True))


def test_calling_with_training_drops_and_moves_statistics() -> None:
    model = lpt.Sequential([lpt.BatchNormalization(input_shape=(50,), name="b"), lpt.Dropout(0.5)])
    model.compile("sgd", "mse")
    x = np.random.default_rng(0).normal(3, 1, (20, 50))
    plain = model(x)

    first, second = model(x, training=True), model(x, training=True)

    assert (plain != 0).all()
    assert 0.3 < (first == 0).mean() < 0.7
    assert ((first == 0) != (second == 0)).any()
    assert model.get_layer("b").moving_mean.numpy().mean() == pytest.approx(3 * (1 - 0.99**2), rel=0.1)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: lpt.Model(), r"expected Model\(inputs, outputs\)"),
        (lambda: lpt.Model(lpt.Input((2,)), np.ones(3)), "outputs: expected symbolic tensors"),
        (lambda: lpt.Model(lpt.Dense(2)(lpt.Input((2,))), lpt.Input((2,))), "inputs: expected tensors made by Input"),
        (lambda: lpt.Model(lpt.Input((2,), name="a"), lpt.Dense(2)(lpt.Input((2,), name="b"))), "needs the input 'b'"),
        (lambda: lpt.Sequential([lpt.Dense(2, name="d"), lpt.Dense(2, name="d")]), "two called 'd'"),
        (lambda: lpt.Sequential(["dense"]), "expected a layer, got 'dense'"),
        (lambda: lpt.Sequential([lpt.Dense(2), lpt.Input((3,), name="x")]), "expected the input 'x' before all other"),
        (lambda: lpt.Sequential(name="s", color=1), "Sequential has no argument 'color'"),
    ],
)
def test_a_model_that_makes_no_sense_is_refused(make: Any, message: str) -> None:
    with pytest.raises(lpt.ArgumentError, match=message):
        make()


def test_a_deep_model_needs_no_deep_recursion() -> None:
    x = y = lpt.Input((2,))
    for i in range(1500):
        y = lpt.Activation("relu", name=f"a{i}")(y)

    assert len(lpt.Model(x, y).layers) == 1501
