"""Batch normalization, in training and in inference, and dropout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lepton_jit.errors import ArgumentError, DTypeError, ShapeError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.expression import Expression, select
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import Sample
from lepton_jit.ir.ops.composites.composite import composite
from lepton_jit.ir.ops.rules import INT, NUMBER, axis_of, expect_dtype, expect_scalar, the_cotangent
from lepton_jit.ir.types import TensorType, element_count

Cotangents = Sequence[Value | None]


def _expect_one_per_channel(x: TensorType, axis: int, **vectors: TensorType) -> None:
    expect_dtype(x, "float", what="x")
    expected = x.with_shape((x.shape[axis_of(axis, x)],))
    for name, found in vectors.items():
        if found != expected:
            error = DTypeError if found.shape == expected.shape else ShapeError
            raise error(f"{name}: expected {expected} for axis {axis} of {x}, got {found}")


# batch_norm_training


def _infer_training(
    x: TensorType, gamma: TensorType, beta: TensorType, *, epsilon: float, axis: int
) -> Sequence[TensorType]:
    _expect_one_per_channel(x, axis, gamma=gamma, beta=beta)
    return x, gamma, gamma


def _other_dimensions(x: Expression, axis: int) -> tuple[int, ...]:
    return tuple(d for d in range(x.type.rank) if d != axis)


def _count(x: Expression, others: tuple[int, ...]) -> Expression:
    """How many elements a channel has, as a scalar of x's dtype."""
    b, count = x.builder, element_count(x.type.shape[d] for d in others)
    return Expression(b, b("dimension_value", value=count, dtype=x.type.dtype))


def _mean(x: Expression, others: tuple[int, ...]) -> Expression:
    return x.sum(others) / _count(x, others)


def _moments(x: Expression, axis: int) -> tuple[Expression, Expression]:
    """Mean and biased variance of each entry of an axis; `moments` knows the last axis alone."""
    if axis == x.type.rank - 1:
        mean, variance = x.builder.emit("moments", x.value)
        return Expression(x.builder, mean), Expression(x.builder, variance)
    others = _other_dimensions(x, axis)
    mean = _mean(x, others)
    centered = x - mean.broadcast(x, (axis,))
    return mean, _mean(centered * centered, others)


def _training(
    b: Builder, x_: Value, gamma: Value, beta: Value, *, epsilon: float, axis: int
) -> tuple[Value, Value, Value]:
    """y = (x - mean) / sqrt(variance + epsilon) * gamma + beta; the variance is the biased one."""
    x, axis = Expression(b, x_), axis_of(axis, x_.type)
    mean, variance = _moments(x, axis)
    centered = x - mean.broadcast(x, (axis,))
    scale = Expression(b, gamma) * (variance + epsilon)("rsqrt")
    y = centered * scale.broadcast(x, (axis,)) + Expression(b, beta).broadcast(x, (axis,))
    return y.value, mean.value, variance.value


def _training_gradient(b: Builder, node: Node, cotangents: Cotangents) -> Cotangents:
    """dx = gamma / sigma * (dy - mean(dy) - normalized * mean(dy * normalized)), and what mean and variance add."""
    attributes: Any = node.attributes
    x, gamma = (Expression(b, v) for v in node.operands[:2])
    mean, variance = (Expression(b, v) for v in node.results[1:])
    dy, dmean, dvariance = (None if c is None else Expression(b, c) for c in cotangents)
    axis = axis_of(attributes["axis"], x.type)
    others = _other_dimensions(x, axis)
    count = _count(x, others)
    centered = x - mean.broadcast(x, (axis,))
    # dx = per_element + slope * centered + shift, the last two being one number a channel.
    slope = None if dvariance is None else dvariance * 2.0 / count
    shift = None if dmean is None else dmean / count
    if dy is None:
        return _sum_of_channels(x, axis, None, slope, shift, centered), None, None
    inverse = (variance + attributes["epsilon"])("rsqrt")
    scale = gamma * inverse
    dbeta = dy.sum(others)
    dgamma = (dy * centered).sum(others) * inverse
    slope = _plus(-(scale * inverse * dgamma / count), slope)
    shift = _plus(-(scale * dbeta / count), shift)
    dx = _sum_of_channels(x, axis, dy * scale.broadcast(x, (axis,)), slope, shift, centered)
    return dx, dgamma.value, dbeta.value


def _plus(a: Expression, b: Expression | None) -> Expression:
    return a if b is None else a + b


