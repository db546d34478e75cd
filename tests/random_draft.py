"""A random graph while it grows: where decisions come from, and which nodes are fit to be kept.

Every node is evaluated twice in float64, once as it stands and once with a relative disturbance of `NOISE` after every
operation that rounds. It is kept if what it computes is of moderate size, if the disturbance does not grow beyond
`TOLERATED`, and if no integer or boolean depends on it. So float32 programs that sum in different orders agree within
1e-5, and kinks and ties stay far away.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np

from lepton_jit.errors import LeptonError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Node, Role, Value
from lepton_jit.ir.loops import ScanLoop
from lepton_jit.ir.op import NOT_DIFFERENTIABLE, Family, get_op
from lepton_jit.ir.types import TensorType, dim_value

NOISE = 1e-6
TOLERATED = 5e-6
LARGEST, SMALLEST = 50.0, 1e-2
# Elements of one value: larger ones are slow in the interpreter of loops, and show nothing new.
MOST_ELEMENTS = 1 << 14
# Extents where vectors, tiles, panels and blocks begin, end, and leave something over; and primes.
EXTENTS = (1, 2, 3, 4, 5, 7, 8, 9, 11, 13, 15, 16, 17, 31, 32, 33, 61, 63, 64, 65, 127, 128, 129, 257)
# Operations that only passes make, from others; a random graph has no reason to start with them.
LATE = frozenset({"fusion", "affine_contraction", "pack", "winograd_input", "winograd_kernel", "winograd_output"})
# Results are exactly representable where the operands are.
EXACT = frozenset({
    "negate", "abs", "maximum", "minimum", "select", "clamp", "floor", "ceil", "round_nearest_even", "sign", "convert",
    "relu", "max_pool", "select_and_scatter", "bitcast_convert", "remainder",
})  # fmt: skip

T = TypeVar("T")


class Choices(Protocol):
    """Where decisions come from."""

    def integer(self, low: int, high: int) -> int: ...

    def one_of(self, options: Sequence[T]) -> T: ...


def extent(choices: Choices, most: int) -> int:
    """The size of a dimension: half of them small, some 1, a few 0, no larger than `most`."""
    kind = choices.integer(0, 99)
    if kind >= 98:
        return 0
    if kind >= 85:
        return 1
    options = [e for e in EXTENTS if e <= most]
    return choices.one_of(options[: max(1, len(options) // 2)] if kind < 40 else options)


class SeededChoices:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def one_of(self, options: Sequence[T]) -> T:
        return self._random.choice(options)


class Rejected(Exception):  # noqa: N818  not an error: the next operation is tried
    """A node that does not fit here: its types, or its numbers."""


@dataclass
class Draft:
    """A graph that grows: its builder, and what every value is, as it stands and disturbed."""

    choices: Choices
    sizes: dict[str, int]
    numbers: np.random.Generator
    builder: Builder = field(default_factory=Builder)
    pool: list[Value] = field(default_factory=list)
    exact: dict[Value, np.ndarray] = field(default_factory=dict)
    noisy: dict[Value, np.ndarray] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    blocked: set[Value] = field(default_factory=set)  # what depends on a float through an operation without gradient
    varied: set[Value] = field(default_factory=set)  # what depends on a float input
    focus: Value | None = None  # the operand that the next operation is to read, if it can

    @property
    def nodes(self) -> list[Node]:
        return self.builder._nodes

    def chance(self, percent: int) -> bool:
        return self.choices.integer(0, 99) >= 100 - percent

    def input(self, type: TensorType, low: float = -2.0, high: float = 2.0, role: Role = "input") -> Value:
        """A new input with random numbers."""
        shape = _shape(type, self.sizes)
        name = f"{role[0] if role != 'input' else 'x'}{len(self.arrays)}"
        value = self.builder.input(name, type, role)
        if type.dtype.is_float:
            array = np.asarray(self.numbers.uniform(low, high, shape)).astype(type.dtype.numpy)
            self.varied.add(value)
        else:
            limit = 2 if type.dtype.kind == "bool" else 4
            array = np.asarray(self.numbers.integers(0, limit, shape)).astype(type.dtype.numpy)
        self.arrays[name] = array
        self.pool.append(value)
        self.exact[value] = self.noisy[value] = widened(array)
        return value

    def emit(self, op: str, *operands: Value | float, **attributes: Any) -> tuple[Value, ...]:
        """Add a node if it is one to keep; raise Rejected otherwise."""
        return self.keep(lambda: self.builder.emit(op, *operands, **attributes))

    def keep(self, emit: Callable[[], tuple[Value, ...]]) -> tuple[Value, ...]:
        """The results of what `emit` adds to the builder, if these are nodes to keep; raise Rejected otherwise."""
        mark = len(self.nodes)
        try:
            results = emit()
            for node in self.nodes[mark:]:
                self._run(node)
                nothing = any(self.exact[v].size == 0 for v in node.operands)
                for value in node.results:
                    self._check(value, rounds=rounds(node) and not nothing)
        except (LeptonError, Rejected) as error:
            del self.nodes[mark:]
            raise Rejected(str(error)) from error
        self.pool.extend(results)
        for node in self.nodes[mark:]:
            self._mark_dependence(node)
        return results

    def one(self, op: str, *operands: Value | float, **attributes: Any) -> Value:
        return self.emit(op, *operands, **attributes)[0]

    def _run(self, node: Node) -> None:
        self.exact.update(zip(node.results, evaluate(node, self.exact, self.sizes), strict=True))
        self.noisy.update(zip(node.results, noisily(node, self.noisy, self.sizes), strict=True))

    def _check(self, value: Value, *, rounds: bool) -> None:
        exact = self.exact[value]
        if exact.size > MOST_ELEMENTS or distance(self.noisy[value], exact) > TOLERATED:
            raise Rejected("too large, or too sensitive")
        if exact.dtype.kind == "f":
            largest = float(np.abs(exact).max(initial=0))
            if not largest <= LARGEST or 0 < largest < SMALLEST:
                raise Rejected("numbers too large or too small")
            if not largest and rounds:
                raise Rejected("zeros that another order of sums would turn into noise")

    def _mark_dependence(self, node: Node) -> None:
        if not self.varied.isdisjoint(node.operands):
            floats = [v for v in node.results if v.type.dtype.is_float]
            self.varied.update(floats)
            if get_op(node.op).gradient is NOT_DIFFERENTIABLE or not self.blocked.isdisjoint(node.operands):
                self.blocked.update(floats)


def evaluate(
    node: Node, known: Mapping[Value, np.ndarray], sizes: Mapping[str, int], noise: float = 0.0
) -> list[np.ndarray]:
    """A node's results in float64, with a disturbance that is a function of the number: equal ones stay equal."""
    if node.op == "scan":
        return _rounds_of_a_loop(node, known, sizes, noise)
    operands = [known[v] for v in node.operands]
    if node.op == "bitcast_convert":
        operands = [operands[0].astype(node.operands[0].type.dtype.numpy)]
    results = [widened(r) for r in get_op(node.op).reference(operands, node.attributes, sizes)]
    return [_disturbed(r, noise) for r in results] if noise and rounds(node) else results


