"""Layer normalization: every row of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lepton_jit.errors import DTypeError, ShapeError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.expression import Expression
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import Sample
from lepton_jit.ir.ops.composites.composite import composite
from lepton_jit.ir.ops.rules import INTS, NUMBER, check_dimensions, expect_dtype, the_cotangent
from lepton_jit.ir.types import TensorType, element_count

Cotangents = Sequence[Value | None]


def _infer(x: TensorType, gamma: TensorType, beta: TensorType, *, axes: Sequence[int], epsilon: float) -> TensorType:
    expect_dtype(x, "float", what="x")
    check_dimensions("axes", axes, x.rank)
    if not axes or tuple(axes) != tuple(sorted(axes)):
        raise ShapeError(f"axes: expected at least one dimension, in order, got {list(axes)}")
    expected = x.with_shape(tuple(x.shape[a] for a in axes))
    for name, found in {"gamma": gamma, "beta": beta}.items():
        if found != expected:
            error = DTypeError if found.shape == expected.shape else ShapeError
            raise error(f"{name}: expected {expected} for the axes {list(axes)} of {x}, got {found}")
    return x


def _rows(x: Expression, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(d for d in range(x.type.rank) if d not in axes)


def _mean(x: Expression, axes: tuple[int, ...]) -> Expression:
    """The mean of every row, one number each."""
    size = x.builder("dimension_value", value=element_count(x.type.shape[a] for a in axes), dtype=x.type.dtype)
    return x.sum(axes) / Expression(x.builder, size)


def _centered(x: Expression, axes: tuple[int, ...], epsilon: float) -> tuple[Expression, Expression]:
    """x - mean, and 1 / sqrt(variance + epsilon) of every row; the variance is the biased one."""
    centered = x - _mean(x, axes).broadcast(x, _rows(x, axes))
    return centered, (_mean(centered * centered, axes) + epsilon)("rsqrt")


def _layer_norm(b: Builder, x_: Value, gamma: Value, beta: Value, *, axes: tuple[int, ...], epsilon: float) -> Value:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta, mean and variance over the axes."""
    x = Expression(b, x_)
    centered, inverse = _centered(x, axes, epsilon)
    normalized = centered * inverse.broadcast(x, _rows(x, axes))
    return (normalized * Expression(b, gamma).broadcast(x, axes) + Expression(b, beta).broadcast(x, axes)).value


def _gradient(b: Builder, node: Node, cotangents: Cotangents) -> Cotangents:
    """With g = dy * gamma: dx = (g - mean(g) - normalized * mean(g * normalized)) / sigma.

    Mean and sigma are written as the decomposition writes them, so that they are computed once.
    """
    attributes: Any = node.attributes
    axes, epsilon = attributes["axes"], attributes["epsilon"]
    x, gamma = (Expression(b, v) for v in node.operands[:2])
    dy, rows = Expression(b, the_cotangent(cotangents)), _rows(x, axes)
    centered, inverse = _centered(x, axes, epsilon)
    normalized = centered * inverse.broadcast(x, rows)
    g = dy * gamma.broadcast(x, axes)
    along = _mean(g * normalized, axes).broadcast(x, rows)
    dx = (g - _mean(g, axes).broadcast(x, rows) - normalized * along) * inverse.broadcast(x, rows)
    return dx.value, (dy * normalized).sum(rows).value, dy.sum(rows).value


composite(
    "layer_norm",
    _layer_norm,
    operands="x gamma beta",
    attributes={"axes": INTS, "epsilon": NUMBER},
    infer=_infer,
    gradient=_gradient,
    samples=[
        Sample(
            (TensorType.of(dtype, *shape), *[TensorType.of(dtype, *(shape[a] for a in axes))] * 2),
            {"axes": axes, "epsilon": epsilon},
            low=-2.0,
            high=3.0,
        )
        for dtype, shape, axes, epsilon in (
            ("f32", ("N", 5, 24), (2,), 0.001),
            ("f64", ("N", 7), (1,), 0.001),
            ("f64", (3, 4, 5), (1,), 1e-5),
            ("f64", (2, 4, 3), (1, 2), 0.1),
            ("f64", (6,), (0,), 0.001),
        )
    ],
)