def _sum_of_channels(
    x: Expression,
    axis: int,
    per_element: Expression | None,
    slope: Expression | None,
    shift: Expression | None,
    centered: Expression,
) -> Value | None:
    parts = [per_element] if per_element is not None else []
    if slope is not None:
        parts.append(slope.broadcast(x, (axis,)) * centered)
    if shift is not None:
        parts.append(shift.broadcast(x, (axis,)))
    if not parts:
        return None
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total.value


_BATCH_NORM = {"epsilon": NUMBER, "axis": INT}


def _batch_norm_samples(vectors: int, low: float, high: float) -> list[Sample]:
    return [
        Sample(
            (TensorType.of(dtype, *shape), *[TensorType.of(dtype, shape[axis])] * vectors),
            {"epsilon": epsilon, "axis": axis},
            low=low,
            high=high,
        )
        for dtype, shape, axis, epsilon in (
            ("f32", ("N", 4, 5, 3), -1, 0.001),
            ("f64", ("N", 3), 1, 0.001),
            ("f64", (4, 3, 5), 1, 1e-5),
            ("f64", (7, 2), -1, 0.1),
        )
    ]


composite(
    "batch_norm_training",
    _training,
    operands="x gamma beta",
    attributes=_BATCH_NORM,
    infer=_infer_training,
    gradient=_training_gradient,
    samples=_batch_norm_samples(2, -2.0, 3.0),
)


# batch_norm_inference


def _infer_inference(
    x: TensorType,
    gamma: TensorType,
    beta: TensorType,
    mean: TensorType,
    variance: TensorType,
    *,
    epsilon: float,
    axis: int,
) -> TensorType:
    _expect_one_per_channel(x, axis, gamma=gamma, beta=beta, mean=mean, variance=variance)
    return x


def _inference(
    b: Builder, x: Value, gamma: Value, beta: Value, mean: Value, variance: Value, *, epsilon: float, axis: int
) -> Value:
    """(x - mean) / sqrt(variance + epsilon) * gamma + beta."""
    e, dimension = Expression(b, x), (axis_of(axis, x.type),)
    scale = Expression(b, gamma) * (Expression(b, variance) + epsilon)("rsqrt")
    centered = e - Expression(b, mean).broadcast(e, dimension)
    return (centered * scale.broadcast(e, dimension) + Expression(b, beta).broadcast(e, dimension)).value


composite(
    "batch_norm_inference",
    _inference,
    operands="x gamma beta mean variance",
    attributes=_BATCH_NORM,
    infer=_infer_inference,
    samples=_batch_norm_samples(4, 0.1, 3.0),
)


# dropout


def _infer_dropout(x: TensorType, seed: TensorType, step: TensorType, *, rate: float, stream: int) -> TensorType:
    expect_dtype(x, "float", what="x")
    expect_dtype(seed, "u64", what="seed")
    expect_dtype(step, "i64", what="step")
    expect_scalar(seed, "seed")
    expect_scalar(step, "step")
    if not 0 <= rate <= 1:
        raise ArgumentError(f"rate: expected 0 to 1, got {rate}")
    return x


def _dropout(b: Builder, x_: Value, seed: Value, step: Value, *, rate: float, stream: int) -> Value:
    """Zero with probability `rate`, else x / (1 - rate)."""
    x = Expression(b, x_)
    if rate == 1:
        return b.full(0.0, x.type)
    bits = Expression(b, b("rng_bit_generator", seed, step, stream=stream, shape=x.type.shape))
    dropped = min(round(rate * 2**32), 2**32 - 1)
    return select(bits >= dropped, x * (1.0 / (1.0 - rate)), 0.0).value


def _dropout_gradient(b: Builder, node: Node, cotangents: Cotangents) -> Cotangents:
    """The same elements dropped again: their bits are a function of seed, step and stream."""
    _, seed, step = node.operands
    return b("dropout", the_cotangent(cotangents), seed, step, **node.attributes), None, None


composite(
    "dropout",
    _dropout,
    operands="x seed step",
    attributes={"rate": NUMBER, "stream": INT},
    infer=_infer_dropout,
    gradient=_dropout_gradient,
    samples=[
        Sample((TensorType.of(dtype, *shape), TensorType.of("u64"), TensorType.of("i64")), {"rate": r, "stream": s})
        for dtype, shape, r, s in (
            ("f32", ("N", 7), 0.25, 0),
            ("f64", (3, 4, 5), 0.5, 3),
            ("f64", (6,), 0.0, 1),
            ("f64", (6,), 1.0, 1),
        )
    ],
)
