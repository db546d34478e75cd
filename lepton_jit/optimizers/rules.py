"""SGD, Adam, AdamW and RMSprop, with Keras' formulas and defaults.

In the formulas g is the gradient, w the weight, lr the learning rate and t the step, counted from 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lepton_jit.common import arguments
from lepton_jit.errors import ArgumentError
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import DType
from lepton_jit.optimizers.optimizer import Optimizer, UpdateContext, registry
from lepton_jit.tracing import Tracer

__all__ = ["SGD", "Adam", "AdamW", "RMSprop"]

Update = tuple[Value, dict[str, Value]]


@registry.register
class SGD(Optimizer):
    """`w -= lr * g`; with momentum `m = momentum * m - lr * g` and `w += m` (`momentum * m - lr * g` if nesterov)."""

    fields = ("momentum", "nesterov", *Optimizer.fields)

    def __init__(
        self, learning_rate: Any = 0.01, momentum: float = 0.0, nesterov: bool = False, **options: Any
    ) -> None:
        super().__init__(learning_rate, **options)
        self.momentum = arguments.number("SGD", "momentum", momentum, low=0, high=1)
        self.nesterov = arguments.boolean("SGD", "nesterov", nesterov)
        self.slot_names = ("momentum",) if self.momentum else ()

    def rule(
        self, t: Tracer, weight: Value, gradient: Value, slots: Mapping[str, Value], step: UpdateContext
    ) -> Update:
        move = t("multiply", gradient, step.learning_rate(weight.type.dtype))
        if not self.momentum:
            return t("subtract", weight, move), {}
        momentum = t("subtract", t("multiply", slots["momentum"], self.momentum), move)
        change = t("subtract", t("multiply", momentum, self.momentum), move) if self.nesterov else momentum
        return t("add", weight, change), {"momentum": momentum}


@registry.register
class Adam(Optimizer):
    """`m += (1 - beta_1) (g - m)`, `v += (1 - beta_2) (g² - v)`, `w -= a m / (sqrt(v) + epsilon)`.

    a = lr sqrt(1 - beta_2^t) / (1 - beta_1^t) (Kingma and Ba 2014, the formulation before section 2.1).
    """

    fields = ("beta_1", "beta_2", "epsilon", *Optimizer.fields)
    slot_names = ("momentum", "velocity")
    non_negative = ("velocity",)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        owner = type(self).__name__
        self.beta_1 = arguments.number(owner, "beta_1", beta_1, low=0, high=1)
        self.beta_2 = arguments.number(owner, "beta_2", beta_2, low=0, high=1)
        self.epsilon = arguments.number(owner, "epsilon", epsilon, low=0)

    def rule(
        self, t: Tracer, weight: Value, gradient: Value, slots: Mapping[str, Value], step: UpdateContext
    ) -> Update:
        m, v = slots["momentum"], slots["velocity"]
        m = t("add", m, t("multiply", t("subtract", gradient, m), 1 - self.beta_1))
        square = t("multiply", gradient, gradient)
        v = t("add", v, t("multiply", t("subtract", square, v), 1 - self.beta_2))
        alpha = step.shared(("alpha", weight.type.dtype), lambda: self._alpha(t, weight.type.dtype, step))
        change = t("divide", t("multiply", m, alpha), t("add", t("sqrt", v), self.epsilon))
        return t("subtract", weight, change), {"momentum": m, "velocity": v}

    def _alpha(self, t: Tracer, dtype: DType, step: UpdateContext) -> Value:
        one = t.b.constant(1.0, dtype)
        first = t("subtract", one, t("power", t.b.constant(self.beta_1, dtype), step.count(dtype)))
        second = t("subtract", one, t("power", t.b.constant(self.beta_2, dtype), step.count(dtype)))
        return t("divide", t("multiply", step.learning_rate(dtype), t("sqrt", second)), first)


@registry.register
class AdamW(Adam):
    """Adam after `w -= lr * weight_decay * w` (Loshchilov and Hutter 2017)."""

    def __init__(
        self,
        learning_rate: Any = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **options: Any,
    ) -> None:
        if weight_decay is None:
            raise ArgumentError("AdamW: weight_decay: expected a number, got None")
        super().__init__(learning_rate, beta_1, beta_2, epsilon, weight_decay=weight_decay, **options)


@registry.register
class RMSprop(Optimizer):
    """`v = rho v + (1 - rho) g²`, `w -= lr g / sqrt(v + epsilon)`.

    `centered` subtracts the square of the gradients' running mean from v; `momentum` accumulates the changes.
    """

    fields = ("rho", "momentum", "epsilon", "centered", *Optimizer.fields)
    non_negative = ("velocity",)

    def __init__(
        self,
        learning_rate: Any = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(learning_rate, **options)
        self.rho = arguments.number("RMSprop", "rho", rho, low=0, high=1)
        self.momentum = arguments.number("RMSprop", "momentum", momentum, low=0, high=1)
        self.epsilon = arguments.number("RMSprop", "epsilon", epsilon, low=0)
        self.centered = arguments.boolean("RMSprop", "centered", centered)
        momentum_slot = ("momentum",) if self.momentum else ()
        self.slot_names = ("velocity", *momentum_slot, *(("average_gradient",) if self.centered else ()))

    def rule(
        self, t: Tracer, weight: Value, gradient: Value, slots: Mapping[str, Value], step: UpdateContext
    ) -> Update:
        velocity = self._average(t, slots["velocity"], t("multiply", gradient, gradient))
        new = {"velocity": velocity}
        spread = velocity
        if self.centered:
            new["average_gradient"] = mean = self._average(t, slots["average_gradient"], gradient)
            spread = t("subtract", velocity, t("multiply", mean, mean))
        scaled = t("multiply", gradient, step.learning_rate(weight.type.dtype))
        change = t("divide", scaled, t("sqrt", t("add", spread, self.epsilon)))
        if self.momentum:
            new["momentum"] = change = t("add", t("multiply", slots["momentum"], self.momentum), change)
        return t("subtract", weight, change), new

    def _average(self, t: Tracer, old: Value, new: Value) -> Value:
        return t("add", t("multiply", old, self.rho), t("multiply", new, 1 - self.rho))


registry.alias(adamw=AdamW, rmsprop=RMSprop)
