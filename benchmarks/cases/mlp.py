"""784-512-512-10: dense layers, which at batch 1 read every weight once."""

from __future__ import annotations

from benchmarks.case import Case
from benchmarks.network import Layers, T

__all__ = ["MLP"]


def network(f: Layers[T], x: T) -> T:
    for name in ("dense", "dense_1"):
        x = f.relu(f.dense(x, name, 512))
    return f.dense(x, "dense_2", 10)


MLP = Case("mlp", network, input_shape=(784,), classes=10, inference=(1, 64), training=(64,))
