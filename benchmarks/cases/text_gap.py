"""Words in no order: an embedding, the mean over 500 tokens, two dense layers. The table's gradient is the work."""

from __future__ import annotations

from benchmarks.case import Case
from benchmarks.network import Layers, T

__all__ = ["TEXT_GAP"]

VOCABULARY = 10_000


def network(f: Layers[T], x: T) -> T:
    x = f.embedding_mean(x, "embedding", VOCABULARY, 64)
    return f.dense(f.relu(f.dense(x, "dense", 64)), "scores", 20)


TEXT_GAP = Case(
    "text_gap", network, input_shape=(500,), vocabulary=VOCABULARY, classes=20, inference=(1, 64), training=(64,)
)
