"""Convolutions and products in random configurations: type rule, reference and gradient against JAX."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from lepton_jit.errors import ArgumentError, ShapeError, UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.op import OPS, Sample
from lepton_jit.ir.types import TensorType
from tests.ir.cases import Case, gradient_graph, run
from tests.ir.jax_ops import JAX, run_all

CONFIGURATIONS = 24


def random_convolution(random: np.random.Generator) -> Sample:
    def pick(low: int, high: int) -> int:
        return int(random.integers(low, high + 1))

    def permutation(rank: int) -> tuple[int, ...]:
        return tuple(int(d) for d in random.permutation(rank))

    spatial = pick(1, 2)
    by_feature, by_batch = [(1, 1), (pick(1, 3), 1), (1, pick(1, 3))][pick(0, 2)]
    in_features = pick(1, 3)
    out_features = by_feature * by_batch * pick(1, 2)
    rank = spatial + 2
    specs = {name: permutation(rank) for name in ("lhs_spec", "rhs_spec", "out_spec")}
    window = [pick(1, 3) for _ in range(spatial)]
    x = _placed(specs["lhs_spec"], [by_batch * pick(1, 2), by_feature * in_features, *(pick(7, 9) for _ in window)])
    k = _placed(specs["rhs_spec"], [out_features, in_features, *window])
    attributes = specs | {
        "strides": tuple(pick(1, 3) for _ in window),
        "padding": tuple((pick(-1, 3), pick(-1, 3)) for _ in window),
        "lhs_dilation": tuple(pick(1, 2) for _ in window),
        "rhs_dilation": tuple(pick(1, 2) for _ in window),
        "window_reversal": tuple(bool(pick(0, 1)) for _ in window),
        "feature_group_count": by_feature,
        "batch_group_count": by_batch,
    }
    return Sample((TensorType.of("f64", *x), TensorType.of("f64", *k)), attributes)


def random_product(random: np.random.Generator) -> Sample:
    batch, summed, rows, columns = (int(random.integers(0, 3)) for _ in range(4))
    counts = zip("bsrc", (batch, summed, rows, columns), strict=True)
    names = [[f"{kind}{i}" for i in range(count)] for kind, count in counts]
    size = {name: int(random.integers(1, 4)) for group in names for name in group}
    lhs = list(random.permutation(names[0] + names[1] + names[2]))
    rhs = list(random.permutation(names[0] + names[1] + names[3]))
    attributes = {
        f"{side}_{kind}": tuple(dims.index(name) for name in group)
        for side, dims in (("lhs", lhs), ("rhs", rhs))
        for kind, group in (("batching", names[0]), ("contracting", names[1]))
    }
    return Sample(tuple(TensorType.of("f64", *(size[n] for n in dims)) for dims in (lhs, rhs)), attributes)


def _placed(spec: Sequence[int], sizes: Sequence[int]) -> list[int]:
    shape = [0] * len(spec)
    for dimension, size in zip(spec, sizes, strict=True):
        shape[dimension] = size
    return shape


def _value_and_gradient(op: str, case: Case) -> Callable[..., object]:
    function = partial(JAX[op], **case.sample.attributes)

    def both(x: Any, k: Any, dy: Any) -> object:
        y, pull = jax.vjp(function, x, k)
        return (y, *pull(dy))

    return both


@pytest.mark.parametrize(("op", "make"), [("convolution", random_convolution), ("dot_general", random_product)])
def test_random_configurations_agree_with_jax(op: str, make: Callable[[np.random.Generator], Sample]) -> None:
    random = np.random.default_rng(2024)
    samples = [Case(OPS[op], make(random)) for _ in range(CONFIGURATIONS)]
    given = []
    for case in samples:
        result = case.graph().nodes[0].result.type
        given.append([*case.arrays(), random.uniform(-1.0, 1.0, result.shape)])
    theirs = run_all([_value_and_gradient(op, case) for case in samples], given)
    for case, (x, k, dy), expected in zip(samples, given, theirs, strict=True):
        y = run(case.graph(), {"x0": x, "x1": k})["y0"]
        gradient = run(gradient_graph(case.graph(), [True]), {"x0": x, "x1": k, "dy0": dy})
        for ours, array in zip((y, gradient["dx0"], gradient["dx1"]), expected, strict=True):
            np.testing.assert_allclose(ours, array, rtol=0, atol=1e-11, err_msg=repr(case.sample))


def convolution(x: TensorType, k: TensorType, **changes: Any) -> TensorType:
    """The type of a convolution of channels-last images, with `changes`."""
    attributes = dict(OPS["convolution"].samples[0].attributes) | changes
    return Case(OPS["convolution"], Sample((x, k), attributes)).graph().nodes[0].result.type


IMAGES, KERNEL = TensorType.of("f32", "N", 8, 8, 4), TensorType.of("f32", 3, 3, 4, 6)


def test_the_batch_may_be_symbolic() -> None:
    assert convolution(IMAGES, KERNEL) == TensorType.of("f32", "N", 6, 6, 6)


def test_a_symbolic_image_is_not_supported() -> None:
    with pytest.raises(UnsupportedError, match="window of 3 over the symbolic dimension H"):
        convolution(TensorType.of("f32", "N", "H", 8, 4), KERNEL)


def test_a_symbolic_dimension_without_a_window_is() -> None:
    pointwise = TensorType.of("f32", 1, 1, 4, 6)
    assert convolution(TensorType.of("f32", "N", "H", 8, 4), pointwise) == TensorType.of("f32", "N", "H", 8, 6)


@pytest.mark.parametrize(
    ("x", "k", "changes", "error", "message"),
    [
        (IMAGES, TensorType.of("f32", 3, 3, 5, 6), {}, ShapeError, "expected 4 input features.* got 5"),
        (IMAGES, TensorType.of("f32", 9, 3, 4, 6), {}, ShapeError, "over 9 does not fit into 8"),
        (IMAGES, TensorType.of("f32", 3, 4, 6), {}, ShapeError, "k: expected rank 4"),
        (IMAGES, TensorType.of("f64", 3, 3, 4, 6), {}, TypeError, "one dtype"),
        (IMAGES, KERNEL, {"strides": (1,)}, ShapeError, "strides: expected one entry for each of 2"),
        (IMAGES, KERNEL, {"strides": (0, 1)}, ShapeError, "strides and dilations from 1 up"),
        (IMAGES, KERNEL, {"lhs_spec": (0, 1, 2, 2)}, ShapeError, "lhs_spec: expected the dimensions 0 to 3"),
        (
            IMAGES,
            KERNEL,
            {"feature_group_count": 2, "batch_group_count": 2},
            ArgumentError,
            "one of them to be 1",
        ),
        (IMAGES, TensorType.of("f32", 3, 3, 2, 5), {"feature_group_count": 2}, ShapeError, "a divisor of the 5 output"),
        (IMAGES, KERNEL, {"padding": ((0, 0), (0,))}, ArgumentError, "padding: expected a list of pairs of integers"),
        (
            IMAGES,
            KERNEL,
            {"window_reversal": (0, 1)},
            ArgumentError,
            "expected a list of true and false",
        ),
        (IMAGES, KERNEL, {"groups": 1}, ArgumentError, "got {groups} as well"),
    ],
)
def test_a_wrong_convolution_says_what_is_wrong(
    x: TensorType, k: TensorType, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        convolution(x, k, **changes)


def test_gradients_of_plain_products_need_no_transpose() -> None:
    """A dense layer's: dx = dy k^T, dk = x^T dy, in the layout of their operands."""
    b = Builder()
    x, k = b.input("x", TensorType.of("f32", "N", 5)), b.input("k", TensorType.of("f32", 5, 4))
    none: dict[str, Any] = {"lhs_batching": (), "rhs_batching": ()}
    b.output(b("dot_general", x, k, lhs_contracting=(1,), rhs_contracting=(0,), **none), "y")
    assert [node.op for node in gradient_graph(b.build(), [True]).nodes] == ["dot_general"] * 3


def test_the_gradient_of_a_strided_convolution_is_one_with_a_dilated_operand() -> None:
    sample = OPS["convolution"].samples[2]
    graph = gradient_graph(Case(OPS["convolution"], sample).graph(), [True])
    assert [node.op for node in graph.nodes] == ["convolution"] * 3
    assert graph.nodes[1].attributes["lhs_dilation"] == sample.attributes["strides"]
