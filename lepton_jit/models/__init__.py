"""`Model` and `Sequential`, and what they become on disk or in print.

Symbolic calls of layers come in; out go traced graphs, files that load again, and summaries.
"""

from __future__ import annotations

from lepton_jit.models.model import Model
from lepton_jit.models.sequential import Sequential

__all__ = ["Model", "Sequential"]
