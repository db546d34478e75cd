"""Lookups, sums into rows and checks: what fuses, what is written in place, and what bad numbers do."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from lepton_jit.codegen.generate import Generated
from lepton_jit.codegen.kernels.schedule_indexing import MOST_UPDATES, TOO_MANY, TOO_MANY_TEXT
from lepton_jit.codegen.program.lowered import Lowered
from lepton_jit.codegen.target import native_target
from lepton_jit.errors import OutOfRangeError, UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import DTYPES, TensorType
from lepton_jit.passes.gradient.autodiff import Autodiff
from tests.codegen.programs import differences, everywhere, fused, linked, run_loops, run_native, step_ops

TOKENS, WIDTH = 7, 20


def mean_of_rows(b: Builder, table: Value, numbers: Value) -> Value:
    checked = b("check_indices", numbers, low=0, high=table.type.shape[0] - 1)
    rows = b("take", table, checked, axis=0)
    return b("multiply", b("reduce", rows, dimensions=(1,), kind="add"), 1 / TOKENS)


@functools.cache
def inference(rows: int, dtype: str = "i32") -> tuple[Graph, Generated]:
    b = Builder()
    numbers = b.input("numbers", TensorType.of(dtype, "N", TOKENS))
    table = b.input("table", TensorType.of("f32", rows, WIDTH))
    b.output(mean_of_rows(b, table, numbers), "y")
    return b.build(), fused(b.build(), native_target())


@functools.cache
def training(rows: int, dtype: str = "i32") -> tuple[Graph, Generated]:
    """One step with momentum on loss = sum(mean of rows * weight), where a second input is checked as well."""
    b = Builder()
    numbers = b.input("numbers", TensorType.of(dtype, "N", TOKENS))
    labels = b.input("labels", TensorType.of("i32", "N"))
    weight = b.input("weight", TensorType.of("f32", "N", WIDTH))
    table = b.input("table", TensorType.of("f32", rows, WIDTH), "state")
    momentum = b.input("momentum", TensorType.of("f32", rows, WIDTH), "state")
    with b.layer("embedding"):
        loss = b("reduce", b("multiply", mean_of_rows(b, table, numbers), weight), dimensions=(0, 1), kind="add")
    moved = b("add", b("multiply", momentum, 0.5), b("gradient", loss, table))
    b.output(b("subtract", table, moved), "table", donates="table")
    b.output(moved, "momentum", donates="momentum")
    with b.layer("head"):
        b.output(b("check_indices", labels, low=0, high=3), "labels_again")
    b.output(loss, "loss")
    return b.build(), fused(b.build(), native_target())


def training_arrays(rows: int, numbers: np.ndarray) -> dict[str, np.ndarray]:
    random = np.random.default_rng(3)
    return {
        "numbers": numbers,
        "labels": np.zeros(len(numbers), np.int32),
        "weight": random.uniform(-1, 1, (len(numbers), WIDTH)).astype(np.float32),
        "table": random.uniform(-1, 1, (rows, WIDTH)).astype(np.float32),
        "momentum": random.uniform(-1, 1, (rows, WIDTH)).astype(np.float32),
    }


def some_numbers(rows: int, batch: int, dtype: str = "i32") -> np.ndarray:
    return np.random.default_rng(batch).integers(0, rows, (batch, TOKENS)).astype(DTYPES[dtype].numpy)


def test_a_mean_of_rows_is_one_kernel_and_stores_no_rows() -> None:
    graph, _ = inference(11)
    assert everywhere(graph, step_ops) == ["check_indices", "take+reduce+multiply"]
    assert everywhere(graph, Lowered.arena) == []


@pytest.mark.parametrize("dtype", ["i32", "i64", "u8"])
@pytest.mark.parametrize("rows", [1, 11])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_means_of_rows(batch: int, rows: int, dtype: str) -> None:
    graph, generated = inference(rows, dtype)
    table = np.random.default_rng(0).uniform(-1, 1, (rows, WIDTH)).astype(np.float32)
    arrays = {"numbers": some_numbers(rows, batch, dtype), "table": table}
    assert differences(run_native(generated, arrays), run_graph(graph, arrays)) == []


def test_the_gradient_is_never_stored_and_the_update_is_in_place() -> None:
    graph, _ = training(11)
    tables = everywhere(graph, lambda made: [b.name for b in made.buffers if b.elements == 11 * WIDTH])
    assert tables == ["table", "momentum"]
    ops = everywhere(graph, step_ops)
    assert {op for op in ops if "scatter_add" in op} == {"scatter_add+multiply+add+subtract"}


@pytest.mark.parametrize("dtype", ["i32", "i64", "u8"])
@pytest.mark.parametrize("rows", [1, 11, 200])
@pytest.mark.parametrize("batch", [0, 1, 9])
def test_training_steps(batch: int, rows: int, dtype: str) -> None:
    graph, generated = training(rows, dtype)
    arrays = training_arrays(rows, some_numbers(rows, batch, dtype))
    expected = run_graph(Autodiff().apply(graph), arrays)
    native = run_native(generated, arrays, threads=2)
    assert differences(native, expected) == []
    loops = run_loops(generated.lowered, arrays, {"N": batch})
    assert differences(loops, native, {"float32": 2e-7}) == []


def test_one_row_may_get_everything() -> None:
    graph, generated = training(11)
    arrays = training_arrays(11, np.full((40, TOKENS), 3, np.int32))
    assert differences(run_native(generated, arrays), run_graph(Autodiff().apply(graph), arrays)) == []


def test_the_same_bits_on_any_number_of_threads() -> None:
    arrays = training_arrays(200, some_numbers(200, 64))
    one, four = (run_native(training(200)[1], arrays, threads) for threads in (1, 4))
    assert {name: array.tobytes() for name, array in one.items()} == {name: a.tobytes() for name, a in four.items()}


def test_equal_numbers_are_added_in_their_order() -> None:
    b = Builder()
    updates = b.input("updates", TensorType.of("f32", 4))
    numbers = b.input("numbers", TensorType.of("i32", 4))
    b.output(b("scatter_add", updates, numbers, axis=0, size=2), "y")
    arrays = {"updates": np.array([1e8, 1, -1e8, 1], np.float32), "numbers": np.zeros(4, np.int32)}
    assert run_native(fused(b.build(), native_target()), arrays)["y"].tolist() == [1.0, 0.0]


def test_numbers_of_no_row_are_clamped() -> None:
    b = Builder()
    table = b.input("table", TensorType.of("f32", 3))
    numbers = b.input("numbers", TensorType.of("i64", 4))
    b.output(b("take", table, numbers, axis=0), "taken")
    b.output(b("scatter_add", b("convert", numbers, dtype=table.type.dtype), numbers, axis=0, size=3), "added")
    arrays = {"table": np.array([0, 1, 2], np.float32), "numbers": np.array([-(2**63), -1, 1, 2**62], np.int64)}
    found = run_native(fused(b.build(), native_target()), arrays)
    assert found["taken"].tolist() == [0.0, 0.0, 1.0, 2.0]
    assert found["added"].tolist() == [-(2.0**63), 1.0, 2.0**62]


# Checks


@pytest.mark.parametrize(
    ("name", "where", "number", "message"),
    [
        ("numbers", (2, 5), 11, "main: embedding: expected integers from 0 to 10, got 11 at [2, 5] of input 'numbers'"),
        ("numbers", (0, 0), -1, "main: embedding: expected integers from 0 to 10, got -1 at [0, 0] of input 'numbers'"),
        ("labels", (3,), 4, "main: head: expected integers from 0 to 3, got 4 at [3] of input 'labels'"),
    ],
)
def test_a_bad_number_is_an_error_before_any_weight_changes(name: str, where: tuple, number: int, message: str) -> None:
    generated = training(11)[1]
    arrays = training_arrays(11, some_numbers(11, 9))
    arrays[name][where] = number
    program = linked(generated)
    state = {p.name: arrays[p.name].copy() for p in program.manifest.params}
    with pytest.raises(OutOfRangeError) as caught:
        program(*(arrays[i.name] for i in program.manifest.inputs), parameters=program.bind(state))
    assert str(caught.value) == message
    assert isinstance(caught.value, IndexError)
    assert {n: a.tobytes() for n, a in state.items()} == {n: arrays[n].tobytes() for n in state}
    with pytest.raises(OutOfRangeError, match="report"):
        run_loops(generated.lowered, arrays, {"N": 9})


def test_the_first_of_many_bad_numbers_is_named_on_any_number_of_threads() -> None:
    b = Builder()
    b.output(b("check_indices", b.input("x", TensorType.of("i64", "N")), low=-3, high=2**40), "y")
    x = np.full(100_000, 2**40)
    x[70_001:] = -4
    for threads in (1, 4):
        with pytest.raises(OutOfRangeError, match=r"from -3 to 1099511627776, got -4 at \[70001\] of input 'x'"):
            linked(fused(b.build(), native_target()), threads)(x)


def test_converted_numbers_are_named_as_they_came() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", "N", 2))
    numbers = b("convert", x, dtype=DTYPES["i32"])
    b.output(b("check_indices", numbers, low=0, high=9), "y")
    b.output(b("add", numbers, 1), "z")
    with pytest.raises(OutOfRangeError, match=r"expected integers from 0 to 9, got 10.5 at \[1, 0\] of input 'x'"):
        linked(fused(b.build(), native_target()))(np.array([[0, 1], [10.5, 3]], np.float32))


def test_computed_numbers_are_checked_too() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("i32", "N"))
    b.output(b("check_indices", b("abs", x), low=0, high=9), "y")
    program = linked(fused(b.build(), native_target()))
    assert program(np.array([0, -9], np.int32))[0].tolist() == [0, 9]
    with pytest.raises(OutOfRangeError, match=r"expected integers from 0 to 9 \(at element 1\)"):
        program(np.array([0, -10], np.int32))


def test_positions_of_updates_are_32_bits() -> None:
    assert (TOO_MANY, TOO_MANY_TEXT) in training(11)[1].lowered.errors
    b = Builder()
    numbers = b("iota", dtype=DTYPES["i32"], shape=(MOST_UPDATES + 1,), dimension=0)
    b.output(b("scatter_add", numbers, numbers, axis=0, size=2), "y")
    with pytest.raises(UnsupportedError, match=f"scatter_add: {TOO_MANY_TEXT}, got {MOST_UPDATES + 1}"):
        fused(b.build(), native_target())
