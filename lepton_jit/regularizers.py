"""Penalties on weights that training adds to the loss."""

from __future__ import annotations

from typing import Any

import numpy as np

from lepton_jit.common import arguments
from lepton_jit.common.configurable import ClassRegistry, Configurable
from lepton_jit.ir.graph import Value
from lepton_jit.tracing import Tracer, evaluate

__all__ = ["L1", "L1L2", "L2", "Regularizer", "get", "registry"]

registry: ClassRegistry[Regularizer] = ClassRegistry("regularizer")


class Regularizer(Configurable):
    """`trace(t, weight)` is the penalty as a scalar."""

    def trace(self, t: Tracer, weight: Value) -> Value:
        raise NotImplementedError

    def __call__(self, x: Any) -> np.ndarray:
        """The penalty of an array."""
        return evaluate(self.trace, x)


@registry.register
class L1(Regularizer):
    """`l1 * sum(abs(w))`

    >>> L1(0.5)(np.array([1.0, -3.0], "float32"))
    array(2., dtype=float32)
    """

    fields = ("l1",)

    def __init__(self, l1: float = 0.01) -> None:
        self.l1 = arguments.number("L1", "l1", l1)

    def trace(self, t: Tracer, weight: Value) -> Value:
        return t("multiply", t.sum(t("abs", weight)), self.l1)


@registry.register
class L2(Regularizer):
    """`l2 * sum(w * w)`"""

    fields = ("l2",)

    def __init__(self, l2: float = 0.01) -> None:
        self.l2 = arguments.number("L2", "l2", l2)

    def trace(self, t: Tracer, weight: Value) -> Value:
        return t("multiply", t.sum(t("multiply", weight, weight)), self.l2)


@registry.register
class L1L2(Regularizer):
    """`l1 * sum(abs(w)) + l2 * sum(w * w)`"""

    fields = ("l1", "l2")

    def __init__(self, l1: float = 0.0, l2: float = 0.0) -> None:
        self.l1 = arguments.number("L1L2", "l1", l1)
        self.l2 = arguments.number("L1L2", "l2", l2)

    def trace(self, t: Tracer, weight: Value) -> Value:
        return t("add", L1(self.l1).trace(t, weight), L2(self.l2).trace(t, weight))


registry.alias(l1_l2=L1L2)


def get(identifier: Any) -> Regularizer | None:
    """A regularizer from its name (`"l2"`), class, configuration, or as it stands; None stays None."""
    return None if identifier is None else registry.get(identifier, Regularizer)
