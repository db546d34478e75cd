"""What the tests over the registry share: every sample of every operation, its arrays, and the gradient of its rule."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Node
from lepton_jit.ir.interpreter import run_nodes
from lepton_jit.ir.op import OPS, Family, Op, Sample
from lepton_jit.ir.ops.rules import resolved
from lepton_jit.ir.types import DTYPES, TensorType, dim_value

SYMBOLS = {"N": 2}


@dataclass(frozen=True)
class Case:
    op: Op
    sample: Sample

    def arrays(self, dtype: str | None = None) -> list[np.ndarray]:
        """Values for the operands, always the same; `dtype` replaces that of the float ones."""
        random = np.random.default_rng(zlib.crc32(repr((self.op.name, self.sample)).encode()))
        return [_array(random, t, self.sample, dtype) for t in self.sample.operands]

    def graph(self, dtype: str | None = None) -> Graph:
        """The operation alone; its operands are x0, x1, ..., its results y0, y1, ..."""
        b = Builder(self.op.name)
        operands = [b.input(f"x{i}", with_float(t, dtype)) for i, t in enumerate(self.sample.operands)]
        attributes = {k: with_float_dtype(v, dtype) for k, v in self.sample.attributes.items()}
        for i, result in enumerate(b.emit(self.op.name, *operands, **attributes)):
            b.output(result, f"y{i}")
        return b.build()

    @property
    def elementwise(self) -> bool:
        """Whether all samples with the same attributes are the same case, but for dtypes and shapes."""
        (node,) = self.graph().nodes
        return len({v.type.shape for v in (*node.operands, *node.results)}) == 1

    def float_operands(self) -> list[int]:
        return [i for i, t in enumerate(self.sample.operands) if t.dtype.is_float]


def with_float_dtype(value: object, dtype: str | None) -> object:
    return DTYPES[dtype] if dtype and getattr(value, "is_float", False) else value


def with_float(type: TensorType, dtype: str | None) -> TensorType:
    return type.with_dtype(DTYPES[dtype]) if dtype and type.dtype.is_float else type


def _array(random: np.random.Generator, type: TensorType, sample: Sample, dtype: str | None) -> np.ndarray:
    shape = tuple(dim_value(d, SYMBOLS) for d in type.shape)
    if type.dtype.is_float:
        values = random.uniform(sample.low, sample.high, shape)
        return np.asarray(values, with_float(type, dtype).dtype.numpy)
    if type.dtype.kind == "bool":
        return np.asarray(random.random(shape) < 0.5)
    return np.asarray(random.integers(0, 4, shape)).astype(type.dtype.numpy)


def resolved_attributes(node: Node) -> dict[str, Any]:
    return {name: resolved(value, SYMBOLS) for name, value in node.attributes.items()}


def cases(*families: Family) -> list[object]:
    """Parameters: every sample, of the operations of these families or of all."""
    return [
        pytest.param(Case(op, sample), id=f"{op.name}-{i}")
        for op in OPS.values()
        if not families or op.family in families
        for i, sample in enumerate(op.samples)
    ]


def run(graph: Graph, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As the interpreter does; symbols are those of the samples, whether the inputs tell them or not."""
    known = run_nodes(graph.nodes, {entry.value: arrays[entry.name] for entry in graph.inputs}, SYMBOLS)
    return {output.name: known[output.value] for output in graph.outputs}


def gradient_graph(graph: Graph, cotangents: Sequence[bool]) -> Graph:
    """Operands and cotangents of one operation -> cotangents of the operands, by the rule of its record.

    Its inputs are those of `graph` and dy0, dy1, ... where `cotangents` says so; an operand without a cotangent has no
    output.
    """
    (node,) = graph.nodes
    b = Builder("gradient", taken=[v.name for v in graph.values()])
    b._inputs = {entry.name: entry for entry in graph.inputs}
    b.append(node)
    given = [
        b.input(f"dy{i}", r.type) if on else None
        for i, (r, on) in enumerate(zip(node.results, cotangents, strict=True))
    ]
    rule = OPS[node.op].gradient
    found = rule(b, node, given)
    assert len(found) == len(node.operands)
    for i, value in enumerate(found):
        if value is not None:
            assert value.type == node.operands[i].type
            b.output(value, f"dx{i}")
    return b.build()
