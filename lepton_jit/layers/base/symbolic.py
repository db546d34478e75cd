"""Symbolic tensors: what `Input` returns and layers pass on, until a model is made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lepton_jit.errors import ArgumentError
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import DType
from lepton_jit.layers.base.calling import leaves

__all__ = ["Call", "ShapeTuple", "SymbolicTensor", "as_list"]


class Called(Protocol):
    """The part of a layer that a call uses."""

    name: str
    compute_dtype: DType

    def trace_call(self, t: Any, *inputs: Any, **arguments: Any) -> tuple[Value, ...]: ...


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
    """One use of a layer: its inputs, its other arguments, and its outputs."""

    def __init__(
        self,
        layer: Called,
        inputs: Sequence[SymbolicTensor],
        outputs: Sequence[tuple[ShapeTuple, str]],
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self.layer = layer
        self.inputs = tuple(inputs)
        self.arguments = dict(arguments or {})
        self.outputs = tuple(SymbolicTensor(shape, dtype, self, i) for i, (shape, dtype) in enumerate(outputs))

    @property
    def tensors(self) -> tuple[SymbolicTensor, ...]:
        """List all tensors that the call reads: inputs, then the tensors among its arguments."""
        named = (x for x in leaves(list(self.arguments.values())) if isinstance(x, SymbolicTensor))
        return (*self.inputs, *named)

    def __repr__(self) -> str:
        return f"<Call of {self.layer.name!r} on {[x.name for x in self.inputs]}>"


def as_list(value: object) -> list:
    """A list or tuple as a list, anything else as a list of one."""
    return list(value) if isinstance(value, (list, tuple)) else [value]
