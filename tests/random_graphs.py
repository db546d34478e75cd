"""Random graphs over all operations, with arrays for their inputs, for tests that compare two ways to run a graph.

`random_graphs()` is a Hypothesis strategy, `random_graph(seed)` the same from a seed. A graph comes with the arrays
that it was made for: while it grows, every node is evaluated twice in float64, once as it stands and once with a
relative disturbance of `NOISE` after every operation that rounds. A node is only kept if what it computes is of
moderate size, if the disturbance does not grow beyond `TOLERATED`, and if no integer or boolean depends on it. So
float32 programs that sum in different orders agree within 1e-5, and kinks and ties stay far away.

Whatever is registered is drawn, from the samples of its record; `random_ops` names operations only to give them richer
shapes.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from hypothesis import strategies as st

from lepton_jit.errors import LeptonError, UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Input, Node, Output, Role, Value
from lepton_jit.ir.op import NOT_DIFFERENTIABLE, OPS, Family, get_op
from lepton_jit.ir.types import TensorType, dim_value
from lepton_jit.passes.autodiff import Autodiff
from lepton_jit.passes.rewrite import Rewriter

NOISE = 1e-6
TOLERATED = 5e-6
LARGEST, SMALLEST = 50.0, 1e-2
# Operations that only passes make, from others; a random graph has no reason to start with them.
LATE = frozenset({"fusion", "affine_contraction", "pack"})
# Results are exactly representable where the operands are.
EXACT = frozenset({
    "negate", "abs", "maximum", "minimum", "select", "clamp", "floor", "ceil", "round_nearest_even", "sign", "convert",
    "relu", "max_pool", "select_and_scatter", "bitcast_convert", "remainder",
})  # fmt: skip

T = TypeVar("T")


class Choices(Protocol):
    """Where decisions come from: a seed, or Hypothesis, which can shrink them."""

    def integer(self, low: int, high: int) -> int: ...

    def one_of(self, options: Sequence[T]) -> T: ...


class SeededChoices:
    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def integer(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def one_of(self, options: Sequence[T]) -> T:
        return self._random.choice(options)


class DrawnChoices:
    def __init__(self, draw: st.DrawFn) -> None:
        self._draw = draw

    def integer(self, low: int, high: int) -> int:
        return self._draw(st.integers(low, high))

    def one_of(self, options: Sequence[T]) -> T:
        return options[self._draw(st.integers(0, len(options) - 1))]


class Rejected(Exception):  # noqa: N818  not an error: the next operation is tried
    """A node that does not fit here: its types, or its numbers."""


@dataclass(frozen=True)
class RandomGraph:
    """A graph and its inputs. `print(it)` gives a golden case, ready to paste."""

    graph: Graph
    arrays: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]

    @property
    def has_gradient(self) -> bool:
        return any(node.op == "gradient" for node in self.graph.nodes)

    def __str__(self) -> str:
        header = f"// sizes: {dict(self.sizes)}\n// pass: canonicalize\n"
        return f"{header}// ==== found by random search\n{self.graph}// ----\n"

    __repr__ = __str__


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
        shape = tuple(dim_value(d, self.sizes) for d in type.shape)
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
        mark = len(self.nodes)
        try:
            results = self.builder.emit(op, *operands, **attributes)
            for node in self.nodes[mark:]:
                self._run(node)
                for value in node.results:
                    self._check(value, rounds=rounds(node))
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
        self.noisy.update(zip(node.results, evaluate(node, self.noisy, self.sizes, NOISE), strict=True))

    def _check(self, value: Value, *, rounds: bool) -> None:
        exact = self.exact[value]
        if exact.size > 4096 or distance(self.noisy[value], exact) > TOLERATED:
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
    operands = [known[v] for v in node.operands]
    if node.op == "bitcast_convert":
        operands = [operands[0].astype(node.operands[0].type.dtype.numpy)]
    results = [widened(r) for r in get_op(node.op).reference(operands, node.attributes, sizes)]
    return [_disturbed(r, noise) for r in results] if noise and rounds(node) else results


def rounds(node: Node) -> bool:
    """Whether a node's results may have to be rounded."""
    return node.op not in EXACT and get_op(node.op).family is not Family.MOVEMENT


def widened(array: np.ndarray) -> np.ndarray:
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _disturbed(x: np.ndarray, noise: float) -> np.ndarray:
    largest = np.abs(x).max(initial=0) if x.dtype.kind == "f" else 0
    if not largest or not np.isfinite(largest):
        return x
    return x + noise * largest * np.sin(x * (1e5 / largest))


def distance(found: np.ndarray, expected: np.ndarray) -> float:
    """The relative error; infinite for integers that differ and for what is not finite."""
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(found, expected) else np.inf
    if not np.isfinite(expected).all() or not np.isfinite(found).all():
        return np.inf
    largest = np.abs(expected).max(initial=0)
    difference = np.abs(found - expected).max(initial=0)
    return float(difference / largest) if largest else (0.0 if not difference else np.inf)


def random_graph(seed: int, *, ops: int | None = None, gradient: bool | None = None) -> RandomGraph:
    """The graph of a seed: 5 to 40 operations, or `ops`; with a gradient where that is possible and wished."""
    return build(SeededChoices(seed), ops=ops, gradient=gradient)


@st.composite
def random_graphs(draw: st.DrawFn, *, gradient: bool | None = None) -> RandomGraph:
    """Random graphs that shrink to few operations with few and small operands."""
    return build(DrawnChoices(draw), gradient=gradient)


