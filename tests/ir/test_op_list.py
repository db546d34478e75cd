"""docs/graph_ir.md lists the operations as they are."""

from __future__ import annotations

import re
from pathlib import Path

from lepton_jit import activations
from lepton_jit.ir.op import NOT_DIFFERENTIABLE, OPS, Op

PAGE = Path(__file__).parents[2] / "docs" / "graph_ir.md"


def line(op: Op) -> str:
    attributes = ", ".join(sorted(name for name in op.attributes if not name.startswith("_")))
    text = f"{op.name}({', '.join(op.operands)})" + (f" {{{attributes}}}" if attributes else "")
    return f"`{text}`" + ("°" if op.gradient is NOT_DIFFERENTIABLE else "")


def test_the_list_is_that_of_the_registry() -> None:
    _, _, text = PAGE.read_text(encoding="utf-8").partition("## The operations")
    listed = re.findall(r"`[a-z_0-9]+\([a-z_0-9, *]*\)(?: \{[a-z_, ]*\})?`°?", text)
    lines = {name: line(op) for name, op in OPS.items()}

    assert len(listed) == len(set(listed))
    assert set(listed) - set(lines.values()) == set()
    # The page says that each activation is an operation, so it need not name them all.
    assert {name for name in OPS if lines[name] not in listed} - set(activations.registry.entries) == set()
