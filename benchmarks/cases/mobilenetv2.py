"""MobileNetV2, width 1.0: 1 x 1 convolutions around depthwise ones."""

from __future__ import annotations

from benchmarks.case import Case
from benchmarks.network import Layers, T

__all__ = ["MOBILENETV2"]

# Expansion, width, blocks, stride of the first.
STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))


def network(f: Layers[T], x: T) -> T:
    x = _pointwise(f, x, "stem", 32, kernel=3, stride=2)
    channels = 32
    for stage, (expansion, width, count, first_stride) in enumerate(STAGES):
        for i in range(count):
            stride = first_stride if i == 0 else 1
            y = _block(f, x, f"stage{stage}_{i}", channels * expansion if expansion > 1 else None, width, stride)
            x = f.add(y, x) if stride == 1 and channels == width else y
            channels = width
    return f.dense(f.image_mean(_pointwise(f, x, "head", 1280)), "scores", 1000)


def _block(f: Layers[T], x: T, name: str, expanded: int | None, width: int, stride: int) -> T:
    if expanded is not None:
        x = _pointwise(f, x, f"{name}_expand", expanded)
    x = f.depthwise_conv2d(x, f"{name}_depthwise", 3, stride=stride, padding=1)
    x = f.relu6(f.batch_norm(x, f"{name}_depthwise_norm"))
    x = f.conv2d(x, f"{name}_project", width, 1, bias=False)
    return f.batch_norm(x, f"{name}_project_norm")


def _pointwise(f: Layers[T], x: T, name: str, filters: int, *, kernel: int = 1, stride: int = 1) -> T:
    x = f.conv2d(x, name, filters, kernel, stride=stride, padding=kernel // 2, bias=False)
    return f.relu6(f.batch_norm(x, f"{name}_norm"))


MOBILENETV2 = Case("mobilenetv2", network, input_shape=(224, 224, 3), classes=1000, inference=(1,))
