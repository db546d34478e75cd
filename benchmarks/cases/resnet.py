"""Residual networks as in torchvision (the stride on the 3 x 3), and the usual variant for small images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.case import Case
from benchmarks.network import Layers, T

__all__ = ["BLOCKS", "RESNET18", "RESNET18_SMALL", "RESNET50", "resnet"]

WIDTHS = (64, 128, 256, 512)
# Of each of the four stages; from 50 layers up, blocks are bottlenecks.
BLOCKS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def resnet(depth: int, classes: int, *, small: bool = False) -> Callable[[Any, Any], Any]:
    """`small`: a 3 x 3 stem of stride 1 without pooling."""
    block = _basic if depth < 50 else _bottleneck

    def network(f: Layers[T], x: T) -> T:
        x = _convolution(f, x, "stem", WIDTHS[0], *((3, 1) if small else (7, 2)))
        if not small:
            x = f.max_pool(x, 3, stride=2, padding=1)
        for stage, (width, count) in enumerate(zip(WIDTHS, BLOCKS[depth], strict=True)):
            for i in range(count):
                x = block(f, x, f"stage{stage}_{i}", width, stride=2 if stage and not i else 1, first=not i)
        return f.dense(f.image_mean(x), "scores", classes)

    return network


def _convolution(f: Layers[T], x: T, name: str, filters: int, kernel: int, stride: int, *, relu: bool = True) -> T:
    x = f.conv2d(x, name, filters, kernel, stride=stride, padding=kernel // 2, bias=False)
    x = f.batch_norm(x, f"{name}_norm")
    return f.relu(x) if relu else x


def _basic(f: Layers[T], x: T, name: str, width: int, *, stride: int, first: bool) -> T:
    y = _convolution(f, x, f"{name}_a", width, 3, stride)
    y = _convolution(f, y, f"{name}_b", width, 3, 1, relu=False)
    # In the first stage the widths agree already.
    if first and stride > 1:
        x = _convolution(f, x, f"{name}_skip", width, 1, stride, relu=False)
    return f.relu(f.add(y, x))


def _bottleneck(f: Layers[T], x: T, name: str, width: int, *, stride: int, first: bool) -> T:
    y = _convolution(f, x, f"{name}_a", width, 1, 1)
    y = _convolution(f, y, f"{name}_b", width, 3, stride)
    y = _convolution(f, y, f"{name}_c", 4 * width, 1, 1, relu=False)
    if first:
        x = _convolution(f, x, f"{name}_skip", 4 * width, 1, stride, relu=False)
    return f.relu(f.add(y, x))


LARGE, SMALL = (224, 224, 3), (32, 32, 3)
RESNET18 = Case("resnet18", resnet(18, 1000), input_shape=LARGE, classes=1000, inference=(1,))
RESNET50 = Case("resnet50", resnet(50, 1000), input_shape=LARGE, classes=1000, inference=(1,))
RESNET18_SMALL = Case(
    "resnet18_small", resnet(18, 10, small=True), input_shape=SMALL, classes=10, training=(32,), learning_rate=1e-4
)
