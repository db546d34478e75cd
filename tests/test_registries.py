"""Each public family has one registry, and what is registered is public."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import pytest

import lepton_jit as lpt
from lepton_jit.activations import Activation

# Each family's module, and what its members are.
FAMILIES: dict[str, tuple[ModuleType, type]] = {
    "layers": (lpt.layers, lpt.layers.Layer),
    "activations": (lpt.activations, Activation),
    "initializers": (lpt.initializers, lpt.initializers.Initializer),
    "regularizers": (lpt.regularizers, lpt.regularizers.Regularizer),
    "losses": (lpt.losses, lpt.losses.Loss),
    "metrics": (lpt.metrics, lpt.metrics.Metric),
    "optimizers": (lpt.optimizers, lpt.optimizers.Optimizer),
    "optimizers.schedules": (lpt.optimizers.schedules, lpt.optimizers.schedules.LearningRateSchedule),
}
# Layers that stand in a room of their own.
MODELS = {name: getattr(lpt.models, name) for name in lpt.models.__all__}


def is_member(value: Any, base: type) -> bool:
    return isinstance(value, base) or (isinstance(value, type) and issubclass(value, base) and value is not base)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_registered_is_what_is_public(family: str) -> None:
    module, base = FAMILIES[family]
    public = {name: getattr(module, name) for name in module.__all__}

    members = {name: value for name, value in public.items() if is_member(value, base)}
    assert dict(module.registry.entries) == members | (MODELS if family == "layers" else {})


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_registered_is_found_by_its_name(family: str) -> None:
    module, _ = FAMILIES[family]

    for name, entry in module.registry.entries.items():
        assert module.registry.named(name) is entry


def test_every_public_layer_is_a_name_of_the_package() -> None:
    assert set(lpt.layers.__all__) | set(lpt.models.__all__) <= set(lpt.__all__)
    for name in lpt.layers.__all__:
        assert getattr(lpt, name) is getattr(lpt.layers, name)


def test_two_things_of_one_name_are_a_fault() -> None:
    with pytest.raises(ValueError, match="loss MeanSquaredError: expected a name that is free"):
        lpt.losses.registry.register(lpt.losses.MeanSquaredError)
