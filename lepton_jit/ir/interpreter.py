"""Run a graph with NumPy, node by node: the meaning that everything compiled is measured against."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from lepton_jit.errors import DTypeError, GraphError, LeptonError, ShapeError
from lepton_jit.ir.graph import Graph, Input, Node, Value
from lepton_jit.ir.op import get_op
from lepton_jit.ir.types import Dim, Poly, Shape, dim_value, symbols_of

__all__ = ["bind_symbols", "run_graph", "run_nodes"]


def run_graph(graph: Graph, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The outputs by name, from the inputs by name; fresh arrays, and the inputs stay as they are.

    Raises ShapeError or DTypeError, naming the input, where an array does not fit.

    >>> from lepton_jit.ir.builder import Builder
    >>> from lepton_jit.ir.types import TensorType
    >>> b = Builder()
    >>> x = b.input("x", TensorType.of("f32", "N"))
    >>> b.output(b("add", x, 1.0), "y")
    >>> run_graph(b.build(), {"x": np.zeros(2, np.float32)})
    {'y': array([1., 1.], dtype=float32)}
    """
    symbols = bind_symbols(graph, arrays)
    known = {entry.value: np.asarray(arrays[entry.name]) for entry in graph.inputs}
    known = run_nodes(graph.nodes, known, symbols)
    return {output.name: np.array(known[output.value], order="C") for output in graph.outputs}


def run_nodes(
    nodes: Iterable[Node], known: Mapping[Value, np.ndarray], symbols: Mapping[str, int]
) -> dict[Value, np.ndarray]:
    """Compute every value of some nodes, from the values that they start with."""
    found = dict(known)
    for node in nodes:
        operands = [found[value] for value in node.operands]
        attributes = {**node.attributes, "_regions": node.regions} if node.regions else node.attributes
        try:
            results = get_op(node.op).reference(operands, attributes, symbols)
        except LeptonError as error:
            where = f"layer {node.layer!r}: " if node.layer else ""
            raise type(error)(f"{where}{node.op}: {error}") from error
        found.update(zip(node.results, results, strict=True))
    return found


def bind_symbols(graph: Graph, arrays: Mapping[str, np.ndarray]) -> dict[str, int]:
    """The numbers of the symbolic dimensions, from the arrays for the inputs.

    Raises GraphError for a missing or unknown name, DTypeError or ShapeError for an array that does not fit.
    """
    names = [entry.name for entry in graph.inputs]
    if set(names) != set(arrays):
        raise GraphError(f"graph {graph.name}: expected the inputs {names}, got {list(arrays)}")
    symbols: dict[str, int] = {}
    origin: dict[str, str] = {}
    for entry in graph.inputs:
        _check_kind(entry, np.asarray(arrays[entry.name]))
    for entry in graph.inputs:
        for dim, size in zip(entry.value.type.shape, np.shape(arrays[entry.name]), strict=True):
            solved = _solved(dim, size)
            if solved is not None and solved[0] not in symbols:
                symbols[solved[0]] = solved[1]
                origin[solved[0]] = entry.name
    _check_all_bound(graph, symbols)
    for entry in graph.inputs:
        _check_shape(entry, np.shape(arrays[entry.name]), symbols, origin)
    return symbols


def _check_kind(entry: Input, array: np.ndarray) -> None:
    expected = entry.value.type
    if array.dtype != expected.dtype.numpy:
        raise DTypeError(f"input {entry.name!r}: expected {expected}, got an array of {array.dtype}")
    if array.ndim != expected.rank:
        raise ShapeError(f"input {entry.name!r}: expected {expected}, got an array of shape {list(array.shape)}")


def _solved(dim: Dim, size: int) -> tuple[str, int] | None:
    """The symbol and its number, for a dimension `a*N + b` that it can be read from."""
    if not isinstance(dim, Poly):
        return None
    linear = [(m[0], c) for m, c in dim.terms if len(m) == 1]
    offset = sum(c for m, c in dim.terms if not m)
    if len(linear) != 1 or len(dim.terms) > 2 or any(len(m) > 1 for m, _ in dim.terms):
        return None
    ((symbol, factor),) = linear
    number, rest = divmod(size - offset, factor)
    return (symbol, number) if rest == 0 and number >= 0 else None


def _check_all_bound(graph: Graph, symbols: Mapping[str, int]) -> None:
    for value in graph.values():
        _check_bound(graph, value.type.shape, symbols, repr(value))
    for node in graph.nodes:
        for name, attribute in node.attributes.items():
            _check_bound(graph, _dims(attribute), symbols, f"{node.op}'s {name}")
        for region in node.regions:
            _check_all_bound(region, symbols)


def _check_bound(graph: Graph, dims: Iterable[Dim], symbols: Mapping[str, int], where: str) -> None:
    unbound = symbols_of(dims) - set(symbols)
    if unbound:
        raise ShapeError(f"graph {graph.name}: no input's shape gives the dimension {sorted(unbound)[0]} of {where}")


def _dims(attribute: object) -> Iterator[Dim]:
    """The polynomials of an attribute, which may be a nested tuple."""
    if isinstance(attribute, Poly):
        yield attribute
    elif isinstance(attribute, tuple):
        for part in attribute:
            yield from _dims(part)


def _check_shape(entry: Input, shape: Shape, symbols: Mapping[str, int], origin: Mapping[str, str]) -> None:
    expected = tuple(dim_value(d, symbols) for d in entry.value.type.shape)
    if expected == tuple(shape):
        return
    used = sorted(symbols_of(entry.value.type.shape))
    given = ", ".join(f"{s} = {symbols[s]} by input {origin[s]!r}" for s in used)
    because = f" with {given}" if given else ""
    raise ShapeError(f"input {entry.name!r}: expected {entry.value.type}{because}, got the shape {list(shape)}")
