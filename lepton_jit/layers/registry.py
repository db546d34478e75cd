"""The closed set of layers that a configuration may name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lepton_jit.common.configurable import Registry
from lepton_jit.errors import UnsupportedError
from lepton_jit.layers import (
    attention,
    convolution,
    core,
    embedding,
    global_pooling,
    masking,
    merging,
    normalization,
    pooling,
    recurrent,
    reshaping,
)
from lepton_jit.layers.base.layer import Layer

__all__ = ["LAYERS", "deserialize", "serialize"]

LAYERS: Registry[Layer] = Registry("layer")

for _module in (
    attention,
    convolution,
    core,
    embedding,
    global_pooling,
    masking,
    merging,
    normalization,
    pooling,
    recurrent,
    reshaping,
):
    for _name in _module.__all__:
        _candidate = getattr(_module, _name)
        if isinstance(_candidate, type) and issubclass(_candidate, Layer):
            LAYERS.register(_candidate)


def serialize(layer: Layer) -> dict[str, Any]:
    """`{"class_name": ..., "config": {...}}`; UnsupportedError for a layer class of the user's own."""
    if type(layer) not in LAYERS:
        raise UnsupportedError(
            f"{layer.label}: a configuration can only hold the layers of lepton_jit, not {type(layer).__name__}"
        )
    return {"class_name": type(layer).__name__, "config": layer.get_config()}


def deserialize(config: Mapping[str, Any]) -> Layer:
    """The layer that `serialize` described."""
    return LAYERS.deserialize(config)
