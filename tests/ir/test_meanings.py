"""Corner cases that the samples do not reach: NaN, overflow, ties, padding, random bits, wrong operands."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from lepton_jit.errors import ArgumentError, DTypeError, GraphError, LeptonError, ShapeError, UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.op import OPS, Op, get_op
from lepton_jit.ir.ops.philox import philox
from lepton_jit.ir.types import DTYPES, Poly, TensorType

N = Poly.symbol("N")
NAN, INF = float("nan"), float("inf")


def run(op: str, *operands: object, dtype: str = "f32", **attributes: Any) -> np.ndarray:
    """The reference on operands of one dtype; arrays keep theirs."""
    arrays = [a if isinstance(a, np.ndarray) else np.array(a, DTYPES[dtype].numpy) for a in operands]
    (result,) = get_op(op).reference(arrays, attributes, {})
    return result


def type_of(op: str, *types: TensorType, **attributes: Any) -> TensorType:
    b = Builder()
    return b(op, *(b.input(f"x{i}", t) for i, t in enumerate(types)), **attributes).type


# Elementwise


def test_maximum_and_minimum_propagate_nan() -> None:
    for op in ("maximum", "minimum"):
        assert np.isnan(run(op, [NAN, 1.0, NAN], [1.0, NAN, NAN])).all()


def test_clamp_propagates_nan() -> None:
    np.testing.assert_array_equal(run("clamp", [0.0] * 3, [NAN, 5.0, -5.0], [1.0] * 3), np.float32([NAN, 1.0, 0.0]))


def test_integers_wrap() -> None:
    assert run("add", [127, -128], [1, -1], dtype="i8").tolist() == [-128, 127]
    assert run("multiply", [200], [2], dtype="u8").tolist() == [144]
    assert run("negate", [-128, 1], dtype="i8").tolist() == [-128, -1]
    assert run("abs", [-128], dtype="i8").tolist() == [-128]
    assert run("reduce", [100, 100], dtype="i8", dimensions=(0,), kind="add").tolist() == -56


def test_integer_division_goes_toward_zero() -> None:
    assert run("divide", [7, -7, 7, -7], [2, 2, -2, -2], dtype="i32").tolist() == [3, -3, -3, 3]
    assert run("remainder", [7, -7, 7, -7], [2, 2, -2, -2], dtype="i32").tolist() == [1, -1, 1, -1]


def test_integer_division_without_an_answer_does_not_fault() -> None:
    assert run("divide", [7, -128], [0, -1], dtype="i8").tolist() == [-1, -128]
    assert run("divide", [7], [0], dtype="u8").tolist() == [255]
    assert run("remainder", [7, -128], [0, -1], dtype="i8").tolist() == [7, 0]


@pytest.mark.parametrize(("narrow", "wide"), [("i8", "i32"), ("u8", "u32"), ("i16", "i32"), ("u16", "u32")])
def test_products_of_narrow_integers_have_sums_of_32_bits(narrow: str, wide: str) -> None:
    dims = {"lhs_batching": (), "rhs_batching": (), "lhs_contracting": (0,), "rhs_contracting": (0,)}
    product = run("dot_general", [100] * 64, [100] * 64, dtype=narrow, **dims)
    assert (product.tolist(), product.dtype) == (640_000, DTYPES[wide].numpy)
    x, k = np.full((1, 8, 1), 100, DTYPES[narrow].numpy), np.full((8, 1, 1), 100, DTYPES[narrow].numpy)
    specs = {"lhs_spec": (0, 2, 1), "rhs_spec": (2, 1, 0), "out_spec": (0, 2, 1), "window_reversal": (False,)}
    ones = dict.fromkeys(("strides", "lhs_dilation", "rhs_dilation"), (1,))
    groups = {"feature_group_count": 1, "batch_group_count": 1}
    image = run("convolution", x, k, padding=((0, 0),), **specs, **ones, **groups)
    assert (image.tolist(), image.dtype) == ([[[80_000]]], DTYPES[wide].numpy)


def test_float_division_by_zero() -> None:
    np.testing.assert_array_equal(run("divide", [1.0, -1.0, 0.0], [0.0] * 3), np.float32([INF, -INF, NAN]))


def test_shifts_of_all_bits_give_zero() -> None:
    assert run("shift_left", [1, 1, 1], [7, 8, -1], dtype="i8").tolist() == [-128, 0, 0]
    assert run("shift_right_logical", [-1, -1, -1], [1, 8, -1], dtype="i8").tolist() == [127, 0, 0]
    assert run("shift_left", [1], [63], dtype="u64").tolist() == [2**63]


def test_sign_keeps_zeros_and_nan() -> None:
    signs = run("sign", [-2.0, -0.0, 0.0, 3.0, NAN, -INF])
    np.testing.assert_array_equal(signs, np.float32([-1, 0, 0, 1, NAN, -1]))
    assert np.signbit(signs).tolist()[1:3] == [True, False]


def test_rounding_is_to_even() -> None:
    assert run("round_nearest_even", [0.5, 1.5, 2.5, -0.5]).tolist() == [0.0, 2.0, 2.0, -0.0]


def test_comparisons_with_nan() -> None:
    pairs = ([NAN, 1.0], [NAN, NAN])
    for direction, expected in {"EQ": False, "NE": True, "LT": False, "GE": False}.items():
        assert run("compare", *pairs, direction=direction).tolist() == [expected] * 2


@pytest.mark.parametrize(
    ("source", "target", "values", "expected"),
    [
        ("f32", "i8", [1.9, -1.9, 300.0, -300.0, NAN, INF, -INF], [1, -1, 127, -128, 0, 127, -128]),
        ("f32", "u8", [-1.0, 255.9, 256.0, NAN], [0, 255, 255, 0]),
        ("f32", "i32", [2.0**31, -(2.0**31), 2.0**31 - 128], [2**31 - 1, -(2**31), 2**31 - 128]),
        ("f64", "i64", [2.0**63, -(2.0**63), 1e300], [2**63 - 1, -(2**63), 2**63 - 1]),
        ("f32", "u64", [2.0**64, 2.0**63], [2**64 - 1, 2**63]),
        ("f32", "bool", [0.0, -0.0, NAN, 0.1], [False, False, True, True]),
        ("i32", "i8", [300, -129], [44, 127]),
        ("i8", "u32", [-1], [2**32 - 1]),
        ("f64", "f32", [1e300, 1 + 2.0**-30], [INF, 1.0]),
        ("i64", "f32", [2**24 + 1, 2**24 + 3], [2.0**24, 2.0**24 + 4]),
    ],
)
def test_conversions(source: str, target: str, values: list[float], expected: list[float]) -> None:
    (result,) = get_op("convert").reference([np.array(values, DTYPES[source].numpy)], {"dtype": DTYPES[target]}, {})
    assert result.dtype == DTYPES[target].numpy
    assert result.tolist() == expected


def test_activations_do_not_overflow() -> None:
    x = [-1e4, -100.0, 0.0, 100.0, 1e4]
    almost_zero, log_two = pytest.approx(0.0, abs=1e-40), pytest.approx(np.log(2.0))
    assert run("softplus", x).tolist() == [0.0, almost_zero, log_two, 100.0, 1e4]
    assert run("log_sigmoid", x).tolist() == [
        -1e4,
        -100.0,
        pytest.approx(-np.log(2)),
        pytest.approx(0.0, abs=1e-40),
        0.0,
    ]
    assert run("logistic", x).tolist() == [0.0, almost_zero, 0.5, 1.0, 1.0]
    assert run("softmax", [[1e4, 0.0], [-1e4, -1e4]], axis=-1).tolist() == [[1.0, 0.0], [0.5, 0.5]]
    assert run("log_softmax", [1e4, 0.0], axis=0).tolist() == [0.0, -1e4]
    assert run("sigmoid_cross_entropy", [1e4, -1e4], [0.0, 1.0]).tolist() == [1e4, 1e4]


# Reductions and windows


@pytest.mark.parametrize(
    ("kind", "dtype", "expected"),
    [
        ("add", "f32", 0.0),
        ("multiply", "f32", 1.0),
        ("maximum", "f32", -INF),
        ("minimum", "f64", INF),
        ("maximum", "i8", -128),
        ("minimum", "u8", 255),
        ("and", "bool", True),
        ("or", "bool", False),
        ("and", "i8", -1),
        ("and", "u8", 255),
    ],
)
def test_the_reduction_of_nothing_is_the_identity(kind: str, dtype: str, expected: object) -> None:
    assert run("reduce", np.zeros((0, 2), DTYPES[dtype].numpy), dimensions=(0,), kind=kind).tolist() == [expected] * 2


def test_argmax_takes_the_first_of_equal_ones_and_nan_before_all() -> None:
    x = [[1.0, 3.0, 3.0], [NAN, 1.0, NAN], [2.0, NAN, 9.0], [-INF, -INF, -INF]]
    assert run("argmax", x, axis=1).tolist() == [1, 0, 1, 0]


def test_padding_counts_as_the_identity_of_the_kind() -> None:
    window: dict[str, Any] = {"window": (2,), "strides": (1,), "padding": ((1, 1),), "dilation": (1,)}
    assert run("reduce_window", [-3.0, -1.0], kind="maximum", **window).tolist() == [-3.0, -1.0, -1.0]
    assert run("reduce_window", [-3.0, -1.0], kind="add", **window).tolist() == [-3.0, -4.0, -1.0]
    assert run("reduce_window", [3, 1], kind="minimum", dtype="i32", **window).tolist() == [3, 1, 1]


def test_select_and_scatter_takes_the_first_maximum_and_never_padding() -> None:
    window: dict[str, Any] = {"window": (2,), "strides": (1,), "padding": ((1, 0),)}
    assert run("select_and_scatter", [5.0, 5.0, 4.0], [1.0, 10.0, 100.0], **window).tolist() == [11.0, 100.0, 0.0]
    assert run("select_and_scatter", [-INF, -INF], [1.0, 10.0], **window).tolist() == [11.0, 0.0]
    assert run("select_and_scatter", [1.0, NAN, 2.0], [1.0, 10.0, 100.0], **window).tolist() == [1.0, 110.0, 0.0]


def test_average_pooling_does_not_count_padding() -> None:
    x = np.float32([2.0, 4.0, 6.0]).reshape(1, 3, 1)
    result = run("average_pool", x, window=(2,), strides=(2,), padding=((0, 1),))
    assert result.ravel().tolist() == [3.0, 6.0]


# Random bits


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers of Random123, philox4x32 with 10 rounds
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    c0, c1, c2, c3 = (np.uint64(c) for c in counter)
    assert tuple(int(w) for w in philox((c0, c1, c2, c3), key)) == expected


def bits(seed: int, step: int, stream: int, shape: tuple[int, ...]) -> np.ndarray:
    return run("rng_bit_generator", np.array(seed, np.uint64), np.array(step, np.int64), stream=stream, shape=shape)


def test_random_bits_are_keyed_by_seed_step_stream_and_element() -> None:
    seed, step, stream = (7 << 32) | 5, (1 << 40) | 3, 9
    expected = [int(philox((np.uint64(e), np.uint64(0), np.uint64(stream), np.uint64(3)), (5, 7))[0]) for e in range(6)]
    assert bits(seed, step, stream, (2, 3)).ravel().tolist() == expected
    assert bits(seed, step, stream, (6,)).tolist() == expected


def test_random_bits_differ_with_every_part_of_the_key() -> None:
    base = bits(1, 2, 3, (8,)).tolist()
    others = [bits(2, 2, 3, (8,)), bits(1 + 2**32, 2, 3, (8,)), bits(1, 3, 3, (8,)), bits(1, 2, 4, (8,))]
    assert all(other.tolist() != base for other in others)


def test_dropout_keeps_the_mean() -> None:
    x = np.ones(100_000, np.float32)
    y = run("dropout", x, np.array(3, np.uint64), np.array(0, np.int64), rate=0.25, stream=1)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert abs(float(y.mean()) - 1.0) < 0.01


# Type rules

F = TensorType.of


def use(op: str, *types: TensorType, **attributes: Any) -> Callable[[], TensorType]:
    return partial(type_of, op, *types, **attributes)


@pytest.mark.parametrize(
    ("rule", "error", "message"),
    [
        (use("add", F("f32", 3), F("f32", 4)), ShapeError, r"add: .*one type, got f32\[3\], f32\[4\]"),
        (use("add", F("f32", 3), F("f64", 3)), DTypeError, r"one type, got f32\[3\], f64\[3\]"),
        (use("add", F("f32", "N"), F("f32", "M")), ShapeError, "one type"),
        (use("add", F("bool", 3), F("bool", 3)), DTypeError, "expected a dtype float or signed or unsigned"),
        (use("add", F("f32", 3)), GraphError, r"expected the operands \(a, b\), got 1 of them"),
        (use("tanh", F("i32", 3)), DTypeError, r"expected a dtype float, got i32\[3\]"),
        (use("compare", F("f32"), F("f32"), direction="eq"), ArgumentError, 'one of "EQ"'),
        (use("select", F("f32", 3), F("f32", 3), F("f32", 3)), DTypeError, "predicate: expected a dtype bool"),
        (use("convert", F("f32"), dtype="i8"), ArgumentError, "dtype: expected a dtype, got 'i8'"),
        (use("bitcast_convert", F("f32"), dtype=DTYPES["f64"]), DTypeError, "of the width of f32"),
        (use("reshape", F("f32", "N", 4), shape=(N, 5)), ShapeError, r"4\*N elements"),
        (use("reshape", F("f32", 4)), ArgumentError, "got none called shape"),
        (use("transpose", F("f32", 2, 3), permutation=(0, 0)), ShapeError, "in some order"),
        (use("broadcast_in_dim", F("f32", 3), shape=(2, 4), dimensions=(1,)), ShapeError, "of 1 or of"),
        (use("slice", F("f32", 3), start=(0,), limit=(4,), strides=(1,)), ShapeError, "0 <= start <= limit"),
        (use("slice", F("f32", "N"), start=(0,), limit=(4,), strides=(1,)), ShapeError, "limit 4"),
        (use("slice", F("f32", "N"), start=(0,), limit=(N,), strides=(2,)), UnsupportedError, "stride of 2"),
        (use("slice", F("f32", 3), start=(0, 0), limit=(1,), strides=(1,)), ShapeError, "start: expected one"),
        (use("pad", F("f32", 3), F("f32"), low=(-2,), high=(-2,), interior=(0,)), ShapeError, "at least 0"),
        (use("pad", F("f32", "N"), F("f32"), low=(0,), high=(0,), interior=(1,)), UnsupportedError, "interior"),
        (use("pad", F("f32", 3), F("f64"), low=(0,), high=(0,), interior=(0,)), DTypeError, "value: expected f32"),
        (use("pad", F("f32", 3), F("f32", 1), low=(0,), high=(0,), interior=(0,)), ShapeError, "expected rank 0"),
        (use("concatenate", F("f32", 2, 3), F("f32", 3, 2), dimension=0), ShapeError, "differ in dimension 0 only"),
        (use("concatenate", dimension=0), GraphError, r"expected the operands \(first, \*rest\), got 0"),
        (use("reduce", F("f32", 3), dimensions=(1,), kind="add"), ShapeError, "from 0 to 0"),
        (use("reduce", F("f32", 3), dimensions=(0,), kind="and"), DTypeError, "signed or unsigned or bool"),
        (use("softmax", F("f32", 3), axis=1), ShapeError, "axis: expected one of"),
        (use("constant", value=(1, 2), dtype=DTYPES["i8"], shape=(3,)), ShapeError, "nested as"),
        (use("constant", value=300, dtype=DTYPES["i8"], shape=()), DTypeError, "a number of i8, got 300"),
        (use("constant", value=True, dtype=DTYPES["f32"], shape=()), DTypeError, "a number of f32, got True"),
        (use("dropout", F("f32", 3), F("u64"), F("i64"), rate=1.5, stream=0), ArgumentError, "rate: expected 0 to 1"),
        (use("rng_bit_generator", F("i64"), F("i64"), stream=0, shape=()), DTypeError, "seed: expected a dtype u64"),
        (use("sparse_softmax_cross_entropy", F("f32", "N", 9), F("f32", "N")), DTypeError, "labels"),
        (use("sparse_softmax_cross_entropy", F("f32", "N", 129), F("i8", "N")), DTypeError, "a dtype for 129 classes"),
        (use("softmax_cross_entropy", F("f32", "N", 9), F("f32", "N")), ShapeError, "one type"),
        (use("nonsense", F("f32")), UnsupportedError, "got 'nonsense'"),
        (use("gradient", F("f32", 3), F("f32")), ShapeError, "loss: expected rank 0"),
    ],
)  # fmt: skip
def test_a_wrong_use_says_what_is_wrong(rule: Callable[[], object], error: type[LeptonError], message: str) -> None:
    with pytest.raises(error, match=message):
        rule()


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.samples], ids=lambda op: op.name)
def test_every_op_refuses_attributes_that_are_not_its_own(op: Op) -> None:
    sample = op.samples[0]
    with pytest.raises(ArgumentError, match="nonsense"):
        op.infer(sample.operands, dict(sample.attributes) | {"nonsense": 1})
    for name in op.attributes:
        with pytest.raises(ArgumentError, match=f"{name}: expected"):
            op.infer(sample.operands, dict(sample.attributes) | {name: None})
        with pytest.raises(ArgumentError, match=f"got none called {name}"):
            op.infer(sample.operands, {n: v for n, v in sample.attributes.items() if n != name})


def _replaced(value: Any, leaf: object) -> list[Any]:
    """The attribute with each of its numbers, in turn, and each of its lists' ends replaced."""
    if isinstance(value, tuple):
        inside = [(*value[:i], new, *value[i + 1 :]) for i, v in enumerate(value) for new in _replaced(v, leaf)]
        return [*inside, value[:-1], (*value, leaf)]
    return [leaf]


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.samples], ids=lambda op: op.name)
@pytest.mark.parametrize("leaf", [0, -1, 2**70, N, -1 * N, 1.5, True, "add"], ids=str)
def test_type_rules_are_total(op: Op, leaf: object) -> None:
    """Whatever a text says, the answer is types or an error of ours."""
    for sample in op.samples:
        uses = [
            (sample.operands, sample.attributes | {n: new})
            for n, v in sample.attributes.items()
            for new in _replaced(v, leaf)
        ]
        if isinstance(leaf, (int, Poly)) and leaf is not True and leaf != -1:
            for i, type in enumerate(sample.operands):
                for shape in _replaced(type.shape, leaf):
                    operands = (*sample.operands[:i], type.with_shape(shape), *sample.operands[i + 1 :])
                    uses.append((operands, sample.attributes))
        for operands, attributes in uses:
            try:
                types = op.infer(operands, attributes)
            except LeptonError:
                continue
            assert all(isinstance(d, Poly) or d >= 0 for t in types for d in t.shape)
