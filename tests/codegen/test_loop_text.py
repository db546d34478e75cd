"""The text of kernels, what the parser and the verifier refuse, and what the interpreter finds."""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lepton_jit.codegen.loops.interpreter import run_kernel
from lepton_jit.codegen.loops.ir import (
    BOOL,
    I64,
    Affine,
    Apply,
    Buffer,
    CeilDiv,
    Const,
    If,
    Index,
    Kernel,
    Let,
    Load,
    Progress,
    Reach,
    Slices,
    Store,
    Var,
)
from lepton_jit.codegen.loops.parser import parse_kernel, parse_kernels
from lepton_jit.codegen.loops.printer import print_affine, print_kernel, print_kernels
from lepton_jit.codegen.loops.verifier import verify_kernel
from lepton_jit.errors import GraphError, LeptonError, ParseError
from lepton_jit.ir.types import DTYPES, Poly

F32, N = DTYPES["f32"], Poly.symbol("N")
T = Affine.var("t")

EVERYTHING = """
// every statement there is
kernel @"all/of it"(a0: f32[64*N], a1: f32[64], o0: f32[64*N*N + 4], m: bool[16])
parallel %t in 0 to ceildiv(N + 1, 56)*(4*N) grain 58 layer "dense/\\u00e9" flops 2*N slices 2 local [a0, a1]
rows 8*N width 64 each 2 unit 14 reads [a0 56 56 112 672 2 1 3, a1 1 1 1 64 1 0 1] turning N + 1 {
  %v1: i64x16 = index 0 step 1
  %v2: boolx16 = compare(%v1, 7:i64) LT
  %v3: f32x16 = load a0[(4*N - 1)*%t - 3] step -2 where %v2 else -inf:f32
  %v4: f32 = horizontal maximum(%v3)
  %w4: f32x16 = trn2 4(%v3, %v3)
  %v5: bool = load m[-%t + N]
  for %i6 in %t to N*%t + 1 step 4 carry %c7: f32x16 = 0.0:f32x16, %c8: f32 = nan:f32 {
    %v9: f32x16 = fma(%c7, %v3, 1e-07:f32)
    next %v9, %v4
  }
  %v10: i64x16 = index %t step 3
  %v11: f32x16 = load a0[4*%t] at %v10 where %v2 else 1.0:f32
  fetch a0[64*%t + 4096]
  if %v5 {
    report 7 at 3*%t + 1
    store o0[64*%t] x16 = %c7 where %v2
  } else {
    if true:bool { store m[0] = false:bool }
  }
  contract 3 by 16 {
    tile f32 vectors 2 panel 2 masked rhs_masked
    out o0[16*%t] row 16 accumulate
    lhs a0[0] row [0, 4, -8, 100] from %t
    rhs a1[1] panel N
    sum 4*N lhs N rhs 16
    sum 2 lhs 1 rhs 1
    extra a1[%t] row 0 column 1
    epilogue(%sum: f32x16, %v1: f32x16) {
      %v2: f32x16 = add(%sum, %v1)
      return %v2
    }
  }
}
"""


def kernel(*body: object, **changes: object) -> Kernel:
    buffers = (Buffer("a0", F32, 8), Buffer("o0", F32, 8))
    return replace(Kernel("k", buffers, 8, 1, body), **changes)  # pyright: ignore[reportArgumentType]


def text(body: str) -> str:
    return f"kernel @k(a0: f32[8], o0: f32[8], a1: i32[8]) parallel %t in 0 to 8 grain 1 {{\n{body}\n}}"


# Text


def test_every_statement_is_read_back() -> None:
    found = parse_kernel(EVERYTHING)
    assert parse_kernel(print_kernel(found)) == found
    assert print_kernel(parse_kernel(print_kernel(found))) == print_kernel(found)


