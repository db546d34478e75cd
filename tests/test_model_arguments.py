"""The table of arguments is complete: whoever registers a class, or gives one an argument, says how it is drawn."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit import activations, initializers, losses, metrics, models, optimizers, regularizers
from lepton_jit.layers import registry
from lepton_jit.optimizers import schedules
from tests import model_arguments
from tests.model_arguments import LAYERS, NESTED, OF_THE_MODEL, TABLES, Call, Place, draw_object
from tests.random_draft import SeededChoices

assert models.Model  # whose import registers it as a layer
REGISTERED: dict[str, Mapping[str, type]] = {
    "layers": registry.entries,
    "initializers": initializers.registry.entries,
    "regularizers": regularizers.registry.entries,
    "losses": losses.registry.entries,
    "metrics": metrics.registry.entries,
    "optimizers": optimizers.registry.entries,
    "optimizers.schedules": schedules.registry.entries,
}
# What Keras has arguments for, and this package one value.
ONLY_DEFAULT: Mapping[str, set[str]] = defaultdict(
    set, losses={"axis", "ignore_class"}, metrics={"axis", "ignore_class"}
)
ENTRIES = [(where, kind) for where, table in TABLES.items() for kind in table]


def constructor_arguments(cls: type) -> dict[str, Any]:
    """Every argument that a constructor takes and how it begins, with those that it hands to its base."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        found = {**{p.name: p.default for p in plain}, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return found
    return found


def place_of(where: str, kind: str) -> Place:
    if where != "layers":
        return Place((4,))
    ranks = LAYERS[kind].ranks
    return Place((5, 5, 4)[: ranks[-1] if ranks else 2], words=9)


@pytest.mark.parametrize("where", TABLES)
def test_every_registered_class_says_how_it_is_drawn(where: str) -> None:
    assert set(REGISTERED[where]) == set(TABLES[where]) | (NESTED if where == "layers" else set()) | (
        model_arguments.NO_METRIC_OF_MODELS if where == "metrics" else set()
    )


def test_every_activation_says_how_it_is_drawn_with_all_its_options() -> None:
    assert {name: set(entry.arguments) for name, entry in model_arguments.ACTIVATIONS.items()} == {
        name: set(activation.options) for name, activation in activations.registry.entries.items()
    }


@pytest.mark.parametrize("where, kind", ENTRIES)
def test_every_argument_of_a_constructor_is_drawn(where: str, kind: str) -> None:
    cls = REGISTERED[where][kind]
    # What is accepted at its default alone has nothing to draw.
    expected = set(constructor_arguments(cls)) - set(getattr(cls, "accepts", ()))
    if where == "layers":
        expected -= set(OF_THE_MODEL)
    if cls.__base__ is metrics._LossMetric:
        expected |= set(constructor_arguments(cls._loss_class)) - {"name", "reduction"}  # pyright: ignore[reportAttributeAccessIssue]

    assert set(TABLES[where][kind].arguments) == expected - ONLY_DEFAULT[where]


@pytest.mark.parametrize("where, kind", ENTRIES)
def test_everything_drawn_is_accepted_and_every_argument_gets_other_values_than_its_default(
    where: str, kind: str
) -> None:
    defaults, choices = constructor_arguments(REGISTERED[where][kind]), SeededChoices(1)
    given: set[str] = set()
    for _ in range(60):
        call = draw_object(choices, where, kind, place_of(where, kind))
        eval(repr(call), {"lpt": lpt, "np": np})
        given |= {k for k, v in call.arguments.items() if isinstance(v, Call) or v != defaults.get(k)}

    assert set(TABLES[where][kind].arguments) - given == set()
