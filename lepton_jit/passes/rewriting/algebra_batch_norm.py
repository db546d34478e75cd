"""Fold batch normalization of inference into the weights of the contraction before it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.ops.contraction import free_dimensions
from lepton_jit.ir.ops.rules import axis_of
from lepton_jit.passes.rewriting.facts import Facts
from lepton_jit.passes.rewriting.matching import producer_of
from lepton_jit.passes.rewriting.rewrite import Rewriter

__all__ = ["fold_batch_norm"]


@dataclass(frozen=True)
class _Affine:
    """A value y = contraction(x, kernel) + bias, and the dimension of the kernel that is y's channel."""

    contraction: Node
    channel: int
    bias: Value | None


def fold_batch_norm(facts: Facts, rewriter: Rewriter, node: Node) -> Value | None:
    """law: with s = gamma / sqrt(variance + epsilon),
    batch_norm_inference(f(x, kernel) + bias) == f(x, kernel * s) + (beta + (bias - mean) * s)

    for a convolution or dot_general f, since f is linear in its kernel and s is one number for each of its output
    channels; and batch_norm_inference(x) == x * s + (beta - mean * s) behind anything else. It is done where kernel,
    bias and statistics depend on parameters alone, so that `prepare` does the work once, and where nobody else reads
    the contraction.
    """
    x, gamma, beta, mean, variance = node.operands
    if not facts.of_parameters.issuperset((gamma, beta, mean, variance)):
        return None
    epsilon: Any = node.attributes["epsilon"]
    axis = axis_of(node.attributes["axis"], x.type)  # pyright: ignore[reportArgumentType]
    scale = rewriter("multiply", gamma, rewriter("rsqrt", rewriter("add", variance, epsilon)))
    affine = _affine(facts, rewriter, x, axis)
    if affine is None:
        shift = rewriter("subtract", beta, rewriter("multiply", mean, scale))
        scaled = rewriter("multiply", x, rewriter.broadcast(scale, x.type.shape, (axis,)))
        return rewriter("add", scaled, rewriter.broadcast(shift, x.type.shape, (axis,)))
    offset = rewriter("negate", mean) if affine.bias is None else rewriter("subtract", affine.bias, mean)
    shift = rewriter("add", beta, rewriter("multiply", offset, scale))
    operand, kernel = affine.contraction.operands
    kernel = rewriter("multiply", kernel, rewriter.broadcast(scale, kernel.type.shape, (affine.channel,)))
    with rewriter.layer(affine.contraction.layer, absolute=True):
        product = rewriter(affine.contraction.op, operand, kernel, **affine.contraction.attributes)
    return rewriter("add", product, rewriter.broadcast(shift, x.type.shape, (axis,)))


def _affine(facts: Facts, rewriter: Rewriter, y: Value, axis: int) -> _Affine | None:
    """The contraction by parameters that computes y, with a bias for each channel or without; else None."""
    node, bias = rewriter.producer(y), None
    if node is not None and node.op == "add":
        y, bias = node.operands if y in facts.read_once else (y, None)
        bias = None if bias is None else _channel_vector(rewriter, bias, axis)
        if bias is None or bias not in facts.of_parameters:
            return None
        node = rewriter.producer(y)
    if node is None or y not in facts.read_once or len(node.operands) != 2:
        return None
    channel = _channel_of_kernel(node, axis)
    if channel is None or node.operands[1] not in facts.of_parameters:
        return None
    return _Affine(node, channel, bias)


def _channel_vector(rewriter: Rewriter, value: Value, axis: int) -> Value | None:
    """The vector that a value repeats along all dimensions but `axis`."""
    node = producer_of(rewriter, value, "broadcast_in_dim")
    return node.operands[0] if node is not None and node.attributes["dimensions"] == (axis,) else None


def _channel_of_kernel(node: Node, axis: int) -> int | None:
    """The dimension of a contraction's second operand that is dimension `axis` of its result."""
    attributes: Any = node.attributes
    if node.op == "convolution":
        return attributes["rhs_spec"][0] if attributes["out_spec"][1] == axis else None
    if node.op != "dot_general":
        return None
    lhs, rhs = node.operands
    batching = len(attributes["lhs_batching"])
    rows = lhs.type.rank - batching - len(attributes["lhs_contracting"])
    columns = free_dimensions(rhs.type.rank, attributes["rhs_batching"], attributes["rhs_contracting"])
    place = axis - batching - rows
    return columns[place] if place >= 0 else None
