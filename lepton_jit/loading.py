"""`load(path)` decides by content what a file is, and reads it."""

from __future__ import annotations

import os
from typing import Any

from lepton_jit.common.writing import file_path
from lepton_jit.errors import FileFormatError

__all__ = ["load"]

_ELF = b"\x7fELF"


def load(path: str | os.PathLike[str]) -> Any:
    """A model from a file that `model.save` wrote, or a callable from a library that `fast.export` wrote.

    Raises FileFormatError for anything else. Loading a library imports neither LLVM nor the layers.
    """
    path = file_path("load", path)
    with path.open("rb") as file:
        head = file.read(9)
    if head.startswith(_ELF):
        from lepton_jit.runtime.module import load_module  # so that a library starts without what models need

        return load_module(path)
    # safetensors: the length of a JSON header as a 64-bit number, then its opening brace.
    if len(head) == 9 and head[8:] == b"{":
        from lepton_jit.models.loading import load_model  # and a model without what libraries need

        return load_model(path)
    raise FileFormatError(f"{path}: expected a model or an exported program, got {head[:8]!r}...")
