"""A case: a network with fixed weights and fixed data, and the batches at which it is measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.network import Weights
from benchmarks.recorder import Recorder, Shape

__all__ = ["Case", "Problem"]

DATA_SEED = 1
# After the steps that are compared, so that the weights hardly move while time is taken: at an optimum, gradients
# vanish, and what is measured would be the speed of denormal numbers.
TIMED_LEARNING_RATE = 1e-6
# Frameworks add epsilon before or after the bias correction. So small, it makes no difference: 5e-6 in the third loss,
# where the usual 1e-7 makes 1e-3.
ADAM_EPSILON = 1e-10


@dataclass(frozen=True)
class Case:
    """`network(layers, x)` gives logits of `classes` classes.

    Inputs are f32[N, *input_shape], from 0 to 1, or words of a `vocabulary`, i32[N, *input_shape].
    """

    name: str
    network: Callable[[Any, Any], Any]
    input_shape: tuple[int, ...]
    classes: int
    inference: tuple[int, ...] = ()
    training: tuple[int, ...] = ()
    vocabulary: int | None = None
    learning_rate: float = 1e-3

    def problems(self) -> list[Problem]:
        """Everything that is measured of this case."""
        inference = [Problem(self, "inference", batch) for batch in self.inference]
        return inference + [Problem(self, "training", batch) for batch in self.training]


@dataclass(frozen=True)
class Problem:
    """One case at one batch size. `mode` is "inference" (probabilities) or "training" (a step of Adam).

    `fixed`: our model takes this batch only.
    """

    case: Case
    mode: str
    batch: int
    fixed: bool = False

    @property
    def label(self) -> str:
        return f"{self.case.name} {self.mode} b{self.batch}{' fixed' if self.fixed else ''}"

    @cached_property
    def recorder(self) -> Recorder:
        recorder = Recorder()
        # The mean square of numbers between 0 and 1.
        self.case.network(recorder, Shape(self.case.input_shape, power=1 / 3))
        return recorder

    @cached_property
    def weights(self) -> Weights:
        return Weights(self.recorder.arrays, self.recorder.flattened)

    @property
    def flops(self) -> int:
        """The operations of all contractions of one call."""
        one = self.recorder.inference_flops if self.mode == "inference" else self.recorder.training_flops
        return one * self.batch

    @property
    def is_image(self) -> bool:
        return len(self.case.input_shape) == 3

    @cached_property
    def x(self) -> np.ndarray:
        """f32[batch, *input_shape], images channels-last, or words i32[batch, *input_shape]."""
        random = np.random.default_rng(DATA_SEED)
        shape = (self.batch, *self.case.input_shape)
        if self.case.vocabulary is None:
            return random.random(shape, np.float32)
        return random.integers(0, self.case.vocabulary, shape, np.int32)

    @cached_property
    def labels(self) -> np.ndarray:
        """i64[batch]."""
        return np.random.default_rng(DATA_SEED + 1).integers(0, self.case.classes, self.batch)
