"""Composites: activations, normalizations, losses and pooling, each by its decomposition into other operations."""

from __future__ import annotations

from lepton_jit.ir.ops.composites import activations, layer_norm, losses, normalization, pooling  # noqa: F401
