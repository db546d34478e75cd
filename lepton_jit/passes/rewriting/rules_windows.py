"""Laws of windows that slide over images. A rule's docstring is its law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lepton_jit.ir.graph import Node, Value
from lepton_jit.passes.rewriting.matching import is_splat_of, producer_of
from lepton_jit.passes.rewriting.rewrite import Rewriter, Rule

__all__ = ["WINDOW_RULES"]


def window_of_one(rewriter: Rewriter, node: Node) -> Value | None:
    """law: reduce_window(x) == x for windows of one element, one after the other (as `x + 0 == x`, it keeps the sign of
    zeros)
    """
    (x,) = node.operands
    a: Any = node.attributes
    alone = all(n == 1 for n in (*a["window"], *a["strides"]))
    return x if alone and not any(amount for pair in a["padding"] for amount in pair) else None


def convolution_padded(rewriter: Rewriter, node: Node) -> Value | None:
    """law: convolution(pad(x, 0)) == convolution(x) with that much more padding

    Zeros around an image, as a layer of its own, then cost no copy where windows leave out what they would add.
    """
    x, kernel = node.operands
    a: Any = node.attributes
    pad = producer_of(rewriter, x, "pad")
    if pad is None or not is_splat_of(rewriter, pad.operands[1], 0) or any(n != 1 for n in a["lhs_dilation"]):
        return None
    p: Any = pad.attributes
    batch, features, *space = a["lhs_spec"]
    ends = list(zip(p["low"], p["high"], strict=True))
    if any(p["interior"]) or ends[batch] != (0, 0) or ends[features] != (0, 0):
        return None
    amounts = [*(n for pair in a["padding"] for n in pair), *(n for pair in ends for n in pair)]
    if not all(isinstance(n, int) and n >= 0 for n in amounts):
        return None
    padding = [(lo + ends[d][0], hi + ends[d][1]) for (lo, hi), d in zip(a["padding"], space, strict=True)]
    return rewriter("convolution", pad.operands[0], kernel, **{**a, "padding": tuple(padding)})


WINDOW_RULES: Mapping[str, Sequence[Rule]] = {
    "convolution": (convolution_padded,),
    "reduce_window": (window_of_one,),
}
