"""Single kernels as machine code: masks, guards, strides, carried values, and where computations are put."""

from __future__ import annotations

import mmap
import re

import numpy as np
import pytest

from lepton_jit.codegen.loops.interpreter import run_kernel
from lepton_jit.codegen.loops.parser import parse_kernel
from lepton_jit.codegen.target import Target, native_target
from tests.codegen.kernels import emitted, run_emitted
from tests.levels import for_every_target


def both(text: str, arrays: dict[str, np.ndarray], **symbols: int) -> dict[str, np.ndarray]:
    """The arrays after a native run, which are those after a run of the interpreter."""
    kernel = parse_kernel(text)
    native, loops = ({name: a.copy() for name, a in arrays.items()} for _ in range(2))
    run_emitted(kernel, native, symbols)
    run_kernel(kernel, loops, symbols)
    assert {n: a.tobytes() for n, a in native.items()} == {n: a.tobytes() for n, a in loops.items()}
    return native


def blocks(text: str, target: Target) -> dict[str, list[str]]:
    """The instructions of the emitted kernel by basic block."""
    body = emitted(parse_kernel(text), target=target).split("{\n", 1)[1].split("\n}")[0]
    labels = re.split(r"^([\w.]+):\n", body, flags=re.MULTILINE)[1:]
    return {label: lines.split("\n") for label, lines in zip(labels[::2], labels[1::2], strict=True)}


MASKED = """
kernel @tail(a0: f32[N], o0: f32[N]) parallel %t in 0 to 1 grain 1 {
  %n: i64 = index N
  %lane: i64x8 = index 0 step 1
  %m: boolx8 = compare(%lane, %n) LT
  %x: f32x8 = load a0[0] where %m else -1.0:f32
  %y: f32x8 = add(%x, 1.0:f32)
  store o0[0] x8 = %y where %m
}
"""


def test_lanes_behind_a_mask_are_neither_read_nor_written() -> None:
    """The arrays end where the page does: one lane more would be a fault."""
    area = mmap.mmap(-1, mmap.PAGESIZE)
    page = np.frombuffer(area, np.float32)
    for n in range(1, 9):
        arrays = {"a0": page[-n:], "o0": np.full(n + 8, 7.0, np.float32)}
        arrays["a0"][...] = np.arange(n)
        run_emitted(parse_kernel(MASKED), arrays, {"N": n})
        assert arrays["o0"].tolist() == [*(i + 1.0 for i in range(n)), *[7.0] * 8]


def test_masked_lanes_hold_what_else_says() -> None:
    text = """
    kernel @others(a0: f32[2], o0: f32[4]) parallel %t in 0 to 1 grain 1 {
      %lane: i64x4 = index 0 step 1
      %m: boolx4 = compare(%lane, 2:i64) LT
      %x: f32x4 = load a0[0] where %m else -1.5:f32
      store o0[0] x4 = %x
    }"""
    arrays = {"a0": np.array([1, 2], np.float32), "o0": np.zeros(4, np.float32)}
    assert both(text, arrays)["o0"].tolist() == [1.0, 2.0, -1.5, -1.5]


def test_a_scalar_is_read_only_where_its_guard_holds() -> None:
    """Index 2**40 + t is no address of this process."""
    text = """
    kernel @guarded(a0: f32[4], o0: f32[4]) parallel %t in 0 to 4 grain 1 {
      %i: i64 = index %t
      %inside: bool = compare(%i, 2:i64) LT
      %far: i64 = select(%inside, 0:i64, 1099511627776:i64)
      %x: f32 = load a0[%t + %far] where %inside else 9.0:f32
      store o0[%t] = %x
    }"""
    arrays = {"a0": np.arange(4, dtype=np.float32), "o0": np.zeros(4, np.float32)}
    assert both(text, arrays)["o0"].tolist() == [0.0, 1.0, 9.0, 9.0]


def test_vectors_are_gathered_with_a_step() -> None:
    text = """
    kernel @columns(a0: f32[N*N], o0: f32[8*N]) parallel %t in 0 to N grain 1 {
      %n: i64 = index N
      %lane: i64x8 = index 0 step 1
      %m: boolx8 = compare(%lane, %n) LT
      %x: f32x8 = load a0[%t] step N where %m
      %y: f32x8 = load a0[N*N - %t - 1] step -N where %m
      %z: f32x8 = subtract(%x, %y)
      store o0[8*%t] x8 = %z
    }"""
    square = np.arange(25, dtype=np.float32)
    found = both(text, {"a0": square, "o0": np.zeros(40, np.float32)}, N=5)["o0"].reshape(5, 8)
    expected = square.reshape(5, 5) - square[::-1].reshape(5, 5)
    assert found[:, :5].tolist() == expected.T.tolist()
    assert found[:, 5:].tolist() == np.zeros((5, 3)).tolist()


