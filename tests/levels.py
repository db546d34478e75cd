"""The instruction-set levels that tests run natively: all that this machine has, the best one first."""

from __future__ import annotations

from lepton_jit.codegen.target import TARGETS, host_features, native_target

_ON_ARM = native_target().name == "aarch64"
RUNNABLE = tuple(
    t for t in TARGETS.values() if (t.name == "aarch64") == _ON_ARM and host_features().issuperset(t.required)
)
