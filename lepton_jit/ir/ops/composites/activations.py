"""Activation functions, with Keras' names and formulas, and softmax, log-softmax and argmax."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.expression import Expression, select
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import NOT_DIFFERENTIABLE, Sample
from lepton_jit.ir.ops.composites.composite import composite, composite_elementwise
from lepton_jit.ir.ops.rules import BOOL, INT, NUMBER, axis_of, expect_dtype, the_cotangent
from lepton_jit.ir.types import DTYPES, TensorType

# Klambauer et al., "Self-normalizing neural networks" (2017), to the precision of a double.
_SELU_ALPHA, _SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def _leaky_relu(x: Expression, *, negative_slope: float) -> Expression:
    return select(x > 0.0, x, x * negative_slope)


def _elu(x: Expression, *, alpha: float) -> Expression:
    return select(x > 0.0, x, alpha * x("exponential_minus_one"))


def _elu_gradient(dy: Expression, y: Expression, x: Expression, *, alpha: float) -> Expression:
    return select(x > 0.0, dy, dy * (alpha * x("exponential")))  # y + alpha would cancel


def _selu(x: Expression) -> Expression:
    return _SELU_SCALE * _elu(x, alpha=_SELU_ALPHA)


def _silu_gradient(dy: Expression, y: Expression, x: Expression) -> Expression:
    s = x("logistic")
    return dy * (s + y * (1.0 - s))


def _gelu(x: Expression, *, approximate: bool) -> Expression:
    """x * P(normal variable <= x); approximate: x/2 * (1 + tanh(u)) = x * logistic(2u), which does not cancel."""
    return x * (_doubled(x)("logistic") if approximate else _normal_probability(x))


def _gelu_gradient(dy: Expression, y: Expression, x: Expression, *, approximate: bool) -> Expression:
    if approximate:
        s = _doubled(x)("logistic")
        slope = math.sqrt(8 / math.pi) * (1.0 + 3 * 0.044715 * (x * x))
        return dy * (s + x * (s * (1.0 - s)) * slope)
    density = (1 / math.sqrt(2 * math.pi)) * (-0.5 * (x * x))("exponential")
    return dy * (_normal_probability(x) + x * density)


def _normal_probability(x: Expression) -> Expression:
    """P(normal variable <= x) = erfc(-x / sqrt(2)) / 2; 1 + erf(x / sqrt(2)) would cancel below 0."""
    return 0.5 * (x * -math.sqrt(0.5))("erfc")


def _doubled(x: Expression) -> Expression:
    """2u = sqrt(8 / pi) * (x + 0.044715 x^3)."""
    return math.sqrt(8 / math.pi) * (x + 0.044715 * (x * x * x))


def _softplus(x: Expression) -> Expression:
    """log(1 + exp(x)), without overflow."""
    return x("maximum", 0.0) + (-x("abs"))("exponential")("log_plus_one")


def _hard_sigmoid(x: Expression) -> Expression:
    """x/6 + 1/2 between 0 and 1, exact to a few units where it leaves 0 as well."""
    return ((x + 3.0) * (1 / 6))("maximum", 0.0)("minimum", 1.0)


composite_elementwise("relu", lambda x: x("maximum", 0.0), gradient=lambda dy, y, x: select(y > 0.0, dy, 0.0))
composite_elementwise(
    "relu6",
    lambda x: x("maximum", 0.0)("minimum", 6.0),
    gradient=lambda dy, y, x: select(y > 0.0, select(y < 6.0, dy, 0.0), 0.0),
    low=-8.0,
    high=8.0,
)
composite_elementwise(
    "leaky_relu",
    _leaky_relu,
    attributes={"negative_slope": NUMBER},
    gradient=lambda dy, y, x, *, negative_slope: select(x > 0.0, dy, dy * negative_slope),
    samples=[{"negative_slope": 0.2}, {"negative_slope": 0.0}],
)
composite_elementwise(
    "elu", _elu, attributes={"alpha": NUMBER}, gradient=_elu_gradient, samples=[{"alpha": 1.0}, {"alpha": 0.5}]
)
composite_elementwise(
    "selu",
    _selu,
    gradient=lambda dy, y, x: _SELU_SCALE * _elu_gradient(dy, y, x, alpha=_SELU_ALPHA),
)
composite_elementwise("silu", lambda x: x * x("logistic"), gradient=_silu_gradient)
composite_elementwise(
    "gelu",
    _gelu,
    attributes={"approximate": BOOL},
    gradient=_gelu_gradient,
    samples=[{"approximate": False}, {"approximate": True}],
)
composite_elementwise("softplus", _softplus, gradient=lambda dy, y, x: dy * x("logistic"))
composite_elementwise(
    "softsign",
    lambda x: x / (1.0 + x("abs")),
    gradient=lambda dy, y, x: dy / ((1.0 + x("abs")) * (1.0 + x("abs"))),
)
composite_elementwise(
    "hard_sigmoid",
    _hard_sigmoid,
    gradient=lambda dy, y, x: select(y > 0.0, select(y < 1.0, dy * (1 / 6), 0.0), 0.0),
)
composite_elementwise("hard_silu", lambda x: x * x("hard_sigmoid"))
composite_elementwise("mish", lambda x: x * x("softplus")("tanh"))
composite_elementwise("log_sigmoid", lambda x: -_softplus(-x), gradient=lambda dy, y, x: dy * (-x)("logistic"))


# Along an axis


def _infer_along_axis(x: TensorType, *, axis: int) -> TensorType:
    expect_dtype(x, "float")
    axis_of(axis, x)
    return x


def _others(x: Expression, axis: int) -> tuple[int, ...]:
    return tuple(d for d in range(x.type.rank) if d != axis)


def _shifted(x: Expression, axis: int) -> Expression:
    """x minus its largest element along the axis: exp of it does not overflow."""
    largest = x("reduce", dimensions=(axis,), kind="maximum")
    return x - largest.broadcast(x, _others(x, axis))


def _softmax(builder: Builder, value: Value, *, axis: int) -> Value:
    """exp(x) * (1 / sum(exp(x))): one division for all, which takes as long as the exponential."""
    x, axis = Expression(builder, value), axis_of(axis, value.type)
    e = _shifted(x, axis)("exponential")
    return (e * (1.0 / e.sum((axis,))).broadcast(x, _others(x, axis))).value


def _softmax_gradient(builder: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    dy, y = Expression(builder, the_cotangent(cotangents)), Expression(builder, node.result)
    axis = axis_of(node.attributes["axis"], node.result.type)  # pyright: ignore[reportArgumentType]
    along = (dy * y).sum((axis,)).broadcast(y, _others(y, axis))
    return ((y * (dy - along)).value,)


def _log_softmax(builder: Builder, value: Value, *, axis: int) -> Value:
    """x - log(sum(exp(x)))."""
    x, axis = Expression(builder, value), axis_of(axis, value.type)
    shifted = _shifted(x, axis)
    return (shifted - shifted("exponential").sum((axis,))("log").broadcast(x, _others(x, axis))).value


def _log_softmax_gradient(builder: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    dy, y = Expression(builder, the_cotangent(cotangents)), Expression(builder, node.result)
    axis = axis_of(node.attributes["axis"], node.result.type)  # pyright: ignore[reportArgumentType]
    return ((dy - y("exponential") * dy.sum((axis,)).broadcast(y, _others(y, axis))).value,)


_AXIS_SAMPLES = [
    Sample((TensorType.of("f32", "N", 5),), {"axis": -1}),
    Sample((TensorType.of("f64", 3, 5),), {"axis": 0}),
    Sample((TensorType.of("f64", 2, 3, 4),), {"axis": 1}),
    Sample((TensorType.of("f64", 6),), {"axis": 0}, low=-50.0, high=50.0),
]

composite(
    "softmax",
    _softmax,
    operands="x",
    attributes={"axis": INT},
    infer=_infer_along_axis,
    gradient=_softmax_gradient,
    samples=_AXIS_SAMPLES,
)
composite(
    "log_softmax",
    _log_softmax,
    operands="x",
    attributes={"axis": INT},
    infer=_infer_along_axis,
    gradient=_log_softmax_gradient,
    samples=_AXIS_SAMPLES,
)


def _infer_argmax(x: TensorType, *, axis: int) -> TensorType:
    expect_dtype(x, "float", "signed", "unsigned")
    axis = axis_of(axis, x)
    return TensorType(DTYPES["i32"], (*x.shape[:axis], *x.shape[axis + 1 :]))


def _argmax(builder: Builder, value: Value, *, axis: int) -> Value:
    """The first index of the largest element; of the first NaN where there is one."""
    x, axis = Expression(builder, value), axis_of(axis, value.type)
    i32 = DTYPES["i32"]
    largest = x("reduce", dimensions=(axis,), kind="maximum").broadcast(x, _others(x, axis))
    index = Expression(builder, builder("iota", dtype=i32, shape=x.type.shape, dimension=axis))
    found = x == largest
    if x.type.dtype.is_float:
        found = found("or", x != x)
    return select(found, index, 2**31 - 1)("reduce", dimensions=(axis,), kind="minimum").value


composite(
    "argmax",
    _argmax,
    operands="x",
    attributes={"axis": INT},
    infer=_infer_argmax,
    gradient=NOT_DIFFERENTIABLE,
    samples=[*_AXIS_SAMPLES, Sample((TensorType.of("i32", "N", 7),), {"axis": 1})],
)
