"""Read what statements of the loop IR's text are made of: element types, dimensions, extents, affine indices."""

from __future__ import annotations

import re

from lepton_jit.codegen.loops.ir import THREADS, Affine, CeilDiv, Extent, Var
from lepton_jit.errors import LeptonError
from lepton_jit.ir.tokens import Reader, Token
from lepton_jit.ir.types import DTYPES, THREADS_NAME, Dim, DType, Poly

__all__ = ["read_affine", "read_dim", "read_dtype", "read_extent", "read_lanes", "read_type", "read_variable"]

# Far above what any kernel needs, far below what Python's stack bears.
MAX_FACTORS = 16
MAX_TERMS_OF_A_KERNEL = 256
MAX_LANES = 4096

_TYPE = re.compile(rf"({'|'.join(DTYPES)})(?:x([1-9][0-9]{{0,3}}))?")


def read_dtype(reader: Reader) -> DType:
    token = reader.next("word")
    if token.text not in DTYPES:
        raise reader.error(f"expected a dtype ({', '.join(DTYPES)}), got {token.text!r}", token)
    return DTYPES[token.text]


def read_type(reader: Reader) -> tuple[DType, int]:
    """`f32` or `f32x16`."""
    token = reader.next("word")
    found = _TYPE.fullmatch(token.text)
    if found is None:
        raise reader.error(f"expected a dtype, with lanes as in f32x16, got {token.text!r}", token)
    return DTYPES[found[1]], read_lanes(reader, token, found[2] or "1")


def read_lanes(reader: Reader, token: Token, text: str) -> int:
    if not 1 <= int(text) <= MAX_LANES:
        raise reader.error(f"expected at most {MAX_LANES} lanes, got {text}", token)
    return int(text)


def read_extent(reader: Reader) -> Extent:
    if not reader.accept("ceildiv"):
        return read_dim(reader)
    reader.expect("(")
    dividend = read_dim(reader)
    reader.expect(",")
    divisor = reader.integer()
    reader.expect(")")
    factor: Dim = 1
    if reader.accept("*"):
        reader.expect("(")
        factor = read_dim(reader)
        reader.expect(")")
    return CeilDiv(dividend, divisor, factor)


def read_dim(reader: Reader) -> Dim:
    return read_affine(reader, None).constant


def read_affine(reader: Reader, known: dict[str, Var] | None) -> Affine:
    """`32*%t + (4*N + 1)*%i2 - N*N`: signed terms; None of `known`: a dimension, without variables."""
    start = reader.token
    terms: dict[str, Dim] = {}
    constant: Dim = 0
    sign = -1 if reader.accept("-") else 1
    for _ in range(MAX_TERMS_OF_A_KERNEL):
        at = reader.token
        product, name = _term(reader, known)
        if name in terms:
            raise reader.error(f"%{name} occurs in two terms", at)
        if name is None:
            constant = product * sign + constant
        else:
            terms[name] = product * sign
        if not reader.at("+", "-"):
            return Affine(tuple(terms.items()), constant)
        sign = 1 if reader.accept("+") else -1
        if sign < 0:
            reader.expect("-")
    raise reader.error(f"an index of more than {MAX_TERMS_OF_A_KERNEL} terms", start)


def _term(reader: Reader, known: dict[str, Var] | None) -> tuple[Dim, str | None]:
    """A product of numbers, symbols and perhaps, last, a variable; a sum in parentheses stands alone before it."""
    start = reader.token
    product: Dim = 1
    if reader.accept("("):
        product = read_dim(reader)
        reader.expect(")")
        reader.expect("*")
        return product, read_variable(reader, known)
    for _ in range(MAX_FACTORS):
        if reader.at("value"):
            return product, read_variable(reader, known)
        try:
            factor = reader.integer() if reader.at("number") else _symbol(reader.next("word").text)
            product = factor * product
        except LeptonError as error:
            raise reader.error(str(error), start) from error
        if not reader.accept("*"):
            return product, None
    raise reader.error(f"a term of more than {MAX_FACTORS} factors", start)


def _symbol(name: str) -> Dim:
    return THREADS if name == THREADS_NAME else Poly.symbol(name)


def read_variable(reader: Reader, known: dict[str, Var] | None) -> str:
    token = reader.next("value")
    if known is None:
        raise reader.error(f"expected a dimension, got the variable {token.text}", token)
    if token.text[1:] not in known:
        raise reader.error(f"{token.text} is read, but nothing before defines it", token)
    return token.text[1:]
