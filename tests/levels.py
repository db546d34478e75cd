"""What tests run natively, and for which targets they assert how programs look.

A machine runs programs for every level up to its own. What a program looks like (steps, tiles, panels, packs, buffers)
depends on its target and on nothing else, and any machine can lower for any target: such assertions name theirs.
"""

from __future__ import annotations

import pytest

from lepton_jit.codegen.target import TARGETS, Target, host_features, native_target

_ON_ARM = native_target().name == "aarch64"
# The best level of this machine first (`--target` hides those above the one that it names).
RUNNABLE = tuple(
    t for t in TARGETS.values() if (t.name == "aarch64") == _ON_ARM and host_features().issuperset(t.required)
)
# Vectors of 64, 32 and 16 bytes; tiles of 14, 6 and 8 rows.
NAMED = tuple(TARGETS[name] for name in ("x86-64-v4", "x86-64-v3", "aarch64"))

at_every_level = pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
for_every_target = pytest.mark.parametrize("target", NAMED, ids=lambda t: t.name)


def level(seed: int) -> Target:
    """A level that this machine runs, by turns: what is drawn at random is spread over all of them."""
    return RUNNABLE[seed % len(RUNNABLE)]
