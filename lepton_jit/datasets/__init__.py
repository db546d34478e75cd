"""Data sets, ready for `fit`."""

from __future__ import annotations

from lepton_jit.datasets.digits import mnist
from lepton_jit.datasets.idx import read_idx

__all__ = ["mnist", "read_idx"]
