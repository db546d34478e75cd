"""A model's programs, inference and a training step, compiled for any level, against the interpreter."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lepton_jit.codegen.target import Target
from lepton_jit.compiler.build import build
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Output, Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import dim_value
from lepton_jit.passes.gradient.autodiff import Autodiff
from lepton_jit.passes.rewriting.rewrite import Rewriter
from lepton_jit.training.steps import trace_forward
from tests.codegen.programs import differences

Arrays = Mapping[str, np.ndarray]
# Of the largest number of each result: programs sum in another order than the interpreter.
TOLERANCE = {"float32": 2e-5}


def training_step(model: Any) -> Graph:
    """The forward pass of training, the mean square of what it returns, and a step of each weight down its gradient."""
    graph = trace_forward(model)
    b = Rewriter(graph)
    for node in graph.nodes:
        b.append(node)
    loss = _mean_square(b, [o.value for o in graph.outputs if not o.donates])
    trained = {path for path, weight in model.weight_paths().items() if weight.trainable and weight.size}
    weights = [entry for entry in graph.inputs if entry.name in trained]
    gradients = b.emit("gradient", loss, *(w.value for w in weights)) if weights else ()
    updates = [
        Output(b("subtract", weight.value, gradient), weight.name, weight.name)
        for weight, gradient in zip(weights, gradients, strict=True)
    ]
    inputs = tuple(replace(i, role="state") if i.name in trained else i for i in graph.inputs)
    outputs = (*graph.outputs, *updates, Output(loss, "loss"))
    return replace(graph, inputs=inputs, nodes=tuple(b.nodes), outputs=outputs)


def _mean_square(b: Builder, values: Sequence[Value]) -> Value:
    """The sum of the values' mean squares."""
    total = b.constant(np.zeros((), np.float32), values[0].type.dtype)
    for value in values:
        squares = b("reduce", b("multiply", value, value), dimensions=tuple(range(value.type.rank)), kind="add")
        size = b("dimension_value", value=value.type.elements, dtype=value.type.dtype)
        total = b("add", total, b("divide", squares, size))
    return total


def random_arrays(graph: Graph, batch: int, rows: int = 2) -> dict[str, np.ndarray]:
    """Numbers for every input: variances are positive, integers below `rows`, the size of every table."""
    rng = np.random.default_rng(batch)
    arrays = {}
    for entry in graph.inputs:
        type, shape = entry.value.type, tuple(dim_value(d, {"N": batch}) for d in entry.value.type.shape)
        if not type.dtype.is_float:
            array = np.asarray(rng.integers(0, rows, shape))
        else:
            fan_in = max(1, math.prod(shape[:-1]))
            array = rng.normal(0, 1 if entry.role == "input" else min(0.3, fan_in**-0.5), shape)
        arrays[entry.name] = (np.abs(array) + 0.5 if "variance" in entry.name else array).astype(type.dtype.numpy)
    return arrays


def run_program(graph: Graph, arrays: Arrays, target: Target) -> dict[str, np.ndarray]:
    """What the compiled program returns, and what it writes into its state."""
    held = {name: array.copy() for name, array in arrays.items()}
    executable = build(graph, threads=1, target=target)
    executable.bind({i.name: held[i.name] for i in graph.inputs if i.role != "input"})
    returned = iter(executable.run(*(held[i.name] for i in graph.inputs_of("input"))))
    return {o.name: held[o.donates] if o.donates else next(returned) for o in graph.outputs}


def wrong(graph: Graph, arrays: Arrays, targets: Sequence[Target]) -> list[str]:
    """What the programs of these levels give that the interpreter does not."""
    expected = run_graph(Autodiff().apply(graph), arrays)
    return [
        f"{target.name}: {difference}"
        for target in targets
        for difference in differences(run_program(graph, arrays, target), expected, TOLERANCE)
    ]
