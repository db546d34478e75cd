"""Models of thousands of layers in a row: nothing recurses once a layer, and no kernel grows without bound."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.codegen.target import get_target
from lepton_jit.compiler.pipeline import optimize
from lepton_jit.passes.fuse_merge import MOST_MEMBERS

DEEP = 1500
COUNTS = (DEEP, pytest.param(5000, marks=pytest.mark.soak))


def sums(count: int) -> lpt.Model:
    """x + x + ... + x"""
    x = y = lpt.Input((4,))
    for _ in range(count):
        y = lpt.Add()([y, x])
    return lpt.Model(x, y)


def in_a_row(count: int, make: Any) -> lpt.Sequential:
    model = lpt.Sequential([lpt.Input((4,))])
    for _ in range(count):
        model.add(make())
    return model


def test_a_chain_of_sums_is_cut_into_kernels_of_bounded_size() -> None:
    _, main = optimize(sums(DEEP).trace(), get_target("x86-64-v3"))
    sizes = [len(node.regions[0].nodes) for node in main.nodes if node.op == "fusion"]

    assert sum(sizes) == DEEP
    assert max(sizes) == MOST_MEMBERS


@pytest.mark.parametrize("count", COUNTS)
def test_a_chain_of_sums_predicts_and_trains(count: int) -> None:
    model, x = sums(count), np.arange(8, dtype=np.float32).reshape(2, 4)
    assert np.array_equal(lpt.compile(model)(x), (count + 1) * x)
    model.compile("sgd", "mse")
    loss = model.train_on_batch(x, x)
    assert loss == pytest.approx(np.mean((count * x) ** 2), rel=1e-5)


@pytest.mark.parametrize("count", COUNTS)
def test_a_sequential_model_of_thousands_of_layers_is_built_one_by_one(count: int) -> None:
    model = in_a_row(count, lpt.Flatten)
    assert (len(model.layers), model.output_shape) == (count, (None, 4))
    x = np.ones((1, 4), np.float32)
    assert np.array_equal(lpt.compile(model)(x), x)


@pytest.mark.soak
def test_a_sequential_model_of_thousands_of_activations_predicts() -> None:
    count, x = 5000, np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
    expected = x
    for _ in range(count):
        expected = np.tanh(expected)
    model = in_a_row(count, lambda: lpt.Activation("tanh"))
    assert np.allclose(lpt.compile(model)(x), expected, rtol=1e-5)
