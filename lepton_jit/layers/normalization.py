"""BatchNormalization and LayerNormalization."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lepton_jit import initializers, regularizers
from lepton_jit.common import arguments
from lepton_jit.errors import ShapeError
from lepton_jit.ir.graph import Value
from lepton_jit.layers.base.layer import Layer
from lepton_jit.layers.base.registry import registry
from lepton_jit.layers.base.symbolic import ShapeTuple
from lepton_jit.tracing import Tracer
from lepton_jit.tracing.weight import Weight

__all__ = ["BatchNormalization", "LayerNormalization"]

_SMALL = 1e-7  # Keras' epsilon()


@registry.register
class BatchNormalization(Layer):
    """`gamma * (x - mean) / sqrt(variance + epsilon) + beta` per entry of `axis`.

    Mean and variance are the batch's in training, where they also move the moving averages
    (`moving = moving * momentum + batch * (1 - momentum)`), and the moving averages in inference. With `trainable`
    False it behaves as in inference while the others train. Positions that a mask leaves out do not count in the
    batch's.
    """

    supports_masking = True

    fields = (
        "axis",
        "momentum",
        "epsilon",
        "center",
        "scale",
        "beta_initializer",
        "gamma_initializer",
        "moving_mean_initializer",
        "moving_variance_initializer",
        "beta_regularizer",
        "gamma_regularizer",
    )
    accepts = ("beta_constraint", "gamma_constraint", "synchronized", "renorm", "renorm_clipping", "renorm_momentum")

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        moving_mean_initializer: Any = "zeros",
        moving_variance_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.axis = arguments.integer(self.label, "axis", axis, low=None)
        self.momentum = arguments.number(self.label, "momentum", momentum)
        self.epsilon = arguments.number(self.label, "epsilon", epsilon, low=0)
        self.center = arguments.boolean(self.label, "center", center)
        self.scale = arguments.boolean(self.label, "scale", scale)
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.moving_mean_initializer = initializers.get(moving_mean_initializer)
        self.moving_variance_initializer = initializers.get(moving_variance_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.gamma: Weight | None = None
        self.beta: Weight | None = None

    def build(self, input_shape: ShapeTuple) -> None:
        self.compute_output_shape(input_shape)
        shape = (input_shape[self.axis],)
        if self.scale:
            self.gamma = self.add_weight("gamma", shape, self.gamma_initializer, self.gamma_regularizer)
        if self.center:
            self.beta = self.add_weight("beta", shape, self.beta_initializer, self.beta_regularizer)
        self.moving_mean = self.add_weight("moving_mean", shape, self.moving_mean_initializer, trainable=False)
        self.moving_variance = self.add_weight(
            "moving_variance",
            shape,
            self.moving_variance_initializer,
            trainable=False,
        )

    def compute_output_shape(self, input_shape: ShapeTuple) -> ShapeTuple:
        rank = len(input_shape)
        if not -rank <= self.axis < rank or self.axis % rank == 0:
            raise ShapeError(
                f"{self.label}: expected an input with an axis {self.axis} behind the batch, got {input_shape}"
            )
        if self.built:
            self.check_input("channels", self.moving_mean.shape[0], input_shape[self.axis], input_shape)
        return input_shape

    def trace(self, t: Tracer, x: Value, mask: Value | None = None) -> Value:
        vector = self.moving_mean.type
        gamma = t.b.full(1.0, vector) if self.gamma is None else t.weight(self.gamma)
        beta = t.b.full(0.0, vector) if self.beta is None else t.weight(self.beta)
        options = {"epsilon": self.epsilon, "axis": self.axis % x.type.rank}
        if not (t.training and t.trains(self)):
            moments = t.weight(self.moving_mean), t.weight(self.moving_variance)
            return t("batch_norm_inference", x, gamma, beta, *moments, **options)
        if mask is None:
            y, mean, variance = t.b.emit("batch_norm_training", x, gamma, beta, **options)
        else:
            mean, variance = self._masked_moments(t, x, mask)
            y = t("batch_norm_inference", x, gamma, beta, mean, variance, **options)
        self._move(t, self.moving_mean, mean)
        self._move(t, self.moving_variance, variance)
        return y

    def _masked_moments(self, t: Tracer, x: Value, mask: Value) -> tuple[Value, Value]:
        """Mean and variance of the positions that count, a small number keeping their count from 0, as in Keras."""
        axis = self.axis % x.type.rank
        others = tuple(d for d in range(x.type.rank) if d != axis)
        counted = t.b.broadcast(mask, x.type.shape, dimensions=tuple(range(mask.type.rank)))
        count = t("add", t.sum(t.convert(counted, x.type.dtype), others), _SMALL)

        def mean_of(values: Value) -> Value:
            return t("divide", t.sum(t("select", counted, values, 0.0), others), count)

        mean = mean_of(x)
        centered = t("subtract", x, t.along(mean, x, axis))
        return mean, mean_of(t("multiply", centered, centered))

    def _move(self, t: Tracer, average: Weight, batch: Value) -> None:
        kept = t("multiply", t.weight(average), self.momentum)
        t.assign(average, t("add", kept, t("multiply", batch, 1.0 - self.momentum)))


@registry.register
class LayerNormalization(Layer):
    """`gamma * (x - mean) / sqrt(variance + epsilon) + beta`, mean and variance over `axis`, one axis or several.

    Gamma and beta have the shape of these axes.
    """

    fields = (
        "axis",
        "epsilon",
        "center",
        "scale",
        "beta_initializer",
        "gamma_initializer",
        "beta_regularizer",
        "gamma_regularizer",
    )
    accepts = ("beta_constraint", "gamma_constraint", "rms_scaling")
    supports_masking = True

    def __init__(
        self,
        axis: int | Sequence[int] = -1,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: Any = "zeros",
        gamma_initializer: Any = "ones",
        beta_regularizer: Any = None,
        gamma_regularizer: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if isinstance(axis, Sequence) and not isinstance(axis, str):
            self.axis: Any = list(arguments.integer_tuple(self.label, "axis", axis, low=None))
        else:
            self.axis = arguments.integer(self.label, "axis", axis, low=None)
        self.epsilon = arguments.number(self.label, "epsilon", epsilon, low=0)
        self.center = arguments.boolean(self.label, "center", center)
        self.scale = arguments.boolean(self.label, "scale", scale)
        self.beta_initializer = initializers.get(beta_initializer)
        self.gamma_initializer = initializers.get(gamma_initializer)
        self.beta_regularizer = regularizers.get(beta_regularizer)
        self.gamma_regularizer = regularizers.get(gamma_regularizer)
        self.gamma: Weight | None = None
        self.beta: Weight | None = None

    def build(self, input_shape: ShapeTuple) -> None:
        shape = tuple(input_shape[a] for a in self._axes(input_shape))
        self._normalized_shape = shape
        if self.scale:
            self.gamma = self.add_weight("gamma", shape, self.gamma_initializer, self.gamma_regularizer)
        if self.center:
            self.beta = self.add_weight("beta", shape, self.beta_initializer, self.beta_regularizer)

    def compute_output_shape(self, input_shape: ShapeTuple) -> ShapeTuple:
        shape = tuple(input_shape[a] for a in self._axes(input_shape))
        if self.built:
            self.check_input(f"as its axes {self.axis}", self._normalized_shape, shape, input_shape)
        return input_shape

    def _axes(self, shape: ShapeTuple) -> tuple[int, ...]:
        """The axes counted from the front, in order."""
        rank = len(shape)
        given = self.axis if isinstance(self.axis, list) else [self.axis]
        axes = tuple(sorted({a % rank for a in given if -rank <= a < rank}))
        if not given or len(axes) != len(given) or axes[0] == 0:
            raise ShapeError(
                f"{self.label}: expected an input with different axes {given} behind the batch, got {shape}"
            )
        return axes

    def trace(self, t: Tracer, x: Value) -> Value:
        axes = self._axes(x.type.shape)  # pyright: ignore[reportArgumentType]
        vector = x.type.with_shape(tuple(x.type.shape[a] for a in axes))
        gamma = t.b.full(1.0, vector) if self.gamma is None else t.weight(self.gamma)
        beta = t.b.full(0.0, vector) if self.beta is None else t.weight(self.beta)
        return t("layer_norm", x, gamma, beta, axes=axes, epsilon=self.epsilon)
