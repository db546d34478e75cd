"""Whole programs: any batch, the same bits, and where values live."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import pytest

from lepton_jit.codegen.generate import Generated
from lepton_jit.codegen.loops.ir import Contract, walk
from lepton_jit.codegen.program.lowered import Lowered, Step
from lepton_jit.codegen.target import TARGETS, Target, native_target
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import DTYPES, Dim, Poly, TensorType
from lepton_jit.runtime.program import Program
from tests.codegen.models import SHAPES, arrays_of, convolution, dense, model, softmax
from tests.codegen.programs import (
    differences,
    everywhere,
    fused,
    linked,
    lowered,
    lowered_unfused,
    run_loops,
    run_native,
    step_ops,
    unfused,
)
from tests.levels import RUNNABLE, at_every_level, for_every_target, level

BATCHES = (0, 1, 7, 64)
TOLERANCE = {"float32": 1e-5}


@functools.cache
def generated(kind: str, target: Target) -> Generated:
    return fused(model(kind), target)


@functools.cache
def program(kind: str, threads: int) -> Program:
    return linked(generated(kind, native_target()), threads)


def result(kind: str, batch: int, threads: int = 1) -> np.ndarray:
    (y,) = program(kind, threads)(*arrays_of(model(kind), batch).values())
    return y


@pytest.mark.parametrize("kind", SHAPES)
def test_any_batch_runs(kind: str) -> None:
    for batch in BATCHES:
        expected = run_graph(model(kind), arrays_of(model(kind), batch))
        assert differences({"y": result(kind, batch)}, expected, TOLERANCE) == [], batch


@pytest.mark.parametrize("kind", SHAPES)
@at_every_level
def test_loops_and_native_code_agree_on_every_level(target: Target, kind: str) -> None:
    made = generated(kind, target)
    for batch in (1, 3):
        arrays = arrays_of(model(kind), batch)
        loops = run_loops(made.lowered, arrays, {"N": batch}, fused=target.name != "x86-64")
        assert differences(run_native(made, arrays), loops, {"float32": 3e-7}) == []


@pytest.mark.parametrize("kind", SHAPES)
def test_a_sample_has_the_same_bits_in_every_batch(kind: str) -> None:
    whole = result(kind, 64)
    assert [result(kind, batch).tobytes() for batch in (1, 7)] == [whole[:1].tobytes(), whole[:7].tobytes()]


@pytest.mark.parametrize("kind", SHAPES)
def test_a_sample_has_the_same_bits_on_any_number_of_threads(kind: str) -> None:
    assert result(kind, 64, threads=2).tobytes() == result(kind, 64, threads=1).tobytes()


def test_tails_of_every_length() -> None:
    """x * 2 + y for 0 to three vectors and one more, past the end of a block, and no further than the result."""
    b = Builder("tails")
    x, y = (b.input(name, TensorType.of("f32", "N")) for name in "xy")
    b.output(b("add", b("multiply", x, 2.0), y), "z")
    made = linked(fused(b.build(), native_target()), threads=2)
    for n in [*range(3 * native_target().lanes(32) + 2), 4095, 4096, 4097, 8191, 20001]:
        values = np.arange(n, dtype=np.float32)
        (z,) = made(values, -values)
        assert np.array_equal(z, values)


@pytest.mark.parametrize("columns", [1, 2, 15, 16, 17, 31, 32, 33, 65])
def test_products_of_every_width(columns: int) -> None:
    b = Builder("widths")
    x, w = b.input("x", TensorType.of("f32", "N", 7)), b.input("w", TensorType.of("f32", 7, columns))
    sums = {"lhs_contracting": (1,), "rhs_contracting": (0,), "lhs_batching": (), "rhs_batching": ()}
    b.output(b("relu", b("dot_general", x, w, **sums)), "y")
    made = linked(fused(b.build(), native_target()))
    rng = np.random.default_rng(columns)
    for batch in (1, 5, 13, 14, 15, 29):
        x, w = (rng.integers(-9, 9, shape).astype(np.float32) for shape in ((batch, 7), (7, columns)))
        assert np.array_equal(made(x, w)[0], np.maximum(x @ w, 0)), batch


@pytest.mark.parametrize(
    ("batch", "rows", "length", "columns"),
    [(0, 40, 40, 40), ("N", 0, 40, 40), ("N", 0, 0, 40), (2, 40, 40, 0), (2, 0, "K", 40), (2, 40, 0, 40)],
)
def test_products_without_elements(batch: int | str, rows: int, length: int | str, columns: int) -> None:
    """Empty results are computed by nothing, empty sums are 0; what is empty may be known or not."""
    b = Builder("empty")
    x = b.input("x", TensorType.of("f32", batch, rows, length))
    w = b.input("w", TensorType.of("f32", batch, length, columns))
    axes = {"lhs_contracting": (2,), "rhs_contracting": (1,), "lhs_batching": (0,), "rhs_batching": (0,)}
    b.output(b("add", b("dot_general", x, w, **axes), 1.0), "y")
    made = linked(fused(b.build(), native_target()))
    for size in (0, 3):
        slices, length_now = (size if isinstance(n, str) else n for n in (batch, length))
        x, w = np.ones((slices, rows, length_now), np.float32), np.ones((slices, length_now, columns), np.float32)
        (y,) = made(x, w)
        assert np.array_equal(y, x @ w + 1)


@at_every_level
def test_several_products_of_no_rows_are_nothing(target: Target) -> None:
    """Each is one iteration, however many rows there are; none could be shared out among no tiles."""
    b = Builder("products")
    x, w = b.input("x", TensorType.of("f32", 15, "N", 65)), b.input("w", TensorType.of("f32", 15, 65, 9))
    where = {"lhs_batching": (0,), "rhs_batching": (0,), "lhs_contracting": (2,), "rhs_contracting": (1,)}
    b.output(b("dot_general", x, w, **where), "y")
    program = linked(fused(b.build(), target), 2)
    for rows in (3, 0):
        (y,) = program(np.ones((15, rows, 65), np.float32), np.ones((15, 65, 9), np.float32))
        assert np.array_equal(y, np.full((15, rows, 9), 65, np.float32))


@at_every_level
def test_the_parts_of_a_long_sum_may_have_no_products(target: Target) -> None:
    """It is cut along the first index, and the batch may be the other one."""
    b = Builder("gradient")
    x, d = b.input("x", TensorType.of("f32", 65, 3, "N")), b.input("d", TensorType.of("f32", "N", 32, 65))
    where = {"lhs_batching": (), "rhs_batching": (), "lhs_contracting": (0, 2), "rhs_contracting": (2, 0)}
    b.output(b("dot_general", x, d, **where), "y")
    program = linked(fused(b.build(), target), 2)
    for count in (3, 0):
        (y,) = program(np.ones((65, 3, count), np.float32), np.ones((count, 32, 65), np.float32))
        assert np.array_equal(y, np.full((3, 32), 65 * count, np.float32))


@pytest.mark.parametrize("kind", ["add", "maximum"])
def test_what_follows_a_sum_over_leading_dimensions_may_repeat_its_operands(kind: str) -> None:
    """Dimensions that stay are one loop only where every operand behind the sum goes on as well (a fuzz found it)."""
    b = Builder("repeated")
    x, bias = b.input("x", TensorType.of("f32", "N", 6, 7, 4)), b.input("bias", TensorType.of("f32", 4))
    repeated = b("broadcast_in_dim", bias, shape=(7, 4), dimensions=(1,))
    b.output(b("add", b("reduce", x, dimensions=(0, 1), kind=kind), repeated), "y")
    made = linked(fused(b.build(), native_target()))
    x, bias = np.arange(3 * 6 * 7 * 4, dtype=np.float32).reshape(3, 6, 7, 4), np.arange(4, dtype=np.float32) * 1000
    expected = {"add": np.sum, "maximum": np.max}[kind](x, (0, 1)) + bias
    assert np.array_equal(made(x, bias)[0], expected)


def weight_gradient(b: Builder, x: Value, dy: Value) -> Value:
    """x^T @ dy: few results, and a sum over the batch."""
    return b("dot_general", x, dy, lhs_contracting=(0,), rhs_contracting=(0,), lhs_batching=(), rhs_batching=())


@pytest.mark.parametrize("rows", [64, 256])
def test_long_sums_of_any_length(rows: int) -> None:
    b = Builder("sums")
    length = rows * Poly.symbol("N")
    x, dy = (b.input(name, TensorType.of("f32", length, width)) for name, width in (("x", 9), ("dy", 20)))
    b.output(weight_gradient(b, x, dy), "dw")
    b.output(b("reduce", dy, dimensions=(0,), kind="add"), "db")
    made = [linked(fused(b.build(), native_target()), threads) for threads in (1, 2)]
    rng = np.random.default_rng(rows)
    for batch in (0, 1, 2, 3, 9, 31):
        x, dy = (rng.integers(-4, 4, (rows * batch, d)).astype(np.float32) for d in (9, 20))
        for one in made:
            dw, db = one(x, dy)
            assert np.array_equal(dw, x.T @ dy), batch
            assert np.array_equal(db, dy.sum(0)), batch


@pytest.mark.parametrize(("length", "columns"), [(4096, 10), (2500, 40)])
def test_a_long_sum_with_rows_of_the_batch_is_split_for_any_batch(length: int, columns: int) -> None:
    """Each part of the sum has as many blocks of rows as the batch needs."""
    b = Builder("rows")
    x, w = b.input("x", TensorType.of("f32", "N", length)), b.input("w", TensorType.of("f32", length, columns))
    sums = {"lhs_contracting": (1,), "rhs_contracting": (0,), "lhs_batching": (), "rhs_batching": ()}
    b.output(b("dot_general", x, w, **sums), "y")
    made = linked(fused(b.build(), native_target()), threads=2)
    rng = np.random.default_rng(length)
    for batch in (1, 3, 57, 64, 130):
        x, w = (rng.integers(-3, 3, shape).astype(np.float32) for shape in ((batch, length), (length, columns)))
        assert np.array_equal(made(x, w)[0], x @ w), batch


@pytest.mark.parametrize("length", [3000, 5000])
def test_a_long_sum_in_blocks_ends_with_its_epilogue(length: int) -> None:
    """The last block adds, scales and cuts off; the blocks before leave their sums in the result."""
    b = Builder("blocks")
    rows, columns = 49, 160
    x, w = b.input("x", TensorType.of("f32", rows, length)), b.input("w", TensorType.of("f32", length, columns))
    other = b.input("z", TensorType.of("f32", rows, columns))
    sums = {"lhs_contracting": (1,), "rhs_contracting": (0,), "lhs_batching": (), "rhs_batching": ()}
    y = b("add", b("dot_general", x, w, **sums), other)
    b.output(b("maximum", y, b("negate", y)), "y")
    # the left side is packed first
    assert everywhere(b.build(), step_ops) == ["pack", *["affine_contraction+add+negate+maximum"] * 2]
    made = linked(fused(b.build(), level(length)), threads=2)
    rng = np.random.default_rng(length)
    shapes = ((rows, length), (length, columns), (rows, columns))
    x, w, z = (rng.integers(-3, 3, shape).astype(np.float32) for shape in shapes)
    assert np.array_equal(made(x, w, z)[0], np.abs(x @ w + z))


@pytest.mark.parametrize(("rows", "length"), [("N", 200), (49, 200), ("N", 177), (140, 1024)])
def test_a_left_side_that_many_panels_read_is_packed(rows: int | str, length: int) -> None:
    """Whole tiles, the last of which is as low as what is left, or begins further back; fewer rows have lower ones."""
    b, columns = Builder("packed"), 1000
    x, w = b.input("x", TensorType.of("f32", rows, length)), b.input("w", TensorType.of("f32", length, columns))
    sums = {"lhs_contracting": (1,), "rhs_contracting": (0,), "lhs_batching": (), "rhs_batching": ()}
    b.output(b("negate", b("dot_general", x, w, **sums)), "y")
    assert everywhere(b.build(), step_ops)[-2:] == ["affine_contraction+negate"] * 2
    generated = fused(b.build(), native_target())
    made = [linked(generated, threads) for threads in (1, 2, 3)]
    rng = np.random.default_rng(length)
    w = rng.integers(-3, 3, (length, columns)).astype(np.float32)
    for count in (1, 2, 5, 13, 14, 15, 27, 28, 29, 57, 60, 63, 64, 65, 75, 96, 107, 113) if rows == "N" else (rows,):
        x = rng.integers(-3, 3, (int(count), length)).astype(np.float32)
        for program in made:
            assert np.array_equal(program(x, w)[0], -(x @ w)), count


@pytest.mark.parametrize(
    ("rows", "count", "threads"), [("N", 3, 2), ("N", 64, 2), ("N", 67, 2), ("N", 67, 3), (67, 67, 2)]
)
def test_threads_share_out_rows_or_panels(rows: int | str, count: int, threads: int) -> None:
    """Each element is computed by one iteration, whatever the number of threads; few rows are shared by panels."""
    b, length, columns = Builder("shared"), 65, 2040
    x, w = b.input("x", TensorType.of("f32", rows, length)), b.input("w", TensorType.of("f32", length, columns))
    sums = {"lhs_contracting": (1,), "rhs_contracting": (0,), "lhs_batching": (), "rhs_batching": ()}
    b.output(b("dot_general", x, w, **sums), "y")
    assert len(everywhere(b.build(), step_ops)) == 3  # packs of both sides, and the product
    made = lowered(b.build(), level(count + threads))
    rng = np.random.default_rng(length)
    x, w = (rng.integers(-3, 3, shape).astype(np.float32) for shape in ((count, length), (length, columns)))
    assert np.array_equal(run_loops(made, {"x": x, "w": w}, {"N": count}, threads=threads)["y"], x @ w)


@pytest.mark.parametrize("rows", [140, 256, 270])
def test_packed_left_sides_of_a_batch_do_not_touch(rows: int) -> None:
    """Tiles are packed four at a time: the last ones of a sample once lay where those of the next sample begin."""
    b, batch, length, columns = Builder("transposed"), 3, 64, 128
    x, w = (b.input(name, TensorType.of("f32", "N", length, n)) for name, n in (("x", rows), ("w", columns)))
    sums = {"lhs_batching": (0,), "rhs_batching": (0,), "lhs_contracting": (1,), "rhs_contracting": (1,)}
    b.output(b("dot_general", x, w, **sums), "y")
    assert everywhere(b.build(), step_ops) == ["pack | affine_contraction | affine_contraction"]
    made = fused(b.build(), level(rows))
    rng = np.random.default_rng(rows)
    x, w = (rng.integers(-3, 3, (batch, length, n)).astype(np.float32) for n in (rows, columns))
    expected = np.matmul(x.transpose(0, 2, 1), w)
    assert np.array_equal(run_loops(made.lowered, {"x": x, "w": w}, {"N": batch})["y"], expected)
    assert np.array_equal(linked(made, 2)(x, w)[0], expected)


def asked_ahead(made: Lowered) -> list[str]:
    """The buffers that tiles of a program ask for before they are due."""
    kernels = [launch.kernel for step in made.steps for launch in step.launches]
    contracts = [s for kernel in kernels for s in walk(kernel.body) if isinstance(s, Contract)]
    return sorted({s.ahead[0] for s in contracts if s.ahead})


@pytest.mark.parametrize(
    ("length", "columns", "expected"),
    [(128, 64, ["a0"]), (128, 96, ["a0"]), (128, 97, []), (100, 64, [])],
)
def test_tiles_ask_ahead_for_rows_that_few_panels_read(length: int, columns: int, expected: list[str]) -> None:
    b = Builder("ahead")
    x = b.input("x", TensorType.of("f32", 14 * 640, length))
    w = b.input("w", TensorType.of("f32", length, columns))
    sums = {"lhs_contracting": (1,), "rhs_contracting": (0,), "lhs_batching": (), "rhs_batching": ()}
    b.output(b("dot_general", x, w, **sums), "y")
    assert everywhere(b.build(), asked_ahead) == expected


@pytest.mark.parametrize(("count", "expected"), [("N", ["a0", "a2"]), (8, ["a0", "a2"]), (7, ["a1"])])
def test_tiles_of_a_product_a_sample_ask_ahead_for_both_sides(count: int | str, expected: list[str]) -> None:
    """Of the next product, as they lie in memory: a1 is the packed right side."""
    b = Builder("batched")
    x, w = (b.input(name, TensorType.of("f32", count, 256, 256)) for name in "xw")
    where = {"lhs_batching": (0,), "rhs_batching": (0,), "lhs_contracting": (2,), "rhs_contracting": (1,)}
    b.output(b("dot_general", x, w, **where), "y")
    assert everywhere(b.build(), asked_ahead) == expected
    made = fused(b.build(), native_target())
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-3, 3, (7 if count == 7 else 8, 256, 256)).astype(np.float32) for _ in "xw")
    assert np.array_equal(linked(made, 2)(x, w)[0], np.matmul(x, w))


def test_a_product_with_itself_asks_ahead_for_the_one_side_there_is() -> None:
    b = Builder("squares")
    x = b.input("x", TensorType.of("f32", "N", 256, 256))
    where = {"lhs_batching": (0,), "rhs_batching": (0,), "lhs_contracting": (2,), "rhs_contracting": (2,)}
    b.output(b("dot_general", x, x, **where), "y")
    assert everywhere(b.build(), asked_ahead) == ["a0"]
    made = fused(b.build(), native_target())
    x = np.random.default_rng(0).integers(-3, 3, (3, 256, 256)).astype(np.float32)
    assert np.array_equal(linked(made, 2)(x)[0], np.matmul(x, x.transpose(0, 2, 1)))


def test_lines_of_a_strided_convolution_are_packed() -> None:
    b, channels = Builder("strided"), 512
    x, w = (
        b.input("x", TensorType.of("f32", "N", 20, 20, channels)),
        b.input("w", TensorType.of("f32", 1, 1, channels, 512)),
    )
    where = {"lhs_spec": (0, 3, 1, 2), "rhs_spec": (3, 2, 0, 1), "out_spec": (0, 3, 1, 2), "strides": (2, 2)}
    plain = {
        "padding": ((0, 0),) * 2,
        "lhs_dilation": (1, 1),
        "rhs_dilation": (1, 1),
        "window_reversal": (False, False),
    }
    b.output(b("convolution", x, w, **where, **plain, feature_group_count=1, batch_group_count=1), "y")
    assert everywhere(b.build(), step_ops).count("affine_contraction") == 2
    made, rng = linked(fused(b.build(), native_target()), threads=2), np.random.default_rng(0)
    w = rng.integers(-3, 3, (1, 1, channels, 512)).astype(np.float32)
    for batch in (1, 3):
        x = rng.integers(-3, 3, (batch, 20, 20, channels)).astype(np.float32)
        assert np.array_equal(made(x, w)[0], x[:, ::2, ::2] @ w[0, 0]), batch


@at_every_level
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_a_transposed_right_side_is_packed_in_squares(target: Target, dtype: str) -> None:
    """Of every number of columns and products, those that fill no square included; zeros stand behind the last."""
    panel = target.lanes(8 * DTYPES[dtype].bytes) * target.tile_vectors
    b, arrays = Builder("packs"), {}
    for columns in (1, panel - 1, panel, 2 * panel + 3):
        for depth in (3, panel, panel + 5):
            name = f"x{columns}_{depth}"
            x = b.input(name, TensorType.of(dtype, 3, 2, columns, depth))
            arrays[name] = np.arange(6.0 * columns * depth, dtype=DTYPES[dtype].numpy).reshape(x.type.shape)
            attributes = {"batches": 1, "extents": (3, 2, depth), "strides": (2 * columns * depth, columns * depth, 1)}
            packed = b("pack", x, **attributes, column_stride=depth, columns=columns, offset=0, panel=panel)
            b.output(packed, f"y{columns}_{depth}")
    graph = b.build()
    expected, found = run_graph(graph, arrays), run_native(unfused(graph, target), arrays, threads=2)
    assert [name for name, array in expected.items() if not np.array_equal(found[name], array)] == []


@pytest.mark.parametrize("rows", [96, 131])
def test_the_left_side_of_a_weights_gradient_is_packed(rows: int) -> None:
    """Rows that lie side by side are copied, some tiles at a time; the last tile has the rows that there are."""
    b, columns = Builder("gradient"), 3000
    x, dy = b.input("x", TensorType.of("f32", "N", rows)), b.input("dy", TensorType.of("f32", "N", columns))
    sums = {"lhs_contracting": (0,), "rhs_contracting": (0,), "lhs_batching": (), "rhs_batching": ()}
    b.output(b("dot_general", x, dy, **sums), "dw")
    assert everywhere(b.build(), step_ops) == ["pack", *["affine_contraction"] * 2]
    made = linked(fused(b.build(), level(rows)), threads=2)
    rng = np.random.default_rng(rows)
    for batch in (1, 7, 300, 1000):
        x, dy = (rng.integers(-3, 3, (batch, width)).astype(np.float32) for width in (rows, columns))
        assert np.array_equal(made(x, dy)[0], x.T @ dy), batch


def test_one_row_times_large_weights_has_the_same_bits_in_either_direction() -> None:
    b = Builder("rows")
    x, w = b.input("x", TensorType.of("f32", "N", 784)), b.input("w", TensorType.of("f32", 784, 500))
    b.output(_product(b, x, w), "y")
    made = fused(b.build(), native_target())
    arrays = arrays_of(b.build(), 1)
    expected = run_graph(b.build(), arrays)["y"]
    loaded = linked(made, 1)

    results = [loaded(arrays["x"], arrays["w"])[0] for _ in range(4)]

    assert everywhere(b.build(), lambda made: made.steps[-1].launches[-1].kernel.turning) == Poly.symbol("N")
    assert {r.tobytes() for r in results} == {results[0].tobytes()}
    np.testing.assert_allclose(results[0], expected, rtol=1e-4, atol=1e-4)


# Two kernels, slice by slice of the batch


def test_a_reader_of_large_slices_runs_with_their_producer() -> None:
    b = Builder("pair")
    x = b.input("x", TensorType.of("f32", "N", 6, 9))
    y = b("slice", x, start=(0, 0, 1), limit=(*x.type.shape[:2], 9), strides=(1, 1, 1))
    b.output(y, "y")
    b.output(b("transpose", y, permutation=(0, 2, 1)), "z")
    assert everywhere(agree(b.build()), step_ops, lowered_unfused) == ["slice | transpose"]


def test_a_reader_that_overwrites_what_the_producer_still_reads_runs_alone() -> None:
    """Slice n of reverse(y) reads slice N - 1 - n of y, which the product would have replaced."""
    b = Builder("overwritten")
    y = b("exponential", b.input("x", TensorType.of("f32", "N", 4, 4)))
    z = b("multiply", y, b("reverse", y, dimensions=(0,)))
    b.output(b("negate", z), "z")
    agree(b.build())


@at_every_level
def test_products_of_a_batch_that_is_a_sum(target: Target) -> None:
    """Each slice's share of what lies between is the whole divided by N + 2."""
    b, many = Builder("sum"), Poly.symbol("N") + 2
    x, w = b.input("x", TensorType.of("f32", many, 4)), b.input("w", TensorType.of("f32", many, 4, 4))
    where = {"lhs_batching": (0,), "rhs_batching": (0,), "lhs_contracting": (1,), "rhs_contracting": (2,)}
    b.output(b("dot_general", x, w, **where), "y")
    rng = np.random.default_rng(0)
    arrays = {"x": rng.integers(-3, 3, (11, 4)).astype(np.float32)}
    arrays["w"] = rng.integers(-3, 3, (11, 4, 4)).astype(np.float32)
    assert differences(run_native(fused(b.build(), target), arrays, 2), run_graph(b.build(), arrays)) == []