def noisily(node: Node, known: Mapping[Value, np.ndarray], sizes: Mapping[str, int]) -> list[np.ndarray]:
    """A node's results with `NOISE`. A sum's terms are disturbed as well: what is left of terms that cancel each other
    is not known better than they are.
    """
    if get_op(node.op).family is Family.REDUCTION and rounds(node):
        known = {**known, **{v: _disturbed(known[v], NOISE) for v in node.operands}}
    return evaluate(node, known, sizes, NOISE)


def _rounds_of_a_loop(
    node: Node, known: Mapping[Value, np.ndarray], sizes: Mapping[str, int], noise: float
) -> list[np.ndarray]:
    loop = ScanLoop.of(node)
    length = dim_value(loop.length, sizes)
    carried = {carry.inner: known[carry.initial] for carry in loop.carries}
    captured = {capture.inner: known[capture.outer] for capture in loop.captured}
    stacks = [widened(np.zeros(_shape(s.stack.type, sizes), s.stack.type.dtype.numpy)) for s in loop.stacked]
    for turn in reversed(range(length)) if loop.reverse else range(length):
        inside = {**captured, **carried, **{s.inner: known[s.array][turn] for s in loop.scanned}}
        for inner in loop.nodes:
            inside.update(zip(inner.results, evaluate(inner, inside, sizes, noise), strict=True))
        carried = {carry.inner: inside[carry.new] for carry in loop.carries}
        for stack, stacked in zip(stacks, loop.stacked, strict=True):
            stack[turn] = inside[stacked.step]
    return [*carried.values(), *stacks]


def _shape(type: TensorType, sizes: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dim_value(d, sizes) for d in type.shape)


def rounds(node: Node) -> bool:
    """Whether a node's results may have to be rounded."""
    return node.op not in EXACT and get_op(node.op).family is not Family.MOVEMENT


def widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _disturbed(x: np.ndarray, noise: float) -> np.ndarray:
    largest = np.abs(x).max(initial=0) if x.dtype.kind == "f" else 0
    if not largest or not np.isfinite(largest):
        return x
    # The largest number, which may be the only one, is at a crest; what stays where it is with one sign of the noise
    # is at a crest with the other one.
    phase = 0.0 if noise > 0 else np.pi / 2
    return x + noise * largest * np.sin(x * (31831.5 * np.pi / largest) + phase)


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The relative error; infinite for integers that differ and for what is not finite."""
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else np.inf
    if not np.isfinite(expected).all() or not np.isfinite(found).all():
        return np.inf
    largest = np.abs(expected).max(initial=0)
    difference = np.abs(found - expected).max(initial=0)
    return float(difference / largest) if largest else (0.0 if not difference else np.inf)
