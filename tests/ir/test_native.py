"""Native forms on a machine of NumPy arrays; docs/numerics.md states the errors and costs that these tests assert."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from lepton_jit.errors import UnsupportedError
from lepton_jit.ir.ops import native
from lepton_jit.ir.ops.philox import philox as philox_words
from tests.ir.numpy_machine import NumpyMachine
from tests.ir.ulp import float32_patterns, float64_patterns, max_ulp_error, special_values, ulp_errors

NUMERICS = Path(__file__).parents[2] / "docs" / "numerics.md"
PI = "3.14159265358979323846264338327950288"
needs_longdouble = pytest.mark.skipif(
    np.finfo(np.longdouble).eps > 2.0**-60, reason="longdouble is no wider than float64 here: nothing to compare with"
)


@dataclass(frozen=True)
class Stated:
    """A row of the table in docs/numerics.md."""

    f32: float
    f32_unfused: float
    f64: float
    f64_unfused: float
    primitives_f32: float
    primitives_f64: float


def read_table() -> dict[str, Stated]:
    rows = re.findall(r"^\| (\w+) ((?:\| [\d.]+ ){6})\|$", NUMERICS.read_text(encoding="utf-8"), re.MULTILINE)
    return {name: Stated(*(float(n) for n in cells.strip("| ").split("|"))) for name, cells in rows}


def erf_series(x: np.ndarray) -> np.ndarray:
    """2/sqrt(pi) * e**-x**2 * (x + 2/3 x**3 + 4/15 x**5 + ...): no cancellation, every term has the sign of x."""
    real = x.dtype.type
    size = np.minimum(np.abs(x), real(7))
    term = size
    total = size
    for k in range(1, 200):
        term = term * (2 * size * size / (2 * k + 1))
        total = total + term
    return np.copysign(2 / np.sqrt(real(PI)) * np.exp(-size * size) * total, x)


def erfc_fraction(x: np.ndarray) -> np.ndarray:
    """e**-x**2 / sqrt(pi) / (x + 1/2 / (x + 1 / (x + 3/2 / (x + ...)))) from 2 on, where the fraction is short."""
    real = x.dtype.type
    size = np.maximum(x, real(2))
    rest = size
    for k in range(200, 0, -1):
        rest = size + real(k) / 2 / rest
    return np.where(x < 2, 1 - erf_series(x), np.exp(-size * size) / (np.sqrt(real(PI)) * rest))


def erf_f64(x: np.ndarray) -> np.ndarray:
    return np.fromiter(map(math.erf, x.tolist()), np.float64, x.size)


def erfc_f64(x: np.ndarray) -> np.ndarray:
    return np.fromiter(map(math.erfc, x.tolist()), np.float64, x.size)


def logistic(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "exponential": np.exp,
    "exponential_minus_one": np.expm1,
    "logistic": logistic,
    "tanh": np.tanh,
    "erf": erf_f64,
    "erfc": erfc_f64,
    "log": np.log,
    "log_plus_one": np.log1p,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sine": np.sin,
    "cosine": np.cos,
}
STATED = read_table()
# Enough for every exponent many times over; the trigonometric forms are slow here.
STRIDES = {"sine": 32_771, "cosine": 32_771}


def run(name: str, fused: bool = True) -> Callable[..., np.ndarray]:
    return lambda *arrays: NumpyMachine(fused=fused)(getattr(native, name), *arrays)


def test_every_form_is_in_the_table():
    exact = {"sign", "is_finite", "clamp", "philox"}
    assert set(native.__all__) - exact == set(STATED) == set(FUNCTIONS) | {"power"}


@pytest.mark.parametrize("name", STATED)
def test_docstrings_state_the_same_errors(name: str):
    s = STATED[name]
    stated = f"Error in ulp: f32 {s.f32} ({s.f32_unfused} without FMA), f64 {s.f64} ({s.f64_unfused})."
    assert stated in getattr(native, name).__doc__


@pytest.mark.parametrize("name", STATED)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_number_of_primitives(name: str, dtype: type):
    machine = NumpyMachine()
    machine(getattr(native, name), *[np.ones(1, dtype)] * (2 if name == "power" else 1))
    stated = STATED[name]
    assert sum(machine.counts.values()) == (stated.primitives_f32 if dtype == np.float32 else stated.primitives_f64)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("fused", [True, False])
def test_error_over_float32(name: str, fused: bool):
    samples = [*float32_patterns(STRIDES.get(name, 8_209)), special_values(np.float32)]
    worst = max_ulp_error(run(name, fused), FUNCTIONS[name], samples)
    assert worst.ulp <= (STATED[name].f32 if fused else STATED[name].f32_unfused), worst


@needs_longdouble
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("fused", [True, False])
def test_error_over_float64(name: str, fused: bool):
    random = np.random.default_rng(0)
    near = random.normal(size=20_000) * 10.0 ** random.integers(-3, 3, 20_000)
    samples = [np.concatenate([float64_patterns(20_000), near, special_values(np.float64)])]
    exact = {"erf": erf_series, "erfc": erfc_fraction}.get(name, FUNCTIONS[name])
    worst = max_ulp_error(run(name, fused), exact, samples, np.longdouble)
    assert worst.ulp <= (STATED[name].f64 if fused else STATED[name].f64_unfused), worst


@pytest.mark.parametrize(
    "name, low, high", [("logistic", 0, 1), ("tanh", -1, 1), ("erf", -1, 1), ("erfc", 0, 2), ("sine", -1, 1)]
)
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_stay_in_their_range(name: str, low: int, high: int, fused: bool, dtype: type):
    x = np.concatenate([np.linspace(-800, 800, 20_001), np.linspace(-25, 25, 20_001)]).astype(dtype)
    y = run(name, fused)(x)
    assert (y.min(), y.max()) >= (low, low)
    assert y.max() <= high


SPECIAL = {
    "exponential": [(-np.inf, 0), (np.inf, np.inf), (0, 1), (-0.0, 1), (-104, 0), (89, np.inf)],
    "exponential_minus_one": [(-np.inf, -1), (np.inf, np.inf), (0, 0), (-0.0, -0.0), (1e-45, 1e-45)],
    "logistic": [(-np.inf, 0), (np.inf, 1), (0, 0.5)],
    "tanh": [(-np.inf, -1), (np.inf, 1), (0, 0), (-0.0, -0.0), (-1e-45, -1e-45)],
    "erf": [(-np.inf, -1), (np.inf, 1), (0, 0), (-0.0, -0.0)],
    "erfc": [(-np.inf, 2), (np.inf, 0), (0, 1), (-0.0, 1), (10.5, 0), (1e30, 0)],
    "log": [(0, -np.inf), (-0.0, -np.inf), (-1, np.nan), (-np.inf, np.nan), (np.inf, np.inf), (1, 0)],
    "log_plus_one": [(-1, -np.inf), (-2, np.nan), (-np.inf, np.nan), (np.inf, np.inf), (-0.0, -0.0), (1e-45, 1e-45)],
    "rsqrt": [(0, np.inf), (-0.0, -np.inf), (-1, np.nan), (np.inf, 0), (4, 0.5)],
    "sine": [(-np.inf, np.nan), (np.inf, np.nan), (0, 0), (-0.0, -0.0), (1e-45, 1e-45)],
    "cosine": [(-np.inf, np.nan), (np.inf, np.nan), (0, 1), (-0.0, 1)],
    "sign": [(-np.inf, -1), (np.inf, 1), (0, 0), (-0.0, -0.0), (1e-45, 1), (-3, -1)],
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_values(name: str):
    arguments, expected = np.array([*SPECIAL[name], (np.nan, np.nan)], np.float32).T.copy()
    result = run(name)(arguments)
    np.testing.assert_array_equal(result, expected)
    assert np.signbit(result[:-1]).tolist() == np.where(
        np.isnan(expected[:-1]), np.signbit(result[:-1]), np.signbit(expected[:-1])
    ).astype(bool).tolist()  # fmt: skip


def test_denormal_results_are_rounded_once():
    """With ten bits or more lost, the error of the factors no longer shows: half a unit is what rounding leaves."""
    x = np.linspace(-103.9, -95, 5_001, dtype=np.float32)
    assert ulp_errors(run("exponential")(x), np.exp(x.astype(np.float64))).max() <= 0.501
    assert ulp_errors(run("logistic")(x), logistic(x.astype(np.float64))).max() <= 0.501


def test_sine_next_to_multiples_of_pi():
    """The float64 closest to a multiple of pi/2 (Muller, "Elementary functions"), and the largest float32."""
    x = np.array([6381956970095103 * 2.0**797])
    assert run("cosine")(x).tolist() == [-4.687165924254628e-19]
    assert run("sine")(x).tolist() == [1.0]
    largest = np.array([np.finfo(np.float32).max])
    assert run("sine")(largest).tolist() == [np.float32(np.sin(float(largest[0])))]


def power_samples(dtype: type, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Bases close to 1 and far from it, exponents such that the result is any positive number."""
    random = np.random.default_rng(1)
    range_of_log = np.log(np.finfo(dtype).max)
    x = np.exp(range_of_log * random.uniform(-1, 1, count) * random.uniform(0, 1, count) ** 8).astype(dtype)
    with np.errstate(all="ignore"):
        return x, (random.uniform(-1.1, 1.1, count) * range_of_log / np.log(x.astype(np.float64))).astype(dtype)