BATCHED = [("N",), (16,), (9, 2), ("N", 3), (7,)]


def batched_products(batch: tuple[int | str, ...], transposed: bool) -> Graph:
    leading, rows, depth, columns = tuple(range(len(batch))), 40, 64, 131
    b = Builder("products")
    x = b.input("x", TensorType.of("f32", *batch, rows, depth))
    w = b.input("w", TensorType.of("f32", *batch, *((columns, depth) if transposed else (depth, columns))))
    where = {"lhs_batching": leading, "rhs_batching": leading, "lhs_contracting": (len(batch) + 1,)}
    b.output(b("dot_general", x, w, **where, rhs_contracting=(len(batch) + transposed,)), "y")
    return b.build()


@for_every_target
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("batch", BATCHED, ids=str)
def test_batched_products_run_product_by_product_with_their_packs(
    batch: tuple[int | str, ...], transposed: bool, target: Target
) -> None:
    """Where there are enough; a pack of each side and the products."""
    steps = lowered(batched_products(batch, transposed), target).steps
    assert [len(step.launches) for step in steps if isinstance(step, Step)] == ([1, 1] if batch == (7,) else [3])


@at_every_level
@pytest.mark.parametrize(("batch", "transposed"), [(("N",), True), ((9, 2), False), (("N", 3), True), ((7,), True)])
def test_batched_products_have_the_same_bits_on_any_number_of_threads(
    batch: tuple[int | str, ...], transposed: bool, target: Target
) -> None:
    graph = batched_products(batch, transposed)
    made = fused(graph, target)
    # The last one for the interpreter of loops, which takes its time.
    for count in (1, 9, 2) if "N" in batch else (1,):
        arrays = arrays_of(graph, count)
        expected = np.matmul(arrays["x"], np.swapaxes(arrays["w"], -1, -2) if transposed else arrays["w"])
        one, *several = (linked(made, threads)(*arrays.values())[0] for threads in (1, 2, 3))
        assert differences({"y": one}, {"y": expected}, {"float32": 1e-4}) == []
        assert {y.tobytes() for y in several} == {one.tobytes()}
    if target == level(len(batch)):
        found = run_loops(made.lowered, arrays, {"N": count}, fused=target.name != "x86-64")
        assert differences(found, {"y": expected}, {"float32": 1e-4}) == []


