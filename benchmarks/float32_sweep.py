"""The largest error of each native transcendental function over every float32 there is, against float64.

Run with `.venv/bin/python -m benchmarks.float32_sweep [--only tanh erf] [--target x86-64-v3] [--stride 1]`.
A function of all 2**32 arguments takes one to four minutes of one core. float64 NumPy stands for the exact value: its
own error, a few units of float64, is below 1e-8 of a unit of float32.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lepton_jit.codegen.generate import generate
from lepton_jit.codegen.llvm.machine_code import compile_object
from lepton_jit.codegen.target import Target, get_target
from lepton_jit.compiler.describe import describe
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.types import TensorType
from lepton_jit.runtime.linker import link
from lepton_jit.runtime.program import Program
from lepton_jit.runtime.support_text import support_text

PATTERNS = 2**32
CALL = 2**20  # arguments of one native call
CHUNK = 2**15  # arguments compared at a time: their float64 arrays stay in an L2 cache
SIGNIFICAND_BITS = 23
SMALLEST_EXPONENT = -126

# erf by Taylor series around points STEP apart: the ninth term is below 1e-17 of the first.
STEP = 1 / 64
LIMIT = 6.0  # erf(6) = 1 - 2e-17
TERMS = 9
# Below this the power series around zero, whose terms keep the relative error.
SERIES_BELOW = 0.5
SERIES_TERMS = 16


def taylor_table() -> np.ndarray:
    """[TERMS, points]: the coefficients of erf around each point, from the recurrence of its derivatives.

    y' = c exp(-x*x), y'' = -2x y', and by differentiating: y[n+2] = -2x y[n+1] - 2n y[n].
    """
    points = np.arange(0, LIMIT + STEP, STEP)
    derivatives = [np.array([math.erf(p) for p in points]), 2 / math.sqrt(math.pi) * np.exp(-points * points)]
    derivatives.append(-2 * points * derivatives[1])
    for n in range(1, TERMS - 2):
        derivatives.append(-2 * points * derivatives[n + 1] - 2 * n * derivatives[n])
    return np.array([d / math.factorial(n) for n, d in enumerate(derivatives)])


TABLE = taylor_table()


def error_function(x: np.ndarray) -> np.ndarray:
    """erf of float64, to some 1e-15 of its value.

    >>> bool(abs(error_function(np.array([0.3, 1.7]))[1] - math.erf(1.7)) < 1e-15)
    True
    """
    if np.isnan(x).any() or np.abs(x).max(initial=0) < SERIES_BELOW:
        return np.where(np.abs(x) < SERIES_BELOW, _series(x), np.where(np.isnan(x), x, _taylor(np.nan_to_num(x))))
    if np.abs(x).min(initial=LIMIT) >= LIMIT:
        return np.sign(x)
    return np.where(np.abs(x) < SERIES_BELOW, _series(x), _taylor(x))


def _series(x: np.ndarray) -> np.ndarray:
    """2/sqrt(pi) * sum over n of (-1)^n x^(2n+1) / (n! (2n+1))."""
    square = np.square(np.clip(x, -SERIES_BELOW, SERIES_BELOW))
    total = np.zeros_like(x)
    for n in reversed(range(SERIES_TERMS)):
        total = total * square + (-1) ** n / (math.factorial(n) * (2 * n + 1))
    return total * x * (2 / math.sqrt(math.pi))


def _taylor(x: np.ndarray) -> np.ndarray:
    size = np.minimum(np.abs(x), LIMIT)
    nearest = np.rint(size / STEP).astype(np.intp)
    distance = size - nearest * STEP
    total = np.zeros_like(x)
    for coefficients in TABLE[::-1]:
        total = total * distance + coefficients[nearest]
    return np.copysign(total, x)


EXACT: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "exponential": np.exp,
    "exponential_minus_one": np.expm1,
    "log": np.log,
    "log_plus_one": np.log1p,
    "tanh": np.tanh,
    "logistic": lambda x: 1 / (1 + np.exp(-x)),
    "erf": error_function,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "sine": np.sin,
    "cosine": np.cos,
}


@dataclass
class Worst:
    """The largest error so far; `wrong` counts NaN, infinities and signs of zero that are not as they should be."""

    ulp: float = 0.0
    argument: float = math.nan
    got: float = math.nan
    exact: float = math.nan
    wrong: int = 0
    example: float = math.nan

    def see(self, x: np.ndarray, got: np.ndarray, exact: np.ndarray) -> None:
        """Compare a chunk; the unit is that of float32 at the exact value, below the normal numbers the least."""
        exponent = ((exact.view(np.int64) >> 52) & 0x7FF) - 1023
        exponent = np.maximum(exponent, SMALLEST_EXPONENT) + (1023 - SIGNIFICAND_BITS)
        errors = np.abs(got - exact) / (exponent << 52).view(np.float64)
        limit = 2.0**128 * (1 - 2.0**-25)  # what rounds to infinity in float32
        special = ~(np.abs(got) + np.abs(exact) < limit) | (exact == 0)
        if special.any():
            at = np.flatnonzero(special)
            self._special(x[at], got[at], exact[at], limit)
            errors[at] = 0
        largest = int(errors.argmax())
        if errors[largest] > self.ulp:
            self.ulp = float(errors[largest])
            self.argument, self.got, self.exact = float(x[largest]), float(got[largest]), float(exact[largest])

    def _special(self, x: np.ndarray, got: np.ndarray, exact: np.ndarray, limit: float) -> None:
        rounded = np.where(np.abs(exact) >= limit, np.copysign(np.inf, exact), exact)
        finite = np.isfinite(rounded) & (rounded != 0)
        same = np.where(finite, np.isfinite(got), (got == rounded) & (np.signbit(got) == np.signbit(rounded)))
        same |= np.isnan(got) & np.isnan(rounded)
        wrong = np.flatnonzero(~same)
        if wrong.size:
            self.wrong += wrong.size
            self.example = float(x[wrong[0]])

    def __str__(self) -> str:
        text = f"{self.ulp:.3f} ulp at {self.argument!r} (got {self.got!r}, exact {self.exact!r})"
        return text + (f"; {self.wrong} wrong special values, such as at {self.example!r}" if self.wrong else "")


def native(op: str, target: Target) -> Program:
    """The operation on a vector of any length."""
    b = Builder(op)
    b.output(b(op, b.input("x", TensorType.of("f32", "N"))), "y")
    generated = generate(b.build(), target)
    support = compile_object(support_text(target.triple.split("-")[0]), target, 1)
    return Program(describe(generated.lowered, generated.target), link(generated.objects(), support, op), threads=1)


def sweep(op: str, target: Target, stride: int) -> Worst:
    """Every `stride`-th bit pattern."""
    program, exact, worst = native(op, target), EXACT[op], Worst()
    for start in range(0, PATTERNS, CALL * stride):
        x = np.arange(start, min(start + CALL * stride, PATTERNS), stride, np.int64).astype(np.uint32).view(np.float32)
        (y,) = program(x)
        for at in range(0, x.size, CHUNK):
            piece = x[at : at + CHUNK]
            worst.see(piece, y[at : at + CHUNK].astype(np.float64), exact(piece.astype(np.float64)))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", choices=EXACT, default=list(EXACT), metavar="OP")
    parser.add_argument("--target", default="native")
    parser.add_argument("--stride", type=int, default=1, help="take every n-th bit pattern only")
    arguments = parser.parse_args()
    target = get_target(arguments.target)
    with np.errstate(all="ignore"):
        for op in arguments.only:
            start = time.perf_counter()
            worst = sweep(op, target, arguments.stride)
            seconds = time.perf_counter() - start
            print(f"{target.name} {op:22} {worst}  [{seconds:.0f} s]", flush=True)


if __name__ == "__main__":
    main()
