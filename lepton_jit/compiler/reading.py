"""Read the printed levels back."""

from __future__ import annotations

import re

from lepton_jit.codegen.loops.ir import Kernel
from lepton_jit.codegen.loops.parser import parse_kernels
from lepton_jit.errors import ArgumentError
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.parser import parse_graph

__all__ = ["parse"]


def parse(text: str) -> Graph | Kernel | list[Kernel]:
    """The graph, the kernel or the kernels that a text holds; `parse(str(graph)) == graph`.

    ParseError names line and column of what does not follow the grammar (docs/graph_ir.md, docs/loop_ir.md).

    >>> parse('graph @id(%x: f32[N] input "x") {\\n  return %x "y"\\n}').name
    'id'
    """
    if not isinstance(text, str):
        raise ArgumentError(f"parse: expected a text, got {text!r}")
    first = re.search(r"^\s*(graph|kernel)\b", text, re.MULTILINE)
    if first is None or first.group(1) == "graph":
        return parse_graph(text)
    kernels = parse_kernels(text)
    return kernels[0] if len(kernels) == 1 else kernels
