"""The base of the optimizers: learning rate, step count, slots, clipping and weight decay."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np

from lepton_jit.common import arguments
from lepton_jit.common.configurable import ClassRegistry, Configurable
from lepton_jit.common.naming import snake_case
from lepton_jit.errors import ArgumentError, UnsupportedError
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import DType
from lepton_jit.optimizers import schedules
from lepton_jit.runtime.arguments import aligned_empty
from lepton_jit.tracing import Tracer
from lepton_jit.tracing.weight import Weight

__all__ = ["Optimizer", "UpdateContext", "get", "registry"]

registry: ClassRegistry[Optimizer] = ClassRegistry("optimizer")

# Arguments of Keras that only their default is supported of.
_ONLY_DEFAULT = {
    "amsgrad": False,
    "use_ema": False,
    "ema_momentum": 0.99,
    "ema_overwrite_frequency": None,
    "loss_scale_factor": None,
    "gradient_accumulation_steps": None,
}


class UpdateContext:
    """The step as an update rule sees it: learning rate and count as scalars of the weight's element type."""

    def __init__(self, t: Tracer, learning_rate: Value, count: Value) -> None:
        self._t = t
        self._learning_rate = learning_rate
        self._count = count
        self._scalars: dict[Any, Value] = {}

    def learning_rate(self, dtype: DType) -> Value:
        """The learning rate."""
        return self.shared(("rate", dtype), lambda: self._t.convert(self._learning_rate, dtype))

    def count(self, dtype: DType) -> Value:
        """The number of this step, counted from 1."""
        return self.shared(("count", dtype), lambda: self._t.convert(self._t("add", self._count, 1), dtype))

    def shared(self, key: Any, make: Any) -> Value:
        """A scalar that many weights' updates use, made once."""
        if key not in self._scalars:
            self._scalars[key] = make()
        return self._scalars[key]


