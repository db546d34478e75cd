"""A transformer's encoder, post-norm with the exact gelu, on 128 vectors; their mean is classified."""

from __future__ import annotations

from benchmarks.case import Case
from benchmarks.network import Layers, T

__all__ = ["ENCODER"]

LAYERS, TOKENS, WIDTH, HEADS, HIDDEN = 6, 128, 384, 12, 1536


def network(f: Layers[T], x: T) -> T:
    for i in range(LAYERS):
        x = f.layer_norm(f.add(x, f.self_attention(x, f"attention_{i}", HEADS)), f"attention_{i}_norm")
        y = f.dense(f.gelu(f.dense(x, f"hidden_{i}", HIDDEN)), f"output_{i}", WIDTH)
        x = f.layer_norm(f.add(x, y), f"output_{i}_norm")
    return f.dense(f.token_mean(x), "scores", 10)


ENCODER = Case("encoder", network, input_shape=(TOKENS, WIDTH), classes=10, inference=(1,), training=(8,))
