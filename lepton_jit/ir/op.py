"""Define operations: one record with its type rule, its NumPy meaning, its gradient and samples of its use."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np

from lepton_jit.errors import ArgumentError, GraphError, UnsupportedError
from lepton_jit.ir.graph import Attributes, Node, Value
from lepton_jit.ir.traits import ORDINARY, Traits
from lepton_jit.ir.types import TensorType

__all__ = [
    "DECOMPOSED",
    "NOT_DIFFERENTIABLE",
    "OF_REGION",
    "OPS",
    "Family",
    "AttributeKind",
    "NoRule",
    "Op",
    "Sample",
    "get_op",
    "register",
    "traits_of",
]


class Family(Enum):
    """The way in which results of an operation are computed from indices, which code generation goes by."""

    ELEMENTWISE = "elementwise"  # result[i] = f(a[i], b[i], ...)
    MOVEMENT = "movement"  # result[i] = a[g(i)], or a constant
    REDUCTION = "reduction"
    WINDOW = "window"
    CONTRACTION = "contraction"
    COMPOSITE = "composite"  # has a decomposition, which takes its place before code generation
    LOOP = "loop"  # repeats its region
    STRUCTURAL = "structural"  # fusion, gradient: nodes that passes introduce or remove


class NoRule(Enum):
    """The entry in a record in place of a gradient rule."""

    NOT_DIFFERENTIABLE = "the operation has no gradient"
    DECOMPOSED = "the gradient of a composite is that of its decomposition"
    OF_REGION = "the gradient of a loop is a loop over the gradient of its region, which autodiff writes"

    def __repr__(self) -> str:
        return self.name


NOT_DIFFERENTIABLE = NoRule.NOT_DIFFERENTIABLE
DECOMPOSED = NoRule.DECOMPOSED
OF_REGION = NoRule.OF_REGION

InferRule = Callable[[Sequence[TensorType], Attributes], Sequence[TensorType]]
# reference(arrays, attributes, symbols) -> arrays; symbols are the numbers of the symbolic dimensions
Reference = Callable[[Sequence[np.ndarray], Attributes, Mapping[str, int]], Sequence[np.ndarray]]
# gradient(builder, node, cotangents of the results) -> cotangents of the operands, None where there is none
GradientRule = Callable[..., Sequence[Value | None]]
Decomposition = Callable[..., Value | Sequence[Value]]


@dataclass(frozen=True)
class AttributeKind:
    """The kind of an attribute's value: `accepts` tells whether a value is of that kind."""

    description: str
    accepts: Callable[[object], bool]


@dataclass(frozen=True)
class Sample:
    """One use of an operation, for the tests that run over the registry."""

    operands: tuple[TensorType, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    low: float = -2.0  # the values of float operands are drawn from [low, high)
    high: float = 2.0


@dataclass(frozen=True, kw_only=True)
class Op:
    """One operation; see docs/add_an_op.md.

    `native` says how a scalar of an elementwise operation is computed by the machine: `native(m, x, y, ...)`, where
    `m` has the machine's primitives as methods (`m.add`, `m.fma`, `m.select`, ...). None: it is a primitive itself.
    `decompose(builder, *operands, **attributes)` is the meaning of a composite. `operands` are their names (a last one
    with a star stands for any number), `attributes` maps the name of each, all of them required, to what it holds.
    `traits` are what is special about it.
    """

    name: str
    operands: tuple[str, ...]
    attributes: Mapping[str, AttributeKind]
    family: Family
    infer: InferRule
    reference: Reference
    gradient: GradientRule | NoRule
    samples: tuple[Sample, ...]
    native: Callable[..., Any] | None = None
    decompose: Decomposition | None = None
    traits: Traits = ORDINARY


OPS: dict[str, Op] = {}


def register(op: Op) -> Op:
    """Enter an operation; an incomplete or doubled record fails here, at import.

    Its type rule is called with operands and attributes that are there, and of their kinds.
    """
    if op.name in OPS:
        raise GraphError(f"op {op.name}: registered twice")
    if not op.samples and op.family not in (Family.STRUCTURAL, Family.LOOP):
        raise GraphError(f"op {op.name}: a record needs samples for the tests that run over the registry")
    if op.gradient is DECOMPOSED and op.decompose is None:
        raise GraphError(f"op {op.name}: the gradient of a decomposition that does not exist")
    if (op.decompose is not None) != (op.family is Family.COMPOSITE):
        raise GraphError(f"op {op.name}: composites and only composites have a decomposition")
    OPS[op.name] = replace(op, infer=_checked(op))
    return OPS[op.name]


def _checked(op: Op) -> InferRule:
    def infer(types: Sequence[TensorType], given: Attributes) -> Sequence[TensorType]:
        _check_operands(op.operands, types)
        _check_attributes(op.attributes, given)
        return op.infer(types, given)

    return infer


def _check_operands(names: tuple[str, ...], types: Sequence[TensorType]) -> None:
    fixed = [n for n in names if not n.startswith("*")]
    if len(types) < len(fixed) or (len(types) > len(fixed) and len(fixed) == len(names)):
        raise GraphError(f"expected the operands ({', '.join(names)}), got {len(types)} of them")


def _check_attributes(kinds: Mapping[str, AttributeKind], given: Attributes) -> None:
    unknown = [n for n in given if n not in kinds]
    if unknown:
        raise ArgumentError(f"expected the attributes {_listed(kinds)}, got {_listed(unknown)} as well")
    for name, kind in kinds.items():
        if name not in given:
            raise ArgumentError(f"expected the attributes {_listed(kinds)}, got none called {name}")
        if not kind.accepts(given[name]):
            raise ArgumentError(f"{name}: expected {kind.description}, got {given[name]!r}")


def _listed(names: Iterable[str]) -> str:
    return "{" + ", ".join(names) + "}"


def get_op(name: str) -> Op:
    """The record of an operation."""
    if name not in OPS:
        raise UnsupportedError(f"op: expected one of {', '.join(sorted(OPS))}, got {name!r}")
    return OPS[name]


def traits_of(node: Node) -> Traits:
    """The traits of a node's operation."""
    return get_op(node.op).traits
