"""Small graphs that the tests of code generation compile: one kind of layer each, over a batch of N."""

from __future__ import annotations

import numpy as np

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.types import TensorType

SHAPES = {
    "dense": (53,),
    "convolution": (9, 11, 5),
    "softmax": (37,),
    "layer-norm": (6, 43),
    "pooled": (8, 8, 19),
}


def input_type(kind: str) -> TensorType:
    return TensorType.of("f32", "N", *SHAPES[kind])


def model(kind: str) -> Graph:
    """`x` -> `y`; what a layer would have as weights are inputs as well, so that the graph has no parameters."""
    b = Builder("model")
    x = b.input("x", input_type(kind))
    with b.layer(kind):
        b.output(LAYERS[kind](b, x), "y")
    return b.build()


def arrays_of(graph: Graph, batch: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Numbers for all inputs, those of the other inputs than `x` the same for every batch; a batch is a prefix."""
    arrays = {}
    for number, entry in enumerate(graph.inputs):
        rng = np.random.default_rng([seed, number])
        shape = [d if isinstance(d, int) else batch for d in entry.value.type.shape]
        arrays[entry.name] = rng.standard_normal(shape).astype(entry.value.type.dtype.numpy)
    return arrays


def dense(b: Builder, x: Value) -> Value:
    """relu(x @ w + bias), 53 -> 71: no width of a panel divides either."""
    w, bias = b.input("w", TensorType.of("f32", 53, 71)), b.input("bias", TensorType.of("f32", 71))
    y = b("dot_general", x, w, lhs_contracting=(1,), rhs_contracting=(0,), lhs_batching=(), rhs_batching=())
    return b("relu", b("add", y, b.broadcast(bias, y.type.shape)))


def convolution(b: Builder, x: Value) -> Value:
    """3 x 3, stride 1 and 2, padding around, 5 -> 13 channels."""
    w = b.input("kernel", TensorType.of("f32", 3, 3, 5, 13))
    specs = {"lhs_spec": (0, 3, 1, 2), "rhs_spec": (3, 2, 0, 1), "out_spec": (0, 3, 1, 2)}
    where = {"strides": (1, 2), "padding": ((1, 1), (1, 1)), "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    plain = {"window_reversal": (False, False), "feature_group_count": 1, "batch_group_count": 1}
    return b("tanh", b("convolution", x, w, **specs, **where, **plain))


def softmax(b: Builder, x: Value) -> Value:
    return b("softmax", x, axis=1)


def layer_norm(b: Builder, x: Value) -> Value:
    """(x - mean) / sqrt(variance + epsilon) over the last dimension."""
    size = x.type.shape[-1]

    def mean(v: Value) -> Value:
        total = b("reduce", v, dimensions=(2,), kind="add")
        return b.broadcast(b("divide", total, float(size)), x.type.shape, (0, 1))

    centered = b("subtract", x, mean(x))
    variance = mean(b("multiply", centered, centered))
    return b("multiply", centered, b("rsqrt", b("add", variance, 1e-5)))


def pooled(b: Builder, x: Value) -> Value:
    """The mean of every image."""
    return b("divide", b("reduce", x, dimensions=(1, 2), kind="add"), 64.0)


LAYERS = {
    "dense": dense,
    "convolution": convolution,
    "softmax": softmax,
    "layer-norm": layer_norm,
    "pooled": pooled,
}
