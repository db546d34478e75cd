"""Random graphs over all operations, with arrays for their inputs, for tests that compare two ways to run a graph.

`random_graph(seed)` is the same in every run. It comes with the arrays that it was made for, with which it is well
conditioned (`random_draft` says how). Whatever is registered is drawn, from the samples of its record; `random_ops`
names operations only to give them richer shapes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from lepton_jit.errors import UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Input, Node, Output, Value
from lepton_jit.ir.op import OPS
from lepton_jit.passes.gradient.autodiff import Autodiff
from lepton_jit.passes.rewriting.rewrite import Rewriter
from tests.random_draft import (
    LARGEST,
    LATE,
    TOLERATED,
    Choices,
    Draft,
    Rejected,
    SeededChoices,
    distance,
    evaluate,
    noisily,
)
from tests.random_ops import add_random_operation, first_inputs

# From 8 samples on, a producer and its reader run slice by slice; of more than 16, blocks of rows go through loops.
BATCHES = (1, 2, 3, 4, 9, 16, 17, 32, 33, 0)


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

    def __repr__(self) -> str:
        return f"<{len(self.graph.nodes)} nodes, {dict(self.sizes)}>"


def random_graph(seed: int, *, ops: int | None = None, gradient: bool | None = None) -> RandomGraph:
    """The graph of a seed: 5 to 40 operations, or `ops`; with a gradient where that is possible and wished."""
    return build(SeededChoices(seed), ops=ops, gradient=gradient)


def build(choices: Choices, *, ops: int | None = None, gradient: bool | None = None) -> RandomGraph:
    numbers = np.random.default_rng(choices.integer(0, 2**16))
    draft = Draft(choices, {"N": BATCHES[choices.integer(0, len(BATCHES) - 1)]}, numbers)
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
    inputs = {entry.value for entry in draft.builder._inputs.values()}
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
    targets = [entry for entry in draft.builder._inputs.values() if entry.value.type.dtype.is_float]
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
        noisy.update(zip(node.results, noisily(node, noisy, draft.sizes), strict=True))
    return {
        output.name
        for output in graph.outputs
        if distance(noisy[output.value], exact[output.value]) > TOLERATED
        or (exact[output.value].dtype.kind == "f" and np.abs(exact[output.value]).max(initial=0) > LARGEST**2)
    }


def coverage(graphs: Sequence[Graph]) -> Counter[str]:
    """How often each registered operation occurs; those that only passes make are left out."""
    drawn = OPS.keys() - LATE
    counts = Counter(dict.fromkeys(drawn, 0))
    counts.update(node.op for graph in graphs for node in graph.nodes if node.op in drawn)
    return counts


def print_coverage(counts: Mapping[str, int]) -> str:
    """A line a dozen operations, the rarest first."""
    items = [f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: (item[1], item[0]))]
    return "\n".join(", ".join(items[i : i + 12]) for i in range(0, len(items), 12))
