"""The gradient of convolution: two convolutions with permuted dimension numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.ops.rules import the_cotangent
from lepton_jit.ir.types import Dim

__all__ = ["convolution_gradient"]

Spec = tuple[int, ...]


def convolution_gradient(b: Builder, node: Node, cotangents: Sequence[Value | None]) -> Sequence[Value | None]:
    """dx: a convolution of dy, spread by the strides, with the reversed kernel. dk: one of x with dy as the kernel."""
    dy, (x, k) = the_cotangent(cotangents), node.operands
    return _of_x(b, dy, x, k, node.attributes), _of_k(b, dy, x, k, node.attributes)


def _of_x(b: Builder, dy: Value, x: Value, k: Value, attributes: Any) -> Value:
    lhs, rhs, out = attributes["lhs_spec"], attributes["rhs_spec"], attributes["out_spec"]
    by_feature, by_batch = attributes["feature_group_count"], attributes["batch_group_count"]
    padding = []
    for (size, window, result), (low, _), stride, base, dilation in _spatial(dy, x, k, attributes):
        extent, spread = _dilated(window, dilation), _dilated(result, stride)
        before = extent - low - 1
        padding.append((before, _dilated(size, base) + extent - 1 - spread - before))
    # Each group's output features become its input features.
    groups = by_feature * by_batch
    k = _move_group(b, k, groups, rhs[0], rhs[1])
    dx = b(
        "convolution",
        dy,
        k,
        lhs_spec=out,
        rhs_spec=_swapped(rhs),
        out_spec=lhs,
        strides=attributes["lhs_dilation"],
        padding=tuple(padding),
        lhs_dilation=attributes["strides"],
        rhs_dilation=attributes["rhs_dilation"],
        window_reversal=tuple(not r for r in attributes["window_reversal"]),
        feature_group_count=groups,
        batch_group_count=1,
    )
    return _move_group(b, dx, by_batch, lhs[1], lhs[0])


def _of_k(b: Builder, dy: Value, x: Value, k: Value, attributes: Any) -> Value:
    lhs, rhs, out = attributes["lhs_spec"], attributes["rhs_spec"], attributes["out_spec"]
    padding = []
    for (size, window, result), (low, _), stride, base, dilation in _spatial(dy, x, k, attributes):
        spread = _dilated(result, stride) + _dilated(window, dilation) - 1
        padding.append((low, spread - _dilated(size, base) - low))
    dk = b(
        "convolution",
        x,
        dy,
        lhs_spec=_swapped(lhs),
        rhs_spec=_swapped(out),
        out_spec=_swapped(rhs),
        strides=attributes["rhs_dilation"],
        padding=tuple(padding),
        lhs_dilation=attributes["lhs_dilation"],
        rhs_dilation=attributes["strides"],
        window_reversal=(False,) * len(padding),
        feature_group_count=attributes["batch_group_count"],
        batch_group_count=attributes["feature_group_count"],
    )
    flipped = tuple(rhs[i + 2] for i, r in enumerate(attributes["window_reversal"]) if r)
    return b("reverse", dk, dimensions=flipped) if flipped else dk


def _spatial(dy: Value, x: Value, k: Value, attributes: Any) -> Any:
    """List by spatial dimension sizes of x, kernel and result; padding, stride, dilation of x, of the kernel."""
    specs = (attributes["lhs_spec"], attributes["rhs_spec"], attributes["out_spec"])
    shapes = (x.type.shape, k.type.shape, dy.type.shape)
    sizes = zip(*([shape[d] for d in spec[2:]] for spec, shape in zip(specs, shapes, strict=True)), strict=True)
    return zip(
        sizes,
        attributes["padding"],
        attributes["strides"],
        attributes["lhs_dilation"],
        attributes["rhs_dilation"],
        strict=True,
    )


def _swapped(spec: Spec) -> Spec:
    return (spec[1], spec[0], *spec[2:])


def _dilated(dim: Dim, dilation: int) -> Dim:
    return dim if dilation == 1 else (dim - 1) * dilation + 1


def _move_group(b: Builder, x: Value, groups: int, source: int, target: int) -> Value:
    """Dimension `source` split into (groups, rest), the groups put in front of dimension `target`."""
    if groups == 1:
        return x
    shape = list(x.type.shape)
    split = [*shape[:source], groups, shape[source] // groups, *shape[source + 1 :]]
    order = [d for d in range(len(split)) if d != source]
    place = order.index(target if target < source else target + 1)
    order.insert(place, source)
    shape[source] //= groups
    shape[target] *= groups
    moved = b("transpose", b("reshape", x, shape=tuple(split)), permutation=tuple(order))
    return b("reshape", moved, shape=tuple(shape))
