"""The table of arguments is complete: whoever registers a class, or gives one an argument, says how it is drawn."""

from __future__ import annotations

import numpy as np
import pytest

import lepton_jit as lpt
from tests import model_arguments
from tests.model_arguments import (
    LAYERS,
    NESTED,
    OF_THE_MODEL,
    ONLY_DEFAULT,
    TABLES,
    Call,
    Place,
    around,
    constructor_arguments,
    draw_object,
    registry_of,
)
from tests.random_draft import SeededChoices

assert lpt.Model  # whose import registers it as a layer
ENTRIES = [(where, kind) for where, table in TABLES.items() for kind in table]


def place_of(where: str, kind: str) -> Place:
    if where != "layers":
        return Place((4,))
    ranks = LAYERS[kind].ranks
    return Place((5, 5, 4)[: ranks[-1] if ranks else 2], words=9)


@pytest.mark.parametrize("where", TABLES)
def test_every_registered_class_says_how_it_is_drawn(where: str) -> None:
    assert set(registry_of(where).entries) == set(TABLES[where]) | (NESTED if where == "layers" else set()) | (
        model_arguments.NO_METRIC_OF_MODELS if where == "metrics" else set()
    )


def test_every_activation_says_how_it_is_drawn_with_all_its_options() -> None:
    assert {name: set(entry.arguments) for name, entry in model_arguments.ACTIVATIONS.items()} == {
        name: set(activation.options) for name, activation in lpt.activations.registry.entries.items()
    }


@pytest.mark.parametrize("where, kind", ENTRIES)
def test_every_argument_of_a_constructor_is_drawn(where: str, kind: str) -> None:
    expected = set(constructor_arguments(registry_of(where).entries[kind]))
    if where == "layers":
        expected -= set(OF_THE_MODEL)

    only_default = set(ONLY_DEFAULT) if where in ("losses", "metrics") else set()
    assert set(TABLES[where][kind].arguments) == expected - only_default


def test_an_argument_that_is_no_number_and_no_flag_needs_a_line() -> None:
    with pytest.raises(TypeError, match="mode='sum': expected a number or a flag, or a line in tests/model_arg"):
        around("mode", "sum")


@pytest.mark.parametrize("where, kind", ENTRIES)
def test_everything_drawn_is_accepted_and_every_argument_gets_other_values_than_its_default(
    where: str, kind: str
) -> None:
    defaults, choices = constructor_arguments(registry_of(where).entries[kind]), SeededChoices(1)
    given: set[str] = set()
    for _ in range(60):
        call = draw_object(choices, where, kind, place_of(where, kind))
        eval(repr(call), {"lpt": lpt, "np": np})
        given |= {k for k, v in call.arguments.items() if isinstance(v, Call) or v != defaults.get(k)}

    assert set(TABLES[where][kind].arguments) - given == set()