@for_every_target
@pytest.mark.parametrize("batch", ["N", 8])
@pytest.mark.parametrize("joins", [True, False])
def test_products_of_another_number_of_slices_run_alone(joins: bool, batch: int | str, target: Target) -> None:
    """[N, 2, ...] reshaped to [2 N, ...] has twice the slices: with those of the first, half of them were left out.

    The first result is packed as the right side of the second.
    """
    b, size = Builder("heads"), 36
    x, w, v = (b.input(name, TensorType.of("f32", batch, 2, size, size)) for name in "xwv")
    pairs, whole = (
        {"lhs_batching": d, "rhs_batching": d, "lhs_contracting": (len(d) + 1,), "rhs_contracting": (len(d),)}
        for d in ((0, 1), (0,))
    )

    def reshaped(y: Value, leading: tuple[Dim, ...]) -> Value:
        return b("reshape", y, shape=(*leading, size, size))

    apart, joined = x.type.shape[:2], (x.type.shape[0] * 2,)
    if joins:
        right = reshaped(b("dot_general", x, w, **pairs), joined)
        b.output(b("dot_general", reshaped(v, joined), right, **whole), "y")
    else:
        first = b("dot_general", reshaped(x, joined), reshaped(w, joined), **whole)
        b.output(b("dot_general", v, reshaped(first, apart), **pairs), "y")
    made = fused(b.build(), target)
    assert [step.op.split(" | ")[:2] for step in made.lowered.steps] == [["pack", "affine_contraction"]] * 2
    if target not in RUNNABLE:
        return
    for count in (8,) if batch == 8 else (3, 9):
        rng = np.random.default_rng(count)
        arrays = {n: rng.integers(-3, 3, (count, 2, size, size)).astype(np.float32) for n in "xwv"}
        product = np.matmul(arrays["v"], arrays["x"] @ arrays["w"])
        expected = {"y": product.reshape(-1, size, size) if joins else product}
        assert differences(run_native(made, arrays, threads=2), expected) == []
        if count == 3:
            assert differences(run_loops(made.lowered, arrays, {"N": count}), expected) == []