def test_the_parser_builds_what_the_text_says() -> None:
    found = parse_kernel(EVERYTHING)
    assert (found.name, found.layer, found.grain, found.flops) == ("all/of it", "dense/é", 58, 2 * N)
    assert found.extent == CeilDiv(N + 1, 56, 4 * N)
    assert found.slices == Slices(2, frozenset({"a0", "a1"}))
    reads = (("a0", Reach(56, 56, 112, 672, 2, 1, 3)), ("a1", Reach(1, 1, 1, 64)))
    assert found.progress == Progress(2, 8 * N, 64, reads, 14)
    assert found.turning == N + 1
    load = found.body[2]
    assert load == Let(
        Var("v3", F32, 16),
        Load("a0", T * (4 * N - 1) - 3, -2, Var("v2", BOOL, 16), Const(float("-inf"), F32)),
    )


def test_the_kernels_of_the_documentation_are_kernels() -> None:
    page = (Path(__file__).parents[2] / "docs" / "loop_ir.md").read_text(encoding="utf-8")
    found = [parse_kernel(t) for t in re.findall(r"```text\n((?://|kernel @).*?)```", page, re.DOTALL)]
    assert [k.layer for k in found] == ["dense", "rows"]


def test_several_kernels() -> None:
    found = parse_kernels(EVERYTHING + text("store o0[%t] = 1.0:f32"))
    assert [k.name for k in found] == ["all/of it", "k"]
    assert parse_kernels(print_kernels(found)) == found


@pytest.mark.parametrize(
    ("index", "expected"),
    [
        (Affine(), "0"),
        (T, "%t"),
        (T * -1, "-%t"),
        (T * N, "N*%t"),
        (T * (-2 * N), "-2*N*%t"),
        (T * (N - 1) - N * N, "(N - 1)*%t - N*N"),
        (Affine.var("i") - T * 3 + 5, "%i - 3*%t + 5"),
        (Affine.of(-7), "-7"),
    ],
)
def test_indices(index: Affine, expected: str) -> None:
    assert print_affine(index) == expected
    body = (Let(Var("i", I64), Index(T)), Store("o0", index, Const(0.0, F32)))
    assert parse_kernel(print_kernel(kernel(*body))) == kernel(*body)


@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1e-45, 1e300, 0.1, 2.0**-149, float("inf"), float("-inf"), 3.4028234663852886e38]
)
def test_numbers_keep_their_bits(value: float) -> None:
    (store,) = parse_kernel(print_kernel(kernel(Store("o0", T, Const(value, F32))))).body
    assert isinstance(store, Store)
    assert isinstance(store.value, Const)
    assert float(store.value.value).hex() == value.hex()


