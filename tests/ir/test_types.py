"""Dimensions, dtypes and types."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_jit.errors import DTypeError, LeptonError, ShapeError, UnsupportedError
from lepton_jit.ir.types import DTYPES, Dim, Poly, TensorType, dim_value, dtype_of, element_count, symbols_of

N, M = Poly.symbol("N"), Poly.symbol("M")
AT = {"N": 5, "M": 7}


def _combined(parts: tuple[str, Dim, Dim]) -> Dim:
    sign, a, b = parts
    return a + b if sign == "+" else a - b if sign == "-" else a * b


DIMS = st.recursive(
    st.integers(-9, 9) | st.sampled_from([N, M]),
    lambda inner: st.tuples(st.sampled_from("+-*"), inner, inner).map(_combined),
    max_leaves=6,
)


@given(DIMS, DIMS)
def test_arithmetic_is_that_of_the_numbers(a: Dim, b: Dim) -> None:
    x, y = dim_value(a, AT), dim_value(b, AT)
    assert dim_value(a + b, AT) == x + y
    assert dim_value(a - b, AT) == x - y
    assert dim_value(a * b, AT) == x * y


@given(DIMS, DIMS)
def test_equal_polynomials_are_equal_objects(a: Dim, b: Dim) -> None:
    assert a + b == b + a
    assert a * b == b * a
    assert (a + b) - b == a
    assert hash(a + b) == hash(b + a)


@given(DIMS, st.sampled_from([2, -3, N, 4 * M, N * M, N + 2, 3 * N - M, N * N * M - 2 * N * M + M * M + 5]))
def test_division_inverts_multiplication(a: Dim, b: Dim) -> None:
    product = a * b
    if isinstance(product, Poly):
        assert product // b == a


@pytest.mark.parametrize(
    ("a", "b"), [(3 * N, 2), (N + 1, N), (N, 0), (N, N + 1), (N, M), (N * N, N + 1), (2 * N + 2, 4 * N + 4)]
)
def test_division_without_an_exact_answer(a: Poly, b: Dim) -> None:
    with pytest.raises(ShapeError, match="is not a multiple of"):
        a // b


def test_the_text_of_polynomials() -> None:
    assert repr(128 * N + 4) == "128*N + 4"
    assert repr(-1 * N * M - 2 * N) == "-M*N - 2*N"
    assert repr(TensorType.of("f32", 128 * N + 4, "M")) == "f32[128*N+4,M]"


@pytest.mark.parametrize("name", ["", "1N", "a b", "N*M", "f32", "true", "inf", "ä"])
def test_a_symbol_is_an_identifier(name: str) -> None:
    with pytest.raises(ShapeError, match="expected a number or an identifier"):
        TensorType.of("f32", name)


def test_products_of_polynomials_are_bounded() -> None:
    wide = sum((Poly.symbol(f"S{i}") for i in range(1, 40)), N)
    with pytest.raises(UnsupportedError, match="more than 256 terms"):
        element_count([wide] * 9)


@pytest.mark.parametrize(
    ("name", "expected"), [("f32", "f32"), ("float64", "f64"), (np.int8, "i8"), (np.dtype("?"), "bool")]
)
def test_dtypes_by_name(name: object, expected: str) -> None:
    assert dtype_of(name) is DTYPES[expected]


@pytest.mark.parametrize("name", ["float16", "f31", object(), None, "complex64", 3])
def test_other_dtypes_are_an_error(name: object) -> None:
    with pytest.raises(DTypeError, match="dtype: expected one of f32, f64"):
        dtype_of(name)


def test_symbols_of_a_shape() -> None:
    assert symbols_of((N, 3, N * M + 1)) == {"N", "M"}


def test_errors_are_builtin_errors_too() -> None:
    assert issubclass(ShapeError, ValueError)
    assert issubclass(DTypeError, TypeError)
    assert issubclass(UnsupportedError, NotImplementedError)
    assert all(issubclass(e, LeptonError) for e in (ShapeError, DTypeError, UnsupportedError))
