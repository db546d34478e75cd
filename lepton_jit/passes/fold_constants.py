"""Compute at compile time what depends on constants only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lepton_jit.errors import LeptonError
from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.op import Family, get_op
from lepton_jit.passes.base import Pass
from lepton_jit.passes.rewriting.matching import constant_node, reads_symbols
from lepton_jit.passes.rewriting.rewrite import Rewriter, without_dead_nodes

__all__ = ["FoldConstants"]


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes whose operands are constants by the constants that the operation's own reference gives.

    law: f(c) is a constant. Elementwise operations on broadcasts of scalars are computed on the scalars:
    f(broadcast(c), broadcast(d)) == broadcast(f(c, d)). Results of more than `limit` elements are left to run time,
    and so is what depends on a symbolic dimension. Parameters are inputs, so no weight is ever folded.
    """

    name: ClassVar[str] = "fold-constants"

    limit: int = 4096

    def apply(self, graph: Graph) -> Graph:
        rewriter = Rewriter(graph)
        for node in graph.nodes:
            node = rewriter.renamed(node)
            with rewriter.layer(node.layer, absolute=True):
                folded = self._fold(rewriter, node)
            if folded is None:
                rewriter.append(node)
            else:
                rewriter.replace(node.results, folded)
        folded_graph = rewriter.finish()
        return folded_graph if folded_graph is graph else without_dead_nodes(folded_graph)

    def _fold(self, rewriter: Rewriter, node: Node) -> Sequence[Value] | None:
        op = get_op(node.op)
        if op.traits.compact or node.regions or op.family is Family.STRUCTURAL:
            return None
        if not node.operands and node.op != "dimension_value":
            return None
        scalars = [_scalar(rewriter, x) for x in node.operands]
        if op.family is Family.ELEMENTWISE and all(s is not None for s in scalars):
            return self._evaluated(rewriter, node, [s for s in scalars if s is not None])
        if reads_symbols(node) or not all(map(self._is_small, (*node.operands, *node.results))):
            return None
        arrays = [_array(rewriter, x) for x in node.operands]
        if any(a is None for a in arrays):
            return None
        return self._evaluated(rewriter, node, [a for a in arrays if a is not None])

    def _evaluated(self, rewriter: Rewriter, node: Node, arrays: Sequence[np.ndarray]) -> Sequence[Value] | None:
        found = _evaluate(node, arrays)
        return None if found is None else [_constant(rewriter, a, v) for a, v in zip(found, node.results, strict=True)]

    def _is_small(self, value: Value) -> bool:
        count = value.type.elements
        return isinstance(count, int) and count <= self.limit


def _evaluate(node: Node, arrays: Sequence[np.ndarray]) -> Sequence[np.ndarray] | None:
    try:
        return get_op(node.op).reference(arrays, node.attributes, {})
    except LeptonError:  # an operation that is wrong for these operands says so where it runs
        return None


def _constant(rewriter: Rewriter, array: np.ndarray, result: Value) -> Value:
    if array.shape == result.type.shape and len({repr(number) for number in array.ravel().tolist()}) != 1:
        return rewriter.constant(array, result.type.dtype)
    return rewriter.full(array.ravel()[0].item(), result.type)


def _scalar(rewriter: Rewriter, value: Value) -> np.ndarray | None:
    node = constant_node(rewriter, value)
    return None if node is None or node.result.type.rank else _as_array(node)


def _array(rewriter: Rewriter, value: Value) -> np.ndarray | None:
    """The elements of a constant, or of a broadcast of one."""
    node = rewriter.producer(value)
    if node is None:
        return None
    if node.op == "broadcast_in_dim":
        inner = _array(rewriter, node.operands[0])
        return None if inner is None else get_op(node.op).reference([inner], node.attributes, {})[0]
    return _as_array(node) if node.op == "constant" else None


def _as_array(node: Node) -> np.ndarray:
    dtype, value = node.result.type.dtype.numpy, node.attributes["value"]
    return np.array(value, dtype).reshape(node.result.type.shape)  # pyright: ignore[reportArgumentType, reportCallIssue]
