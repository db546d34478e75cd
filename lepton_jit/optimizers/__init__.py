"""Optimizers and learning rate schedules."""

from __future__ import annotations

from typing import Any

from lepton_jit.common.configurable import Registry
from lepton_jit.optimizers import schedules
from lepton_jit.optimizers.optimizer import Optimizer
from lepton_jit.optimizers.rules import SGD, Adam, AdamW, RMSprop

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "RMSprop", "get", "schedules"]

_registry: Registry[Optimizer] = Registry("optimizer")
for _cls in (SGD, Adam, AdamW, RMSprop):
    _registry.register(_cls)
_registry.alias(sgd=SGD, adam=Adam, adamw=AdamW, rmsprop=RMSprop)


def get(identifier: Any) -> Optimizer:
    """An optimizer from its name (`"adam"`), class, configuration, or as it stands."""
    return _registry.get(identifier, Optimizer)