def test_loops_carry_values_and_give_back_the_last_one() -> None:
    text = """
    kernel @fibonacci(o0: i64[N]) parallel %t in 0 to N grain 1 {
      for %i in 0 to %t step 1 carry %a: i64 = 0:i64, %b: i64 = 1:i64 {
        %c: i64 = add(%a, %b)
        next %b, %c
      }
      store o0[%t] = %a
    }"""
    found = both(text, {"o0": np.zeros(10, np.int64)}, N=10)["o0"]
    assert found.tolist() == [0, 1, 1, 2, 3, 5, 8, 13, 21, 34]


def test_carried_values_may_change_places() -> None:
    text = """
    kernel @swap(o0: f32[N]) parallel %t in 0 to N grain 1 {
      for %i in 0 to %t step 1 carry %a: f32 = 1.0:f32, %b: f32 = 2.0:f32 { next %b, %a }
      store o0[%t] = %a
    }"""
    assert both(text, {"o0": np.zeros(4, np.float32)}, N=4)["o0"].tolist() == [1.0, 2.0, 1.0, 2.0]


def test_both_sides_of_a_condition() -> None:
    text = """
    kernel @sides(o0: f32[N]) parallel %t in 0 to N grain 1 {
      %i: i64 = index %t
      %odd: i64 = modulo(%i, 2:i64)
      %is: bool = compare(%odd, 1:i64) EQ
      if %is { store o0[%t] = 1.0:f32 } else { store o0[%t] = 2.0:f32 }
    }"""
    assert both(text, {"o0": np.zeros(5, np.float32)}, N=5)["o0"].tolist() == [2.0, 1.0, 2.0, 1.0, 2.0]