# Where values live


def states(*names: str) -> tuple[Builder, list[Value]]:
    b = Builder("states")
    return b, [b.input(name, TensorType.of("f32", 5, 5), "state") for name in names]


def kinds(made: Lowered) -> list[str]:
    """What the buffers of all steps are."""
    launches = [launch for step in made.steps for launch in step.launches]
    return [made.buffers[number].kind for launch in launches for number in launch.buffers]


def agree(graph: Graph, make: Callable[[Graph, Target], Generated] = unfused) -> Graph:
    """The graph, whose program gives what its interpreter gives."""
    made = make(graph, native_target())
    for batch in (4, 9):  # few samples, and enough to run two kernels slice by slice
        arrays = arrays_of(graph, batch)
        expected = run_graph(graph, arrays)
        assert differences(run_native(made, arrays, threads=2), expected) == []
        assert differences(run_loops(made.lowered, arrays, {"N": batch}), expected) == []
    return graph


def test_a_donated_state_is_updated_in_place() -> None:
    b, (w,) = states("w")
    b.output(b("subtract", w, b.input("g", w.type)), "w", donates="w")
    assert everywhere(agree(b.build()), kinds, lowered_unfused) == ["state", "input", "state"]


def test_a_state_that_is_still_read_is_overwritten_last() -> None:
    b, (w,) = states("w")
    b.output(b("negate", w), "w", donates="w")
    b.output(b("exponential", w), "y")
    assert everywhere(agree(b.build()), kinds, lowered_unfused) == [
        "state",
        "arena",
        "state",
        "output",
        "arena",
        "state",
    ]


