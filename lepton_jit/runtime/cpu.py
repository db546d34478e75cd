"""Find out what this machine's processor can do, without LLVM."""

from __future__ import annotations

import functools
import platform
from pathlib import Path

__all__ = ["cpu_features", "host_architecture"]

# Linux's names for what LLVM calls otherwise.
_LLVM_NAMES = {"abm": "lzcnt", "bmi1": "bmi", "pni": "sse3", "sse4_1": "sse4.1", "sse4_2": "sse4.2"}


def host_architecture() -> str:
    """`x86_64` or `aarch64` on the machines that this project knows."""
    machine = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(machine, machine)


@functools.cache
def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """LLVM's names of the instruction-set features that processor and kernel offer; empty if unknown."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(_LLVM_NAMES.get(flag, flag) for flag in value.split())
    return frozenset()
