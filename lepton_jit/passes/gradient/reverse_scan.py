"""Differentiate a loop: it stacks what its gradient reads, and a loop in the other direction is the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.loops import ScanCarry, ScanLoop, Scanned, Stacked
from lepton_jit.passes.gradient.residuals import choose_residuals
from lepton_jit.passes.rewriting.facts import varied_values
from lepton_jit.passes.rewriting.rewrite import Rewriter

__all__ = ["Backward", "Seed", "pull_back_scan"]

Seed = tuple[Value, Value]  # a value, and a cotangent that reaches it


@dataclass(frozen=True)
class Backward:
    """The nodes that differentiation appended to a rewriter, from number `forward` on, and the cotangents they give."""

    forward: int
    cotangents: list[Value | None]


Differentiate = Callable[[Rewriter, Sequence[Seed], Sequence[Value]], Backward]


def pull_back_scan(
    rewriter: Rewriter,
    node: Node,
    incoming: Sequence[Value | None],
    varied: set[Value],
    differentiate: Differentiate,
) -> list[Value | None]:
    """Compute the cotangents of a loop's operands; those of operands that do not vary are None.

    With c' = f(c, x_t, w) and y_t = g(c, x_t, w) in round t, the rounds in reverse order compute
    dc, dx_t, dw_t = pull(dc', dy_t), where dc goes on to the round before, the dx_t are stacked, and dw is the sum of
    the dw_t: one more carry, which starts at zero.
    """
    return _ReverseScan(rewriter, node, varied).run(incoming, differentiate)


class _ReverseScan:
    """Differentiates one loop; `inner` builds the region: the forward nodes, then the nodes of its gradient."""

    def __init__(self, rewriter: Rewriter, node: Node, varied: set[Value]) -> None:
        self.rewriter = rewriter
        self.node = node
        self.loop = ScanLoop.of(node)
        self.inner = Rewriter(node.regions[0])
        for inside in self.loop.nodes:
            self.inner.append(inside)
        self.carries = _varied_carries(self.loop, varied)
        self.scanned = [scanned for scanned in self.loop.scanned if scanned.array in varied]
        self.captured = [captured for captured in self.loop.captured if captured.outer in varied]
        self.found: dict[Value, Value] = {}  # what the region reads -> the cotangent of the operand behind it
        self.reverse = ScanLoop([], [], [], [], [], self.loop.length, not self.loop.reverse, node.layer)

    def run(self, incoming: Sequence[Value | None], differentiate: Differentiate) -> list[Value | None]:
        incoming_at = dict(zip(self.node.results, incoming, strict=True))
        seeds = [*self._carry_seeds(incoming_at), *self._step_seeds(incoming_at)]
        asked = [part.inner for part in (*self.carries, *self.scanned, *self.captured)]
        backward = differentiate(self.inner, seeds, asked)
        given = dict(zip(asked, backward.cotangents, strict=True))
        self._return_carries(given)
        self._stack_slices(given)
        self._sum_captured(given)
        self._take_nodes(backward.forward)
        self.rewriter.append(self.reverse.node())
        parts = (*self.loop.carries, *self.loop.scanned, *self.loop.captured)
        return [self.found.get(part.inner) for part in parts]

    def _carry_seeds(self, incoming_at: dict[Value, Value | None]) -> list[Seed]:
        """The cotangents of the carries: of the last ones, and then what an iteration hands to the one before."""
        seeds: list[Seed] = []
        for carry in self.carries:
            start = incoming_at[carry.final]
            start = self.rewriter.full(0, carry.final.type) if start is None else start
            d_new, final = self.inner.fresh(carry.new.type), self.rewriter.fresh(carry.initial.type)
            self.reverse.carries.append(ScanCarry(d_new, start, d_new, final))
            self.found[carry.inner] = final
            seeds.append((carry.new, d_new))
        return seeds

    def _step_seeds(self, incoming_at: dict[Value, Value | None]) -> list[Seed]:
        seeds: list[Seed] = []
        for stacked in self.loop.stacked:
            array = incoming_at[stacked.stack]
            if array is not None:
                d_step = self.inner.fresh(stacked.step.type)
                self.reverse.scanned.append(Scanned(d_step, array))
                seeds.append((stacked.step, d_step))
        return seeds

    def _return_carries(self, given: dict[Value, Value | None]) -> None:
        for i, carry in enumerate(self.carries):
            new = given[carry.inner]
            new = self.inner.full(0, carry.inner.type) if new is None else new
            self.reverse.carries[i] = replace(self.reverse.carries[i], new=new)

    def _stack_slices(self, given: dict[Value, Value | None]) -> None:
        for scanned in self.scanned:
            step = given[scanned.inner]
            if step is not None:
                self.found[scanned.inner] = stack = self.rewriter.fresh(scanned.array.type)
                self.reverse.stacked.append(Stacked(step, stack))

    def _sum_captured(self, given: dict[Value, Value | None]) -> None:
        for captured in self.captured:
            part = given[captured.inner]
            if part is not None:
                start = self.rewriter.full(0, captured.outer.type)
                so_far = self.inner.fresh(captured.inner.type)
                self.found[captured.inner] = final = self.rewriter.fresh(captured.outer.type)
                self.reverse.carries.append(ScanCarry(so_far, start, self.inner("add", so_far, part), final))

    def _take_nodes(self, forward: int) -> None:
        """Take the backward nodes that are read, and the forward values that they read."""
        returned = [carry.new for carry in self.reverse.carries] + [stacked.step for stacked in self.reverse.stacked]
        nodes, read = _live(self.inner.nodes[forward:], returned)
        read -= {part.inner for part in (*self.reverse.carries, *self.reverse.scanned)}
        saved, repeated = choose_residuals(self._forward_loop(forward), read)
        self.reverse.nodes = [*repeated, *nodes]
        self.reverse.scanned += self._stack(saved, forward)
        _, read = _live(self.reverse.nodes, returned)
        self.reverse.scanned += [scanned for scanned in self.loop.scanned if scanned.inner in read]
        self.reverse.captured += [captured for captured in self.loop.captured if captured.inner in read]

    def _forward_loop(self, forward: int) -> ScanLoop:
        """The loop with its composites expanded as differentiation needed it."""
        current = self.inner.current
        return replace(
            self.loop,
            carries=[replace(carry, new=current(carry.new)) for carry in self.loop.carries],
            stacked=[replace(stacked, step=current(stacked.step)) for stacked in self.loop.stacked],
            nodes=list(self.inner.nodes[:forward]),
        )

    def _stack(self, saved: Iterable[Value], forward: int) -> list[Scanned]:
        """Let the loop stack these values, unless it does so anyway; they are scanned on the way back."""
        loop = self._forward_loop(forward)
        stacks = {stacked.step: stacked.stack for stacked in reversed(loop.stacked)}
        for value in saved:
            if value not in stacks:
                stacks[value] = self.rewriter.fresh(value.type.with_shape((loop.length, *value.type.shape)))
                loop.stacked.append(Stacked(value, stacks[value]))
        self.rewriter.exchange(self.node, loop.node())
        return [Scanned(value, stacks[value]) for value in saved]


def _varied_carries(loop: ScanLoop, varied: set[Value]) -> list[ScanCarry]:
    """The float carries that depend on values that vary, in the first iteration or in a later one."""
    parts = [(carry.inner, carry.initial) for carry in loop.carries]
    parts += [(scanned.inner, scanned.array) for scanned in loop.scanned]
    parts += [(captured.inner, captured.outer) for captured in loop.captured]
    inside = {inner for inner, outer in parts if outer in varied}
    while True:
        reached = varied_values(loop.nodes, inside)
        more = {carry.inner for carry in loop.carries if carry.new in reached and carry.inner.type.dtype.is_float}
        if more <= inside:
            return [carry for carry in loop.carries if carry.inner in inside]
        inside |= more


def _live(nodes: Sequence[Node], ends: Iterable[Value]) -> tuple[list[Node], set[Value]]:
    """The nodes that the ends depend on, and what these and the ends read and none of them defines."""
    wanted = set(ends)
    kept = []
    for node in reversed(nodes):
        if any(value in wanted for value in node.results):
            wanted.update(node.operands)
            kept.append(node)
    return kept[::-1], wanted - {value for node in kept for value in node.results}
