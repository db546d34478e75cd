"""Activations and their gradients far from 0: small results are as exact as large ones. docs/numerics.md states it.

Exact values are formulas of NumPy's long double that do not cancel, u is half a unit in the last place of 1.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import pytest

from lepton_jit.codegen.target import native_target
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.types import TensorType
from tests.codegen.programs import fused, run_native

Arrays = dict[str, np.ndarray]
real = np.longdouble
PI, GELU = real("3.14159265358979323846264338327950288"), real("0.044715")
ALPHA, SCALE = real("1.6732632423543772848170429916717"), real("1.0507009873554804934193349852946")

# Largest errors relative to the result, in units of u.
VALUES = {
    "relu": 0, "relu6": 0, "elu": 2, "selu": 4, "softplus": 3, "log_sigmoid": 3, "softsign": 2, "hard_sigmoid": 3,
    "hard_silu": 4, "logistic": 3, "tanh": 3, "exponential": 3,
}  # fmt: skip
# The relative condition of these grows: half a unit of x is x^2 half units of the result. In units of (1 + x^2) u.
VALUES_BY_SQUARE = {"silu": 3, "mish": 4, "gelu": 7, "gelu by tanh": 5}
# Of gradients, relative where |x| >= 5, in units of (1 + x^2) u.
GRADIENTS = {
    "elu": 2, "selu": 3, "silu": 4, "gelu": 7, "gelu by tanh": 8, "softplus": 2, "log_sigmoid": 2, "softsign": 4,
    "hard_silu": 3, "mish": 5, "exponential": 2,
}  # fmt: skip
# Everywhere, next to a largest value of about 1, in units of u; those of logistic and tanh are computed from results.
GRADIENTS_ABSOLUTE = {**dict.fromkeys(GRADIENTS, 100), "logistic": 3, "tanh": 6}
del GRADIENTS_ABSOLUTE["exponential"]

needs_longdouble = pytest.mark.skipif(np.finfo(real).eps > 2.0**-60, reason="long double is no wider than float64 here")
OPTIONS = {"elu": {"alpha": 1.0}, "gelu": {"approximate": False}, "gelu by tanh": {"approximate": True}}
LARGEST = {"f32": 103.0, "f64": 744.0}


def logistic(x: np.ndarray) -> np.ndarray:
    small = np.exp(-np.abs(x))
    return np.where(x < 0, small, 1) / (1 + small)


def sech2(x: np.ndarray) -> np.ndarray:
    return 4 * np.exp(-2 * np.abs(x)) / (1 + np.exp(-2 * np.abs(x))) ** 2


def exact_values(x: np.ndarray) -> Arrays:
    softplus = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    probability = np.array([math.erfc(v) / 2 for v in (-x / np.sqrt(real(2))).astype(float)], real)
    hard = np.clip((x + 3) / 6, 0, 1)
    curve = np.where(x > 0, x, np.expm1(np.minimum(x, 0)))
    return {
        "relu": np.maximum(x, 0),
        "relu6": np.clip(x, 0, 6),
        "elu": curve,
        "selu": SCALE * np.where(x > 0, x, ALPHA * curve),
        "softplus": softplus,
        "log_sigmoid": np.minimum(x, 0) - np.log1p(np.exp(-np.abs(x))),
        "softsign": x / (1 + np.abs(x)),
        "hard_sigmoid": hard,
        "hard_silu": x * hard,
        "logistic": logistic(x),
        "tanh": np.tanh(x),
        "exponential": np.exp(x),
        "silu": x * logistic(x),
        "mish": x * np.tanh(softplus),
        "gelu": x * probability,
        "gelu by tanh": x * logistic(np.sqrt(8 / PI) * (x + GELU * x**3)),
    }


def exact_gradients(x: np.ndarray) -> Arrays:
    values, s = exact_values(x), logistic(x)
    u, inner = np.sqrt(8 / PI) * (x + GELU * x**3), np.sqrt(8 / PI) * (1 + 3 * GELU * x * x)
    growth = np.where(x > 0, 1, np.exp(np.minimum(x, 0)))
    return {
        "elu": growth,
        "selu": SCALE * np.where(x > 0, 1, ALPHA * growth),
        "silu": s + x * s * logistic(-x),
        "gelu": values["gelu"] / x + x * np.exp(-x * x / 2) / np.sqrt(2 * PI),
        "gelu by tanh": logistic(u) + x * logistic(u) * logistic(-u) * inner,
        "softplus": s,
        "log_sigmoid": logistic(-x),
        "softsign": 1 / (1 + np.abs(x)) ** 2,
        "hard_silu": values["hard_sigmoid"] + np.where(np.abs(x) < 3, x / 6, 0),
        "mish": np.tanh(values["softplus"]) + x * sech2(values["softplus"]) * s,
        "exponential": values["exponential"],
        "logistic": s * logistic(-x),
        "tanh": sech2(x),
    }


def arguments(dtype: str) -> np.ndarray:
    """Evenly spaced ones, denser where most happens, and powers of ten down to 1e-30; 0 and the kinks are left out."""
    near = [np.linspace(-40, 40, 3_000), np.linspace(-8, 8, 3_000), *(s * np.logspace(-30, 0, 100) for s in (1, -1))]
    top = LARGEST[dtype]
    return np.concatenate([np.linspace(-top, top, 2_000), *near]).astype({"f32": np.float32, "f64": np.float64}[dtype])


@functools.cache
def computed(dtype: str) -> Arrays:
    """Every activation, and its gradient as `d/dx name`."""
    b = Builder()
    x = b.input("x", TensorType.of(dtype, "N"))
    for name in {**VALUES, **VALUES_BY_SQUARE}:
        y = b(name.split()[0], x, **OPTIONS.get(name, {}))
        b.output(y, name)
        (slope,) = b.emit("gradient", b("reduce", y, dimensions=(0,), kind="add"), x)
        b.output(slope, f"d/dx {name}")
    return run_native(fused(b.build(), native_target()), {"x": arguments(dtype)})


def relative_error(found: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """In units of u, where the result is a normal number; elsewhere 0."""
    limits = np.finfo(found.dtype)
    normal = (np.abs(exact) >= limits.tiny) & (np.abs(exact) < limits.max)
    error = np.where(normal, np.abs(found - exact), 0) / np.where(normal, np.abs(exact), 1)
    return error / (real(limits.eps) / 2)


@needs_longdouble
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_values_have_a_relative_accuracy_in_their_tails(dtype: str) -> None:
    x = arguments(dtype).astype(real)
    exact = exact_values(x)
    errors = {name: relative_error(computed(dtype)[name], exact[name]) for name in exact}
    assert {name: e.max() for name, e in errors.items() if name in VALUES and e.max() > VALUES[name]} == {}
    scaled = {name: (errors[name] / (1 + x * x)).max() for name in VALUES_BY_SQUARE}
    assert {name: e for name, e in scaled.items() if e > VALUES_BY_SQUARE[name]} == {}


@needs_longdouble
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_gradients_have_a_relative_accuracy_in_their_tails(dtype: str) -> None:
    x = arguments(dtype).astype(real)
    far, exact = np.abs(x) >= 5, exact_gradients(x)
    errors = {n: relative_error(computed(dtype)[f"d/dx {n}"], exact[n]) / (1 + x * x) for n in GRADIENTS}
    assert {name: e[far].max() for name, e in errors.items() if e[far].max() > GRADIENTS[name]} == {}


@needs_longdouble
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_gradients_are_exact_next_to_their_largest_value(dtype: str) -> None:
    x = arguments(dtype).astype(real)
    found, exact = computed(dtype), exact_gradients(x)
    unit = real(np.finfo(found["relu"].dtype).eps) / 2
    errors = {name: (np.abs(found[f"d/dx {name}"] - exact[name]) / unit).max() for name in GRADIENTS_ABSOLUTE}
    assert {name: e for name, e in errors.items() if e > GRADIENTS_ABSOLUTE[name]} == {}


def test_gelu_of_large_negative_numbers() -> None:
    x = arguments("f32")
    found = computed("f32")["gelu"]
    near = [int(np.argmin(np.abs(x - v))) for v in (-5.5, -6.0)]
    exact = [float(x[i]) * math.erfc(-float(x[i]) / math.sqrt(2)) / 2 for i in near]
    assert found[near].tolist() == pytest.approx(exact, rel=3e-6)
