"""Nodes that passes introduce or remove: `gradient`, which autodiff expands, and `fusion`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jit.errors import GraphError, ShapeError, UnsupportedError
from lepton_jit.ir.graph import Attributes, Graph
from lepton_jit.ir.interpreter import run_nodes
from lepton_jit.ir.op import NOT_DIFFERENTIABLE, AttributeKind, Family, Op, register
from lepton_jit.ir.ops.rules import STRING, define, expect_dtype, expect_scalar
from lepton_jit.ir.types import TensorType

__all__ = ["REGIONS"]

REGIONS = AttributeKind("regions", lambda value: isinstance(value, tuple) and all(isinstance(g, Graph) for g in value))


# gradient


def _infer_gradient(loss: TensorType, *values: TensorType) -> Sequence[TensorType]:
    expect_scalar(loss, "loss")
    expect_dtype(loss, "float", what="loss")
    for value in values:
        expect_dtype(value, "float", what="a value of which the gradient is asked")
    if not values:
        raise GraphError("expected values of which the gradient is asked, got none")
    return values


def _no_gradient(*_: np.ndarray) -> Sequence[np.ndarray]:
    raise UnsupportedError("stands for nodes that the autodiff pass writes; run that pass first")


define(
    "gradient",
    Family.STRUCTURAL,
    operands="loss *values",
    infer=_infer_gradient,
    reference=_no_gradient,
    gradient=NOT_DIFFERENTIABLE,
    samples=(),
)


# fusion


def _infer_fusion(operands: Sequence[TensorType], attributes: Attributes) -> Sequence[TensorType]:
    regions: Any = attributes["_regions"]
    if len(regions) != 1:
        raise GraphError(f"expected one region, got {len(regions)}")
    (region,) = regions
    expected = [entry.value.type for entry in region.inputs]
    if expected != list(operands):
        raise ShapeError(f"expected the operands that its region reads, {expected}, got {list(operands)}")
    return [output.value.type for output in region.outputs]


def _run_fusion(
    arrays: Sequence[np.ndarray], attributes: Attributes, symbols: Mapping[str, int]
) -> Sequence[np.ndarray]:
    regions: Any = attributes["_regions"]
    (region,) = regions
    known = {entry.value: array for entry, array in zip(region.inputs, arrays, strict=True)}
    known = run_nodes(region.nodes, known, symbols)
    return [known[output.value] for output in region.outputs]


register(
    Op(
        name="fusion",
        family=Family.STRUCTURAL,
        operands=("*operands",),
        attributes={"kind": STRING, "_regions": REGIONS},
        infer=_infer_fusion,
        reference=_run_fusion,
        gradient=NOT_DIFFERENTIABLE,
        samples=(),
    )
)
