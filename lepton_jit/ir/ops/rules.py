"""Define what records share: kinds of attributes, checks of operands, and `define`, which enters a record."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jit.errors import DTypeError, GraphError, ShapeError, UnsupportedError
from lepton_jit.ir.graph import Attributes, Value
from lepton_jit.ir.op import AttributeKind, Decomposition, Family, GradientRule, NoRule, Op, Sample, register
from lepton_jit.ir.traits import ORDINARY, Traits
from lepton_jit.ir.types import Dim, DType, Poly, TensorType, dim_value

__all__ = [
    "BOOL",
    "BOOLS",
    "CONSTANT",
    "DIM",
    "DIMS",
    "DTYPE",
    "INT",
    "INTS",
    "NUMBER",
    "PAIRS",
    "STRING",
    "STRINGS",
    "at_least_zero",
    "axis_of",
    "check_dimensions",
    "choice",
    "define",
    "expect_dtype",
    "expect_rank",
    "expect_same",
    "expect_scalar",
    "expect_shape",
    "resolved",
    "the_cotangent",
    "window_size",
]


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_dim(value: object) -> bool:
    return _is_int(value) or isinstance(value, Poly)


def _every(accepts: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, (tuple, list)) and all(map(accepts, value))


def _is_pair(value: object) -> bool:
    return _every(_is_int)(value) and len(value) == 2  # pyright: ignore[reportArgumentType]


INT = AttributeKind("an integer", _is_int)
INTS = AttributeKind("a list of integers", _every(_is_int))
DIM = AttributeKind("a dimension", _is_dim)
DIMS = AttributeKind("a list of dimensions", _every(_is_dim))
PAIRS = AttributeKind("a list of pairs of integers", _every(_is_pair))
NUMBER = AttributeKind("a number", lambda value: _is_int(value) or isinstance(value, float))
BOOL = AttributeKind("true or false", lambda value: isinstance(value, bool))
BOOLS = AttributeKind("a list of true and false", _every(lambda value: isinstance(value, bool)))
STRING = AttributeKind("a string", lambda value: isinstance(value, str))
STRINGS = AttributeKind("a list of strings", _every(lambda value: isinstance(value, str)))
DTYPE = AttributeKind("a dtype", lambda value: isinstance(value, DType))
CONSTANT = AttributeKind(
    "a number, or nested lists of numbers", lambda value: isinstance(value, (int, float, tuple, list))
)


def choice(*names: str) -> AttributeKind:
    """One of a few strings."""
    return AttributeKind("one of " + ", ".join(f'"{n}"' for n in names), lambda value: value in names)


def define(
    name: str,
    family: Family,
    *,
    operands: str,
    infer: Callable[..., TensorType | Sequence[TensorType]],
    reference: Callable[..., np.ndarray | Sequence[np.ndarray]],
    gradient: GradientRule | NoRule,
    samples: Sequence[Sample],
    attributes: Mapping[str, AttributeKind] | None = None,
    native: Callable[..., Any] | None = None,
    decompose: Decomposition | None = None,
    traits: Traits = ORDINARY,
) -> Op:
    """Enter an operation whose rules are written for its operands and attributes, and get them checked.

    `operands` are their names, as in `"x *rest"`. `infer(*types, **attributes)` and `reference(*arrays, **attributes)`
    are called with as many operands and with all of the attributes, each of its kind; the reference sees numbers in
    place of symbolic dimensions, and NumPy does not warn inside.
    """
    names, kinds = tuple(operands.split()), dict(attributes or {})
    _check_signature(name, infer, kinds)
    _check_signature(name, reference, kinds)

    def listed_infer(types: Sequence[TensorType], given: Attributes) -> Sequence[TensorType]:
        found = infer(*types, **given)
        return (found,) if isinstance(found, TensorType) else tuple(found)

    def resolved_reference(
        arrays: Sequence[np.ndarray], given: Attributes, symbols: Mapping[str, int]
    ) -> Sequence[np.ndarray]:
        with np.errstate(all="ignore"):
            found = reference(*arrays, **{key: resolved(value, symbols) for key, value in given.items()})
        return tuple(map(np.asarray, found)) if isinstance(found, tuple) else (np.asarray(found),)

    return register(
        Op(
            name=name,
            family=family,
            operands=names,
            attributes=kinds,
            infer=listed_infer,
            reference=resolved_reference,
            gradient=gradient,
            samples=tuple(samples),
            native=native,
            decompose=decompose,
            traits=traits,
        )
    )


def resolved(value: Any, symbols: Mapping[str, int]) -> Any:
    """An attribute with numbers in place of its symbolic dimensions."""
    if isinstance(value, (tuple, list)):
        return tuple(resolved(v, symbols) for v in value)
    return dim_value(value, symbols) if isinstance(value, Poly) else value


def _check_signature(name: str, function: Callable[..., Any], kinds: Mapping[str, AttributeKind]) -> None:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # a NumPy function in place of a reference; it takes no attributes
        return
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return
    missing = set(kinds) - {p.name for p in parameters}
    if missing:
        raise GraphError(f"op {name}: a rule without its attributes {sorted(missing)}")


def expect_same(*types: TensorType) -> TensorType:
    """The one type of all these operands."""
    if any(t != types[0] for t in types):
        error = ShapeError if len({t.dtype for t in types}) == 1 else DTypeError
        raise error(f"expected operands of one type, got {', '.join(map(repr, types))}")
    return types[0]


def expect_dtype(type: TensorType, *kinds: str, what: str = "operand") -> None:
    """`kinds` are of "float", "signed", "unsigned", "bool", or the name of one dtype."""
    if type.dtype.kind not in kinds and type.dtype.name not in kinds:
        raise DTypeError(f"{what}: expected a dtype {' or '.join(kinds)}, got {type}")


def expect_shape(shape: Sequence[Dim]) -> None:
    """Dimensions from 0 up."""
    if any(isinstance(d, int) and d < 0 for d in shape):
        raise ShapeError(f"shape: expected dimensions from 0 up, got {list(shape)}")


def expect_scalar(type: TensorType, what: str) -> None:
    if type.rank:
        raise ShapeError(f"{what}: expected rank 0, got {type}")


def expect_rank(type: TensorType, rank: int, what: str = "operand") -> None:
    if type.rank != rank:
        raise ShapeError(f"{what}: expected rank {rank}, got {type}")


def check_dimensions(name: str, dimensions: Sequence[int], rank: int) -> None:
    """Different dimensions of a tensor of that rank."""
    if len(set(dimensions)) != len(dimensions) or any(not 0 <= d < rank for d in dimensions):
        raise ShapeError(f"{name}: expected different dimensions from 0 to {rank - 1}, got {list(dimensions)}")


def axis_of(axis: int, type: TensorType) -> int:
    """The axis counted from the front."""
    if not -type.rank <= axis < type.rank:
        raise ShapeError(f"axis: expected one of {type}, got {axis}")
    return axis % type.rank


def the_cotangent(cotangents: Sequence[Value | None]) -> Value:
    """The cotangent of the one result; a rule is called only where there is one."""
    (dy,) = cotangents
    if dy is None:
        raise GraphError("a gradient rule called without the cotangent of the one result")
    return dy


def at_least_zero(dim: Dim) -> bool:
    """Tell whether a dimension is proved not to be negative; symbols stand for numbers from 0 up."""
    return dim >= 0 if isinstance(dim, int) else all(coefficient >= 0 for _, coefficient in dim.terms)


def window_size(dim: Dim, window: Dim, stride: int, padding: tuple[int, int], dilation: int, base: int = 1) -> Dim:
    """Count windows: `(padded - ((window - 1) * dilation + 1)) // stride + 1`; `base` dilates `dim` first."""
    if stride < 1 or dilation < 1 or base < 1:
        raise ShapeError(f"expected strides and dilations from 1 up, got {stride}, {dilation} and {base}")
    if window == 1 and stride == 1 and tuple(padding) == (0, 0) and base == 1:
        return dim
    if isinstance(dim, Poly) or isinstance(window, Poly):
        raise UnsupportedError(
            f"a window of {window!r} over the symbolic dimension {dim!r}: only batches may be symbolic"
        )
    if window < 1:
        raise ShapeError(f"expected a window of at least 1, got {window}")
    padded = (max(dim - 1, -1) * base + 1 if dim else 0) + padding[0] + padding[1]
    extent = (window - 1) * dilation + 1
    if padded < extent:
        raise ShapeError(f"a window over {extent} does not fit into {padded}, padding included")
    return (padded - extent) // stride + 1
