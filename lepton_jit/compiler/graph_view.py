"""Graphs as networkx sees them, and two questions asked of that: the critical path, and where memory is full."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from lepton_jit.codegen.program.lowered import Lowered
from lepton_jit.common import arguments
from lepton_jit.compiler.executable import PLANNED_BATCH
from lepton_jit.errors import ArgumentError
from lepton_jit.ir.flops import flops_of
from lepton_jit.ir.graph import Graph, Node, Role
from lepton_jit.ir.op import get_op
from lepton_jit.ir.types import dim_value, symbols_of
from lepton_jit.passes.liveness import Liveness
from lepton_jit.runtime.plan import ALIGNMENT, MemoryPlan
from lepton_jit.runtime.profile import Profile

if TYPE_CHECKING:
    from networkx import MultiDiGraph

__all__ = ["CriticalPath", "Cut", "critical_path", "to_networkx", "widest_cut", "with_kernels"]

ROLES = get_args(Role)


def to_networkx(graph: Graph, *, batch: int = PLANNED_BATCH) -> MultiDiGraph:
    """A graph as a `networkx.MultiDiGraph`, whose nodes are in the order of the graph, called as their first results.

    An edge is a read: its `operand` number, and the `value` that is read; a node that reads a value twice has two.
    Attributes of nodes are texts and numbers, symbolic dimensions at `batch`: `op` (of what comes from outside, its
    role), `name` (of outside), `layer`, `type`, `bytes` (of the results), `flops` (as steps of a program count them),
    `live` (bytes that the order keeps alive while the node runs, outputs included: what passes estimate), `output` (the
    public names), and `kernel`, `step` and `last_step`: "", -1 and -1, since nothing is compiled here;
    `fast.to_networkx` knows them.

    >>> import lepton_jit as lpt
    >>> graph = lpt.parse('graph @f(%x: f32[N] input "x") { %0 = multiply(%x, %x) : f32[N] return %0 "y" }')
    >>> view = lpt.to_networkx(graph, batch=8)
    >>> list(view.edges(data="operand")), view.nodes["0"]["op"], view.nodes["0"]["bytes"]
    ([('x', '0', 0), ('x', '0', 1)], 'multiply', 32)
    """
    import networkx

    if not isinstance(graph, Graph):
        raise ArgumentError(f"to_networkx: expected a graph, as lepton_jit.parse gives it, got {type(graph).__name__}")
    rows = arguments.integer("to_networkx", "batch", batch, low=0)
    liveness = Liveness(graph, rows)
    public: dict[str, list[str]] = {}
    for output in graph.outputs:
        public.setdefault(output.value.name, []).append(output.name)
    view = networkx.MultiDiGraph(name=graph.name, batch=rows, memory="estimate")
    source: dict[str, str] = {}  # of a value: the node that makes it
    unplaced = {"layer": "", "flops": 0, "live": 0, "kernel": "", "step": -1, "last_step": -1}
    for entry in graph.inputs:
        value = entry.value
        source[value.name] = value.name
        size, output = liveness.bytes_of(value), ", ".join(public.get(value.name, ()))
        given = {"op": entry.role, "name": entry.name, "type": repr(value.type), "bytes": size, "output": output}
        view.add_node(value.name, **unplaced | given)
    for number, (node, live) in enumerate(zip(graph.nodes, liveness.alive(graph.nodes), strict=True)):
        name = node.results[0].name if node.results else f"{node.op}/{number}"
        source |= {value.name: name for value in node.results}
        given = _described(node, rows, liveness)
        output = ", ".join(n for value in node.results for n in public.get(value.name, ()))
        view.add_node(name, **unplaced | given | {"name": "", "live": live, "output": output})
        for operand, value in enumerate(node.operands):
            view.add_edge(source[value.name], name, operand=operand, value=value.name)
    return view


def _described(node: Node, batch: int, liveness: Liveness) -> dict[str, Any]:
    flops = flops_of(node)
    return {
        "op": node.op,
        "layer": node.layer,
        "type": ", ".join(repr(value.type) for value in node.results),
        "bytes": sum(map(liveness.bytes_of, node.results)),
        "flops": dim_value(flops, dict.fromkeys(symbols_of([flops]), batch)),
    }


def with_kernels(view: MultiDiGraph, fused: Graph, lowered: Lowered, plan: MemoryPlan | None = None) -> MultiDiGraph:
    """Note the kernel and the step of each node, and with `plan` what memory the plan keeps alive while it runs.

    `fused` is what was lowered; the view is of it, or of the graph as it was before fusion.
    """
    steps = _steps(fused, lowered)
    ops = [step.op for step in lowered.steps]
    for name, data in view.nodes(data=True):
        if name in steps:
            first, last = steps[name]
            data |= {"step": first, "last_step": last, "kernel": _label(ops, first, last)}
    if plan is None:
        return view
    view.graph["memory"] = "plan"
    for _, data in view.nodes(data=True):
        data["live"] = max((_alive(plan, step) for step in _range(data)), default=0)
    return view


def _steps(fused: Graph, lowered: Lowered) -> Mapping[str, tuple[int, int]]:
    """The first and the last step that compute each value, those inside of fusions included."""
    found: dict[str, tuple[int, int]] = {}
    for number, made in enumerate(lowered.sources):
        found |= {name: (found.get(name, (number, number))[0], number) for name in made}
    for node in fused.nodes:
        steps = next((found[value.name] for value in node.results if value.name in found), None)
        if node.op == "fusion" and steps is not None:
            inside = [value.name for inner in node.regions[0].nodes for value in inner.results]
            found |= {name: steps for name in inside if name not in found}
    return found


def _label(ops: Sequence[str], first: int, last: int) -> str:
    """`3 add`, or `3-4 affine_contraction` for what takes several steps."""
    return f"{first if first == last else f'{first}-{last}'} {ops[last]}"


def _range(data: Mapping[str, Any]) -> range:
    return range(data["step"], data["last_step"] + 1) if data["kernel"] else range(0)


def _alive(plan: MemoryPlan, step: int) -> int:
    return sum(-(-b.size // ALIGNMENT) * ALIGNMENT for b in plan.buffers if b.first <= step <= b.last)


@dataclass(frozen=True)
class CriticalPath:
    """The dearest way through a graph: what would be left if all that can run side by side did."""

    nodes: tuple[str, ...]
    cost: float
    total: float
    unit: str  # "FLOPs" or "seconds"

    def __str__(self) -> str:
        share = 100 * self.cost / self.total if self.total else 0.0
        return f"{self.cost:,.6g} of {self.total:,.6g} {self.unit} ({share:.0f} %): {' -> '.join(self.nodes)}"


def critical_path(view: MultiDiGraph, profile: Profile | None = None) -> CriticalPath:
    """The path with the most FLOPs, or the most measured time where there is a profile of the same program.

    The time of a step is shared evenly among the nodes that it computes. Of nodes without cost at the ends of the path
    none is listed.
    """
    cost: dict[str, float] = _column(view, "flops") if profile is None else _seconds(view, profile)
    best: dict[str, float] = {}
    before: dict[str, str | None] = {}
    for name in view:  # an order in which they can run
        before[name] = max(view.predecessors(name), key=best.__getitem__, default=None)
        previous = before[name]
        best[name] = cost[name] + (0.0 if previous is None else best[previous])
    at = max(best, key=best.__getitem__, default=None)  # the first of several: what costs nothing after it is left out
    total, reached = sum(cost.values()), best[at] if at is not None else 0.0
    path: list[str] = []
    while at is not None:
        path.append(at)
        at = before[at]
    while path and not cost[path[-1]]:
        path.pop()
    return CriticalPath(tuple(reversed(path)), reached, total, "FLOPs" if profile is None else "seconds")


def _seconds(view: MultiDiGraph, profile: Profile) -> dict[str, float]:
    """The measured time of each node."""
    ran = [step.kernel for step in profile.steps]
    steps = {name: _range(data) for name, data in view.nodes(data=True)}
    nodes = Counter(number for numbers in steps.values() for number in numbers)
    kernels = _column(view, "kernel")
    fits = all(n[-1] < len(ran) and kernels[name] == _label(ran, n[0], n[-1]) for name, n in steps.items() if n)
    if not nodes or not fits:
        raise ArgumentError("critical_path: expected the view of the program that was measured: fast.to_networkx()")
    return {name: sum(profile.steps[n].seconds / nodes[n] for n in numbers) for name, numbers in steps.items()}


@dataclass(frozen=True)
class Cut:
    """Where the most memory is in use: at which node, how many bytes, and which nodes' results lie there meanwhile.

    `memory` is "plan" where the bytes are those of the memory plan, so that `bytes == plan.lower_bound`. "estimate" is
    the one that passes choose an order by: with outputs and without scratch memory, sizes as they are and not
    multiples of 64, in place only where an operation is elementwise.
    """

    node: str
    bytes: int
    alive: tuple[str, ...]
    memory: str


def widest_cut(view: MultiDiGraph) -> Cut:
    """The first place in the order of a graph where the most bytes are alive."""
    if not view:
        raise ArgumentError("widest_cut: expected a graph with nodes")
    live, op, time = _column(view, "live"), _column(view, "op"), _times(view)
    shares = {name for name in view if op[name] not in ROLES and get_op(op[name]).traits.weightless}
    until: dict[str, int] = {}  # when the last reader runs, of the node or of what is its memory by another name
    for name in reversed(list(view)):
        readers = (until[r] if r in shares else time[r][1] for r in view.successors(name))
        until[name] = max([time[name][1], *readers])
    node = max(live, key=live.__getitem__)
    first, last = time[node]
    stored = (name for name in view if op[name] not in ROLES and name not in shares)
    alive = tuple(name for name in stored if time[name][0] <= last and first <= until[name])
    return Cut(node, live[node], alive, view.graph["memory"])


def _column(view: MultiDiGraph, attribute: str) -> dict[str, Any]:
    return {name: data[attribute] for name, data in view.nodes(data=True)}


def _times(view: MultiDiGraph) -> dict[str, tuple[int, int]]:
    """When each node begins and ends: its place in the order, or its steps, where memory is that of a plan by steps."""
    if view.graph["memory"] != "plan":
        return {name: (place, place) for place, name in enumerate(view)}
    time: dict[str, tuple[int, int]] = {}
    for name, data in view.nodes(data=True):
        latest = max((time[n][1] for n in view.predecessors(name)), default=-1)
        time[name] = (data["step"], data["last_step"]) if data["kernel"] else (latest, latest)
    return time
