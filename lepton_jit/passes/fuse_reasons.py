"""Why fusion makes two kernels of two nodes, said by fusion itself: it runs again, and its refusals are kept."""

from __future__ import annotations

from lepton_jit.errors import ArgumentError
from lepton_jit.ir.graph import Graph
from lepton_jit.passes.fuse import Fusion
from lepton_jit.passes.fuse_merge import KINDS_APART, FusedGroup, why_apart

__all__ = ["EVERYWHERE", "FUSED", "UNRELATED", "why_not_fused"]

FUSED = "they are fused: one kernel computes both"
EVERYWHERE = "constants, broadcasts, iotas and random bits are computed in each kernel that reads them"
UNRELATED = "neither kernel reads the other's results, and only reductions alike of one tensor are joined then"


class _Listening(Fusion):
    """Keeps who was refused by which members of a group, and why."""

    def __init__(self, graph: Graph) -> None:
        super().__init__(graph, siblings=False)
        self.refusals: list[tuple[frozenset[int], frozenset[int], str]] = []

    def refused(self, nodes: set[int], group: FusedGroup, reason: str) -> None:
        self.refusals.append((frozenset(nodes), frozenset(group.members), reason))

    def said(self, first: int, second: int) -> str | None:
        """The last reason for which a node did not become part of what another one was in."""
        return next((why for n, m, why in reversed(self.refusals) if first in n and second in m), None)


def why_not_fused(graph: Graph, first: str, second: str) -> str:
    """One sentence: why the nodes with these results are in two kernels of a graph as it is before fusion.

    What is said is what fusion found: when it placed the earlier node, or when it looked at the finished kernels again.
    The regions of loops are graphs of their own, of which nothing is said here.
    """
    fusion = _Listening(graph)
    a, b = sorted((_index(fusion, first), _index(fusion, second)))
    fusion.run()
    names = " and ".join(f"%{fusion.nodes[i].results[0].name} ({fusion.nodes[i].op})" for i in (a, b))
    return f"{names}: {_reason(fusion, a, b)}"


def _index(fusion: Fusion, name: str) -> int:
    known = {value.name: i for value, i in fusion.position.items()}
    if not isinstance(name, str) or name.removeprefix("%") not in known:
        few = ", ".join(f"%{n}" for n in list(known)[:8])
        raise ArgumentError(f"why_not_fused: expected the result of a node, such as {few}, got {name!r}")
    return known[name.removeprefix("%")]


def _reason(fusion: _Listening, a: int, b: int) -> str:
    if fusion.duplicated[a] or fusion.duplicated[b]:
        return EVERYWHERE
    if fusion.group_of[a] == fusion.group_of[b]:
        return FUSED
    said = fusion.said(a, b)
    group, reader = (fusion.groups[fusion.group_of[i]] for i in (a, b))
    if said is None and not any(r in reader.members for j in group.members for r in fusion.readers[j]):
        return UNRELATED
    apart = why_apart(fusion, group, reader)
    if said is not None:
        return said if apart in (None, said, KINDS_APART) else f"{said}; and as finished kernels: {apart}"
    return apart or "nothing forbids it as the kernels are now; fusion looks at a pair once, while kernels still grow"