@pytest.mark.parametrize("size", [4096, 4099, 8195])
def test_each_element_of_a_long_state_is_updated_once(size: int) -> None:
    """Blocks of 4,096 elements: the rest behind the last full vector belongs to the last block alone."""
    b = Builder("long")
    s = b.input("s", TensorType.of("f32", size), "state")
    b.output(b("multiply", s, 3.0), "s", donates="s")
    made = fused(b.build(), native_target())
    values = {"s": np.arange(size, dtype=np.float32)}
    for found in (run_native(made, values), run_loops(made.lowered, values, {})):
        assert np.array_equal(found["s"], 3 * values["s"])


def test_a_state_whose_elements_change_places_is_not_updated_in_place() -> None:
    b, (w,) = states("w")
    b.output(b("transpose", w, permutation=(1, 0)), "w", donates="w")
    assert everywhere(agree(b.build()), kinds, lowered_unfused) == ["state", "arena", "arena", "state"]


def test_a_state_of_rows_is_normalized_in_place() -> None:
    """A row is read to its end before it is written."""
    b, (w,) = states("w")
    b.output(softmax(b, w), "w", donates="w")
    assert everywhere(agree(b.build(), fused), kinds) == ["state", "state"]


def test_a_state_whose_rows_change_places_is_not_normalized_in_place() -> None:
    b, (w,) = states("w")
    b.output(softmax(b, b("reverse", w, dimensions=(0,))), "w", donates="w")
    assert everywhere(agree(b.build(), fused), kinds)[:2] == ["state", "arena"]


