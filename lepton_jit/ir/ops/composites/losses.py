"""Cross-entropies from logits, each computed without overflow and with its own gradient."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lepton_jit.errors import DTypeError, ShapeError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.expression import Expression, select
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import Sample
from lepton_jit.ir.ops.composites.composite import composite, composite_elementwise
from lepton_jit.ir.ops.rules import expect_dtype, expect_same, the_cotangent
from lepton_jit.ir.types import TensorType

Cotangents = Sequence[Value | None]


def _rows(x: Expression) -> tuple[int, ...]:
    return tuple(range(x.type.rank - 1))


def _log_softmax(x: Expression) -> Expression:
    return x("log_softmax", axis=x.type.rank - 1)


def _softmax(x: Expression) -> Expression:
    return x("softmax", axis=x.type.rank - 1)


# softmax_cross_entropy


def _infer_dense(logits: TensorType, targets: TensorType) -> TensorType:
    expect_dtype(logits, "float", what="logits")
    if expect_same(logits, targets).rank < 1:
        raise ShapeError(f"logits: expected classes in the last dimension, got {logits}")
    return logits.with_shape(logits.shape[:-1])


def _dense(builder: Builder, logits: Value, targets: Value) -> Value:
    """-sum(targets * log(softmax(logits))) over the last dimension."""
    x, t = Expression(builder, logits), Expression(builder, targets)
    return (-(t * _log_softmax(x)).sum((x.type.rank - 1,))).value


def _dense_gradient(builder: Builder, node: Node, cotangents: Cotangents) -> Cotangents:
    dy, x, t = (Expression(builder, v) for v in (the_cotangent(cotangents), *node.operands))
    rows, dy = _rows(x), dy.broadcast(x, _rows(x))
    weight = t.sum((x.type.rank - 1,)).broadcast(x, rows)  # 1 for probabilities, but nothing says that they are
    return (dy * (_softmax(x) * weight - t)).value, (-(dy * _log_softmax(x))).value


composite(
    "softmax_cross_entropy",
    _dense,
    operands="logits targets",
    infer=_infer_dense,
    gradient=_dense_gradient,
    samples=[
        Sample((TensorType.of("f32", "N", 5), TensorType.of("f32", "N", 5)), low=0.0, high=1.0),
        Sample((TensorType.of("f64", 2, 3, 4), TensorType.of("f64", 2, 3, 4))),
        Sample((TensorType.of("f64", 4), TensorType.of("f64", 4)), low=-30.0, high=30.0),
    ],
)


# sparse_softmax_cross_entropy


def _infer_sparse(logits: TensorType, labels: TensorType) -> TensorType:
    expect_dtype(logits, "float", what="logits")
    expect_dtype(labels, "signed", "unsigned", what="labels")
    if logits.rank < 1:
        raise ShapeError(f"logits: expected classes in the last dimension, got {logits}")
    if logits.shape[:-1] != labels.shape:
        raise ShapeError(f"labels: expected one for each of {list(logits.shape[:-1])}, got {labels}")
    classes = logits.shape[-1]
    if isinstance(classes, int) and classes - 1 > np.iinfo(labels.dtype.numpy).max:
        raise DTypeError(f"labels: expected a dtype for {classes} classes, got {labels.dtype}")
    return logits.with_shape(labels.shape)


def _is_label(logits: Expression, labels: Expression) -> Expression:
    builder, rows = logits.builder, _rows(logits)
    shape, dtype = logits.type.shape, labels.type.dtype
    classes = Expression(builder, builder("iota", dtype=dtype, shape=shape, dimension=len(rows)))
    return classes == labels.broadcast(logits, rows)


def _sparse(builder: Builder, logits: Value, labels: Value) -> Value:
    """-log(softmax(logits))[label]; a label that is no class selects nothing and costs 0."""
    x, label = Expression(builder, logits), Expression(builder, labels)
    chosen = select(_is_label(x, label), _log_softmax(x), 0.0)
    return (-chosen.sum((x.type.rank - 1,))).value


def _sparse_gradient(builder: Builder, node: Node, cotangents: Cotangents) -> Cotangents:
    dy, x, label = (Expression(builder, v) for v in (the_cotangent(cotangents), *node.operands))
    one_hot = _is_label(x, label).convert(x.type.dtype)
    return (dy.broadcast(x, _rows(x)) * (_softmax(x) - one_hot)).value, None


composite(
    "sparse_softmax_cross_entropy",
    _sparse,
    operands="logits labels",
    infer=_infer_sparse,
    gradient=_sparse_gradient,
    samples=[
        Sample((TensorType.of("f32", "N", 5), TensorType.of("i32", "N"))),
        Sample((TensorType.of("f64", 2, 3, 4), TensorType.of("u8", 2, 3))),
        Sample((TensorType.of("f64", 4), TensorType.of("i64")), low=-30.0, high=30.0),
    ],
)


# sigmoid_cross_entropy


def _sigmoid_cross_entropy(z: Expression, t: Expression) -> Expression:
    """-t * log(logistic(z)) - (1 - t) * log(1 - logistic(z))."""
    return z("maximum", 0.0) - z * t + (-z("abs"))("exponential")("log_plus_one")


composite_elementwise(
    "sigmoid_cross_entropy",
    _sigmoid_cross_entropy,
    operands="logits targets",
    gradient=lambda dy, y, z, t: (dy * (z("logistic") - t), -(dy * z)),
)
