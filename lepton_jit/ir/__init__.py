"""The graph IR; importing any part of it fills the registry of operations."""

from lepton_jit.ir import ops as _ops  # noqa: F401
