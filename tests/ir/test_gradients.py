"""The gradient rule of every operation that has one: against finite differences and against JAX, in float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
import pytest

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.op import DECOMPOSED, NOT_DIFFERENTIABLE, OPS
from lepton_jit.passes.gradient.autodiff import Autodiff
from tests.ir.cases import Case, cases, gradient_graph, resolved_attributes, run
from tests.ir.jax_ops import JAX, run_all

Arrays = dict[str, np.ndarray]

STEP = 1e-6
TOLERANCE = 1e-6


def _has_gradient(case: Case) -> bool:
    if case.op.gradient is NOT_DIFFERENTIABLE:
        return False
    results = case.graph().nodes[0].results
    return bool(case.float_operands()) and all(v.type.dtype.is_float for v in results)


def _distinct(parameters: list[Any]) -> list[Any]:
    """Without the samples that differ in dtype or shape only, where these do not matter."""
    seen: dict[str, Any] = {}
    for parameter in parameters:
        case = parameter.values[0]
        key = repr((case.op.name, case.sample.attributes)) if case.elementwise else parameter.id
        seen.setdefault(key, parameter)
    return list(seen.values())


DIFFERENTIABLE = _distinct([p for p in cases() if _has_gradient(p.values[0])])

# At low > high JAX gives nobody the cotangent; finite differences give it to `high`, as we do.
AT_ODDS = {"clamp"}


def _arguments(case: Case, graph: Graph) -> tuple[Arrays, Arrays]:
    """Operands by name, and random cotangents of the results."""
    random = np.random.default_rng(7)
    inputs = {f"x{i}": a for i, a in enumerate(case.arrays("f64"))}
    outputs = run(graph, inputs)
    return inputs, {f"dy{i}": random.uniform(0.5, 1.5, outputs[f"y{i}"].shape) for i in range(len(outputs))}


def _gradient(case: Case, inputs: Arrays, cotangents: Arrays) -> Arrays:
    graph = case.graph("f64")
    if case.op.gradient is DECOMPOSED:
        return run(_by_autodiff(case, graph), inputs | cotangents)
    return run(gradient_graph(graph, [True] * len(cotangents)), inputs | cotangents)


def _by_autodiff(case: Case, graph: Graph) -> Graph:
    """The gradient of sum(y * dy), for composites whose rule is their decomposition's."""
    b = Builder()
    operands = [b.input(f"x{i}", e.value.type) for i, e in enumerate(graph.inputs)]
    y = b(case.op.name, *operands, **graph.nodes[0].attributes)
    weighted = b("multiply", y, b.input("dy0", y.type))
    loss = b("reduce", weighted, dimensions=tuple(range(y.type.rank)), kind="add")
    wanted = case.float_operands()
    for i, value in zip(wanted, b.emit("gradient", loss, *(operands[i] for i in wanted)), strict=True):
        b.output(value, f"dx{i}")
    return Autodiff().apply(b.build())


def _pulled(f: Callable[[Arrays], Mapping[str, np.ndarray]], cotangents: Arrays, inputs: Arrays) -> float:
    outputs = f(inputs)
    return sum(float(np.sum(outputs[f"y{i}"] * cotangents[f"dy{i}"])) for i in range(len(cotangents)))


@pytest.mark.parametrize("case", DIFFERENTIABLE)
def test_finite_differences_agree(case: Case) -> None:
    graph = case.graph("f64")
    inputs, cotangents = _arguments(case, graph)
    found = _gradient(case, inputs, cotangents)
    random = np.random.default_rng(11)
    for i in case.float_operands():
        for _ in range(2):
            direction = random.uniform(-1.0, 1.0, inputs[f"x{i}"].shape)
            step = STEP * direction
            above = _pulled(lambda a: run(graph, a), cotangents, inputs | {f"x{i}": inputs[f"x{i}"] + step})
            below = _pulled(lambda a: run(graph, a), cotangents, inputs | {f"x{i}": inputs[f"x{i}"] - step})
            slope = (above - below) / (2 * STEP)
            ours = float(np.sum(found[f"dx{i}"] * direction)) if f"dx{i}" in found else 0.0
            size = max(1.0, abs(slope), float(np.abs(found.get(f"dx{i}", np.zeros(1))).sum()))
            assert abs(ours - slope) <= TOLERANCE * size


