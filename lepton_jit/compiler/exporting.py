"""Write a compiled model as a shared library, for this machine or another level of its instruction set."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from lepton_jit.codegen.llvm.machine_code import compile_object
from lepton_jit.codegen.target import get_target, native_target
from lepton_jit.common.writing import file_path
from lepton_jit.compiler.build import build, support_object
from lepton_jit.compiler.compile_thread import run_apart
from lepton_jit.compiler.executable import Executable
from lepton_jit.errors import UnsupportedError
from lepton_jit.runtime.export import export

__all__ = ["export_program"]


def export_program(
    path: str | os.PathLike[str], executable: Executable, weights: Mapping[str, np.ndarray], target_name: str
) -> tuple[Path, Path]:
    """Write library and header; the weights go in as `prepare` leaves them, so it has to run on this machine."""
    path = file_path("export", path)
    target = get_target(target_name)
    if target != executable.target:
        if target.vector_bytes > native_target().vector_bytes or target.name == "aarch64":
            raise UnsupportedError(
                f"export: target {target.name!r}: its weights are packed by running its own code, and this machine is "
                f"{native_target().name}; export on a machine of that kind"
            )
        executable = build(executable.graph, target=target, typical_batch=executable.typical_batch)
        executable.bind(weights)
    code = executable.main
    return export(
        path,
        replace(code.manifest, name=path.stem),
        program=code.objects,
        support=support_object(target),
        compile_text=lambda text: run_apart(partial(compile_object, text, target)),
        parameters=[executable.arrays[p.name] for p in code.manifest.params],
    )
