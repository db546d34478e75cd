"""Graphs that several tests read."""

from __future__ import annotations

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.types import DTYPES, Poly, TensorType

N = Poly.symbol("N")


def training_step() -> Graph:
    """One dense layer and its update: roles, donations, layers, a gradient node, symbols, many kinds of attributes."""
    b = Builder("train")
    x = b.input("input", TensorType.of("f32", "N", 3))
    labels = b.input("labels", TensorType.of("i32", "N"))
    rate = b.input("learning_rate", TensorType.of("f32"))
    kernel = b.input("dense/kernel", TensorType.of("f32", 3, 4), "state")
    seed = b.input("seed", TensorType.of("u64"), "parameter")
    step = b.input("step", TensorType.of("i64"), "state")
    with b.layer("model"), b.layer("dropout"):
        dropped = b("dropout", x, seed, step, rate=0.25, stream=1)
    with b.layer("model/dense"):
        dims = {"lhs_batching": (), "rhs_batching": (), "lhs_contracting": (1,), "rhs_contracting": (0,)}
        logits = b("dot_general", dropped, kernel, **dims)
    losses = b("sparse_softmax_cross_entropy", logits, labels)
    count = b("dimension_value", value=N, dtype=DTYPES["f32"])
    loss = b("divide", b("reduce", losses, dimensions=(0,), kind="add"), count)
    (gradient,) = b.emit("gradient", loss, kernel)
    with b.layer("optimizer"):
        change = b("multiply", gradient, b.broadcast(rate, (3, 4)))
        b.output(b("subtract", kernel, change), "dense/kernel", "dense/kernel")
    b.output(b("add", step, 1), "step", "step")
    b.output(loss, "loss")
    return b.build()


def fused() -> Graph:
    """A fusion, whose region has a fusion inside."""
    inner = Builder("region")
    a = inner.input("a", TensorType.of("f32", "N", 3))
    inner.output(inner("tanh", a), "0")
    outer = Builder("body")
    c = outer.input("c", TensorType.of("f32", "N", 3))
    with outer.layer("dense"):
        (d,) = outer.emit("fusion", c, kind="map", regions=(inner.build(),))
        outer.output(outer("multiply", d, float("nan")), "0")
        outer.output(d, "1")
    b = Builder('a "quoted" name')
    x = b.input("x", TensorType.of("f32", "N", 3))
    with b.layer("größe/ü"):
        y, z = b.emit("fusion", x, kind="map", regions=(outer.build(),))
    b.output(y, "y")
    b.output(z, "z")
    return b.build()