def copies_of_left_sides(made: Lowered) -> int:
    contractions = [step for step in made.steps if step.op == "affine_contraction"]
    return sum(not step.launches[0].kernel.flops for step in contractions)


@pytest.mark.parametrize(("between", "expected"), [(False, 1), (True, 2)])
def test_products_of_one_left_side_share_its_copy(between: bool, expected: int) -> None:
    """Queries, keys and values. What is overwritten between two of them is another value."""
    b, length, columns = Builder("copies"), 400, 400
    x = b.input("x", TensorType.of("f32", 64, length), "state")
    sums = {"lhs_contracting": (1,), "rhs_contracting": (0,), "lhs_batching": (), "rhs_batching": ()}
    first = b("dot_general", x, b.input("v", TensorType.of("f32", length, columns)), **sums)
    later = b("add", x, 1.0) if between else x
    b.output(first, "a")
    b.output(b("dot_general", later, b.input("w", TensorType.of("f32", length, columns)), **sums), "b")
    if between:
        b.output(later, "x", donates="x")
    graph = b.build()
    assert everywhere(graph, copies_of_left_sides) == expected
    made = fused(graph, native_target())
    rng = np.random.default_rng(0)
    arrays = {e.name: rng.integers(-3, 3, e.value.type.shape).astype(np.float32) for e in graph.inputs}
    assert differences(run_native(made, arrays, threads=2), run_graph(graph, arrays)) == []


