"""Let results of contractions replace a residual: the operand of a residual connection that the epilogue adds.

In memory of its own, the result of a residual block's last kernel takes as much cache again as the residual, in lines
that another core may have written (docs/measurements.md, residuals).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from lepton_jit.codegen.kernels.cluster import cluster_of
from lepton_jit.codegen.program.lowered import Launch, ProgramBuffer, Scan, Step, memory_of
from lepton_jit.codegen.program.schedule import replaces
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Node


def over_residuals(
    steps: Sequence[Step | Scan],
    scheduled: Sequence[tuple[Node, tuple[Launch, ...]]],
    buffers: Sequence[ProgramBuffer],
    target: Target,
) -> list[Step | Scan]:
    """Move such results into the buffers of residuals; `scheduled` are the launches of each node.

    Chains are left alone: the halo of another thread still reads what a turn would replace.
    """
    merging = _Merging(list(steps), buffers, target)
    for node, launches in scheduled:
        merging.consider(node, launches)
    return merging.steps


class _Merging:
    def __init__(self, steps: list[Step | Scan], buffers: Sequence[ProgramBuffer], target: Target) -> None:
        self.steps, self.buffers, self.target = steps, buffers, target
        self.place = {id(s.launches[0]): i for i, s in enumerate(steps) if isinstance(s, Step) and not s.turn}
        self.uses: dict[int, list[int]] = {}
        for i, step in enumerate(steps):
            for number in memory_of(buffers, step.buffers):
                self.uses.setdefault(number, []).append(i)
        self.moved: dict[int, int] = {}  # the buffers in which results are now

    def consider(self, node: Node, launches: tuple[Launch, ...]) -> None:
        if len(node.results) > 1 or not launches or any(id(x) not in self.place for x in launches):
            return
        first, last = (self.place[id(x)] for x in (launches[0], launches[-1]))
        names = [b.name for b in launches[-1].kernel.buffers]
        result = self._now(launches[-1].buffers[names.index("o0")])
        scans = any(isinstance(self.steps[i], Scan) for i in self.uses[result])
        if self.buffers[result].kind != "arena" or self.uses[result][0] < first or scans:
            return
        _, operands = cluster_of(node)
        for operand, number in zip(operands, launches[-1].buffers, strict=False):
            number = self._now(number)
            if self._dies(number, result, last, launches[-1]) and replaces(node, operand, self.target):
                self._move(result, number)
                return

    def _dies(self, number: int, result: int, step: int, launch: Launch) -> bool:
        """Tell whether a buffer is like the result's, and this step the last to use it, as one operand."""
        old, new = self.buffers[number], self.buffers[result]
        same = old.kind == "arena" and not old.per_thread and (old.elements, old.dtype) == (new.elements, new.dtype)
        times = [self._now(n) for n in launch.buffers].count(number)
        return same and number != result and times == 1 and self.uses[number][-1] == step

    def _move(self, result: int, number: int) -> None:
        self.moved[result] = number
        for i in self.uses[result]:
            step = self.steps[i]
            assert isinstance(step, Step)
            self.steps[i] = replace(step, launches=tuple(self._renamed(x) for x in step.launches))
        self.uses[number] = sorted({*self.uses[number], *self.uses.pop(result)})

    def _renamed(self, launch: Launch) -> Launch:
        return replace(launch, buffers=tuple(self._now(n) for n in launch.buffers))

    def _now(self, number: int) -> int:
        """The buffer that stands for a planned one by now."""
        return self.moved.get(number, number)
