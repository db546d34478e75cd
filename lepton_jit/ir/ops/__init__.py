"""The operations, one file a family; importing this package enters their records into the registry."""

from __future__ import annotations

from lepton_jit.ir.ops import (  # noqa: F401
    activations,
    affine,
    contraction,
    convolution,
    elementwise,
    indexing,
    layer_norm,
    losses,
    movement,
    normalization,
    parts,
    philox,
    pooling,
    reduction,
    scan,
    structural,
    transcendental,
    window,
    winograd,
)
