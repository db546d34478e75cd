"""The calls between a model's inputs and outputs, in an order in which they can run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from lepton_jit.errors import ArgumentError
from lepton_jit.layers.base.layer import Layer, layer_of
from lepton_jit.layers.base.symbolic import Call, SymbolicTensor
from lepton_jit.layers.core import InputLayer

__all__ = ["Network"]


class Network:
    """Inputs, outputs, the calls between them in topological order, and the layers in Keras' order.

    Keras orders layers by their distance from the outputs, the farthest first, and layers of equal distance as a
    depth-first walk from the outputs meets them. The order of a model's weights follows from it.
    """

    def __init__(self, owner: str, inputs: Sequence[SymbolicTensor], outputs: Sequence[SymbolicTensor]) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._check_ends(owner)
        self.batch_size = _common_batch(owner, self.inputs)
        finished, met = _walk(owner, self.inputs, self.outputs)
        self.calls = tuple(c for c in finished if c.inputs)
        self.layers = _keras_order(finished, met, self.inputs)
        repeated = [name for name, n in Counter(layer.name for layer in self.layers).items() if n > 1]
        if repeated:
            raise ArgumentError(f"{owner}: expected layers of different names, got two called {repeated[0]!r}")

    def _check_ends(self, owner: str) -> None:
        if not self.inputs or not self.outputs:
            raise ArgumentError(f"{owner}: expected at least one input and one output")
        for x in self.inputs:
            if not isinstance(x, SymbolicTensor) or not isinstance(x.call.layer, InputLayer):
                raise ArgumentError(f"{owner}: inputs: expected tensors made by Input, got {x!r}")
        if len(set(self.inputs)) != len(self.inputs):
            raise ArgumentError(f"{owner}: inputs: expected different tensors, got one twice")
        for x in self.outputs:
            if not isinstance(x, SymbolicTensor):
                raise ArgumentError(f"{owner}: outputs: expected symbolic tensors, got {x!r}")


def _common_batch(owner: str, inputs: Sequence[SymbolicTensor]) -> int | None:
    """The batch size that some input fixes for all of them; None if it may be any number."""
    fixed = {x.name: x.shape[0] for x in inputs if x.shape[0] is not None}
    if len(set(fixed.values())) > 1:
        raise ArgumentError(f"{owner}: expected inputs of one batch size, got {fixed}")
    return next(iter(fixed.values()), None)


def _walk(
    owner: str, inputs: Sequence[SymbolicTensor], outputs: Sequence[SymbolicTensor]
) -> tuple[list[Call], dict[Layer, int]]:
    """Calls in topological order, and when a depth-first walk from the outputs first met each layer."""
    given = {x.call for x in inputs}
    finished: dict[Call, None] = {}
    met: dict[Layer, int] = {}
    # An explicit stack: a model of a thousand layers in a row is deeper than Python's recursion.
    stack: list[tuple[Call, bool]] = [(x.call, False) for x in reversed(outputs)]
    while stack:
        call, expanded = stack.pop()
        if expanded:
            finished[call] = None
            continue
        if call in finished:
            continue
        met.setdefault(layer_of(call), len(met))
        if not call.inputs and call not in given:
            raise ArgumentError(
                f"{owner}: an output needs the input {call.layer.name!r}, which is not among the inputs"
            )
        stack.append((call, True))
        stack.extend((x.call, False) for x in reversed(call.tensors) if x.call not in finished)
    return list(finished), met


def _keras_order(finished: list[Call], met: dict[Layer, int], inputs: Sequence[SymbolicTensor]) -> tuple[Layer, ...]:
    call_depth: dict[Call, int] = {}
    depth: dict[Layer, int] = {}
    for call in reversed(finished):
        layer = layer_of(call)
        own = max(call_depth.get(call, 0), depth.get(layer, 0))
        call_depth[call] = depth[layer] = own
        for x in call.tensors:
            call_depth[x.call] = max(own + 1, call_depth.get(x.call, 0))
    for x in inputs:
        layer = layer_of(x.call)
        if layer not in depth:
            depth[layer], met[layer] = 0, -1
    return tuple(sorted(depth, key=lambda layer: (-depth[layer], met[layer])))
