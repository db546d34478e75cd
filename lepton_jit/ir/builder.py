"""Build a graph node by node; every node is typed as it is added and carries the path of the current layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from lepton_jit.errors import ArgumentError, GraphError, LeptonError
from lepton_jit.ir.graph import Attribute, Graph, Input, Node, Output, Role, Value
from lepton_jit.ir.op import Family, get_op
from lepton_jit.ir.types import DType, Shape, TensorType

__all__ = ["Builder"]

Operand = Value | int | float | bool


class Builder:
    """Collects nodes into a graph.

    A Python number as an operand becomes a constant of rank 0 with the last tensor operand's dtype; in elementwise
    operations a tensor of rank 0 is broadcast to the shape of the others. Everything else has to fit as the operation's
    type rule says.

    >>> b = Builder("double")
    >>> x = b.input("x", TensorType.of("f32", "N", 3))
    >>> b.output(b("multiply", x, 2.0), "y")
    >>> [node.op for node in b.build().nodes]
    ['constant', 'broadcast_in_dim', 'multiply']
    """

    def __init__(self, name: str = "main", *, taken: Sequence[str] = ()) -> None:
        self.name = name
        self._inputs: dict[str, Input] = {}
        self._nodes: list[Node] = []
        self._outputs: list[Output] = []
        self._taken = set(taken)
        self._counter = 0
        self._layer = ""

    def input(self, name: str, type: TensorType, role: Role = "input") -> Value:
        """Declare an input with a public name (`x`, `conv2d/kernel`)."""
        if name in self._inputs:
            raise GraphError(f"graph {self.name}: two inputs are called {name!r}")
        value = Value(self._unique(name), type)
        self._inputs[name] = Input(value, name, role)
        return value

    def output(self, value: Value, name: str, donates: str | None = None) -> None:
        """Declare an output with a public name; `donates` names the state input that it overwrites."""
        self._outputs.append(Output(value, name, donates))

    @property
    def current_layer(self) -> str:
        return self._layer

    @contextmanager
    def layer(self, path: str, *, absolute: bool = False) -> Iterator[None]:
        """Nodes added inside carry `path`, appended to the enclosing layer's unless `absolute`."""
        saved = self._layer
        self._layer = path if absolute or not saved else f"{saved}/{path}"
        try:
            yield
        finally:
            self._layer = saved

    def __call__(self, op: str, *operands: Operand, **attributes: Any) -> Value:
        """Add an operation with one result."""
        (result,) = self.emit(op, *operands, **attributes)
        return result

    def emit(
        self, op: str, *operands: Operand, regions: tuple[Graph, ...] = (), **attributes: Any
    ) -> tuple[Value, ...]:
        """Add an operation; its results."""
        record = get_op(op)
        values = self._as_values(operands)
        if record.family is Family.ELEMENTWISE and values:
            values = self._broadcast_scalars(values)
        frozen = _frozen(attributes)
        try:
            inferred = record.infer([v.type for v in values], {**frozen, "_regions": regions} if regions else frozen)
            types = [t.checked_size() for t in inferred]
        except LeptonError as error:
            where = f"layer {self._layer!r}: " if self._layer else ""
            raise type(error)(f"{where}{op}: {error}") from None
        results = tuple(Value(self._fresh(), t) for t in types)
        self._nodes.append(Node(op, tuple(values), results, frozen, self._layer, regions))
        return results

    def append(self, node: Node) -> None:
        """Add a node of another graph as it stands; its values keep their names."""
        self._taken.update(v.name for v in node.results)
        self._nodes.append(node)

    def constant(self, value: float | int | bool | np.ndarray, dtype: DType) -> Value:
        """A constant of any rank; a scalar is of rank 0."""
        try:
            with np.errstate(over="ignore"):
                array = np.asarray(value, dtype.numpy)
        except OverflowError:
            raise ArgumentError(f"constant: expected a number in the range of {dtype}, got {value!r}") from None
        return self("constant", value=_nested(array.tolist()), dtype=dtype, shape=tuple(array.shape))

    def full(self, value: float | int | bool, type: TensorType) -> Value:
        """A tensor with one value everywhere."""
        return self.broadcast(self.constant(value, type.dtype), type.shape)

    def broadcast(self, value: Value, shape: Shape, dimensions: Sequence[int] | None = None) -> Value:
        """`value` repeated to `shape`; its dimension `i` becomes `dimensions[i]` (default: the last ones)."""
        if value.type.shape == tuple(shape):
            return value
        if dimensions is None:
            dimensions = range(len(shape) - value.type.rank, len(shape))
        return self("broadcast_in_dim", value, shape=tuple(shape), dimensions=tuple(dimensions))

    def build(self) -> Graph:
        """The finished graph."""
        return Graph(self.name, tuple(self._inputs.values()), tuple(self._nodes), tuple(self._outputs))

    def _as_values(self, operands: Sequence[Operand]) -> list[Value]:
        # The last one: in select(pred, x, 0.0) the number is not of the predicate's dtype.
        like = next((o.type.dtype for o in reversed(operands) if isinstance(o, Value)), None)
        values = []
        for operand in operands:
            if isinstance(operand, Value):
                values.append(operand)
                continue
            if like is None:
                raise GraphError(f"op on numbers only, got {operands!r}; use Builder.constant")
            values.append(self.constant(operand, like))
        return values

    def _broadcast_scalars(self, values: list[Value]) -> list[Value]:
        shape = max((v.type.shape for v in values), key=len)
        return [self.broadcast(v, shape) if v.type.rank == 0 else v for v in values]

    def _fresh(self) -> str:
        while str(self._counter) in self._taken:
            self._counter += 1
        name = str(self._counter)
        self._taken.add(name)
        return name

    def _unique(self, name: str) -> str:
        base = "".join(c if c.isalnum() else "_" for c in name) or "value"
        candidate, n = base, 1
        while candidate in self._taken:
            n += 1
            candidate = f"{base}_{n}"
        self._taken.add(candidate)
        return candidate


def _frozen(attributes: dict[str, Any]) -> dict[str, Attribute]:
    return {name: _nested(attributes[name]) for name in sorted(attributes)}


def _nested(value: Any) -> Attribute:
    """The attribute as a graph keeps it: tuples, plain Python numbers, and one NaN, which equals itself in a tuple."""
    if isinstance(value, (list, tuple)):
        return tuple(_nested(v) for v in value)
    if isinstance(value, np.generic):
        value = value.item()
    return math.nan if isinstance(value, float) and math.isnan(value) else value