def test_states_may_change_places() -> None:
    b, (v, w) = states("v", "w")
    b.output(w, "v", donates="v")
    b.output(v, "w", donates="w")
    agree(b.build())


def test_three_states_go_round() -> None:
    b, (u, v, w) = states("u", "v", "w")
    b.output(v, "u", donates="u")
    b.output(w, "v", donates="v")
    b.output(u, "w", donates="w")
    agree(b.build())


def test_a_state_is_overwritten_by_what_another_state_held() -> None:
    b, (v, w) = states("v", "w")
    b.output(b("add", v, 1.0), "v", donates="v")
    b.output(v, "w", donates="w")
    b.output(w, "old")
    agree(b.build())


def test_one_value_for_two_states() -> None:
    b, (v, w) = states("v", "w")
    total = b("add", v, w)
    b.output(total, "v", donates="v")
    b.output(total, "w", donates="w")
    b.output(total, "sum")
    agree(b.build())


def test_a_dying_operand_is_replaced_by_the_result() -> None:
    b = Builder("chain")
    x = b.input("x", TensorType.of("f32", "N", 5))
    value = b("exponential", x)
    for _ in range(3):
        value = b("tanh", value)
    b.output(b("reduce", value, dimensions=(1,), kind="add"), "y")
    assert everywhere(agree(b.build()), lambda made: len(made.arena()), lowered_unfused) == 1


def test_an_operand_that_is_read_again_stays() -> None:
    b = Builder("kept")
    x = b.input("x", TensorType.of("f32", "N", 5))
    once = b("exponential", x)
    twice = b("tanh", once)
    b.output(b("add", b("negate", twice), once), "y")
    agree(b.build())


