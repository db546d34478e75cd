"""Composites: operations whose meaning is a decomposition into others."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.expression import Expression
from lepton_jit.ir.graph import Value
from lepton_jit.ir.interpreter import run_nodes
from lepton_jit.ir.op import DECOMPOSED, AttributeKind, Decomposition, Family, GradientRule, NoRule, Op, Sample
from lepton_jit.ir.ops.elementwise import Formula, formula_rule
from lepton_jit.ir.ops.rules import define, expect_dtype, expect_same
from lepton_jit.ir.types import TensorType, dtype_of

__all__ = ["composite", "composite_elementwise"]


def composite(
    name: str,
    decompose: Decomposition,
    *,
    operands: str,
    infer: Callable[..., TensorType | Sequence[TensorType]],
    samples: Sequence[Sample],
    attributes: Mapping[str, AttributeKind] | None = None,
    gradient: GradientRule | NoRule = DECOMPOSED,
) -> Op:
    """Declare an operation by `decompose(builder, *operands, **attributes)`; its NumPy meaning follows."""
    return define(
        name,
        Family.COMPOSITE,
        operands=operands,
        attributes=attributes,
        infer=infer,
        reference=_reference_of(decompose),
        gradient=gradient,
        samples=samples,
        decompose=decompose,
    )


def _reference_of(decompose: Decomposition) -> Callable[..., Sequence[np.ndarray]]:
    def reference(*arrays: np.ndarray, **attributes: Any) -> Sequence[np.ndarray]:
        builder = Builder("decomposition")
        values = [builder.input(f"x{i}", TensorType(dtype_of(a.dtype), a.shape)) for i, a in enumerate(arrays)]
        found = decompose(builder, *values, **attributes)
        results = (found,) if isinstance(found, Value) else tuple(found)
        known = run_nodes(builder.build().nodes, dict(zip(values, arrays, strict=True)), {})
        return tuple(known[value] for value in results)

    return reference


def composite_elementwise(
    name: str,
    formula: Callable[..., Expression],
    *,
    gradient: Formula | NoRule = DECOMPOSED,
    operands: str = "x",
    attributes: Mapping[str, AttributeKind] | None = None,
    samples: Sequence[Mapping[str, Any]] = ({},),
    low: float = -4.0,
    high: float = 4.0,
) -> Op:
    """Declare an elementwise composite of floats by `formula(x, ..., **attributes)` on Expressions.

    `gradient(dy, y, x, ..., **attributes)` gives the cotangents. `samples` are attributes.
    """

    def infer(*types: TensorType, **_: Any) -> TensorType:
        expect_dtype(types[0], "float")
        return expect_same(*types)

    def decompose(builder: Builder, *values: Value, **given: Any) -> Value:
        return formula(*(Expression(builder, v) for v in values), **given).value

    count = len(operands.split())
    types = [TensorType.of("f32", "N", 3), TensorType.of("f64", 17), TensorType.of("f32")]
    return composite(
        name,
        decompose,
        operands=operands,
        attributes=attributes,
        infer=infer,
        gradient=gradient if isinstance(gradient, NoRule) else formula_rule(gradient),
        samples=[Sample((t,) * count, dict(a), low=low, high=high) for a in samples for t in types],
    )
