"""Native forms of the transcendental operations: what the machine computes where NumPy calls a function.

`exponential(m, x)` builds one scalar (or one vector: the text is the same) out of the primitives that `m` has as
methods: `m.add(a, b)`, `m.fma(a, b, c)` = a*b + c, `m.select(p, a, b)`, ... Values have a `.dtype`. The forms have no
branches and no tables, work for f32 and f64, and keep NaN, infinities and denormals. docs/numerics.md has the largest
error of each and what it costs.
"""

from __future__ import annotations

from lepton_jit.ir.ops.native.basic import clamp, is_finite, rsqrt, sign
from lepton_jit.ir.ops.native.error_function import erf, erfc
from lepton_jit.ir.ops.native.exponentials import exponential, exponential_minus_one, logistic, tanh
from lepton_jit.ir.ops.native.logarithms import log, log_plus_one
from lepton_jit.ir.ops.native.powers import power
from lepton_jit.ir.ops.native.random_bits import philox
from lepton_jit.ir.ops.native.trigonometric import cosine, sine

__all__ = [
    "clamp",
    "cosine",
    "erf",
    "erfc",
    "exponential",
    "exponential_minus_one",
    "is_finite",
    "log",
    "log_plus_one",
    "logistic",
    "philox",
    "power",
    "rsqrt",
    "sign",
    "sine",
    "tanh",
]
