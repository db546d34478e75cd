"""One unit, one channel, one step, one sample: sums of one term and loops of one turn."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

import lepton_jit as lpt
from lepton_jit.codegen.target import native_target
from tests.model_programs import random_arrays, training_step, wrong


def attention(length: int, width: int) -> lpt.Model:
    x = lpt.Input((length, width))
    return lpt.Model(x, lpt.MultiHeadAttention(1, key_dim=1)(x, x))


MODELS: dict[str, tuple[tuple[int, ...], Sequence[lpt.layers.Layer]] | lpt.Model] = {
    "one_input_one_unit": ((1,), [lpt.Dense(8), lpt.Dense(1)]),
    "one_unit_between": ((4,), [lpt.Dense(5), lpt.Dense(1), lpt.Dense(3)]),
    "one_channel_in": ((4, 4, 1), [lpt.Conv2D(5, 1), lpt.Conv2D(1, 3, padding="same")]),
    "one_channel_out": ((4, 4, 3), [lpt.Conv2D(1, 1), lpt.Conv2D(1, 1)]),
    "one_pixel": ((1, 1, 1), [lpt.Conv2D(1, 3, padding="same"), lpt.DepthwiseConv2D(1), lpt.MaxPooling2D(1)]),
    "one_average": ((4, 4, 1), [lpt.GlobalAveragePooling2D(), lpt.Dense(5)]),
    "one_normalized": ((1,), [lpt.LayerNormalization(), lpt.BatchNormalization(), lpt.Dense(1, activation="softmax")]),
    "lstm": ((4, 3), [lpt.LSTM(1)]),
    "lstm_of_one_step": ((1, 1), [lpt.LSTM(1)]),
    "gru": ((4, 3), [lpt.GRU(1)]),
    "gru_of_one_step": ((1, 1), [lpt.GRU(1)]),
    "simple_rnn": ((4, 1), [lpt.SimpleRNN(1)]),
    "one_head": attention(4, 3),
    "one_head_and_one_step": attention(1, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_model_with_extents_of_one_predicts_and_trains(name: str) -> None:
    given = MODELS[name]
    model = given if isinstance(given, lpt.Model) else lpt.Sequential([lpt.Input(given[0]), *given[1]])
    for graph in (model.trace(), training_step(model)):
        for batch in (1, 3):
            assert wrong(graph, random_arrays(graph, batch), [native_target()]) == [], f"{graph.name}, batch {batch}"
