"""Layers against Keras where shapes and options are odd: order of the weights, output shape, output values.

tests/test_keras_families.py has every layer, with arguments that are drawn.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import lepton_jit as lpt
from tests.keras_peer import copy_weights, relative_error

IMAGE = (9, 8, 4)

CASES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("Conv2D", {"filters": 6, "kernel_size": (3, 2), "padding": "same", "activation": "relu"}, IMAGE),
    ("Conv2D", {"filters": 6, "kernel_size": 3, "strides": (2, 3), "padding": "same", "use_bias": False}, IMAGE),
    ("Conv2D", {"filters": 5, "kernel_size": 4, "strides": 2, "padding": "same"}, IMAGE),
    ("Conv2D", {"filters": 5, "kernel_size": 2, "dilation_rate": (2, 3)}, IMAGE),
    ("Conv2D", {"filters": 5, "kernel_size": 3, "dilation_rate": 2, "padding": "same"}, IMAGE),
    ("Conv2D", {"filters": 6, "kernel_size": 3, "groups": 2}, IMAGE),
    ("DepthwiseConv2D", {"kernel_size": 3, "depth_multiplier": 2, "padding": "same", "strides": 2}, IMAGE),
    ("DepthwiseConv2D", {"kernel_size": 2, "dilation_rate": 2, "activation": "tanh", "use_bias": False}, IMAGE),
    ("MaxPooling2D", {"pool_size": 3, "strides": 2, "padding": "same"}, IMAGE),
    ("MaxPooling2D", {"pool_size": (2, 3), "strides": (1, 2)}, IMAGE),
    ("AveragePooling2D", {"pool_size": 3, "strides": 2, "padding": "same"}, IMAGE),
    ("ZeroPadding2D", {"padding": (2, 1)}, IMAGE),
    ("ZeroPadding2D", {"padding": ((1, 2), (0, 3))}, IMAGE),
    ("Flatten", {}, ()),
    ("Reshape", {"target_shape": (6, -1)}, IMAGE),
    ("Reshape", {"target_shape": (2, 3)}, (6,)),
    ("Dense", {"units": 7, "activation": "softmax", "use_bias": False}, (5,)),
    ("Dense", {"units": 3, "activation": "gelu"}, (2, 3, 5)),
    ("BatchNormalization", {"axis": 1, "epsilon": 0.1}, IMAGE),
    ("BatchNormalization", {"scale": False}, (5,)),
    ("BatchNormalization", {"center": False}, (5,)),
    ("LayerNormalization", {"axis": 1, "epsilon": 0.1}, IMAGE),
    ("LayerNormalization", {"axis": (-1, -2), "scale": False}, IMAGE),
    ("LayerNormalization", {"axis": [1, 3], "center": False}, IMAGE),
    ("Embedding", {"input_dim": 7, "output_dim": 4}, ()),
    ("Embedding", {"input_dim": 7, "output_dim": 4, "mask_zero": True}, (5,)),
]  # fmt: skip


@pytest.mark.parametrize("kind, arguments, shape", CASES)
def test_a_layer_computes_what_keras_computes(kind: str, arguments: dict[str, Any], shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(3).normal(0, 2, (3, *shape)).astype("float32")
    if kind == "Embedding":
        x = np.random.default_rng(3).integers(0, 7, (3, *shape))
    peer = getattr(keras.layers, kind)(**arguments)
    ours = getattr(lpt.layers, kind)(**arguments)
    peer.build(x.shape)
    ours(x)
    assert [w.shape for w in ours.weights] == [tuple(w.shape) for w in peer.weights]
    assert [w.name for w in ours.weights] == [w.name for w in peer.weights]
    assert ours.compute_output_shape((None, *shape)) == tuple(peer.compute_output_shape((None, *shape)))
    copy_weights(peer, ours)

    assert relative_error(ours(x), peer(x)) < 2e-6


MERGING: list[tuple[str, dict[str, Any], list[tuple[int, ...]]]] = [
    ("Add", {}, [(4, 3), (4, 3)]),
    ("Add", {}, [(4, 3), (1, 3), (4, 1)]),
    ("Add", {}, [(2, 4, 3), (3,)]),
    ("Subtract", {}, [(4, 3), (1, 3)]),
    ("Multiply", {}, [(4, 3), (4, 3), (3,)]),
    ("Average", {}, [(4, 3), (4, 3), (4, 1)]),
    ("Maximum", {}, [(4, 3), (4, 3)]),
    ("Minimum", {}, [(4, 3), (1, 3)]),
    ("Concatenate", {}, [(4, 3), (4, 2), (4, 1)]),
    ("Concatenate", {"axis": 1}, [(4, 3), (2, 3)]),
]


@pytest.mark.parametrize("kind, arguments, shapes", MERGING)
def test_a_merging_layer_computes_what_keras_computes(
    kind: str, arguments: dict[str, Any], shapes: list[tuple[int, ...]]
) -> None:
    rng = np.random.default_rng(3)
    xs = [rng.normal(size=(3, *shape)).astype("float32") for shape in shapes]

    actual = getattr(lpt.layers, kind)(**arguments)(xs)

    assert relative_error(actual, getattr(keras.layers, kind)(**arguments)(xs)) < 1e-6
