"""An LSTM over 100 tokens, whose last output is classified: 100 small products, each waiting for the one before."""

from __future__ import annotations

from benchmarks.case import Case
from benchmarks.network import Layers, T

__all__ = ["LSTM"]

VOCABULARY = 10_000


def network(f: Layers[T], x: T) -> T:
    return f.dense(f.lstm(f.embedding(x, "embedding", VOCABULARY, 64), "lstm", 128), "scores", 2)


LSTM = Case("lstm", network, input_shape=(100,), vocabulary=VOCABULARY, classes=2, inference=(1, 32), training=(32,))
