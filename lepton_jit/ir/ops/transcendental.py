"""Elementwise operations that the machine computes by a form of its own (`native`), not by one instruction."""

from __future__ import annotations

import math

import numpy as np

from lepton_jit.ir.expression import Expression, select
from lepton_jit.ir.op import NOT_DIFFERENTIABLE, Sample
from lepton_jit.ir.ops import native
from lepton_jit.ir.ops.elementwise import FLOATS, NUMBERS, elementwise
from lepton_jit.ir.ops.rules import expect_dtype
from lepton_jit.ir.traits import Cost, Traits
from lepton_jit.ir.types import DTYPES, TensorType

_DOZENS = Traits(cost=Cost.EXPENSIVE)
_TWO_OVER_SQRT_PI = 2.0 / math.sqrt(math.pi)


def _logistic(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), and exp(x) / (1 + exp(x)) below 0: where exp(-x) overflows the result is denormal, not 0."""
    one, small = x.dtype.type(1), np.exp(-np.abs(x))
    return np.where(x < 0, small, one) / (one + small)


def _erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x).astype(x.dtype)


def _erfc(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erfc, otypes=[np.float64])(x).astype(x.dtype)


def _sign(x: np.ndarray) -> np.ndarray:
    """-1, 0 or 1; zeros keep their sign, and NaN stays."""
    return np.where(x == 0, x, np.sign(x))


def _infer_is_finite(x: TensorType) -> TensorType:
    expect_dtype(x, *FLOATS)
    return x.with_dtype(DTYPES["bool"])


def _clamp_gradient(
    dy: Expression, y: Expression, low: Expression, x: Expression, high: Expression
) -> tuple[Expression, Expression, Expression]:
    """The cotangent goes to the operand that the result is; where x is a bound, to the bound."""
    above = x("maximum", low) >= high
    below = x <= low
    return (
        select(above, 0.0, select(below, dy, 0.0)),
        select(above, 0.0, select(below, 0.0, dy)),
        select(above, dy, 0.0),
    )


def _power_gradient(dy: Expression, y: Expression, x: Expression, e: Expression) -> tuple[Expression, Expression]:
    # The two selects keep 0 ** 0 and 0 * log(0) from turning into NaN.
    slope = select(e == 0.0, 0.0, e * x("power", select(e == 0.0, 1.0, e - 1.0)))
    return dy * slope, dy * y * select(x == 0.0, 1.0, x)("log")


elementwise("exponential", np.exp, gradient=lambda dy, y, x: dy * y, native=native.exponential, traits=_DOZENS)
elementwise(
    "exponential_minus_one",
    np.expm1,
    gradient=lambda dy, y, x: dy * x("exponential"),  # y + 1 would cancel
    native=native.exponential_minus_one,
    traits=_DOZENS,
)
elementwise("log", np.log, gradient=lambda dy, y, x: dy / x, native=native.log, low=0.1, high=4.0, traits=_DOZENS)
elementwise(
    "log_plus_one",
    np.log1p,
    gradient=lambda dy, y, x: dy / (x + 1.0),
    native=native.log_plus_one,
    low=-0.8,
    high=4.0,
    traits=_DOZENS,
)
elementwise(
    "logistic", _logistic, gradient=lambda dy, y, x: dy * (y * (1.0 - y)), native=native.logistic, traits=_DOZENS
)
elementwise("tanh", np.tanh, gradient=lambda dy, y, x: dy * (1.0 - y * y), native=native.tanh, traits=_DOZENS)
elementwise(
    "erf",
    _erf,
    gradient=lambda dy, y, x: dy * (_TWO_OVER_SQRT_PI * (-(x * x))("exponential")),
    native=native.erf,
    traits=_DOZENS,
)
elementwise(
    "erfc",
    _erfc,
    gradient=lambda dy, y, x: dy * (-_TWO_OVER_SQRT_PI * (-(x * x))("exponential")),
    native=native.erfc,
    traits=_DOZENS,
)
elementwise(
    "rsqrt",
    lambda x: x.dtype.type(1) / np.sqrt(x),
    gradient=lambda dy, y, x: dy * -0.5 * (y * y * y),
    native=native.rsqrt,
    low=0.1,
    high=4.0,
)
elementwise("sine", np.sin, gradient=lambda dy, y, x: dy * x("cosine"), native=native.sine, traits=_DOZENS)
elementwise("cosine", np.cos, gradient=lambda dy, y, x: -(dy * x("sine")), native=native.cosine, traits=_DOZENS)
elementwise(
    "power",
    np.power,
    operands="x exponent",
    gradient=_power_gradient,
    native=native.power,
    low=0.1,
    high=3.0,
    traits=_DOZENS,
)
elementwise("sign", _sign, kinds=("float", "signed"), gradient=NOT_DIFFERENTIABLE, native=native.sign)
elementwise(
    "is_finite",
    np.isfinite,
    infer=_infer_is_finite,
    gradient=NOT_DIFFERENTIABLE,
    native=native.is_finite,
    samples=[Sample((TensorType.of("f32", "N", 3),)), Sample((TensorType.of("f64", 5),))],
)
elementwise(
    "clamp",
    lambda low, x, high: np.minimum(np.maximum(x, low), high),
    operands="low x high",
    kinds=NUMBERS,
    gradient=_clamp_gradient,
    native=native.clamp,
)
