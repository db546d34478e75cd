"""The first values of weights, as Keras defines them: same names, arguments and distributions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from lepton_jit.common import arguments
from lepton_jit.common.configurable import ClassRegistry, Configurable
from lepton_jit.errors import ShapeError
from lepton_jit.random import check_seed, generator

__all__ = [
    "Constant",
    "GlorotNormal",
    "GlorotUniform",
    "HeNormal",
    "HeUniform",
    "Identity",
    "Initializer",
    "LecunNormal",
    "LecunUniform",
    "Ones",
    "Orthogonal",
    "RandomNormal",
    "RandomUniform",
    "TruncatedNormal",
    "VarianceScaling",
    "Zeros",
    "get",
    "registry",
]

registry: ClassRegistry[Initializer] = ClassRegistry("initializer")

# The standard deviation of a standard normal distribution cut at two standard deviations.
_TRUNCATED_STDDEV = 0.87962566103423978


class Initializer(Configurable):
    """`initializer(shape, dtype)` is a new array."""

    def __call__(self, shape: Sequence[int], dtype: Any = "float32") -> np.ndarray:
        return np.ascontiguousarray(self.values(tuple(shape)), dtype=dtype)

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        """The values in float64."""
        raise NotImplementedError


@registry.register
class Zeros(Initializer):
    """All 0."""

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)


@registry.register
class Ones(Initializer):
    """All 1."""

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.ones(shape)


@registry.register
class Constant(Initializer):
    """One value everywhere.

    >>> Constant(3.0)((2,))
    array([3., 3.], dtype=float32)
    """

    fields = ("value",)

    def __init__(self, value: float = 0.0) -> None:
        self.value = arguments.number("Constant", "value", value)

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, self.value)


@registry.register
class Identity(Initializer):
    """A square matrix of `gain` on the diagonal."""

    fields = ("gain",)

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = arguments.number("Identity", "gain", gain)

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) != 2:
            raise ShapeError(f"Identity: expected a shape of rank 2, got {shape}")
        return self.gain * np.eye(*shape)


class _Random(Initializer):
    def __init__(self, seed: int | None = None) -> None:
        self.seed = check_seed(type(self).__name__, seed)

    def _generator(self) -> np.random.Generator:
        return generator(self.seed)


@registry.register
class RandomNormal(_Random):
    """A normal distribution."""

    fields = ("mean", "stddev", "seed")

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None) -> None:
        super().__init__(seed)
        self.mean = arguments.number("RandomNormal", "mean", mean)
        self.stddev = arguments.number("RandomNormal", "stddev", stddev, low=0)

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.mean + self.stddev * self._generator().standard_normal(shape)


@registry.register
class TruncatedNormal(_Random):
    """A normal distribution whose values beyond two standard deviations are drawn again."""

    fields = ("mean", "stddev", "seed")

    def __init__(self, mean: float = 0.0, stddev: float = 0.05, seed: int | None = None) -> None:
        super().__init__(seed)
        self.mean = arguments.number("TruncatedNormal", "mean", mean)
        self.stddev = arguments.number("TruncatedNormal", "stddev", stddev, low=0)

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.mean + self.stddev * _truncated_normal(self._generator(), shape)


@registry.register
class RandomUniform(_Random):
    """A uniform distribution over `[minval, maxval)`."""

    fields = ("minval", "maxval", "seed")

    def __init__(self, minval: float = -0.05, maxval: float = 0.05, seed: int | None = None) -> None:
        super().__init__(seed)
        self.minval = arguments.number("RandomUniform", "minval", minval)
        self.maxval = arguments.number("RandomUniform", "maxval", maxval, low=self.minval)

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._generator().uniform(self.minval, self.maxval, shape)


@registry.register
class Orthogonal(_Random):
    """`gain` times a matrix with orthonormal rows or columns; dimensions but the last are taken together."""

    fields = ("gain", "seed")

    def __init__(self, gain: float = 1.0, seed: int | None = None) -> None:
        super().__init__(seed)
        self.gain = arguments.number("Orthogonal", "gain", gain)

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        if len(shape) < 2:
            raise ShapeError(f"Orthogonal: expected a shape of rank 2 or more, got {shape}")
        rows, columns = math.prod(shape[:-1]), shape[-1]
        q, r = np.linalg.qr(self._generator().standard_normal((max(rows, columns), min(rows, columns))))
        q = q * np.sign(np.diag(r))  # makes the distribution uniform over orthogonal matrices
        return self.gain * (q.T if rows < columns else q).reshape(shape)


@registry.register
class VarianceScaling(_Random):
    """A distribution of variance `scale / n`, n from the weight's shape.

    n = inputs (`fan_in`), outputs (`fan_out`) or their mean (`fan_avg`) of one unit.
    """

    fields = ("scale", "mode", "distribution", "seed")

    def __init__(
        self,
        scale: float = 1.0,
        mode: str = "fan_in",
        distribution: str = "truncated_normal",
        seed: int | None = None,
    ) -> None:
        super().__init__(seed)
        owner = type(self).__name__
        self.scale = arguments.number(owner, "scale", scale, low=np.finfo(float).tiny)
        self.mode = arguments.choice(owner, "mode", mode, ("fan_in", "fan_out", "fan_avg"))
        if distribution == "normal":
            distribution = "truncated_normal"
        self.distribution = arguments.choice(
            owner, "distribution", distribution, ("truncated_normal", "untruncated_normal", "uniform")
        )

    def values(self, shape: tuple[int, ...]) -> np.ndarray:
        fan_in, fan_out = fans(shape)
        fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[self.mode]
        variance = self.scale / max(1.0, fan)
        if self.distribution == "uniform":
            limit = math.sqrt(3.0 * variance)
            return self._generator().uniform(-limit, limit, shape)
        if self.distribution == "untruncated_normal":
            return math.sqrt(variance) * self._generator().standard_normal(shape)
        return math.sqrt(variance) / _TRUNCATED_STDDEV * _truncated_normal(self._generator(), shape)


class _FixedScaling(VarianceScaling):
    """VarianceScaling with everything but the seed fixed."""

    fields = ("seed",)
    _fixed: tuple[float, str, str]

    def __init__(self, seed: int | None = None) -> None:
        super().__init__(*self._fixed, seed=seed)


@registry.register
class GlorotUniform(_FixedScaling):
    """Uniform over ±sqrt(6 / (fan_in + fan_out)) (Glorot and Bengio 2010)."""

    _fixed = (1.0, "fan_avg", "uniform")


@registry.register
class GlorotNormal(_FixedScaling):
    """Truncated normal of variance 2 / (fan_in + fan_out)."""

    _fixed = (1.0, "fan_avg", "truncated_normal")


@registry.register
class HeUniform(_FixedScaling):
    """Uniform over ±sqrt(6 / fan_in) (He et al. 2015)."""

    _fixed = (2.0, "fan_in", "uniform")


@registry.register
class HeNormal(_FixedScaling):
    """Truncated normal of variance 2 / fan_in."""

    _fixed = (2.0, "fan_in", "truncated_normal")


@registry.register
class LecunUniform(_FixedScaling):
    """Uniform over ±sqrt(3 / fan_in)."""

    _fixed = (1.0, "fan_in", "uniform")


@registry.register
class LecunNormal(_FixedScaling):
    """Truncated normal of variance 1 / fan_in."""

    _fixed = (1.0, "fan_in", "truncated_normal")


registry.alias(normal=RandomNormal, uniform=RandomUniform, one=Ones, zero=Zeros)


def get(identifier: Any) -> Initializer:
    """An initializer from its name (`"glorot_uniform"`), class, configuration, or as it stands."""
    return registry.get(identifier, Initializer)


def fans(shape: tuple[int, ...]) -> tuple[int, int]:
    """Count the inputs and outputs of a unit.

    >>> fans((3, 3, 16, 32)), fans((10, 5))
    ((144, 288), (10, 5))
    """
    if len(shape) < 2:
        size = shape[0] if shape else 1
        return size, size
    receptive = math.prod(shape[:-2])
    return shape[-2] * receptive, shape[-1] * receptive


def _truncated_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    values = rng.standard_normal(shape)
    while (outside := np.abs(values) > 2.0).any():
        values[outside] = rng.standard_normal(int(outside.sum()))
    return values
