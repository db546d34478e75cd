"""Every layer against Keras: shapes and order of the weights, output shape, output values."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import lepton_jit as lpt
from tests.keras_peer import copy_weights, relative_error

IMAGE = (9, 8, 4)

CASES: list[tuple[str, dict[str, Any], tuple[int, ...]]] = [
    ("Conv2D", {"filters": 6, "kernel_size": 3}, IMAGE),
    ("Conv2D", {"filters": 6, "kernel_size": (3, 2), "padding": "same", "activation": "relu"}, IMAGE),
    ("Conv2D", {"filters": 6, "kernel_size": 3, "strides": (2, 3), "padding": "same", "use_bias": False}, IMAGE),
    ("Conv2D", {"filters": 5, "kernel_size": 4, "strides": 2, "padding": "same"}, IMAGE),
    ("Conv2D", {"filters": 5, "kernel_size": 2, "dilation_rate": (2, 3)}, IMAGE),
    ("Conv2D", {"filters": 5, "kernel_size": 3, "dilation_rate": 2, "padding": "same"}, IMAGE),
    ("Conv2D", {"filters": 6, "kernel_size": 3, "groups": 2}, IMAGE),
    ("DepthwiseConv2D", {"kernel_size": 3}, IMAGE),
    ("DepthwiseConv2D", {"kernel_size": 3, "depth_multiplier": 2, "padding": "same", "strides": 2}, IMAGE),
    ("DepthwiseConv2D", {"kernel_size": 2, "dilation_rate": 2, "activation": "tanh", "use_bias": False}, IMAGE),
    ("MaxPooling2D", {}, IMAGE),
    ("MaxPooling2D", {"pool_size": 3, "strides": 2, "padding": "same"}, IMAGE),
    ("MaxPooling2D", {"pool_size": (2, 3), "strides": (1, 2)}, IMAGE),
    ("AveragePooling2D", {"pool_size": 2}, IMAGE),
    ("AveragePooling2D", {"pool_size": 3, "strides": 2, "padding": "same"}, IMAGE),
    ("GlobalAveragePooling2D", {}, IMAGE),
    ("GlobalAveragePooling2D", {"keepdims": True}, IMAGE),
    ("GlobalMaxPooling2D", {}, IMAGE),
    ("GlobalAveragePooling1D", {}, (6, 4)),
    ("GlobalAveragePooling1D", {"keepdims": True}, (6, 4)),
    ("GlobalMaxPooling1D", {"keepdims": True}, (6, 4)),
    ("ZeroPadding2D", {}, IMAGE),
    ("ZeroPadding2D", {"padding": (2, 1)}, IMAGE),
    ("ZeroPadding2D", {"padding": ((1, 2), (0, 3))}, IMAGE),
    ("Flatten", {}, IMAGE),
    ("Flatten", {}, ()),
    ("Reshape", {"target_shape": (6, -1)}, IMAGE),
    ("Reshape", {"target_shape": (2, 3)}, (6,)),
    ("Dense", {"units": 7}, (5,)),
    ("Dense", {"units": 7, "activation": "softmax", "use_bias": False}, (5,)),
    ("Dense", {"units": 3, "activation": "gelu"}, (2, 3, 5)),
    ("Dropout", {"rate": 0.5}, (5,)),
    ("BatchNormalization", {}, IMAGE),
    ("BatchNormalization", {"axis": 1, "epsilon": 0.1}, IMAGE),
    ("BatchNormalization", {"scale": False}, (5,)),
    ("BatchNormalization", {"center": False}, (5,)),
    ("LayerNormalization", {}, (6, 4)),
    ("LayerNormalization", {"axis": 1, "epsilon": 0.1}, IMAGE),
    ("LayerNormalization", {"axis": (-1, -2), "scale": False}, IMAGE),
    ("LayerNormalization", {"axis": [1, 3], "center": False}, IMAGE),
    ("Masking", {}, (6, 4)),
    ("Embedding", {"input_dim": 7, "output_dim": 4}, ()),
    ("Embedding", {"input_dim": 7, "output_dim": 4, "mask_zero": True}, (5,)),
    ("Embedding", {"input_dim": 7, "output_dim": 4, "embeddings_initializer": "ones"}, (2, 5)),
    *[("Activation", {"activation": name}, (3, 5)) for name in (
        "linear", "relu", "relu6", "leaky_relu", "elu", "selu", "silu", "swish", "gelu", "softplus", "softsign",
        "sigmoid", "hard_sigmoid", "hard_silu", "mish", "tanh", "exponential", "softmax", "log_softmax",
    )],
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


def test_default_arguments_are_keras_defaults() -> None:
    for kind, required in (
        ("Conv2D", {"filters": 2, "kernel_size": 3}),
        ("DepthwiseConv2D", {"kernel_size": 3}),
        ("Dense", {"units": 2}),
        ("BatchNormalization", {}),
        ("LayerNormalization", {}),
        ("Embedding", {"input_dim": 3, "output_dim": 2}),
        ("Masking", {}),
        ("MultiHeadAttention", {"num_heads": 2, "key_dim": 3}),
        ("GlobalAveragePooling1D", {}),
        ("GlobalMaxPooling1D", {}),
        ("MaxPooling2D", {}),
        ("AveragePooling2D", {"pool_size": 2}),
        ("GlobalAveragePooling2D", {}),
        ("ZeroPadding2D", {}),
        ("Concatenate", {}),
        ("Dropout", {"rate": 0.1}),
    ):
        ours = getattr(lpt.layers, kind)(**required).get_config()
        theirs = getattr(keras.layers, kind)(**required).get_config()
        for key in set(ours) - {"name", "dtype"}:
            expected = theirs[key]
            if isinstance(expected, dict):
                assert ours[key]["class_name"] == expected["class_name"]
                continue
            assert _lists(ours[key]) == _lists(expected), f"{kind}.{key}"


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _lists(v) for k, v in value.items()}
    return [_lists(v) for v in value] if isinstance(value, (list, tuple)) else value
