"""Embedding: integers as vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_jit import initializers, regularizers
from lepton_jit.common import arguments
from lepton_jit.errors import DTypeError
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import DTYPES, DType, dtype_of
from lepton_jit.layers.base.layer import Layer, Spec
from lepton_jit.layers.base.registry import registry
from lepton_jit.layers.base.symbolic import ShapeTuple
from lepton_jit.tracing import Tracer

__all__ = ["Embedding"]


@registry.register
class Embedding(Layer):
    """Row `x` of the matrix `embeddings: [input_dim, output_dim]`: `x: [N, ...]` becomes `[N, ..., output_dim]`.

    A number that is not from 0 to `input_dim - 1` is an OutOfRangeError, before a training step writes anything. With
    `mask_zero`, 0 stands for no step at all: these positions are masked in what follows.

    An input that is not declared has int32 elements. Integers of any type stay integers; floats are rounded towards 0.
    """

    fields = ("input_dim", "output_dim", "embeddings_initializer", "embeddings_regularizer", "mask_zero")
    accepts = ("embeddings_constraint", "lora_rank", "lora_alpha", "quantization_config")
    keeps_integers = True

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        embeddings_initializer: Any = "uniform",
        embeddings_regularizer: Any = None,
        embeddings_constraint: Any = None,
        mask_zero: bool = False,
        weights: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(embeddings_constraint=embeddings_constraint, **options)
        self.input_dim = arguments.integer(self.label, "input_dim", input_dim)
        self.output_dim = arguments.integer(self.label, "output_dim", output_dim)
        self.embeddings_initializer = initializers.get(embeddings_initializer)
        self.embeddings_regularizer = regularizers.get(embeddings_regularizer)
        self.mask_zero = self.supports_masking = arguments.boolean(self.label, "mask_zero", mask_zero)
        if weights is not None:
            self.ensure_built([((None,), "int32")])
            self.set_weights(weights if isinstance(weights, list) and len(weights) == 1 else [weights])

    @property
    def implicit_dtype(self) -> str:
        return "int32"

    def ensure_built(self, inputs: Sequence[Spec], **arguments: Any) -> None:
        dtype = dtype_of(inputs[0][1])
        if dtype.is_float and self.input_dim > 1 << np.finfo(dtype.numpy).nmant + 1:
            raise DTypeError(
                f"{self.label}: expected integers, got an input of {dtype}, which cannot tell {self.input_dim} rows "
                f"apart; declare it as Input(..., dtype='int32')"
            )
        super().ensure_built(inputs, **arguments)

    def build(self, input_shape: ShapeTuple) -> None:
        shape = (self.input_dim, self.output_dim)
        self.embeddings = self.add_weight("embeddings", shape, self.embeddings_initializer, self.embeddings_regularizer)

    def compute_output_shape(self, input_shape: ShapeTuple) -> ShapeTuple:
        return (*input_shape, self.output_dim)

    def output_specs(self, inputs: Sequence[Spec], **arguments: Any) -> list[Spec]:
        return [(self.compute_output_shape(inputs[0][0]), self.compute_dtype.numpy.name)]

    def _resolve_dtype(self, dtypes: Sequence[str]) -> DType:
        """Numbers of rows say nothing about the element type of the rows."""
        return super()._resolve_dtype([])

    def _input_dtype(self, dtypes: Sequence[str]) -> DType:
        return dtype_of(dtypes[0])

    def trace(self, t: Tracer, x: Value) -> Value:
        indices = _as_integers(t, x)
        highest = min(self.input_dim - 1, np.iinfo(indices.type.dtype.numpy).max)
        checked = t("check_indices", indices, low=0, high=highest)
        return t("take", t.weight(self.embeddings), checked, axis=0)

    def trace_mask(self, t: Tracer, inputs: Sequence[Value], masks: Sequence[Value | None]) -> Value | None:
        """The mask of positions whose number is not 0."""
        return t("compare", inputs[0], 0, direction="NE") if self.mask_zero else None


def _as_integers(t: Tracer, x: Value) -> Value:
    """Numbers of rows as integers; NaN, which is the number of none, as -1."""
    if x.type.dtype.is_float:
        x = t("select", t("compare", x, x, direction="NE"), -1.0, x)
    return x if x.type.dtype.kind in ("signed", "unsigned") else t.convert(x, DTYPES["i32"])
