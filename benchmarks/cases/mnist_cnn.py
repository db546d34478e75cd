"""The network for handwritten digits of the demo, without its dropout."""

from __future__ import annotations

from benchmarks.case import Case
from benchmarks.network import Layers, T

__all__ = ["MNIST_CNN"]


def network(f: Layers[T], x: T) -> T:
    for name, filters in (("conv2d", 32), ("conv2d_1", 64)):
        x = f.max_pool(f.relu(f.conv2d(x, name, filters, 3)), 2)
    x = f.relu(f.dense(f.flatten(x), "dense", 128))
    return f.dense(x, "dense_1", 10)


MNIST_CNN = Case("mnist_cnn", network, input_shape=(28, 28, 1), classes=10, inference=(1, 64), training=(64,))
