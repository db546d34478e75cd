"""What a random model is to compute: the graph interpreter in float64, and how far rounding may carry a result.

Two more runs, with a relative disturbance after every operation that rounds, tell how sensitive each result is: what
float32 gives, here or in Keras, may differ by as much and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from lepton_jit.ir.graph import Graph
from lepton_jit.ir.interpreter import bind_symbols
from lepton_jit.training.step_names import metric_sum
from tests.random_draft import NOISE, evaluate, widened

__all__ = ["Arrays", "Difference", "Expected", "ExpectedTraining", "Rejected", "expected_outputs", "metrics_of"]

Arrays = dict[str, np.ndarray]

# What rounding to float32 may do without being an amplified disturbance, and how many disturbances an error may be.
FLOOR, MULTIPLE = 2e-6, 1.0
# Beyond this sensitivity an output or a loss says nothing.
TOLERATED = 1e-3
SMALLEST = 1e-3
LARGEST = 1e37
SUMS = metric_sum("", "").rstrip("/") + "/"


class Rejected(Exception):  # noqa: N818  not an error: another model is drawn
    """A model whose numbers say nothing: not finite, or too sensitive."""


class Difference(AssertionError):  # noqa: N818  what it is, not an error of the program
    """Where two ways to compute the same do not agree."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"{stage}: {message}")
        self.stage = stage


@dataclass(frozen=True)
class Expected:
    """Arrays by name, exact, and the same from disturbed runs; how far off a chain of additions may be besides."""

    exact: Arrays
    disturbed: tuple[Arrays, ...]
    chain: float = 0.0

    def sensitivity(self, name: str) -> float:
        return max(distance(run[name], self.exact[name]) for run in self.disturbed)

    def compare(self, stage: str, found: Mapping[str, np.ndarray]) -> None:
        """Difference if one array is farther from the exact one than rounding explains."""
        for name, exact in self.exact.items():
            if name not in found:
                raise Difference(stage, f"no {name!r} in {sorted(found)}")
            array = np.asarray(found[name])
            if array.shape != exact.shape:
                raise Difference(stage, f"{name}: expected shape {exact.shape}, got {array.shape}")
            error, allowed = distance(array, exact), max(FLOOR, MULTIPLE * self.sensitivity(name)) + self.chain
            if not error <= allowed:
                raise Difference(stage, f"{name}: error {error:.2g}, expected at most {allowed:.2g}")

    def only(self, names: set[str]) -> Expected:
        return replace(
            self,
            exact={k: v for k, v in self.exact.items() if k in names},
            disturbed=tuple({k: v for k, v in run.items() if k in names} for run in self.disturbed),
        )

    def for_chains(self, terms: int) -> Expected:
        """The same for who adds so many float32 one after the other, as XLA does on CPUs.

        Each addition loses up to half a unit of what the sum is by then, half of the whole sum on average: the mean of
        640 equal numbers is off by 5e-6 to 1e-5 there, and by 3e-8 here.
        """
        return replace(self, chain=terms * 2.0**-25)


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest error relative to the largest number; infinite where one of them is not finite."""
    if not exact.size:
        return 0.0
    if not np.isfinite(exact).all() or not np.isfinite(found).all():
        return np.inf
    return float(np.abs(found - exact).max() / max(np.abs(exact).max(), SMALLEST))


# The reference


def run_exactly(graph: Graph, arrays: Arrays, noise: float) -> Arrays:
    """The outputs of a graph in float64, disturbed by `noise`."""
    known = {i.value: widened(np.asarray(arrays[i.name])) for i in graph.inputs}
    sizes = bind_symbols(graph, {i.name: np.asarray(arrays[i.name], i.value.type.dtype.numpy) for i in graph.inputs})
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            known.update(zip(node.results, evaluate(node, known, sizes, noise), strict=True))
    return {o.name: known[o.value] for o in graph.outputs}


def expected_outputs(graph: Graph, arrays: Arrays) -> Expected:
    exact, *disturbed = (run_exactly(graph, arrays, noise) for noise in (0.0, NOISE, -NOISE))
    result = Expected(exact, tuple(disturbed))
    if any(not result.sensitivity(name) <= TOLERATED for name in exact):
        raise Rejected("outputs are not finite, or too sensitive")
    return result


@dataclass
class ExpectedTraining:
    """A training step's graph, run again and again on its own state: exactly, and disturbed."""

    graph: Graph
    states: list[Arrays]
    noises: tuple[float, ...] = (0.0, NOISE, -NOISE)

    def step(self, inputs: Arrays) -> Expected:
        """What the state and the loss are after one more step."""
        runs = []
        for i, noise in enumerate(self.noises):
            found = run_exactly(self.graph, {**self.states[i], **inputs}, noise)
            self.states[i] = {**self.states[i], **{k: v for k, v in found.items() if k != "loss"}}
            runs.append(found)
        exact, *disturbed = runs
        result = Expected(exact, tuple(disturbed))
        if not result.sensitivity("loss") <= TOLERATED:
            raise Rejected("the loss is not finite, or too sensitive")
        if any(np.abs(array).max(initial=0) > LARGEST for array in exact.values()):
            raise Rejected("numbers that float32 does not hold")
        return result

    def reset_metrics(self) -> None:
        for state in self.states:
            state.update({name: np.zeros(()) for name in state if name.startswith(SUMS)})


def metrics_of(expected: Expected) -> Expected:
    """Means from their sums, by the names that a step reports."""

    def means(run: Arrays) -> Arrays:
        names = [
            n.removeprefix(SUMS).removesuffix("/total") for n in run if n.startswith(SUMS) and n.endswith("/total")
        ]
        return {n: run[metric_sum(n, "total")] / run[metric_sum(n, "count")] for n in names}

    return replace(expected, exact=means(expected.exact), disturbed=tuple(means(run) for run in expected.disturbed))