def test_an_operand_that_two_indices_read_is_not_replaced() -> None:
    """flip(y) + y, as one kernel, reads elements that an update in place would have written."""
    b = Builder("flip")
    y = b("exponential", b.input("x", TensorType.of("f32", 6, 6)))
    b.output(b("add", b("reverse", y, dimensions=(0,)), y), "z")
    b.output(b("reduce", y, dimensions=(0,), kind="add"), "w")
    agree(b.build(), fused)


def test_an_output_may_be_an_input() -> None:
    b = Builder("same")
    b.output(b.input("x", TensorType.of("f32", "N", 3)), "y")
    agree(b.build())


def test_a_value_may_leave_twice() -> None:
    b = Builder("twice")
    y = b("exponential", b.input("x", TensorType.of("f32", "N", 3)))
    b.output(y, "first")
    b.output(y, "second")
    agree(b.build())


def test_a_constant_and_a_reshaped_input_may_leave() -> None:
    b = Builder("odd")
    x = b.input("x", TensorType.of("f32", "N", 6))
    b.output(b("reshape", x, shape=(*x.type.shape[:1], 2, 3)), "reshaped")
    b.output(b.constant(np.arange(4, dtype=np.float32), x.type.dtype), "table")
    b.output(b.constant(1.5, x.type.dtype), "number")
    agree(b.build())


def test_a_program_without_steps_runs() -> None:
    b = Builder("nothing")
    b.input("x", TensorType.of("f32", "N"))
    assert run_native(unfused(b.build(), native_target()), {"x": np.zeros(2, np.float32)}) == {}


# AArch64, which this machine may not run


def test_aarch64_is_compiled_to_vector_multiply_adds() -> None:
    b = Builder("arm")
    x = b.input("x", TensorType.of("f32", "N", *SHAPES["convolution"]))
    images = convolution(b, x)
    b.output(images, "images")
    b.output(softmax(b, dense(b, b.input("rows", TensorType.of("f32", "N", *SHAPES["dense"])))), "probabilities")
    made = fused(b.build(), TARGETS["aarch64"])
    assembly = made.assembly()
    ops = "+".join(step.op for step in made.lowered.steps)
    assert ("affine_contraction" in ops, "reduce" in ops) == (True, True)
    assert assembly.count("\tfmla\tv") > 100
    assert [line for line in assembly.splitlines() if "\tbl\texp" in line or "\tbl\ttanh" in line] == []
    # ELF, 64 bits, little-endian, machine 183
    header = made.objects()[0][:20]
    assert (header[:6], int.from_bytes(header[18:20], "little")) == (b"\x7fELF\x02\x01", 183)


def _product(b: Builder, lhs: Value, rhs: Value) -> Value:
    return b("dot_general", lhs, rhs, lhs_batching=(), rhs_batching=(), lhs_contracting=(1,), rhs_contracting=(0,))


def test_a_product_that_is_read_as_integers_is_stored_first() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", "N", 5))
    w = b.input("w", TensorType.of("f32", 5, 4))
    b.output(b("convert", _product(b, x, w), dtype=DTYPES["u64"]), "y")
    arrays = {"x": np.arange(15, dtype=np.float32).reshape(3, 5), "w": np.eye(5, 4, dtype=np.float32)}
    assert run_native(fused(b.build(), native_target()), arrays)["y"].tolist() == arrays["x"][:, :4].tolist()


def test_a_repeated_row_is_a_side_of_a_product_with_an_epilogue() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", 1, 2, 5))
    row = b.broadcast(b.input("row", TensorType.of("f32", 6)), (1, 2, 6), (2,))
    y = b("dot_general", x, row, lhs_batching=(), rhs_batching=(), lhs_contracting=(0, 1), rhs_contracting=(0, 1))
    b.output(b("multiply", y, y), "y")
    arrays = {"x": np.arange(10, dtype=np.float32).reshape(1, 2, 5), "row": np.arange(6, dtype=np.float32)}
    assert differences(run_native(fused(b.build(), native_target()), arrays), run_graph(b.build(), arrays)) == []


# Results side by side


@pytest.mark.parametrize("width", [1, 2, 5, 16, 40])
def test_what_stands_side_by_side_is_computed_by_one_kernel(width: int) -> None:
    b = Builder("parts")
    x, y = (b.input(name, TensorType.of("f32", "N", width)) for name in "xy")
    total = b("add", x, y)
    b.output(b("concatenate", b("negate", x), total, b("multiply", total, y), total, dimension=1), "z")
    b.output(total, "t")
    assert len(everywhere(agree(b.build(), fused), step_ops)) == 1 or width == 1


def test_a_program_in_many_parts_is_the_same_program(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generated("convolution", native_target())
    monkeypatch.setattr("lepton_jit.codegen.llvm.module_parts.PART_CHARACTERS", 1)
    cut = fused(model("convolution"), native_target())
    assert (len(whole.parts), len(cut.parts) > 1) == (1, True)
    assert cut.llvm == whole.llvm
    (y,) = linked(cut)(*arrays_of(model("convolution"), 3).values())
    assert y.tobytes() == result("convolution", 3).tobytes()
