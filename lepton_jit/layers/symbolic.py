"""Symbolic tensors: what `Input` returns and layers pass on, until a model is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lepton_jit.errors import ArgumentError

if TYPE_CHECKING:
    from lepton_jit.layers.layer import Layer

__all__ = ["Call", "ShapeTuple", "SymbolicTensor", "as_list"]

ShapeTuple = tuple[int | None, ...]  # None: the batch, known when a program runs


class SymbolicTensor:
    """The shape and element type of a tensor that a layer will compute."""

    def __init__(self, shape: ShapeTuple, dtype: str, call: Call, index: int) -> None:
        self.shape = shape
        self.dtype = dtype
        self.call = call
        self.index = index

    @property
    def name(self) -> str:
        return self.call.layer.name

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def __bool__(self) -> bool:
        raise ArgumentError(f"{self!r} has no value while the model is being described")

    def __array__(self, *_: object, **__: object) -> object:
        raise ArgumentError(f"{self!r} has no value while the model is being described")

    def __repr__(self) -> str:
        return f"<SymbolicTensor of layer {self.name!r}: shape={self.shape}, dtype={self.dtype}>"


class Call:
    """One use of a layer: its inputs and outputs."""

    def __init__(
        self, layer: Layer, inputs: Sequence[SymbolicTensor], outputs: Sequence[tuple[ShapeTuple, str]]
    ) -> None:
        self.layer = layer
        self.inputs = tuple(inputs)
        self.outputs = tuple(SymbolicTensor(shape, dtype, self, i) for i, (shape, dtype) in enumerate(outputs))

    def __repr__(self) -> str:
        return f"<Call of {self.layer.name!r} on {[x.name for x in self.inputs]}>"


def as_list(value: object) -> list:
    """A list or tuple as a list, anything else as a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
