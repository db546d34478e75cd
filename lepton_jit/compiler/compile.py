"""`lepton_jit.compile`: a model and its weights to a program for inference."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from lepton_jit.common import arguments
from lepton_jit.compiler.build import build
from lepton_jit.compiler.compiled import CompiledModel
from lepton_jit.ir.graph import Graph

__all__ = ["Traceable", "compile"]


class Traceable(Protocol):
    """Anything that can be compiled, as a model can: it gives a graph and the arrays of its parameters."""

    def trace(self) -> Graph: ...

    def weights_by_name(self) -> dict[str, np.ndarray]: ...


def compile(
    model: Traceable, *, threads: int | None = None, verify: str | None = None, typical_batch: int | None = None
) -> CompiledModel:
    """Compile a model for inference; native code is linked when this returns.

    The weights are a snapshot, refreshed by `update_weights`. `threads` beats `lepton_jit.set_threads`, which beats
    `LEPTON_JIT_THREADS`. `verify="passes"` runs the interpreter before and after every pass, and raises GraphError with
    the name of the pass that changed the answer.

    Where the batch may be any number, choices that depend on it are made for a `typical_batch`: ResNet-18 compiled for
    8 images takes a fifth less time for 8, and more for one. All others are computed as well. Where none is given they
    are made for 64 rows, but for Winograd's transformed kernels, which are for one.

    >>> import lepton_jit as lpt
    >>> fast = compile(lpt.Sequential([lpt.Dense(3, activation="relu", input_shape=(4,))]))
    >>> fast(np.zeros((2, 4))).shape
    (2, 3)
    """
    arguments.model("compile", model, ("trace", "weights_by_name"))
    batch = None if typical_batch is None else arguments.integer("compile", "typical_batch", typical_batch)
    executable = build(model.trace(), threads=threads, verify=verify, typical_batch=batch)
    executable.bind(model.weights_by_name())
    return CompiledModel(executable, model.weights_by_name)
