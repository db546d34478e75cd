"""What a figure has to be read with: the machine, and the versions of everything that was measured."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from lepton_jit.codegen.target import get_target
from lepton_jit.demo import cpu_name

__all__ = ["describe_machine"]

PACKAGES = ("lepton-jit", "llvmlite", "numpy", "torch", "jax", "onnxruntime", "openvino")


def describe_machine() -> dict[str, Any]:
    """The processor, the level of its instruction set, the load of the machine and the installed versions."""
    return {
        "cpu": cpu_name(),
        "target": get_target("native").name,
        "processors": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "system": platform.platform(),
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := _version(name))},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
