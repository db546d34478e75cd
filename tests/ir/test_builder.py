"""The builder: names, constants, broadcasting, layers, errors that name the layer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lepton_jit.errors import ArgumentError, GraphError, ShapeError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.expression import Expression, select
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.op import DECOMPOSED, NOT_DIFFERENTIABLE, Family, Op, Sample, register
from lepton_jit.ir.types import DTYPES, TensorType
from lepton_jit.ir.verifier import verify

pytestmark = pytest.mark.tiny

F32 = DTYPES["f32"]


def test_a_number_takes_the_dtype_of_the_last_tensor() -> None:
    b = Builder()
    p, x = b.input("p", TensorType.of("bool", 3)), b.input("x", TensorType.of("f64", 3))
    b.output(b("select", p, 1, x), "y")
    assert b.build().nodes[0].result.type == TensorType.of("f64")
    verify(b.build())


def test_a_number_as_the_scalar_of_pad() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", 2))
    b.output(b("pad", x, 7.0, low=(1,), high=(0,), interior=(0,)), "y")
    assert run_graph(b.build(), {"x": np.zeros(2, np.float32)})["y"].tolist() == [7, 0, 0]


def test_a_scalar_is_broadcast_in_elementwise_operations_only() -> None:
    b = Builder()
    x, s = b.input("x", TensorType.of("f32", "N", 3)), b.input("s", TensorType.of("f32"))
    assert b("add", s, x).type == x.type
    with pytest.raises(ShapeError):
        b("softmax_cross_entropy", x, s)


def test_numbers_alone_say_nothing_about_their_type() -> None:
    with pytest.raises(GraphError, match=r"use Builder\.constant"):
        Builder()("add", 1, 2)


def test_a_constant_out_of_range() -> None:
    with pytest.raises(ArgumentError, match="in the range of u8, got -1"):
        Builder().constant(-1, DTYPES["u8"])


def test_constants_keep_every_bit() -> None:
    b = Builder()
    values = np.array([0.1, -0.0, math.inf, 1e-45], np.float32)
    b.output(b.constant(values, F32), "y")
    assert run_graph(b.build(), {})["y"].tobytes() == values.tobytes()


def test_attributes_become_plain_numbers_in_tuples() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", 2, 3))
    b("transpose", x, permutation=[np.int64(1), np.int64(0)])
    permutation = b.build().nodes[0].attributes["permutation"]
    assert permutation == (1, 0)
    assert [type(d) for d in permutation] == [int, int]


def test_one_nan_equals_itself() -> None:
    def graph() -> object:
        b = Builder()
        b.output(b.constant(float("nan"), F32), "y")
        return b.build()

    assert graph() == graph()


def test_names_are_unique_and_readable() -> None:
    b = Builder()
    names = [b.input(name, TensorType.of("f32")).name for name in ("a/b", "a_b", "0", "", "a b")]
    names += [b("negate", b.constant(1, F32)).name for _ in range(2)]
    assert names[:5] == ["a_b", "a_b_2", "0", "value", "a_b_3"]
    assert len(set(names)) == len(names)
    with pytest.raises(GraphError, match="two inputs are called 'a/b'"):
        b.input("a/b", TensorType.of("f32"))


def test_layers_nest_and_errors_name_them() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", 3))
    with b.layer("features"), b.layer("conv2d_1"):
        b("negate", x)
        with b.layer("other", absolute=True):
            b("negate", x)
        with pytest.raises(ShapeError, match="layer 'features/conv2d_1': reshape: shape: expected 3 elements"):
            b("reshape", x, shape=(4,))
    assert [node.layer for node in b.build().nodes] == ["features/conv2d_1", "other"]


def test_expressions_read_like_formulas() -> None:
    b = Builder()
    x = Expression(b, b.input("x", TensorType.of("f32", 3)))
    y = select((x > 1.0)("or", x == 0.0), 2.0 - x / 4.0, -(1.0 / x) + 3.0 * x)
    b.output(y.value, "y")
    b.output(((x >= 2.0)("and", x != 4.0)("or", x < 1.0)("and", x <= 9.0)).value, "p")
    results = run_graph(b.build(), {"x": np.float32([0.0, 0.5, 4.0])})
    assert results["y"].tolist() == [2.0, -0.5, 1.0]
    assert results["p"].tolist() == [True, True, False]


def record(**changes: object) -> Op:
    rules = {"infer": lambda *_: (), "reference": lambda *_: (), "gradient": NOT_DIFFERENTIABLE}
    fields = {"name": "new", "operands": (), "attributes": {}, "family": Family.MOVEMENT, "samples": (Sample(()),)}
    return Op(**(fields | rules | changes))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("op", "message"),
    [
        (record(name="add"), "op add: registered twice"),
        (record(samples=()), "op new: a record needs samples"),
        (record(gradient=DECOMPOSED), "op new: the gradient of a decomposition that does not exist"),
        (record(family=Family.COMPOSITE), "op new: composites and only composites have a decomposition"),
    ],
)
def test_an_incomplete_record_fails_at_once(op: Op, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        register(op)
