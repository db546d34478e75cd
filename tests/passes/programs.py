"""Training steps as graphs, for tests of passes that work on whole programs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.types import DTYPES, Poly, TensorType
from lepton_jit.passes.cse import EliminateCommonSubexpressions
from lepton_jit.passes.expand_composites import ExpandComposites
from lepton_jit.passes.fold_constants import FoldConstants
from lepton_jit.passes.gradient.autodiff import Autodiff
from lepton_jit.passes.manager import run_pipeline
from lepton_jit.passes.rewriting.canonicalize import Canonicalize

F32 = DTYPES["f32"]
Kept = Callable[[Builder, Value], Value]  # what of a slot's new value is kept
SIMPLIFIED = (Canonicalize(), FoldConstants(), EliminateCommonSubexpressions())


def dense(b: Builder, x: Value, kernel: Value) -> Value:
    return b("dot_general", x, kernel, lhs_batching=(), rhs_batching=(), lhs_contracting=(1,), rhs_contracting=(0,))


def training_step(sizes: Sequence[int], *, without_denormals: bool = False) -> Graph:
    """Dense layers with relu, cross-entropy from logits, Adam; all updates at the end, as a front end traces it."""
    b = Builder("train")
    x, y = b.input("x", TensorType.of("f32", "N", sizes[0])), b.input("y", TensorType.of("i32", "N"))
    rate, step = b.input("learning_rate", TensorType.of("f32")), b.input("step", TensorType.of("i64"), "state")
    weights: dict[str, Value] = {}
    h = x
    for i, (rows, columns) in enumerate(pairwise(sizes)):
        with b.layer(f"dense_{i}"):
            kernel = weights[f"dense_{i}/kernel"] = b.input(
                f"dense_{i}/kernel", TensorType.of("f32", rows, columns), "state"
            )
            bias = weights[f"dense_{i}/bias"] = b.input(f"dense_{i}/bias", TensorType.of("f32", columns), "state")
            h = dense(b, h, kernel)
            h = b("add", h, b.broadcast(bias, h.type.shape, (1,)))
            h = b("relu", h) if i < len(sizes) - 2 else h
    with b.layer("loss"):
        rows = b("sparse_softmax_cross_entropy", h, y)
        count = b("dimension_value", value=Poly.symbol("N"), dtype=F32)
        loss = b("divide", b("reduce", rows, dimensions=(0,), kind="add"), count)
    gradients = b.emit("gradient", loss, *weights.values())
    next_step = b("add", step, 1)
    _adam(b, weights, gradients, rate, b("convert", next_step, dtype=F32), _kept if without_denormals else _as_it_is)
    b.output(next_step, "step", donates="step")
    b.output(loss, "loss")
    return b.build()


def _adam(b: Builder, weights: dict[str, Value], gradients: Sequence[Value], rate: Value, t: Value, kept: Kept) -> None:
    unbiased = b("sqrt", b("subtract", 1.0, b("power", 0.999, t)))
    rate = b("divide", b("multiply", rate, unbiased), b("subtract", 1.0, b("power", 0.9, t)))
    for (name, w), g in zip(weights.items(), gradients, strict=True):
        with b.layer(name.split("/")[0]):
            m, v = (b.input(f"{name}/{slot}", w.type, "state") for slot in ("m", "v"))
            new_m = b("add", b("multiply", m, 0.9), b("multiply", g, 0.1))
            new_v = b("add", b("multiply", v, 0.999), b("multiply", b("multiply", g, g), 0.001))
            change = b("divide", b("multiply", new_m, rate), b("add", b("sqrt", new_v), 1e-7))
            for slot, value in (("", b("subtract", w, change)), ("/m", kept(b, new_m)), ("/v", kept(b, new_v))):
                b.output(value, name + slot, donates=name + slot)


def _as_it_is(b: Builder, slot: Value) -> Value:
    return slot


def _kept(b: Builder, slot: Value) -> Value:
    """Without denormal numbers: computed from a slot's new value as the weight's is, and not on the way to it."""
    return b("select", b("compare", b("abs", slot), 2.0**-126, direction="LT"), b.full(0.0, slot.type), slot)


def simplified(graph: Graph) -> Graph:
    """The graph as it reaches the scheduling of updates: gradients and composites expanded."""
    return run_pipeline(graph, [Autodiff(), *SIMPLIFIED, ExpandComposites(), *SIMPLIFIED])
