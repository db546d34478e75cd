"""The loop of known length: `scan`, as jax.lax.scan has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jit.errors import GraphError, ShapeError
from lepton_jit.ir.graph import Attributes, Graph
from lepton_jit.ir.interpreter import run_nodes
from lepton_jit.ir.op import OF_REGION, Family, Op, register
from lepton_jit.ir.ops.rules import BOOL, DIM, INT, expect_shape, resolved
from lepton_jit.ir.ops.structural import REGIONS
from lepton_jit.ir.types import Dim, TensorType

__all__ = []


def _infer_scan(operands: Sequence[TensorType], attributes: Attributes) -> Sequence[TensorType]:
    length, carries, scanned = (attributes[name] for name in ("length", "carries", "scanned"))
    expect_shape((length,))
    if carries < 0 or scanned < 0 or carries + scanned > len(operands):
        raise GraphError(
            f"expected {carries} carries and {scanned} scanned arrays among the operands, got {len(operands)} of them"
        )
    regions: Any = attributes["_regions"]
    if len(regions) != 1:
        raise GraphError(f"expected one region, got {len(regions)}")
    (region,) = regions
    arrays = operands[carries : carries + scanned]
    slices = [_slice_type(array, length) for array in arrays]
    expected = [*operands[:carries], *slices, *operands[carries + scanned :]]
    found = [entry.value.type for entry in region.inputs]
    if found != expected:
        raise ShapeError(f"expected a region that reads carries, slices and captured values, {expected}, got {found}")
    outputs = [output.value.type for output in region.outputs]
    if outputs[:carries] != list(operands[:carries]):
        raise ShapeError(f"expected a region that returns new carries first, {operands[:carries]}, got {outputs}")
    stacked = [step.with_shape((length, *step.shape)) for step in outputs[carries:]]
    return [*outputs[:carries], *stacked]


def _slice_type(array: TensorType, length: Dim) -> TensorType:
    if not array.rank or array.shape[0] != length:
        raise ShapeError(f"expected a scanned array with a leading dimension of {length!r}, got {array}")
    return array.with_shape(array.shape[1:])


def _run_scan(arrays: Sequence[np.ndarray], attributes: Attributes, symbols: Mapping[str, int]) -> Sequence[np.ndarray]:
    length, carries, scanned = (resolved(attributes[name], symbols) for name in ("length", "carries", "scanned"))
    region: Graph = attributes["_regions"][0]
    inputs = [entry.value for entry in region.inputs]
    carried = list(arrays[:carries])
    captured = arrays[carries + scanned :]
    stacked = [_empty(output.value.type, length, symbols) for output in region.outputs[carries:]]
    for step in reversed(range(length)) if attributes["reverse"] else range(length):
        slices = [array[step] for array in arrays[carries : carries + scanned]]
        known = dict(zip(inputs, [*carried, *slices, *captured], strict=True))
        known = run_nodes(region.nodes, known, symbols)
        results = [known[output.value] for output in region.outputs]
        carried = results[:carries]
        for stack, result in zip(stacked, results[carries:], strict=True):
            stack[step] = result
    return [*carried, *stacked]


def _empty(step: TensorType, length: int, symbols: Mapping[str, int]) -> np.ndarray:
    return np.empty((length, *resolved(step.shape, symbols)), step.dtype.numpy)


register(
    Op(
        name="scan",
        family=Family.LOOP,
        operands=("*operands",),
        attributes={"length": DIM, "carries": INT, "scanned": INT, "reverse": BOOL, "_regions": REGIONS},
        infer=_infer_scan,
        reference=_run_scan,
        gradient=OF_REGION,
        samples=(),
    )
)
