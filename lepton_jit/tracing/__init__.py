"""Trace layers, losses and optimizers: the tracer that they see, and the weights that it has values for.

Calls of layers come in, operations of the graph IR go out to a builder.
"""

from __future__ import annotations

from lepton_jit.tracing.tracer import Tracer, evaluate
from lepton_jit.tracing.weight import Weight

__all__ = ["Tracer", "Weight", "evaluate"]
