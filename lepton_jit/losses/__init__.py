"""Losses, and what labels look like to them.

A loss compares an output with its labels inside of a trace, and gives one number for each sample.
"""

from __future__ import annotations

from lepton_jit.losses import losses
from lepton_jit.losses.losses import *

__all__: list[str] = []
__all__ += losses.__all__
