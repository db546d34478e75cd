"""Dimensions and sizes of a compiled program: integers, or polynomials over its symbols as text, `128*N + 4`."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Polynomial", "dim_value", "parse_polynomial"]

_TOKEN = re.compile(r"\s*(?:([0-9]{1,19})|([A-Za-z_][A-Za-z0-9_]*)|([-+*()]))")
_MAX_TEXT = 4096
_MAX_DEPTH = 32


@dataclass(frozen=True)
class Polynomial:
    """A sum of integer multiples of products of symbols.

    >>> parse_polynomial("4*N*M - (N + 2)*3").value({"N": 5, "M": 2})
    19
    """

    terms: tuple[tuple[tuple[str, ...], int], ...]

    @property
    def symbols(self) -> frozenset[str]:
        return frozenset(name for monomial, _ in self.terms for name in monomial)

    @property
    def constant(self) -> int | None:
        """The number that this is, if it has no symbol."""
        return None if self.symbols else sum(c for _, c in self.terms)

    def value(self, symbols: Mapping[str, int]) -> int:
        """The number for given symbols; exact."""
        return sum(c * math.prod(symbols[name] for name in monomial) for monomial, c in self.terms)

    def solve(self, name: str, value: int, symbols: Mapping[str, int]) -> int | None:
        """The integer for `name` that makes this `value`, given the other symbols; `None` if there is none.

        Only for polynomials of degree 1 in `name`.

        >>> parse_polynomial("2*N + 1").solve("N", 9, {})
        4
        """
        if any(monomial.count(name) > 1 for monomial, _ in self.terms):
            return None
        rest = self.value({**symbols, name: 0})
        slope = self.value({**symbols, name: 1}) - rest
        if slope == 0 or (value - rest) % slope:
            return None
        return (value - rest) // slope

    @staticmethod
    def of(terms: Mapping[tuple[str, ...], int]) -> Polynomial:
        return Polynomial(tuple(sorted((m, c) for m, c in terms.items() if c)))

    def plus(self, other: Polynomial, sign: int) -> Polynomial:
        terms = dict(self.terms)
        for monomial, coefficient in other.terms:
            terms[monomial] = terms.get(monomial, 0) + sign * coefficient
        return Polynomial.of(terms)

    def times(self, other: Polynomial) -> Polynomial:
        terms: dict[tuple[str, ...], int] = {}
        for m1, c1 in self.terms:
            for m2, c2 in other.terms:
                monomial = tuple(sorted(m1 + m2))
                terms[monomial] = terms.get(monomial, 0) + c1 * c2
        return Polynomial.of(terms)


@functools.lru_cache(4096)
def parse_polynomial(text: str | int) -> Polynomial:
    """The polynomial that a text of integers, names, `+`, `-`, `*` and parentheses means; ValueError for any other."""
    if isinstance(text, int):
        return Polynomial.of({(): text})
    if len(text) > _MAX_TEXT:
        raise ValueError(f"a polynomial of more than {_MAX_TEXT} characters")
    tokens = _tokens(text)
    result, end = _sum(tokens, 0, 0)
    if end != len(tokens):
        raise ValueError(f"expected an operator, got {tokens[end]!r} in {text!r}")
    return result


def dim_value(text: str | int, symbols: Mapping[str, int]) -> int:
    """The number that a dimension or size is, for given symbols.

    >>> dim_value("128*N", {"N": 2})
    256
    """
    return text if isinstance(text, int) else parse_polynomial(text).value(symbols)


def _tokens(text: str) -> list[str]:
    tokens: list[str] = []
    position = 0
    stripped = text.rstrip()
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:
            raise ValueError(f"unexpected {stripped[position]!r} in {text!r}")
        tokens.append(match[0].strip())
        position = match.end()
    return tokens


def _sum(tokens: list[str], position: int, depth: int) -> tuple[Polynomial, int]:
    if depth > _MAX_DEPTH:
        raise ValueError("parentheses too deep")
    result = Polynomial(())
    sign = 1
    if tokens[position : position + 1] in (["-"], ["+"]):
        sign = -1 if tokens[position] == "-" else 1
        position += 1
    while True:
        term, position = _product(tokens, position, depth)
        result = result.plus(term, sign)
        if tokens[position : position + 1] not in (["-"], ["+"]):
            return result, position
        sign = -1 if tokens[position] == "-" else 1
        position += 1


def _product(tokens: list[str], position: int, depth: int) -> tuple[Polynomial, int]:
    result, position = _factor(tokens, position, depth)
    while tokens[position : position + 1] == ["*"]:
        factor, position = _factor(tokens, position + 1, depth)
        result = result.times(factor)
        if len(result.terms) > 256:
            raise ValueError("a polynomial of more than 256 terms")
    return result, position


def _factor(tokens: list[str], position: int, depth: int) -> tuple[Polynomial, int]:
    if position == len(tokens):
        raise ValueError("a polynomial that ends too early")
    token = tokens[position]
    if token == "(":
        result, position = _sum(tokens, position + 1, depth + 1)
        if tokens[position : position + 1] != [")"]:
            raise ValueError("expected ')'")
        return result, position + 1
    if token in "+-*)":
        raise ValueError(f"expected a number or a name, got {token!r}")
    if token.isdigit():
        return Polynomial.of({(): int(token)}), position + 1
    return Polynomial.of({(token,): 1}), position + 1
