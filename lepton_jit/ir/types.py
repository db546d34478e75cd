"""Element types, dimensions and tensor types: `f32[N,26,26,32]`."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from lepton_jit.errors import DTypeError, ShapeError, UnsupportedError

__all__ = [
    "DTYPES",
    "DType",
    "Dim",
    "Poly",
    "Shape",
    "THREADS_NAME",
    "TYPICAL",
    "TensorType",
    "dim_value",
    "dtype_of",
    "element_count",
    "least",
    "ratio",
    "row_major",
    "symbols_of",
    "typical",
    "typical_batch",
    "typical_rows",
    "with_value",
]


@dataclass(frozen=True, eq=False)
class DType:
    """An element type, of which there is one object; `bool` is stored as one byte of 0 or 1.

    >>> DTYPES["f32"].numpy
    dtype('float32')
    """

    name: str
    numpy: np.dtype
    kind: str  # "float", "signed", "unsigned" or "bool"

    @property
    def bytes(self) -> int:
        return self.numpy.itemsize

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[object, ...]:
        return dtype_of, (self.name,)


DTYPES: dict[str, DType] = {
    name: DType(name, np.dtype(numpy), kind)
    for name, numpy, kind in (
        ("f32", "float32", "float"),
        ("f64", "float64", "float"),
        ("i8", "int8", "signed"),
        ("i16", "int16", "signed"),
        ("i32", "int32", "signed"),
        ("i64", "int64", "signed"),
        ("u8", "uint8", "unsigned"),
        ("u16", "uint16", "unsigned"),
        ("u32", "uint32", "unsigned"),
        ("u64", "uint64", "unsigned"),
        ("bool", "bool", "bool"),
    )
}
TYPICAL = 64
_typical_rows: ContextVar[int] = ContextVar("typical_rows", default=TYPICAL)
_BY_NUMPY = {dtype.numpy: dtype for dtype in DTYPES.values()}


def dtype_of(dtype: object) -> DType:
    """The element type for a name of ours (`"f32"`), of NumPy's (`"float32"`) or a NumPy dtype.

    >>> dtype_of("float32"), dtype_of("i8")
    (f32, i8)
    """
    if isinstance(dtype, DType):
        return dtype
    if isinstance(dtype, str) and dtype in DTYPES:
        return DTYPES[dtype]
    try:
        return _BY_NUMPY[np.dtype("O" if dtype is None else dtype)]  # pyright: ignore[reportArgumentType, reportCallIssue]
    except (KeyError, TypeError):
        raise DTypeError(f"dtype: expected one of {', '.join(DTYPES)} or its NumPy name, got {dtype!r}") from None


Monomial = tuple[str, ...]

# Products of polynomials grow without bound; real ones have two or three terms.
MAX_TERMS_OF_A_PRODUCT = 256

# The bytes that a process can address: nothing larger can be in memory.
MOST_BYTES = 1 << 47

# The name of the number of threads in the loop IR; no dimension may have it.
THREADS_NAME = "_threads"
_RESERVED = {*DTYPES, "none", "true", "false", "inf", "nan", THREADS_NAME}


@dataclass(frozen=True)
class Poly:
    """A polynomial with integer coefficients over named dimensions, never a constant: `128*N + 4`.

    Arithmetic gives an `int` again where the symbols cancel.

    >>> n = Poly.symbol("N")
    >>> 128 * n + 4, (n + 1) * (n - 1), n - n
    (128*N + 4, N*N - 1, 0)
    """

    terms: tuple[tuple[Monomial, int], ...]

    @staticmethod
    def symbol(name: str) -> Poly:
        """The dimension of that name, an identifier."""
        if not re.fullmatch(r"[A-Za-z_][A-Za-z_0-9]*", name) or name in _RESERVED:
            raise ShapeError(f"dimension: expected a number or an identifier, got {name!r}")
        return Poly((((name,), 1),))

    @staticmethod
    def of(terms: Mapping[Monomial, int]) -> Dim:
        """The polynomial with these terms, or the integer that it is."""
        if len(terms) > MAX_TERMS_OF_A_PRODUCT:
            raise UnsupportedError(f"a dimension of more than {MAX_TERMS_OF_A_PRODUCT} terms")
        kept = sorted(((m, c) for m, c in terms.items() if c), key=lambda t: (-len(t[0]), t[0]))
        if not kept:
            return 0
        if len(kept) == 1 and kept[0][0] == ():
            return kept[0][1]
        return Poly(tuple(kept))

    def __add__(self, other: Dim) -> Dim:
        if not isinstance(other, (int, Poly)):
            return NotImplemented
        terms = dict(self.terms)
        for monomial, coefficient in _terms(other):
            terms[monomial] = terms.get(monomial, 0) + coefficient
        return Poly.of(terms)

    def __mul__(self, other: Dim) -> Dim:
        if not isinstance(other, (int, Poly)):
            return NotImplemented
        terms: dict[Monomial, int] = {}
        for m1, c1 in self.terms:
            for m2, c2 in _terms(other):
                monomial = tuple(sorted(m1 + m2))
                terms[monomial] = terms.get(monomial, 0) + c1 * c2
        return Poly.of(terms)

    __radd__ = __add__
    __rmul__ = __mul__

    def __neg__(self) -> Dim:
        return self * -1

    def __sub__(self, other: Dim) -> Dim:
        return self + (-other)

    def __rsub__(self, other: int) -> Dim:
        return -self + other

    def __floordiv__(self, other: Dim) -> Dim:
        """The exact quotient; ShapeError where there is none.

        Long division, by leading terms: those of the highest degree, by names within it, an order that products keep.
        """
        quotient: Dim = 0
        left: Dim = self
        monomial, coefficient = _terms(other)[0]
        while left != 0:
            dividend, count = _terms(left)[0]
            rest = _without(dividend, monomial)
            if rest is None or not coefficient or count % coefficient:
                raise ShapeError(f"dimension {self!r} is not a multiple of {other!r}")
            term = Poly.of({rest: count // coefficient})
            quotient, left = quotient + term, left - term * other
        return quotient

    def __rfloordiv__(self, other: int) -> Dim:
        if other == 0:
            return 0
        raise ShapeError(f"dimension {other!r} is not a multiple of {self!r}")

    def value(self, symbols: Mapping[str, int]) -> int:
        """The number for given dimensions.

        >>> (128 * Poly.symbol("N")).value({"N": 2})
        256
        """
        return sum(c * math.prod(symbols[s] for s in m) for m, c in self.terms)

    def __repr__(self) -> str:
        text = ""
        for monomial, coefficient in self.terms:
            factors = "*".join(monomial)
            size = abs(coefficient)
            term = factors if size == 1 and factors else f"{size}*{factors}" if factors else str(size)
            sign = "-" if coefficient < 0 else "+"
            text += f" {sign} {term}" if text else f"{'-' if coefficient < 0 else ''}{term}"
        return text


Dim = int | Poly
Shape = tuple[Dim, ...]


def _terms(dim: Dim) -> tuple[tuple[Monomial, int], ...]:
    return dim.terms if isinstance(dim, Poly) else (((), dim),)


def with_value(dim: Dim, symbol: str, value: int) -> Dim:
    """The dimension with a number in place of one of its symbols.

    >>> with_value(128 * Poly.symbol("N") + 4, "N", 2)
    260
    """
    total: Dim = 0
    for monomial, coefficient in _terms(dim):
        left = tuple(s for s in monomial if s != symbol)
        total = Poly.of({left: coefficient * value ** monomial.count(symbol)}) + total
    return total


def _without(monomial: Monomial, factor: Monomial) -> Monomial | None:
    rest = list(monomial)
    for name in factor:
        if name not in rest:
            return None
        rest.remove(name)
    return tuple(rest)


def dim_value(dim: Dim, symbols: Mapping[str, int]) -> int:
    """The number that a dimension is, for given symbols."""
    return dim if isinstance(dim, int) else dim.value(symbols)


def element_count(shape: Iterable[Dim]) -> Dim:
    """The product of the dimensions: 1 for a scalar."""
    count: Dim = 1
    for dim in shape:
        count = dim * count
    return count


def ratio(dividend: Dim, divisor: Dim) -> Fraction | None:
    """Their quotient where it is one number, whatever their symbols are; else None.

    >>> n = Poly.symbol("N")
    >>> ratio(6 * n + 3, 4 * n + 2), ratio(n, 64)
    (Fraction(3, 2), None)
    """
    if divisor == 0:
        return None
    quotient = Fraction(_terms(dividend)[0][1], _terms(divisor)[0][1])
    return quotient if dividend * quotient.denominator == divisor * quotient.numerator else None


def symbols_of(shape: Iterable[Dim]) -> set[str]:
    """The names of the symbolic dimensions that occur in a shape."""
    return {s for dim in shape if isinstance(dim, Poly) for m, _ in dim.terms for s in m}


def row_major(shape: Shape) -> list[Dim]:
    """The strides of a dense tensor, in elements.

    >>> row_major((2, 3, 4))
    [12, 4, 1]
    """
    return [element_count(shape[d + 1 :]) for d in range(len(shape))]


def typical(dim: Dim) -> int:
    """Evaluate a dimension with every symbol at the heuristic batch, `typical_rows()`, for choices before run time."""
    return dim if isinstance(dim, int) else dim.value(dict.fromkeys(symbols_of([dim]), typical_rows()))


def typical_rows() -> int:
    """The heuristic batch, for which choices are made: 64, or what the compilation under way was told."""
    return _typical_rows.get()


@contextmanager
def typical_batch(rows: int | None) -> Iterator[None]:
    """Set the heuristic batch of what this thread compiles inside: so many rows, or 64 where nothing was said.

    >>> with typical_batch(8):
    ...     typical(3 * Poly.symbol("N"))
    24
    """
    token = _typical_rows.set(TYPICAL if rows is None else rows)
    try:
        yield
    finally:
        _typical_rows.reset(token)


def least(dim: Dim) -> int:
    """The least value of a dimension whose symbols are 1 or more, or 0 where that is not plain.

    >>> least(49 * Poly.symbol("N"))
    49
    """
    if isinstance(dim, int):
        return dim
    coefficients = [coefficient for _, coefficient in dim.terms]
    return sum(coefficients) if min(coefficients, default=0) >= 0 else 0


@dataclass(frozen=True)
class TensorType:
    """Element type and shape of a tensor.

    >>> TensorType.of("f32", "N", 26, 26, 32)
    f32[N,26,26,32]
    """

    dtype: DType
    shape: Shape

    @staticmethod
    def of(dtype: object, *shape: Dim | str) -> TensorType:
        return TensorType(dtype_of(dtype), tuple(Poly.symbol(d) if isinstance(d, str) else d for d in shape))

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def elements(self) -> Dim:
        return element_count(self.shape)

    def checked_size(self) -> TensorType:
        """The type itself; ShapeError where even the smallest batch would be more than a process can address."""
        if least(self.elements) * self.dtype.bytes > MOST_BYTES:
            raise ShapeError(f"expected a tensor of at most 2**{MOST_BYTES.bit_length() - 1} bytes, got {self}")
        return self

    def with_shape(self, shape: Iterable[Dim]) -> TensorType:
        return TensorType(self.dtype, tuple(shape))

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)

    def __repr__(self) -> str:
        return f"{self.dtype}[{','.join(repr(d).replace(' ', '') for d in self.shape)}]"
