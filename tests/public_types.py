# pyright: reportUnnecessaryTypeIgnoreComment=true
"""What a type checker knows of the public names, though they are imported when they are first used.

`make check` reads this file, nothing runs it. Each error that is ignored here must be one: it would be none if the name
stood for anything at all.
"""

from __future__ import annotations

from typing import assert_type

import lepton_jit as lpt
from lepton_jit.layers import Conv2D, Layer
from lepton_jit.losses import MeanSquaredError
from lepton_jit.optimizers import Adam


def what_is_right() -> None:
    assert_type(lpt.Dense, type[lpt.layers.Dense])
    assert_type(lpt.Dense(3), lpt.layers.Dense)
    assert_type(lpt.Sequential(), lpt.models.Sequential)
    assert_type(lpt.losses.MeanSquaredError(), MeanSquaredError)
    assert_type(lpt.activations.relu, lpt.activations.Activation)
    layers: list[Layer] = [lpt.Dense(3, activation="relu"), Conv2D(4, 3), lpt.GRU(2)]
    model = lpt.Sequential(layers)
    model.compile(Adam(0.1), "mse")


def what_is_wrong() -> None:
    lpt.Dense("three")  # pyright: ignore[reportArgumentType]
    lpt.Conv2D(4)  # pyright: ignore[reportCallIssue]
    lpt.losses.MeanSquaredError(from_logits=True)  # pyright: ignore[reportCallIssue]
    lpt.Denes(3)  # pyright: ignore[reportAttributeAccessIssue]
    lpt.losses.MeanSquareError()  # pyright: ignore[reportAttributeAccessIssue]
