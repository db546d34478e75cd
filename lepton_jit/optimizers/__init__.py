"""Optimizers and learning rate schedules."""

from __future__ import annotations

from lepton_jit.optimizers import rules, schedules
from lepton_jit.optimizers.optimizer import Optimizer, get, registry
from lepton_jit.optimizers.rules import *

__all__ = ["Optimizer", "get", "registry", "schedules"]
__all__ += rules.__all__