class Optimizer(Configurable):
    """`trace_update` gives a weight's new value from its gradient; `slots` are arrays kept between steps.

    `learning_rate` is a number or a schedule; it can be set between steps without compiling again.
    """

    fields = ("learning_rate", "weight_decay", "clipnorm", "clipvalue", "global_clipnorm", "name")
    slot_names: tuple[str, ...] = ()
    non_negative: ClassVar[tuple[str, ...]] = ()  # slots that no gradient makes negative, such as means of squares

    def __init__(
        self,
        learning_rate: Any,
        *,
        weight_decay: float | None = None,
        clipnorm: float | None = None,
        clipvalue: float | None = None,
        global_clipnorm: float | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        owner = type(self).__name__
        self.name = snake_case(owner) if name is None else arguments.text(owner, "name", name)
        arguments.only_defaults(owner, options, _ONLY_DEFAULT)
        self.weight_decay = arguments.optional_number(owner, "weight_decay", weight_decay, low=0)
        self.clipnorm = arguments.optional_number(owner, "clipnorm", clipnorm, low=0)
        self.clipvalue = arguments.optional_number(owner, "clipvalue", clipvalue, low=0)
        self.global_clipnorm = arguments.optional_number(owner, "global_clipnorm", global_clipnorm, low=0)
        if sum(x is not None for x in (self.clipnorm, self.clipvalue, self.global_clipnorm)) > 1:
            raise ArgumentError(f"{owner}: expected one of clipnorm, clipvalue and global_clipnorm, got several")
        self._schedule: schedules.LearningRateSchedule | None = None
        self._rate = 0.0
        if isinstance(learning_rate, Mapping):
            learning_rate = schedules.deserialize(learning_rate)
        if isinstance(learning_rate, schedules.LearningRateSchedule):
            self._schedule = learning_rate
        else:
            self._rate = arguments.number(owner, "learning_rate", learning_rate, low=0)
        self._undecayed: list[re.Pattern[str]] = []
        self.iterations = np.zeros((), np.int64)
        self.slots: dict[str, np.ndarray] = {}
        self._weights: dict[str, Weight] = {}

    @property
    def scheduled(self) -> bool:
        """The learning rate may be another one at every step."""
        return self._schedule is not None

    @property
    def learning_rate(self) -> float:
        """The learning rate of the next step."""
        return self._rate if self._schedule is None else float(self._schedule(int(self.iterations)))

    @learning_rate.setter
    def learning_rate(self, value: Any) -> None:
        if isinstance(value, schedules.LearningRateSchedule):
            self._schedule = value
            return
        if self._schedule is not None:
            raise ArgumentError(f"{self.name}: learning_rate follows {self._schedule!r} and cannot be set to a number")
        self._rate = arguments.number(self.name, "learning_rate", value, low=0)

    def exclude_from_weight_decay(
        self, var_list: Iterable[Weight] | None = None, var_names: Sequence[str] | None = None
    ) -> None:
        """Do not decay weights whose path one of these patterns is found in; before the first step."""
        if var_list is not None:
            raise UnsupportedError(f"{self.name}: exclude_from_weight_decay: expected var_names, got var_list")
        self._undecayed = [re.compile(pattern) for pattern in var_names or ()]

    def decays(self, path: str) -> bool:
        """Tell whether weight decay, if there is any, applies to the weight of this path."""
        return not any(pattern.search(path) for pattern in self._undecayed)

    def build(self, weights: Mapping[str, Weight]) -> None:
        """Slots of 0 for weights that have none yet."""
        for path, weight in weights.items():
            if self._weights.setdefault(path, weight) is not weight:
                raise ArgumentError(f"{self.name}: optimizes another model, whose {path!r} it knows; make a new one")
            for slot in self.slot_names:
                if f"{path}/{slot}" not in self.slots:
                    zeros = aligned_empty(weight.shape, weight.dtype.numpy)
                    zeros[...] = 0
                    self.slots[f"{path}/{slot}"] = zeros

    @property
    def variables(self) -> list[np.ndarray]:
        """Copies of the step count, the learning rate and the slots."""
        return [
            self.iterations.copy(),
            np.asarray(self.learning_rate, np.float32),
            *(s.copy() for s in self.slots.values()),
        ]

    def trace_clipping(self, t: Tracer, gradients: Sequence[Value]) -> list[Value]:
        """The gradients, clipped as the arguments say."""
        if self.clipvalue:
            return [_clip_value(t, g, self.clipvalue) for g in gradients]
        if self.clipnorm:
            return [_clip_norm(t, g, self.clipnorm) for g in gradients]
        if self.global_clipnorm and gradients:
            return _clip_global_norm(t, gradients, self.global_clipnorm)
        return list(gradients)

    def trace_update(
        self, t: Tracer, path: str, weight: Value, gradient: Value, slots: Mapping[str, Value], step: UpdateContext
    ) -> tuple[Value, dict[str, Value]]:
        """The new value of a weight and of its slots."""
        dtype = weight.type.dtype
        if self.weight_decay is not None and self.decays(path):
            decay = t("multiply", weight, self.weight_decay)
            weight = t("subtract", weight, t("multiply", decay, step.learning_rate(dtype)))
        value, updated = self.rule(t, weight, t.convert(gradient, dtype), slots, step)
        return value, {
            name: _without_denormals(t, slot, non_negative=name in self.non_negative) for name, slot in updated.items()
        }

    def rule(
        self, t: Tracer, weight: Value, gradient: Value, slots: Mapping[str, Value], step: UpdateContext
    ) -> tuple[Value, dict[str, Value]]:
        """The update rule itself."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if self._schedule is not None:
            config["learning_rate"] = {
                "class_name": type(self._schedule).__name__,
                "config": self._schedule.get_config(),
            }
        return config


def get(identifier: Any) -> Optimizer:
    """An optimizer from its name (`"adam"`), class, configuration, or as it stands."""
    return registry.get(identifier, Optimizer)


def _without_denormals(t: Tracer, slot: Value, *, non_negative: bool) -> Value:
    """A slot with 0 for denormal numbers, with which processors are slow.

    A mean decays to them where gradients are 0 (rows of an embedding that no batch has, units that died), and rounding
    keeps it there for ever: 0.9 times the least of them is itself. docs/numerics.md has what they cost.
    """
    size = slot if non_negative else t("abs", slot)
    denormal = t("compare", size, float(np.finfo(slot.type.dtype.numpy).tiny), direction="LT")
    return t("select", denormal, t.b.full(0.0, slot.type), slot)


def _clip_value(t: Tracer, gradient: Value, limit: float) -> Value:
    low, high = t.b.full(-limit, gradient.type), t.b.full(limit, gradient.type)
    return t("clamp", low, gradient, high)


def _clip_norm(t: Tracer, gradient: Value, limit: float) -> Value:
    norm = t("sqrt", t.sum(t("multiply", gradient, gradient)))
    return t("divide", t("multiply", gradient, limit), t("maximum", norm, limit))


def _clip_global_norm(t: Tracer, gradients: Sequence[Value], limit: float) -> list[Value]:
    squares = [t.sum(t("multiply", g, g)) for g in gradients]
    total = squares[0]
    for square in squares[1:]:
        total = t("add", total, t.convert(square, total.type.dtype))
    norm = t("sqrt", total)
    one = t.b.constant(1.0, norm.type.dtype)
    scale = t("multiply", t("minimum", t("divide", one, norm), 1.0 / limit), limit)
    scale = t("add", scale, t("subtract", norm, norm))  # an infinite norm makes the update NaN instead of hiding it
    return [t("multiply", g, t.convert(scale, g.type.dtype)) for g in gradients]