@pytest.mark.parametrize("kind", ["add", "multiply", "maximum", "minimum"])
def test_lanes_are_combined_by_halves(kind: str) -> None:
    text = f"""
    kernel @fold(a0: f32[16], o0: f32[1]) parallel %t in 0 to 1 grain 1 {{
      %x: f32x16 = load a0[0]
      %y: f32 = horizontal {kind}(%x)
      store o0[0] = %y
    }}"""
    x = np.random.default_rng(0).standard_normal(16).astype(np.float32)
    found = both(text, {"a0": x, "o0": np.zeros(1, np.float32)})["o0"]
    while x.size > 1:
        x = getattr(np, kind)(x[: x.size // 2], x[x.size // 2 :])
    assert found.tolist() == x.tolist()


@pytest.mark.parametrize("width", [1, 2, 4])
def test_parts_of_two_vectors_by_turns(width: int) -> None:
    """A matrix of 2 x 2 parts is transposed in two steps."""
    text = f"""
    kernel @parts(a0: f32[16], o0: f32[16]) parallel %t in 0 to 1 grain 1 {{
      %x: f32x8 = load a0[0]
      %y: f32x8 = load a0[8]
      %even: f32x8 = trn1 {width}(%x, %y)
      %odd: f32x8 = trn2 {width}(%x, %y)
      store o0[0] x8 = %even
      store o0[8] x8 = %odd
    }}"""
    x = np.arange(16, dtype=np.float32)
    expected = x.reshape(2, -1, 2, width).transpose(2, 1, 0, 3).ravel()
    assert both(text, {"a0": x, "o0": np.zeros(16, np.float32)})["o0"].tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", ["i8", "u8", "i32", "u32", "i64", "u64"])
def test_integers_wrap_and_no_division_traps(dtype: str) -> None:
    text = f"""
    kernel @integers(a0: {dtype}[64], a1: {dtype}[64], o0: {dtype}[320]) parallel %t in 0 to 64 grain 1 {{
      %x: {dtype} = load a0[%t]
      %y: {dtype} = load a1[%t]
      %a: {dtype} = add(%x, %y)
      %m: {dtype} = multiply(%x, %y)
      %d: {dtype} = divide(%x, %y)
      %r: {dtype} = remainder(%x, %y)
      %s: {dtype} = shift_left(%x, %y)
      store o0[5*%t] = %a
      store o0[5*%t + 1] = %m
      store o0[5*%t + 2] = %d
      store o0[5*%t + 3] = %r
      store o0[5*%t + 4] = %s
    }}"""
    numpy = np.dtype(f"{'u' if dtype[0] == 'u' else ''}int{dtype[1:]}")
    limits = np.iinfo(numpy)
    edges = np.array([limits.min, limits.min + 1, -1 & limits.max, 0, 1, 2, limits.max - 1, limits.max], numpy)
    x, y = (a.ravel() for a in np.meshgrid(edges, edges))
    both(text, {"a0": x, "a1": y, "o0": np.zeros(320, numpy)})


def test_floats_become_the_nearest_integer_that_fits() -> None:
    text = """
    kernel @convert(a0: f32[8], o0: i8[8]) parallel %t in 0 to 1 grain 1 {
      %x: f32x8 = load a0[0]
      %y: i8x8 = convert(%x)
      store o0[0] x8 = %y
    }"""
    x = np.array([1.9, -1.9, 300, -300, np.inf, -np.inf, np.nan, -0.5], np.float32)
    found = both(text, {"a0": x, "o0": np.zeros(8, np.int8)})["o0"]
    assert found.tolist() == [1, -1, 127, -128, 127, -128, 0, 0]


NESTED = """
kernel @nested(a0: f32[N*N*N], o0: f32[N*N*N]) parallel %t in 0 to N grain 1 {
  for %i in 0 to N step 1 {
    for %j in 0 to N step 1 {
      %x: f32 = load a0[N*N*%t + N*%i + %j]
      %y: f32 = multiply(%x, 2.0:f32)
      store o0[N*N*%t + N*%i + %j] = %y
    }
  }
}
"""


@for_every_target
def test_indices_are_formed_where_their_variables_first_exist(target: Target) -> None:
    """N*N before all loops, N*N*t in the loop over t, N*i in the loop over i: no product is left in the innermost."""
    products = {label: sum(" mul " in line for line in lines) for label, lines in blocks(NESTED, target).items()}
    assert [(label, n) for label, n in products.items() if n] == [("entry", 1), ("body", 1), ("body.1", 1)]


@for_every_target
def test_equal_indices_are_computed_once(target: Target) -> None:
    adds = [line for line in blocks(NESTED, target)["body.2"] if " add " in line]
    # t-and-i part + j, for both arrays, and the step of j
    assert len(adds) == 2


def test_the_nested_kernel_computes() -> None:
    x = np.arange(27, dtype=np.float32)
    assert both(NESTED, {"a0": x, "o0": np.zeros_like(x)}, N=3)["o0"].tolist() == (2 * x).tolist()


@for_every_target
def test_a_scalar_that_vectors_use_is_repeated_once(target: Target) -> None:
    text = """
    kernel @scale(a0: f32[64], a1: f32[1], o0: f32[64]) parallel %t in 0 to 8 grain 1 {
      %s: f32 = load a1[0]
      %x: f32x8 = load a0[8*%t]
      %y: f32x8 = multiply(%x, %s)
      %z: f32x8 = add(%y, %s)
      store o0[8*%t] x8 = %z
    }"""
    body = [line for lines in blocks(text, target).values() for line in lines]
    assert sum("insertelement" in line for line in body) == 1
    x = np.arange(64, dtype=np.float32)
    assert both(text, {"a0": x, "a1": np.full(1, 3.0, np.float32), "o0": x})["o0"].tolist() == (x * 3 + 3).tolist()


CONTRACT = """
kernel @tile(a0: f32[{rows}*5], a1: f32[5*{columns}], a2: f32[{columns}], o0: f32[{rows}*{columns}])
parallel %t in 0 to 1 grain 1 {{
  %rows: i64 = index {rows}
  contract %rows of [{heights}] by {columns} {{
    tile f32 vectors {vectors} panel 2{masked}
    out o0[0] row {columns}
    lhs a0[0] row 5 from 0
    rhs a1[0] panel 0
    sum 5 lhs 1 rhs {columns}
    extra a2[0] row 0 column 1
    epilogue(%sum: f32x{lanes}, %bias: f32x{lanes}) {{
      %shifted: f32x{lanes} = add(%sum, %bias)
      %result: f32x{lanes} = maximum(%shifted, 0.0:f32)
      return %result
    }}
  }}
}}
"""


@pytest.mark.parametrize("columns", [1, 16, 21, 32])
def test_a_micro_kernel_is_what_its_definition_says(columns: int) -> None:

    lanes = native_target().lanes(32)
    columns = min(columns, 2 * lanes)
    masked = " masked rhs_masked" if columns % lanes else ""
    for rows in (1, 4, 6):
        text = CONTRACT.format(
            rows=rows, columns=columns, heights="1, 4, 6", vectors=-(-columns // lanes), masked=masked, lanes=lanes
        )
        rng = np.random.default_rng(rows)
        sizes = {"a0": rows * 5, "a1": 5 * columns, "a2": columns, "o0": rows * columns}
        both(text, {name: rng.integers(-9, 9, size).astype(np.float32) for name, size in sizes.items()})