def _jax_gradient(case: Case) -> Callable[..., object]:
    """Operands and cotangents -> the cotangents of the float operands."""
    function = partial(JAX[case.op.name], **resolved_attributes(case.graph("f64").nodes[0]))
    wanted = case.float_operands()

    def of_floats(inputs: Sequence[object], *floats: object) -> object:
        values = list(inputs)
        for i, value in zip(wanted, floats, strict=True):
            values[i] = value
        return function(*values)

    def gradient(inputs: Sequence[object], cotangents: tuple[object, ...]) -> object:
        _, pull = jax.vjp(partial(of_floats, inputs), *(inputs[i] for i in wanted))
        return pull(cotangents if len(cotangents) > 1 else cotangents[0])

    return gradient


@pytest.mark.parametrize("op", sorted({p.values[0].op.name for p in DIFFERENTIABLE} & set(JAX) - AT_ODDS))
def test_jax_agrees(op: str) -> None:
    samples = [p.values[0] for p in DIFFERENTIABLE if p.values[0].op.name == op]
    given = [_arguments(case, case.graph("f64")) for case in samples]
    arguments = [(list(inputs.values()), tuple(cotangents.values())) for inputs, cotangents in given]
    theirs = run_all([_jax_gradient(case) for case in samples], arguments)
    for case, (inputs, cotangents), gradients in zip(samples, given, theirs, strict=True):
        found = _gradient(case, inputs, cotangents)
        for i, expected in zip(case.float_operands(), gradients, strict=True):
            ours = found.get(f"dx{i}", np.zeros_like(expected))
            tolerance = 1e-11 * max(1.0, float(np.abs(expected).max(initial=0.0)))
            np.testing.assert_allclose(ours, expected, rtol=0, atol=tolerance, err_msg=repr(case.sample))


@pytest.mark.parametrize("case", [p for p in DIFFERENTIABLE if p.values[0].op.gradient is not DECOMPOSED])
def test_cotangents_have_the_types_of_the_operands(case: Case) -> None:
    """In the dtypes of the sample, and with its symbolic dimensions."""
    graph = case.graph()
    gradient = gradient_graph(graph, [True] * len(graph.nodes[0].results))
    assert gradient.outputs


@pytest.mark.parametrize(
    "given", [(True, False, False), (False, True, False), (False, False, True), (False, True, True)]
)
@pytest.mark.parametrize("case", [p for p in cases() if p.values[0].op.name == "batch_norm_training"])
def test_batch_norm_takes_any_of_its_cotangents(case: Case, given: tuple[bool, ...]) -> None:
    graph = case.graph("f64")
    inputs, cotangents = _arguments(case, graph)
    used = {name: a if on else np.zeros_like(a) for (name, a), on in zip(cotangents.items(), given, strict=True)}
    expected = _gradient(case, inputs, used)
    kept = {name: a for (name, a), on in zip(cotangents.items(), given, strict=True) if on}
    found = run(gradient_graph(graph, given), inputs | kept)
    for name, array in expected.items():
        np.testing.assert_allclose(found.get(name, np.zeros_like(array)), array, rtol=1e-9, atol=1e-12)


def test_what_has_no_gradient_says_so() -> None:
    without = {name for name, op in OPS.items() if op.gradient is NOT_DIFFERENTIABLE}
    assert without == {
        *("floor", "ceil", "round_nearest_even", "sign", "is_finite", "compare", "bitcast_convert"),
        *("not", "and", "or", "xor", "shift_left", "shift_right_logical"),
        *("constant", "iota", "dimension_value", "rng_bit_generator", "argmax", "select_and_scatter"),
        *("gradient", "fusion", "affine_contraction", "pack", "check_indices"),
        *("winograd_input", "winograd_kernel", "winograd_output"),
    }
