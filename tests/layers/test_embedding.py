"""Embedding: row numbers of every type reach their rows unchanged, or are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt

INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")


def numbered(rows: int, *before: Any) -> Any:
    """A Sequential whose table has its row numbers in its only column."""
    words = lpt.Embedding(rows, 1, embeddings_initializer="zeros", name="words")
    model = lpt.Sequential([*before, words])
    model.build((None, 1))
    words.embeddings.assign(np.arange(rows)[:, None])
    return model


@pytest.fixture(scope="module")
def large() -> Any:
    """More rows than float32 can count, told apart by the last digit; no input is declared."""
    words = lpt.Embedding(2**24 + 8, 1, embeddings_initializer="zeros")
    model = lpt.Sequential([words])
    model.build((None, 1))
    words.embeddings.array[-8:, 0] = np.arange(8)
    return model


@pytest.mark.parametrize("dtype", ["int32", "uint32", "int64", "uint64", "float64"])
def test_row_numbers_beyond_float32_reach_their_rows(large: Any, dtype: str) -> None:
    rows = (2**24 + np.arange(6)).astype(dtype)[:, None]

    for results in (large.predict(rows, verbose=0), large(rows), lpt.compile(large)(rows)):
        np.testing.assert_array_equal(results.ravel(), np.arange(6))


def test_a_gradient_reaches_the_row_beyond_float32(large: Any) -> None:
    table = large.layers[0].embeddings.array
    before = table[-8:].copy()
    large.compile(lpt.optimizers.SGD(0.5), "mse")

    large.train_on_batch(np.array([[2**24 + 5]]), np.zeros((1, 1, 1)))

    assert (np.flatnonzero(table[-8:] != before)).tolist() == [5]


@pytest.mark.parametrize("before", [[], [lpt.Flatten()], [lpt.Sequential([lpt.Reshape((1,))])]], ids=str)
def test_an_input_that_nobody_declares_has_integers_where_rows_are_looked_up(before: list[Any]) -> None:
    model = lpt.Sequential([*before, lpt.Embedding(9, 2)])
    model.predict(np.array([[3]]), verbose=0)

    assert model.inputs[0].dtype == "int32"


def test_other_inputs_that_nobody_declares_have_floats() -> None:
    dense, double = lpt.Sequential([lpt.Flatten(), lpt.Dense(1)]), lpt.Sequential([lpt.Dense(1, dtype="float64")])
    for model in (dense, double):
        model.predict(np.array([[3]]), verbose=0)

    assert (dense.inputs[0].dtype, double.inputs[0].dtype) == ("float32", "float64")


@pytest.mark.parametrize("dtype", [*INTEGERS, "bool", "float32", "float64"])
def test_a_table_of_300_rows_takes_an_input_of_any_type(dtype: str) -> None:
    model = numbered(300, lpt.Input((1,), dtype=dtype))
    largest = {"bool": 1, "float32": 299, "float64": 299}.get(dtype) or np.iinfo(dtype).max
    rows = np.array([[n] for n in (0, 1, 127, 255, 299) if n <= largest])

    for given in (rows, rows.astype(dtype)):
        np.testing.assert_array_equal(model.predict(given, verbose=0).ravel(), rows.ravel())
        np.testing.assert_array_equal(lpt.compile(model)(given).ravel(), rows.ravel())


@pytest.mark.parametrize("dtype", INTEGERS)
def test_a_row_that_is_not_there_is_named_for_every_type_that_can_name_it(dtype: str) -> None:
    model = numbered(100, lpt.Input((1,), dtype=dtype))
    numbers = [100, np.iinfo(dtype).max, *([-1, np.iinfo(dtype).min] if dtype.startswith("i") else [])]

    for number in numbers:
        with pytest.raises(lpt.OutOfRangeError, match=rf"expected integers from 0 to 99, got {number} at \[1, 0\]"):
            model(np.array([[5], [number]], dtype))


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf, 100.0, -1.0, 3e9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_float_that_is_no_row_is_named(number: float, dtype: str) -> None:
    model = numbered(100, lpt.Input((1,), dtype=dtype))

    with pytest.raises(lpt.OutOfRangeError, match=rf"from 0 to 99, got {number} at \[1, 0\] of input 'input'"):
        model(np.array([[5], [number]], dtype))


def test_floats_that_cannot_tell_the_rows_apart_are_refused() -> None:
    lpt.Sequential([lpt.Input((1,)), lpt.Embedding(2**24, 1)])
    with pytest.raises(lpt.DTypeError, match=r"f32, which cannot tell 16777217 rows apart; .* Input\(..., dtype='int3"):
        lpt.Sequential([lpt.Input((1,)), lpt.Embedding(2**24 + 1, 1)])


@pytest.mark.parametrize(
    "rows, message",
    [
        (np.array([[1], [2**32 + 1]]), r"got 4294967297 at \[1, 0\]"),
        (np.array([[2**63]], "uint64"), r"got 9223372036854775808 at \[0, 0\]"),
        (np.array([[np.nan]]), r"got nan at \[0, 0\]"),
        (np.array([[-np.inf]]), r"got -inf at \[0, 0\]"),
        (np.array([[2.0**31]], "float32"), r"got 2147483648.0 at \[0, 0\]"),
        (np.array([[0.5]]), r"got 0.5 at \[0, 0\]"),
    ],
)
def test_a_value_that_the_declared_type_cannot_hold_is_named_and_not_wrapped(rows: np.ndarray, message: str) -> None:
    model = numbered(100)
    model.compile("sgd", "mse")

    for run in (model, lambda x: model.predict(x, verbose=0), lambda x: model.fit(x, np.zeros((len(x), 1, 1)))):
        with pytest.raises(lpt.ArgumentError, match=f"expected integers that int32 can hold, {message}"):
            run(rows)


def test_passes_are_verified_on_a_table_that_takes_floats() -> None:
    lpt.compile(numbered(10, lpt.Input((1,))), verify="passes")
