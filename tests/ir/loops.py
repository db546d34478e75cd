"""Graphs with loops that several tests read, and the same loops in JAX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.expression import Expression
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.loops import scan
from lepton_jit.ir.types import Dim, TensorType

MATMUL = {"lhs_batching": (), "rhs_batching": (), "lhs_contracting": (1,), "rhs_contracting": (0,)}


def running_sum(length: Dim | str = 5, reverse: bool = False) -> Graph:
    """Two results: the sum of the rows of x, and the sums so far."""
    b = Builder("running_sum")
    x = b.input("x", TensorType.of("f32", length, 3))

    def body(b: Builder, carries: Sequence[Value], slices: Sequence[Value], _: Sequence[Value]) -> Any:
        total = b("add", carries[0], slices[0])
        return [total], [total]

    (last,), (sums,) = scan(b, body, [b.full(0.0, TensorType.of("f32", 3))], [x], reverse=reverse)
    b.output(last, "last")
    b.output(sums, "sums")
    return b.build()


def lstm(steps: Dim = 4, units: int = 5, channels: int = 3, dtype: str = "f32", reverse: bool = False) -> Graph:
    """The plain cell: x: [steps, N, C], h and c: [N, units] -> last h, last c, every h."""
    b = Builder("lstm")
    x = b.input("x", TensorType.of(dtype, steps, "N", channels))
    h, c = (b.input(name, TensorType.of(dtype, "N", units)) for name in ("h", "c"))
    kernel = b.input("kernel", TensorType.of(dtype, channels, 4 * units), "parameter")
    recurrent = b.input("recurrent", TensorType.of(dtype, units, 4 * units), "parameter")
    bias = b.input("bias", TensorType.of(dtype, 4 * units), "parameter")

    def body(b: Builder, carries: Sequence[Value], slices: Sequence[Value], captured: Sequence[Value]) -> Any:
        (h, c), (x,), (kernel, recurrent, bias) = carries, slices, captured
        z = b("add", b("dot_general", x, kernel, **MATMUL), b("dot_general", h, recurrent, **MATMUL))
        z = b("add", z, b.broadcast(bias, z.type.shape))
        i, f, g, o = (
            Expression(b, b("slice", z, start=(0, k * units), limit=(z.type.shape[0], (k + 1) * units), strides=(1, 1)))
            for k in range(4)
        )
        new_c = f("logistic") * Expression(b, c) + i("logistic") * g("tanh")
        new_h = o("logistic") * new_c("tanh")
        return [new_h.value, new_c.value], [new_h.value]

    (h, c), (every,) = scan(b, body, [h, c], [x], [kernel, recurrent, bias], reverse=reverse)
    for value, name in ((h, "last_h"), (c, "last_c"), (every, "every_h")):
        b.output(value, name)
    return b.build()


def jax_lstm(arrays: dict[str, Any], reverse: bool = False) -> dict[str, jax.Array]:
    """What `lstm` computes."""

    def step(carry: Any, x: Any) -> Any:
        h, c = carry
        z = x @ arrays["kernel"] + h @ arrays["recurrent"] + arrays["bias"]
        i, f, g, o = jnp.split(z, 4, axis=1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    (h, c), every = lax.scan(step, (arrays["h"], arrays["c"]), arrays["x"], reverse=reverse)
    return {"last_h": h, "last_c": c, "every_h": every}


def arrays_for(graph: Graph, **symbols: int) -> dict[str, np.ndarray]:
    """Numbers in [-1, 1) for every input, always the same."""
    random = np.random.default_rng(3)
    shapes = {e.name: [d if isinstance(d, int) else d.value(symbols) for d in e.value.type.shape] for e in graph.inputs}
    dtypes = {e.name: e.value.type.dtype.numpy for e in graph.inputs}
    return {name: random.uniform(-1, 1, shape).astype(dtypes[name]) for name, shape in shapes.items()}
