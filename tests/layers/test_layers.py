"""Names, arguments, shapes and errors of layers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.common import naming
from lepton_jit.layers.base.registry import registry, serialize


def test_names_are_numbered_per_class_as_in_keras() -> None:
    naming.reset_names()

    names = [lpt.Conv2D(1, 1).name, lpt.Conv2D(1, 1).name, lpt.MaxPooling2D().name, lpt.Conv2D(1, 1).name]

    assert names == ["conv2d", "conv2d_1", "max_pooling2d", "conv2d_2"]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: lpt.Dense(0, name="d"), r"layer 'd': units: expected a positive integer, got 0"),
        (lambda: lpt.Dense(2.5, name="d"), r"layer 'd': units: expected a positive integer, got 2.5"),
        (lambda: lpt.Dense(2, activation="rellu"), r"activation: expected one of .*relu.*, got 'rellu'"),
        (lambda: lpt.Dense(2, kernel_initializer="glorot"), r"initializer: expected one of .*, got 'glorot'"),
        (
            lambda: lpt.Dense(2, unit=3, name="d"),
            r"layer 'd': Dense has no argument 'unit'; expected units, .*trainable",
        ),
        (lambda: lpt.Dense(2, name="a/b"), r"name: expected a name without '/'"),
        (lambda: lpt.Conv2D(2, (3, 3, 3), name="c"), r"layer 'c': kernel_size: expected 2 integers, got \(3, 3, 3\)"),
        (lambda: lpt.Conv2D(2, 3, padding="full", name="c"), r"padding: expected one of 'valid', 'same', got 'full'"),
        (lambda: lpt.Conv2D(3, 3, groups=2), r"filters to be a multiple of groups"),
        (lambda: lpt.Conv2D(3, 3, strides=2, dilation_rate=2), r"only one can be above 1"),
        (lambda: lpt.Dropout(1.5), r"rate: expected a number in \[0, 1\], got 1.5"),
        (lambda: lpt.Dropout("much"), r"rate: expected a number in \[0, 1\], got 'much'"),
        (lambda: lpt.Reshape((-1, -1)), r"target_shape: expected positive integers and at most one -1"),
        (lambda: lpt.BatchNormalization(epsilon=-1), r"epsilon: expected a number in \[0, inf\], got -1"),
    ],
)
def test_a_wrong_argument_is_named(make: Any, message: str) -> None:
    with pytest.raises(lpt.ArgumentError, match=message):
        make()


def test_an_argument_that_only_keras_has_is_unsupported_not_ignored() -> None:
    with pytest.raises(lpt.UnsupportedError, match="data_format='channels_first' is not supported"):
        lpt.Conv2D(2, 3, data_format="channels_first")
    with pytest.raises(NotImplementedError, match="kernel_constraint='max_norm'"):
        lpt.Dense(2, kernel_constraint="max_norm")
    assert lpt.Dense(2, kernel_constraint=None).units == 2


@pytest.mark.parametrize(
    "layer, shape, message",
    [
        (
            lpt.Conv2D(4, 3, name="c"),
            (None, 2, 5, 1),
            r"layer 'c': .* window's size \(3, 3\), got shape \(None, 2, 5, 1\)",
        ),
        (lpt.Conv2D(4, 3, name="c"), (None, 2, 5, 1), r"the output would be of height 0"),
        (lpt.Conv2D(4, 5, name="c"), (None, 2, 9, 1), r"height -2 and width 5"),
        (lpt.Conv2D(4, 3, name="c"), (None, 5, 5), r"layer 'c': expected an input of rank 4 \(batch included\), got"),
        (lpt.Conv2D(4, 3, groups=4, name="c"), (None, 5, 5, 6), r"layer 'c': .* multiple of groups=4"),
        (lpt.MaxPooling2D(4, name="p"), (None, 3, 3, 1), r"layer 'p': .*\(4, 4\), got shape \(None, 3, 3, 1\)"),
        (lpt.Reshape((7, -1), name="r"), (None, 5, 3), r"layer 'r': expected samples that fit the shape \(7, -1\)"),
        (lpt.BatchNormalization(axis=3, name="b"), (None, 5), r"layer 'b': expected an input with an axis 3"),
        (lpt.LayerNormalization(axis=(1, 1), name="l"), (None, 5), r"layer 'l': expected an input with different axes"),
        (lpt.LayerNormalization(axis=0, name="l"), (None, 5), r"layer 'l': .* \[0\] behind the batch, got \(None, 5\)"),
        (lpt.Masking(name="m"), (None, 5), r"layer 'm': expected an input of rank 3 or more"),
    ],
)
def test_a_wrong_shape_names_layer_expected_and_got(layer: Any, shape: tuple[Any, ...], message: str) -> None:
    with pytest.raises(lpt.ShapeError, match=message):
        layer(lpt.Input(shape[1:]))


def test_a_layer_refuses_other_channels_than_its_weights_were_made_for() -> None:
    layer = lpt.Dense(3, name="d")
    layer(lpt.Input((4,)))

    with pytest.raises(lpt.ShapeError, match=r"layer 'd': expected an input with 4 features, got shape \(None, 5\)"):
        layer(lpt.Input((5,)))


def test_merging_layers_say_which_shapes_do_not_fit() -> None:
    a, b = lpt.Input((4, 3)), lpt.Input((4, 2))
    with pytest.raises(lpt.ShapeError, match=r"layer 'sum': expected shapes that fit each other"):
        lpt.Add(name="sum")([a, b])
    with pytest.raises(lpt.ShapeError, match=r"layer 'cat': .* equal but along axis 1"):
        lpt.Concatenate(axis=1, name="cat")([a, b])
    with pytest.raises(lpt.ArgumentError, match=r"layer 'sum': expected a list of two tensors or more, got 1"):
        lpt.Add(name="sum")(a)


def test_only_the_batch_can_be_of_any_size() -> None:
    with pytest.raises(lpt.UnsupportedError, match="only the batch can be of any size"):
        lpt.Input((None, 3))


EVERY_LAYER = [
    lpt.Conv2D(4, (3, 2), strides=2, padding="same", activation="relu", kernel_regularizer="l2", name="a"),
    lpt.DepthwiseConv2D(3, depth_multiplier=2, depthwise_initializer=lpt.initializers.HeNormal(seed=3), name="b"),
    lpt.MaxPooling2D(3, strides=1, name="c"),
    lpt.AveragePooling2D(2, padding="same", name="d"),
    lpt.GlobalAveragePooling2D(keepdims=True, name="e"),
    lpt.ZeroPadding2D(((1, 2), (3, 4)), name="f"),
    lpt.Flatten(name="g", dtype="float64"),
    lpt.Reshape((2, -1), name="h"),
    lpt.Dense(3, activation="softmax", bias_regularizer=lpt.regularizers.L1L2(0.1, 0.2), trainable=False, name="i"),
    lpt.Dropout(0.3, seed=5, name="j"),
    lpt.BatchNormalization(momentum=0.5, scale=False, gamma_initializer="he_normal", name="k"),
    lpt.Add(name="l"),
    lpt.Concatenate(axis=1, name="m"),
    lpt.Activation(lpt.activations.leaky_relu.with_options(negative_slope=0.3), name="n"),
    lpt.InputLayer((3, 2), dtype="int32", name="o"),
    lpt.Embedding(7, 3, embeddings_initializer="he_normal", embeddings_regularizer="l2", mask_zero=True, name="p"),
    lpt.LayerNormalization(axis=(1, 2), epsilon=1e-5, scale=False, beta_initializer="ones", name="q"),
    lpt.Masking(2.0, name="r"),
    lpt.MultiHeadAttention(
        2, 4, value_dim=3, dropout=0.1, output_shape=(2, 5), sliding_window=3, use_gate=True, seed=4
    ),
    lpt.GlobalAveragePooling1D(keepdims=True, name="s"),
    lpt.GlobalMaxPooling1D(name="t"),
    lpt.GlobalMaxPooling2D(name="u"),
    *[kind() for kind in (lpt.Subtract, lpt.Multiply, lpt.Average, lpt.Maximum, lpt.Minimum)],
]


@pytest.mark.parametrize("layer", EVERY_LAYER, ids=lambda layer: type(layer).__name__)
def test_a_configuration_makes_the_same_layer_again(layer: Any) -> None:
    config = serialize(layer)

    again = registry.deserialize(config)

    assert type(again) is type(layer)
    assert serialize(again) == config


def test_freezing_a_layer_leaves_the_order_of_its_weights() -> None:
    layer = lpt.BatchNormalization(name="b")
    layer(lpt.Input((4,)))
    assert [w.name for w in layer.weights] == ["gamma", "beta", "moving_mean", "moving_variance"]
    assert [w.name for w in layer.trainable_weights] == ["gamma", "beta"]

    layer.trainable = False

    assert [w.name for w in layer.weights] == ["gamma", "beta", "moving_mean", "moving_variance"]
    assert layer.trainable_weights == []
    assert len(layer.non_trainable_weights) == 4


class TwoParts(lpt.layers.Layer):
    """One weight is made with the layer, two with its first input; `build` fails as often as `failures` says."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures
        self.scale = self.add_weight("scale", (), initializer="ones")

    def build(self, input_shape: Any) -> None:
        self.add_weight("kernel", (input_shape[-1],))
        self.add_weight("count", (), trainable=False)
        self.failures -= 1
        if self.failures >= 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("failures", [0, 2])
