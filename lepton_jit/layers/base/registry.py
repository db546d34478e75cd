"""The layers that a configuration may name: their own modules enter them."""

from __future__ import annotations

from typing import Any

from lepton_jit.common.configurable import ClassRegistry
from lepton_jit.errors import UnsupportedError
from lepton_jit.layers.base.layer import Layer

__all__ = ["registry", "serialize"]

registry: ClassRegistry[Layer] = ClassRegistry("layer")


def serialize(layer: Layer) -> dict[str, Any]:
    """`{"class_name": ..., "config": {...}}`; UnsupportedError for a layer class of the user's own."""
    if type(layer) not in registry:
        raise UnsupportedError(
            f"{layer.label}: a configuration can only hold the layers of lepton_jit, not {type(layer).__name__}"
        )
    return {"class_name": type(layer).__name__, "config": layer.get_config()}