def test_nan_is_read_back() -> None:
    (store,) = parse_kernel(text("store o0[%t] = nan:f32")).body
    assert print_kernel(kernel(store)) == print_kernel(kernel(Store("o0", T, Const(float("nan"), F32))))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("store o0[%t] 1.0:f32", "line 2, column 14: expected a word, got '1.0'"),
        ("store o0[%t] = 1.0", "line 3, column 1: expected ':', got '}'"),
        ("store o0[%t] = 1.0:f16", "line 2, column 20: expected a dtype, with lanes as in f32x16, got 'f16'"),
        ("store o0[%t] x0 = 1.0:f32", "line 2, column 14: expected lanes as in x16, got 'x0'"),
        ("store o0[%t] x9999 = 1.0:f32", "line 2, column 14: expected at most 4096 lanes, got 9999"),
        ("store o0[%u] = 1.0:f32", "line 2, column 10: %u is read, but nothing before defines it"),
        ("store o0[%t + %t] = 1.0:f32", "line 2, column 15: %t occurs in two terms"),
        ("%v: f32 = load a0[0]\n%v: f32 = load a0[1]", "line 3, column 1: %v is defined twice"),
        ("for %i in 0 to 4 step %t { }", "line 2, column 23: expected a number, got '%t'"),
        (
            "while %t { }",
            "line 2, column 1: expected a definition, store, for, if, report, fetch or contract, got 'while'",
        ),
        ("%v: i64 = index 4 step %t", "line 2, column 24: expected a dimension, got the variable %t"),
        ("%v: i64 = index f32", "line 2, column 17: dimension: expected a number or an identifier, got 'f32'"),
        ("if %t {" * 70, "line 2, column 421: blocks nested more than 60 deep"),
    ],
)
def test_a_wrong_text_is_an_error_with_its_place(body: str, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_kernel(text(body))
    assert str(caught.value) == message


@pytest.mark.fuzz
def test_any_text_is_a_kernel_or_an_error_of_ours(fuzz_examples: int) -> None:
    rng = random.Random(0)
    pieces = [*"{}()[]0-*+:N", "%t", "%v3", "f32", "f32x16", "load", "1e999", "nan", "carry", "next", "contract"]
    pieces += ["epilogue", "where", "9" * 50, '"', "\0", "é", "ceildiv", "(N + 1)*"]
    for _ in range(fuzz_examples):
        words = EVERYTHING.split(" ")
        for _ in range(rng.randint(1, 4)):
            words[rng.randrange(len(words))] = rng.choice(pieces)
        try:
            found = parse_kernel(" ".join(words))
        except LeptonError:
            continue
        assert print_kernel(parse_kernel(print_kernel(found))) == print_kernel(found)


# Verifier

V, X16 = Var("v", F32), Var("x", F32, 16)
LOAD = Let(V, Load("a0", T))


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (kernel(LOAD, LOAD), "kernel k: `%v: f32 = load a0[%t]`: %v is defined twice"),
        (kernel(Store("o0", T, V)), "kernel k: `store o0[%t] = %v`: %v is read, but nothing before defines it"),
        (
            kernel(If(Const(True, BOOL), (LOAD,)), Store("o0", T, V)),
            "kernel k: `store o0[%t] = %v`: %v is read, but nothing before defines it in this block",
        ),
        (kernel(LOAD, Store("o0", T, Var("v", I64))), "%v is Var(name='v', dtype=f32, lanes=1), but was read as"),
        (kernel(LOAD, Store("x", T, V)), "no buffer is called 'x'; there are a0, o0"),
        (kernel(Store("o0", T, Const(1, I64))), "expected f32, got i64 of 1"),
        (kernel(Let(X16, Load("a0", T)), Store("o0", T, X16, 8)), "expected 1 or 8 lanes, got 16 of %x"),
        (
            kernel(LOAD, Store("o0", Affine.var("v"), V)),
            "expected a scalar i64 in an index, got Var(name='v', dtype=f32",
        ),
        (kernel(Let(Var("v", I64), Load("a0", T))), "expected f32, the dtype of a0, got i64"),
        (kernel(LOAD, Let(X16, Apply("exp", (V,)))), "no primitive is called 'exp'"),
        (kernel(LOAD, Let(X16, Apply("add", (V,)))), "add takes 2 operands, got 1"),
        (kernel(LOAD, Let(X16, Apply("compare", (V, V), "LT"))), "a comparison is a bool, got f32"),
        (kernel(LOAD, Let(Var("w", BOOL), Apply("compare", (V, V)))), "compare with the detail ''"),
        (kernel(LOAD, Let(Var("w", I64), Apply("bitcast_convert", (V,)))), "bits of f32 are no bits of i64"),
        (kernel(LOAD, Let(X16, Apply("xor", (V, V)))), "xor is of integers or booleans, got f32"),
        (kernel(grain=0), "kernel k: expected a positive grain, got 0"),
        (kernel(slices=Slices(1, frozenset({"b"}))), "kernel k: no buffer is called b"),
    ],
)
def test_the_verifier_names_kernel_and_statement(broken: Kernel, message: str) -> None:
    with pytest.raises(GraphError) as caught:
        verify_kernel(broken)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("contract 3 by", "contract 0 by", "expected increasing heights, got (0,)"),
        ("masked rhs_masked", "rhs_masked", "expected `masked` with `rhs_masked`"),
        ("    sum 4*N lhs N rhs 16\n    sum 2 lhs 1 rhs 1\n", "", "expected one to 3 sums, got 0"),
        ("out o0[16*%t]", "out m[16*%t]", "out: expected f32, got bool"),
        ("row 0 column 1", "row 0 column 2", "column steps are 0 or 1, got (2,)"),
        ("%sum: f32x16, %v1: f32x16", "%sum: f32x16, %v1: i32x16", "epilogue: expected arguments of [f32, f32]"),
        ("step 4 carry", "step 0 carry", "expected a positive step, got 0"),
        ("horizontal maximum", "horizontal divide", "expected one of add, multiply"),
        ("trn2 4", "trn2 16", "16 lanes are no pairs of 16"),
        ("report 7", "report 128", "expected a code from 1 to 127, got 128"),
        ("at %v10", "at %v4", "expected an offset for each of 16 lanes and no step"),
        ("at %v10", "at %v3", "expected i64, got f32 of %v3"),
    ],
)
def test_the_verifier_reads_contractions_and_loops(old: str, new: str, message: str) -> None:
    assert old in EVERYTHING
    with pytest.raises(GraphError) as caught:
        parse_kernel(EVERYTHING.replace(old, new))
    assert message in str(caught.value)