def test_a_build_that_an_exception_ends_leaves_no_weights_for_the_next(failures: int) -> None:
    layer = TwoParts(failures)
    for _ in range(failures):
        with pytest.raises(KeyboardInterrupt):
            layer.ensure_built([((None, 3), "float32")])

    layer.ensure_built([((None, 3), "float32")])

    assert [w.name for w in layer.own_weights()] == ["scale", "kernel", "count"]


def test_set_weights_changes_nothing_if_one_does_not_fit() -> None:
    layer = lpt.Dense(2, name="d")
    layer(lpt.Input((3,)))
    before = layer.get_weights()

    with pytest.raises(lpt.ShapeError, match=r"layer 'd', weight 'bias': expected shape \(2,\), got \(3,\)"):
        layer.set_weights([np.ones((3, 2)), np.ones(3)])
    with pytest.raises(lpt.ArgumentError, match="layer 'd': expected 2 weight arrays, got 1"):
        layer.set_weights([np.ones((3, 2))])

    assert all((a == b).all() for a, b in zip(layer.get_weights(), before, strict=True))


def test_element_types_follow_the_layer_or_its_input() -> None:
    x = np.ones((2, 3))
    assert lpt.Dense(2)(x.astype("int32")).dtype == np.float32
    assert lpt.Dense(2)(x.astype("float64")).dtype == np.float64
    assert lpt.Dense(2, dtype="float32")(x).dtype == np.float32
    assert lpt.Flatten()(x.astype("uint8")).dtype == np.uint8
    with pytest.raises(lpt.DTypeError, match="layer 'd': dtype: expected one of f32"):
        lpt.Dense(2, dtype="complex64", name="d")


def test_numbers_of_rows_are_checked_and_keep_their_element_type() -> None:
    layer = lpt.Embedding(10, 3, weights=np.arange(30).reshape(10, 3), name="words")
    assert layer(np.array([[1, 9]], "uint8")).tolist() == [[[3, 4, 5], [27, 28, 29]]]
    assert layer(np.array([[1.0]])).dtype == np.float32
    with pytest.raises(
        lpt.OutOfRangeError, match=r"layer .words.: check_indices: expected integers from 0 to 9, got 10"
    ):
        layer(np.array([10]))


def test_activations_work_on_arrays_and_say_what_options_they_have() -> None:
    assert lpt.activations.leaky_relu(np.array([-1.0, 2.0]), negative_slope=0.5).tolist() == [-0.5, 2.0]
    assert lpt.activations.relu([-1, 2]).tolist() == [0.0, 2.0]
    with pytest.raises(lpt.ArgumentError, match=r"activation relu: expected options of \[\], got \['alpha'\]"):
        lpt.activations.relu.with_options(alpha=1.0)
