"""Learning rates that follow the step: `schedule(step)` is computed on the host, once a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from lepton_jit.common import arguments
from lepton_jit.common.configurable import ClassRegistry, Configurable
from lepton_jit.errors import ArgumentError

__all__ = [
    "CosineDecay",
    "ExponentialDecay",
    "InverseTimeDecay",
    "LearningRateSchedule",
    "PiecewiseConstantDecay",
    "PolynomialDecay",
    "deserialize",
    "registry",
]

registry: ClassRegistry[LearningRateSchedule] = ClassRegistry("learning rate schedule")


class LearningRateSchedule(Configurable):
    """A function from the step, counted from 0, to a learning rate."""

    def __call__(self, step: int) -> float:
        raise NotImplementedError


class _Decay(LearningRateSchedule):
    fields = ("initial_learning_rate", "decay_steps", "decay_rate", "staircase")

    def __init__(
        self, initial_learning_rate: float, decay_steps: int, decay_rate: float, staircase: bool = False
    ) -> None:
        owner = type(self).__name__
        self.initial_learning_rate = arguments.number(owner, "initial_learning_rate", initial_learning_rate)
        self.decay_steps = arguments.integer(owner, "decay_steps", decay_steps)
        self.decay_rate = arguments.number(owner, "decay_rate", decay_rate)
        self.staircase = arguments.boolean(owner, "staircase", staircase)

    def _progress(self, step: int) -> float:
        return float(step // self.decay_steps) if self.staircase else step / self.decay_steps


@registry.register
class ExponentialDecay(_Decay):
    """`initial_learning_rate * decay_rate ** (step / decay_steps)`

    >>> ExponentialDecay(1.0, 10, 0.5)(20)
    0.25
    """

    def __call__(self, step: int) -> float:
        return self.initial_learning_rate * self.decay_rate ** self._progress(step)


@registry.register
class InverseTimeDecay(_Decay):
    """`initial_learning_rate / (1 + decay_rate * step / decay_steps)`"""

    def __call__(self, step: int) -> float:
        return self.initial_learning_rate / (1 + self.decay_rate * self._progress(step))


@registry.register
class PiecewiseConstantDecay(LearningRateSchedule):
    """`values[i]` up to and including step `boundaries[i]`, then the last value."""

    fields = ("boundaries", "values")

    def __init__(self, boundaries: Sequence[int], values: Sequence[float]) -> None:
        owner = "PiecewiseConstantDecay"
        self.boundaries = arguments.integer_tuple(owner, "boundaries", boundaries, low=0)
        self.values = tuple(arguments.number(owner, "values", v) for v in values)
        if len(self.values) != len(self.boundaries) + 1 or list(self.boundaries) != sorted(self.boundaries):
            raise ArgumentError(
                f"{owner}: expected rising boundaries and one value more, got {boundaries} and {values}"
            )

    def __call__(self, step: int) -> float:
        return self.values[sum(step > boundary for boundary in self.boundaries)]


@registry.register
class PolynomialDecay(LearningRateSchedule):
    """From `initial_learning_rate` to `end_learning_rate` in `decay_steps`, along `(1 - x) ** power`."""

    fields = ("initial_learning_rate", "decay_steps", "end_learning_rate", "power", "cycle")

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
    ) -> None:
        owner = "PolynomialDecay"
        self.initial_learning_rate = arguments.number(owner, "initial_learning_rate", initial_learning_rate)
        self.decay_steps = arguments.integer(owner, "decay_steps", decay_steps)
        self.end_learning_rate = arguments.number(owner, "end_learning_rate", end_learning_rate)
        self.power = arguments.number(owner, "power", power)
        self.cycle = arguments.boolean(owner, "cycle", cycle)

    def __call__(self, step: int) -> float:
        steps = self.decay_steps
        if self.cycle:
            steps *= max(1, math.ceil(step / steps))
        left = 1 - min(step, steps) / steps
        return (self.initial_learning_rate - self.end_learning_rate) * left**self.power + self.end_learning_rate


@registry.register
class CosineDecay(LearningRateSchedule):
    """Half a cosine from `initial_learning_rate` down to `alpha` of it, after an optional linear warm-up."""

    fields = ("initial_learning_rate", "decay_steps", "alpha", "warmup_target", "warmup_steps")

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        alpha: float = 0.0,
        warmup_target: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        owner = "CosineDecay"
        self.initial_learning_rate = arguments.number(owner, "initial_learning_rate", initial_learning_rate)
        self.decay_steps = arguments.integer(owner, "decay_steps", decay_steps)
        self.alpha = arguments.number(owner, "alpha", alpha)
        self.warmup_target = arguments.optional_number(owner, "warmup_target", warmup_target)
        self.warmup_steps = arguments.integer(owner, "warmup_steps", warmup_steps, low=0)

    def __call__(self, step: int) -> float:
        top = self.initial_learning_rate
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                return top + (self.warmup_target - top) * step / self.warmup_steps
            step, top = step - self.warmup_steps, self.warmup_target
        cosine = 0.5 * (1 + math.cos(math.pi * min(step, self.decay_steps) / self.decay_steps))
        return top * ((1 - self.alpha) * cosine + self.alpha)


def deserialize(config: Any) -> LearningRateSchedule:
    """The schedule that a configuration describes."""
    return registry.deserialize(config)