@pytest.mark.parametrize("fused", [True, False])
def test_error_of_power_in_float32(fused: bool):
    worst = max_ulp_error(run("power", fused), np.power, [power_samples(np.float32, 40_000)])
    assert worst.ulp <= (STATED["power"].f32 if fused else STATED["power"].f32_unfused), worst


@needs_longdouble
@pytest.mark.parametrize("fused", [True, False])
def test_error_of_power_in_float64(fused: bool):
    worst = max_ulp_error(run("power", fused), np.power, [power_samples(np.float64, 20_000)], np.longdouble)
    assert worst.ulp <= (STATED["power"].f64 if fused else STATED["power"].f64_unfused), worst


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_power_has_the_special_cases_of_numpy(dtype: type):
    values = np.concatenate([special_values(dtype), np.array([-7.5, -4, -3, -2.5, 5, 7.5, 1e10, -1e10], dtype)])
    x, y = (v.ravel() for v in np.meshgrid(values, values))
    with np.errstate(all="ignore"):
        expected = np.power(x, y)
    result = run("power")(x, y)
    ordinary = np.isfinite(expected) & (expected != 0)
    np.testing.assert_array_equal(result[~ordinary], expected[~ordinary])
    assert np.signbit(result[~np.isnan(expected)]).tolist() == np.signbit(expected[~np.isnan(expected)]).tolist()
    np.testing.assert_allclose(result[ordinary], expected[ordinary], rtol=4 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", sorted(STATED))
def test_integers_have_no_native_form(name: str):
    arrays = [np.ones(1, np.int32)] * (2 if name == "power" else 1)
    with pytest.raises(UnsupportedError, match=f"{name}: expected an operand of f32 or f64, got i32"):
        run(name)(*arrays)


@pytest.mark.parametrize(
    "dtype, values, expected",
    [(np.int8, [-128, -1, 0, 1, 127], [-1, -1, 0, 1, 1]), (np.uint16, [0, 1, 65535], [0, 1, 1])],
)
def test_sign_of_integers(dtype: type, values: list[int], expected: list[int]):
    assert run("sign")(np.array(values, dtype)).tolist() == expected


def test_is_finite():
    x = special_values(np.float32)
    assert run("is_finite")(x).tolist() == np.isfinite(x).tolist()
    assert run("is_finite")(np.array([0, -5])).tolist() == [True, True]


@pytest.mark.parametrize("dtype", [np.float32, np.int32])
def test_clamp(dtype: type):
    x = np.array([-3, -1, 0, 2, 5], dtype)
    assert run("clamp")(np.full_like(x, -1), x, np.full_like(x, 2)).tolist() == [-1, -1, 0, 2, 2]
    # the upper bound wins over a larger lower bound
    assert run("clamp")(np.full_like(x, 4), x, np.full_like(x, 2)).tolist() == [2, 2, 2, 2, 2]


def test_clamp_keeps_nan():
    nan, one = np.array([np.nan]), np.array([1.0])
    assert [np.isnan(run("clamp")(*o)[0]) for o in ((nan, one, one), (one, nan, one), (one, one, nan))] == [True] * 3


@pytest.mark.parametrize(
    "counter, key, expected",
    [
        ((0, 0, 0, 0), (0, 0), 0x6627E8D5),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, 0x408F276D),
        ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), 0xD16CFE09),
    ],
)
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: int):
    """The vectors that Random123 publishes for philox4x32-10 (tests/kat_vectors)."""
    words = (np.array([w], np.uint32) for w in (*key, *counter))
    assert run("philox")(*words).tolist() == [expected]


def test_philox_agrees_with_the_interpreter():
    random = np.random.default_rng(2)
    counter = tuple(random.integers(0, 2**32, 1_000, dtype=np.uint64) for _ in range(4))
    first, *_ = philox_words(counter, (123, 456))
    words = [np.full(1_000, 123), np.full(1_000, 456), *counter]
    assert run("philox")(*(w.astype(np.uint32) for w in words)).tolist() == first.tolist()


def test_fma_of_the_machine_rounds_once():
    a = 1 + 2.0**-30
    machine = NumpyMachine()
    fused = machine(lambda m, x, y, z: m.fma(x, y, z), np.array([a]), np.array([a]), np.array([-a * a]))
    assert fused.tolist() == [2.0**-60]


def test_ulp_errors():
    got = np.array([1, 1 + 2**-22, 0.0, -0.0, np.inf, np.nan, 1e-45, 3.0], np.float32)
    exact = np.array([1, 1, 0.0, 0.0, 1e39, np.nan, 0.7e-45, np.nan])
    assert np.round(ulp_errors(got, exact), 2).tolist() == [0, 2, 0, np.inf, 0, 0, 0.5, np.inf]
