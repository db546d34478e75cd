"""One implementation of a problem, ready to be called again and again; and which implementations there are."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import numpy as np

from benchmarks.case import TIMED_LEARNING_RATE, Problem

__all__ = ["OURS", "PEERS", "Contender", "Peer", "trainer"]

CHECKED_STEPS = 3
UNROLLED = "it compiles 100 unrolled steps for 190 s, and then takes 1.26 times the eager step's time"


@dataclass(frozen=True)
class Contender:
    """`call()` does the work once and returns when it is done; `answer()`, once before, gives what is compared."""

    call: Callable[[], Any]
    answer: Callable[[], np.ndarray]


def trainer(step: Callable[[], Any], set_learning_rate: Callable[[float], None]) -> Contender:
    """A contender that trains: its answer are the losses of the first steps, which `step` returns."""

    def answer() -> np.ndarray:
        losses = np.array([float(step()) for _ in range(CHECKED_STEPS)])
        set_learning_rate(TIMED_LEARNING_RATE)
        return losses

    return Contender(step, answer)


@dataclass(frozen=True)
class Peer:
    """Where `build(problem, variant, threads)` is found, and what it can do."""

    module: str
    variant: str = ""
    trains: bool = True
    images_only: bool = False
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Reasons by case and mode."""

    def takes(self, problem: Problem) -> bool:
        return (self.trains or problem.mode == "inference") and (problem.is_image or not self.images_only)

    def why_not(self, problem: Problem) -> str | None:
        """Why this one does not take part in a problem that it could solve."""
        return self.left_out.get(f"{problem.case.name} {problem.mode}")

    def build(self, problem: Problem, threads: int) -> Contender:
        """ImportError if the peer is not installed."""
        return import_module(f"benchmarks.peers.{self.module}").build(problem, self.variant, threads)


OURS = "lepton-jit"
PEERS: dict[str, Peer] = {
    OURS: Peer("lepton"),
    "PyTorch": Peer("pytorch", "contiguous"),
    "PyTorch channels-last": Peer("pytorch", "channels-last", images_only=True),
    "torch.compile": Peer("pytorch", "compile", left_out={"lstm training": UNROLLED}),
    "JAX": Peer("jax_jit"),
    "ONNX Runtime": Peer("onnx_runtime", trains=False),
    "OpenVINO": Peer("open_vino", trains=False),
}
