"""Name the inputs and outputs of a step's graph that no user names.

They begin with a slash, as no layer's name and no weight's path does.
"""

from __future__ import annotations

__all__ = ["LEARNING_RATE", "SAMPLE_WEIGHT", "SEED", "STEP", "metric_sum", "slot", "target"]

LEARNING_RATE = "/learning_rate"
SAMPLE_WEIGHT = "/sample_weight"
SEED = "/seed"
STEP = "/step"


def target(output: str) -> str:
    """The labels of an output."""
    return f"/target/{output}"


def slot(name: str) -> str:
    """The name of a tensor that an optimizer keeps for a weight, `dense/kernel/momentum`."""
    return f"/optimizer/{name}"


def metric_sum(name: str, kind: str) -> str:
    """The total or the count of a running mean."""
    return f"/metrics/{name}/{kind}"