# Interpreter


def run(body: str, seed: int = 0, **changes: object) -> np.ndarray:
    arrays = {"a0": np.arange(8, dtype=np.float32), "o0": np.zeros(8, np.float32), "a1": np.arange(8, dtype=np.int32)}
    run_kernel(replace(parse_kernel(text(body)), **changes), arrays, {}, undefined=["o0"], seed=seed)
    return arrays["o0"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "store o0[%t + 1] = 1.0:f32",
            "`store o0[%t + 1] = 1.0:f32` with %t = 7: index 8 is outside the 8 elements of o0",
        ),
        ("%v: f32x4 = load a0[%t - 1]", "`%v: f32x4 = load a0[%t - 1]` with %t = "),
        ("store o0[0] = 1.0:f32", "o0[0] is also written by the iteration %t = "),
        ("%v: f32 = load o0[%t]", "is read, but nothing wrote it"),
        ("store o0[%t] = 1.0:f32\nif true:bool { %v: f32 = load o0[4] }", "o0[4] is "),
    ],
)
def test_the_interpreter_finds_wrong_accesses(body: str, message: str) -> None:
    with pytest.raises(GraphError) as caught:
        run(body)
    assert message in str(caught.value)


def test_masked_lanes_may_point_anywhere() -> None:
    body = """
    %lane: i64x4 = index 0 step 1
    %m: boolx4 = compare(%lane, 1:i64) LT
    %x: f32x4 = load a0[%t] step 100 where %m
    store o0[%t] x4 = %x where %m"""
    assert run(body).tolist() == list(range(8))


def test_an_iteration_stays_in_its_slice() -> None:
    body = "%v: f32 = load a0[7 - %t]\nstore o0[%t] = %v"
    assert run(body, slices=Slices(1, frozenset())).tolist() == list(range(8))[::-1]
    with pytest.raises(GraphError, match=r"is outside the 1 elements of a0"):
        run(body, slices=Slices(1, frozenset({"a0"})))


def test_f32_is_computed_in_f32_and_fma_rounds_once() -> None:
    """4097 * 4097 = 16785409 has one bit more than f32."""
    body = """
    %rounded: f32 = multiply(4097.0:f32, 4097.0:f32)
    %zero: f32 = add(%rounded, -16785408.0:f32)
    %one: f32 = fma(4097.0:f32, 4097.0:f32, -16785408.0:f32)
    %s: f32 = fma(%one, 10.0:f32, %zero)
    store o0[%t] = %s"""
    assert run(body).tolist() == [10.0] * 8


def test_arrays_that_do_not_fit_are_named() -> None:
    found = parse_kernel(text("store o0[%t] = 1.0:f32"))
    with pytest.raises(GraphError, match="kernel k: no array for the buffer a0"):
        run_kernel(found, {}, {})
    with pytest.raises(GraphError, match=r"kernel k: a0: expected a flat array of 8 f32, got float64 \(8,\)"):
        run_kernel(found, {"a0": np.zeros(8)}, {})
