"""The table that `model.summary()` prints."""

from __future__ import annotations

import io

from rich import box
from rich.console import Console
from rich.table import Table

from lepton_jit.layers.base.layer import Layer
from lepton_jit.layers.functional import Functional

__all__ = ["LINES", "summary_table"]

LINES = str(box.SQUARE)  # the characters of its frame


def summary_table(model: Functional, line_length: int | None = None, *, ascii_only: bool = False) -> str:
    """Layers, output shapes and numbers of weights; of a model with branches, what each layer is connected to."""
    branches = _has_branches(model)
    table = Table(box=box.ASCII if ascii_only else box.SQUARE, show_lines=False, header_style="")
    table.add_column("Layer (type)", no_wrap=True)
    table.add_column("Output Shape", no_wrap=True)
    table.add_column("Param #", justify="right", no_wrap=True)
    if branches:
        table.add_column("Connected to")
    for layer in model.network.layers if branches else model.layers:
        cells = [f"{layer.name} ({type(layer).__name__})", _shape(layer), f"{layer.count_params():,}"]
        table.add_row(*cells, *([_sources(model, layer)] if branches else []))
    text = io.StringIO()
    console = Console(
        file=text,
        width=line_length or 120,
        color_system=None,
        force_jupyter=False,  # in a notebook it would show the table by itself, past `print_fn`
        highlight=False,
        markup=False,
        emoji=False,
    )
    console.print(f'Model: "{model.name}"')
    console.print(table)
    trained = {id(w) for w in model.trainable_weights}
    totals = {
        "Total params": model.weights,
        "Trainable params": [w for w in model.weights if id(w) in trained],
        "Non-trainable params": [w for w in model.weights if id(w) not in trained],
    }
    for title, weights in totals.items():
        size = sum(w.size * w.dtype.bytes for w in weights)
        console.print(f" {title}: {sum(w.size for w in weights):,} ({_bytes(size)})")
    return text.getvalue().rstrip("\n")


def _has_branches(model: Functional) -> bool:
    calls = model.network.calls
    chained = all(len(c.tensors) == 1 and len(c.outputs) == 1 for c in calls)
    return not chained or len({x for c in calls for x in c.tensors}) != len(calls) or len(model.outputs) > 1


def _shape(layer: Layer) -> str:
    shapes = [x.shape for x in layer.calls[-1].outputs] if layer.calls else []
    return ", ".join(map(str, shapes)) or "?"


def _sources(model: Functional, layer: Layer) -> str:
    return ", ".join(x.name for c in model.network.calls if c.layer is layer for x in c.tensors) or "-"


def _bytes(size: int) -> str:
    for unit in ("B", "KB", "MB"):
        if size < 1024:
            return f"{size:.2f} {unit}"
        size /= 1024  # pyright: ignore[reportAssignmentType]
    return f"{size:.2f} GB"