def build(choices: Choices, *, ops: int | None = None, gradient: bool | None = None) -> RandomGraph:
    from tests.random_ops import add_random_operation, first_inputs  # they need Draft from here

    numbers = np.random.default_rng(choices.integer(0, 2**16))
    draft = Draft(choices, {"N": choices.integer(1, 4)}, numbers)
    count = choices.integer(5, 40) if ops is None else ops
    first_inputs(draft)
    for number in range(1000):
        if operations(draft.nodes) >= count:
            break
        with draft.builder.layer(f"block_{operations(draft.nodes) // 5}/layer_{number % 3}"):
            try:
                add_random_operation(draft)
            except Rejected:
                continue
    wanted = draft.chance(50) if gradient is None else gradient
    found = with_gradient(draft) if wanted else None
    return RandomGraph(found or finished(draft), draft.arrays, draft.sizes)


def operations(nodes: Sequence[Node]) -> int:
    """How many nodes compute something: constants and their broadcasts do not count."""
    return sum(1 for node in nodes if node.op not in ("constant", "broadcast_in_dim"))


def finished(draft: Draft) -> Graph:
    """The graph whose outputs are the values that nobody reads."""
    read = {value for node in draft.nodes for value in node.operands}
    loose = [v for node in draft.nodes for v in node.results if v not in read]
    return replace(draft.builder.build(), outputs=tuple(Output(value, f"y{i}") for i, value in enumerate(loose)))


def with_gradient(draft: Draft) -> Graph | None:
    """The graph with a loss, its gradient and updates of its states; None where no well-conditioned one was found."""
    inputs = {entry.value for entry in draft.builder._inputs}
    smooth = [v for v in draft.pool if v in draft.varied and v not in draft.blocked and v not in inputs]
    for _ in range(4):
        if not smooth:
            break
        last = smooth[-1] if draft.chance(50) else draft.choices.one_of(smooth)
        parts = [v for v in smooth if v.type.dtype == last.type.dtype and v != last][-2:] if draft.chance(50) else []
        found = _differentiated(draft, [*parts, last])
        if found is not None:
            return found
        smooth.remove(last)
    return None


def _differentiated(draft: Draft, parts: Sequence[Value]) -> Graph | None:
    """The gradient of the parts' mean squares, of all float inputs for which it is well conditioned."""
    targets = [entry for entry in draft.builder._inputs if entry.value.type.dtype.is_float]
    while targets:
        graph = _finished_with_gradient(draft, parts, targets)
        try:
            ill = _ill_conditioned(draft, Autodiff().apply(graph))
        except UnsupportedError:
            return None
        if not ill:
            return graph
        left = [t for t in targets if not ill & {t.name, f"d_{t.name}"}]
        if len(left) == len(targets):
            return None
        targets = left
    return None


def _finished_with_gradient(draft: Draft, parts: Sequence[Value], targets: Sequence[Input]) -> Graph:
    """The graph with its loss and updates; the draft stays as it is."""
    graph = finished(draft)
    b = Rewriter(graph)
    for node in graph.nodes:
        b.append(node)
    loss = _loss(b, parts)
    updates = []
    for target, gradient in zip(targets, b.emit("gradient", loss, *(t.value for t in targets)), strict=True):
        if target.role == "state":
            new = b("subtract", target.value, b("multiply", gradient, 0.125))
            updates.append(Output(new, target.name, target.name))
        else:
            updates.append(Output(gradient, f"d_{target.name}"))
    return replace(graph, nodes=tuple(b.nodes), outputs=(*updates, Output(loss, "loss"), *graph.outputs))


def _loss(b: Builder, parts: Sequence[Value]) -> Value:
    """The sum of the mean squares."""
    means = []
    for part in parts:
        squares = b("reduce", b("multiply", part, part), dimensions=tuple(range(part.type.rank)), kind="add")
        count = b("dimension_value", value=part.type.elements, dtype=part.type.dtype)
        means.append(b("divide", squares, count))
    total = means[0]
    for mean in means[1:]:
        total = b("add", total, mean)
    return total


def _ill_conditioned(draft: Draft, graph: Graph) -> set[str]:
    """The names of the outputs that a disturbance changes too much, or that are very large."""
    exact = {entry.value: draft.exact[entry.value] for entry in graph.inputs}
    noisy = dict(exact)
    for node in graph.nodes:
        exact.update(zip(node.results, evaluate(node, exact, draft.sizes), strict=True))
        noisy.update(zip(node.results, evaluate(node, noisy, draft.sizes, NOISE), strict=True))
    return {
        output.name
        for output in graph.outputs
        if distance(noisy[output.value], exact[output.value]) > TOLERATED
        or (exact[output.value].dtype.kind == "f" and np.abs(exact[output.value]).max(initial=0) > LARGEST**2)
    }


def coverage(graphs: Sequence[Graph]) -> Counter[str]:
    """How often each registered operation occurs; those that only passes make are left out."""
    counts = Counter({name: 0 for name in OPS if name not in LATE})
    counts.update(node.op for graph in graphs for node in graph.nodes if node.op not in LATE)
    return counts


def print_coverage(counts: Mapping[str, int]) -> str:
    """A line a dozen operations, the rarest first."""
    items = [f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (item[1], item[0]))]
    return "\n".join(", ".join(items[i : i + 12]) for i in range(0, len(items), 12))
