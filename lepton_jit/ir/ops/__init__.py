"""The operations, one file a family; importing this package enters their records into the registry."""

from __future__ import annotations

from lepton_jit.ir.ops import (  # noqa: F401
    affine,
    composites,
    contraction,
    convolution,
    elementwise,
    indexing,
    movement,
    parts,
    philox,
    reduction,
    scan,
    structural,
    transcendental,
    window,
    winograd,
)
