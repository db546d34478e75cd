"""Run the interpreter before and after every pass, and name the pass that changed the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from lepton_jit.errors import GraphError
from lepton_jit.ir.graph import Graph, Input, Node, Value
from lepton_jit.ir.interpreter import bind_symbols, run_nodes
from lepton_jit.ir.loops import ScanLoop
from lepton_jit.ir.op import traits_of
from lepton_jit.ir.types import dim_value, symbols_of
from lepton_jit.passes.base import Pass
from lepton_jit.passes.gradient.autodiff import Autodiff
from lepton_jit.passes.manager import Observer
from lepton_jit.passes.split_prepare import SPLIT

__all__ = ["CheckNumerics", "random_arrays", "relative_error"]

Arrays = Mapping[str, np.ndarray]
Range = tuple[int, int]  # both ends included


class CheckNumerics(Observer):
    """Raise GraphError, with pass, op, layer and relative error, where a pass changes what the graph computes.

    `arrays` are the graph's inputs by name, random ones where they are not given. `tolerance` bounds the relative error
    max|a - b| / max|b| of each float output; others have to be equal. Passes that are right for real numbers round
    differently, and a deep model multiplies that: 1e-4 is far from both what they add up to and what a wrong pass does.

    A graph that still has a `gradient` node is run with it expanded: the pass that expands it is compared with itself.
    The halves of a split are run one after the other and compared with the graph that was cut in two.
    """

    def __init__(self, arrays: Arrays | None = None, *, tolerance: float = 1e-4, seed: int = 0) -> None:
        self._given = arrays
        self._tolerance = tolerance
        self._seed = seed
        self._arrays: Arrays = {}
        self._known: dict[Value, np.ndarray] = {}
        self._results: Arrays = {}

    def start(self, graph: Graph) -> None:
        self._arrays = random_arrays(graph, self._seed) if self._given is None else self._given
        self._known, self._results = _run(graph, self._arrays)

    def after(self, pass_: Pass, before: Graph, after: Graph, seconds: float) -> None:
        if after is not before:
            self._compare(pass_.name, after, after.nodes, *_run(after, self._arrays))

    def split(self, before: Graph, prepare: Graph, main: Graph) -> tuple[Observer, Observer]:
        first, prepared = _run(prepare, self._arrays)
        arrays = {**self._arrays, **prepared}
        second, results = _run(main, arrays)
        self._compare(SPLIT, main, (*prepare.nodes, *main.nodes), {**first, **second}, results)
        return CheckNumerics(arrays, tolerance=self._tolerance), CheckNumerics(arrays, tolerance=self._tolerance)

    def _compare(
        self, name: str, after: Graph, nodes: Sequence[Node], known: dict[Value, np.ndarray], results: Arrays
    ) -> None:
        """Raise where an output differs from what it was before the pass of this name; else remember it."""
        for output in after.outputs:
            error = relative_error(results[output.name], self._results[output.name])
            if error > self._tolerance:
                raise GraphError(
                    f"pass {name}: output {output.name!r} changed: expected a relative error of at most "
                    f"{self._tolerance:g}, got {error:.3g}{self._place(nodes, known, output.value)}"
                )
        self._known, self._results = known, results

    def _place(self, nodes: Sequence[Node], known: Mapping[Value, np.ndarray], output: Value) -> str:
        """Locate the first difference: the first node of which both graphs have a result, with different numbers."""
        for node in nodes:
            for value in node.results:
                if value in self._known and relative_error(known[value], self._known[value]) > self._tolerance:
                    return f"; it starts at %{value.name} = {_described(node)}"
        node = next((node for node in nodes if output in node.results), None)
        return "" if node is None else f"; it is %{output.name} = {_described(node)}"


def _run(graph: Graph, arrays: Arrays) -> tuple[dict[Value, np.ndarray], Arrays]:
    """Compute every value of the graph, and its outputs by name; `arrays` may have more than its inputs."""
    graph = Autodiff().apply(graph)
    names = {entry.name for entry in graph.inputs}
    given = {name: np.asarray(array) for name, array in arrays.items() if name in names}
    symbols = bind_symbols(graph, given)
    known = run_nodes(graph.nodes, {entry.value: given[entry.name] for entry in graph.inputs}, symbols)
    return known, {output.name: known[output.value] for output in graph.outputs}


def _described(node: Node) -> str:
    return f"{node.op}, layer {node.layer!r}" if node.layer else node.op


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    """Compute max|found - expected| / max|expected|, or infinity where shapes, types, integers or NaNs differ.

    >>> relative_error(np.array([1.0, 2.0]), np.array([1.0, 2.5]))
    0.2
    """
    if found.shape != expected.shape or found.dtype != expected.dtype:
        return math.inf
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else math.inf
    finite = np.isfinite(expected)
    if not np.array_equal(np.where(finite, 0, found), np.where(finite, 0, expected), equal_nan=True):
        return math.inf
    difference = float(np.abs(found[finite] - expected[finite]).max(initial=0))
    if math.isnan(difference):
        return math.inf
    largest = float(np.abs(expected[finite]).max(initial=0))
    return difference and difference / max(largest, float(np.finfo(expected.dtype).tiny))


def random_arrays(graph: Graph, seed: int = 0, sizes: Mapping[str, int] | None = None) -> dict[str, np.ndarray]:
    """Draw inputs for a graph, by name; symbolic dimensions are 3, 4, ... in alphabetic order, or as in `sizes`.

    Data and kernels get normal numbers, the latter divided by the square root of their inputs; weights and states of
    rank 0 and 1, which may be variances, numbers from 0.5 to 1.5; integers, which may be labels, 0 and 1. Values that
    reach a `check_indices` are drawn from the numbers that it lets through.
    """
    names = sorted({s for value in graph.values() for s in symbols_of(value.type.shape)})
    symbols = {name: 3 + i for i, name in enumerate(names)} | dict(sizes or {})
    random = np.random.default_rng(seed)
    ranges = _ranges(graph, {})
    return {entry.name: _random_array(random, entry, symbols, ranges.get(entry.value)) for entry in graph.inputs}


def _ranges(graph: Graph, checked: Mapping[Value, Range]) -> dict[Value, Range]:
    """The integers that checks let through, for each value that reaches one with its numbers as they are.

    `checked` has what is known of values from outside: the results of a region that are checked after its loop.
    """
    ranges = dict(checked)
    for node in reversed(graph.nodes):
        if node.op == "check_indices":
            _narrow(ranges, node.operands[0], (node.attributes["low"], node.attributes["high"]))
        if node.op == "scan":
            loop = ScanLoop.of(node)
            after = {s.step: ranges[s.stack] for s in loop.stacked if s.stack in ranges}
            inside = _ranges(node.regions[0], after)
            for inner, outer in [(s.inner, s.array) for s in loop.scanned] + [
                (c.inner, c.outer) for c in loop.captured
            ]:
                if inner in inside:
                    _narrow(ranges, outer, inside[inner])
        elif traits_of(node).keeps_numbers and node.results[0] in ranges:
            for operand in node.operands[1:] if node.op == "select" else node.operands:
                _narrow(ranges, operand, ranges[node.results[0]])
    return ranges


def _narrow(ranges: dict[Value, Range], value: Value, limits: Range) -> None:
    """Intersect the range of a value with one more."""
    low, high = ranges.get(value, limits)
    ranges[value] = max(low, limits[0]), min(high, limits[1])


def _random_array(
    random: np.random.Generator, entry: Input, symbols: Mapping[str, int], limits: Range | None
) -> np.ndarray:
    dtype = entry.value.type.dtype
    shape = tuple(dim_value(d, symbols) for d in entry.value.type.shape)
    if limits is not None:
        low, high = limits
        return np.asarray(random.integers(low, max(low, high), shape, endpoint=True)).astype(dtype.numpy)
    if not dtype.is_float:
        return np.asarray(random.integers(0, 2, shape)).astype(dtype.numpy)
    if entry.role == "input":
        return np.asarray(random.normal(size=shape)).astype(dtype.numpy)
    if len(shape) < 2:
        return np.asarray(random.uniform(0.5, 1.5, shape)).astype(dtype.numpy)
    return (random.normal(size=shape) / math.sqrt(max(math.prod(shape[:-1]), 1))).astype(dtype.numpy)
