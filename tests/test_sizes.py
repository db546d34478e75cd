"""Every layer at many sizes: units, channels and lengths of 1, odd ones, powers of two and their neighbours.

A program is generated for each level on any host, and runs at one that the host has, against the interpreter.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.codegen.generate import generate
from lepton_jit.codegen.target import get_target
from lepton_jit.compiler.pipeline import optimize
from lepton_jit.ir.graph import Graph
from lepton_jit.layers import registry
from tests.levels import RUNNABLE
from tests.model_arguments import LAYERS, Place, draw_layer
from tests.model_programs import random_arrays, training_step, wrong
from tests.random_draft import SeededChoices

POWERS = [2**k for k in range(2, 11)]
SIZES = sorted({1, 2, 5, 11, 21, 45, 75, 99, 200, 300, 333, *(p + d for p in POWERS for d in (-1, 0, 1))} - {1025})
BATCHES = (1, 3, 17, 33)
LEVELS = [get_target(name) for name in ("x86-64-v3", "x86-64-v4", "aarch64")]
# The arguments that say how wide a result is.
WIDTHS = frozenset({"units", "filters", "output_dim", "key_dim"})
WORDS = 7


def roles(kind: str) -> list[str]:
    """What a size can be of: a width that the layer has, the input's channels, its length."""
    entry = LAYERS[kind]
    found = ["units"] if WIDTHS.intersection(entry.arguments) else []
    return [*found, *(["channels"] if entry.ranks else []), *(["length"] if entry.ranks[-1:] != (1,) else [])]


def layer_of(kind: str, role: str, size: int) -> tuple[lpt.layers.Layer, tuple[int, ...]]:
    """The layer with the arguments that it must have, and the shape of its input."""
    entry = LAYERS[kind]
    length, channels = size if role == "length" else 4, size if role == "channels" else 6
    shape = {0: (length,), 1: (channels,), 2: (length, channels), 3: (length, 3, channels)}[max(entry.ranks, default=0)]
    width = size if role == "units" else 9
    fixed = dict.fromkeys(WIDTHS.intersection(entry.required), width)
    call = draw_layer(SeededChoices(size), kind, Place(shape, WORDS), **fixed)
    kept = {k: v for k, v in call.arguments.items() if k in entry.required or k == "padding"}
    return eval(repr(replace(call, arguments=kept)), {"lpt": lpt, "np": np}), shape


def model_of(kind: str, role: str, size: int) -> lpt.Model:
    if kind == "InputLayer":
        x = lpt.Input((size,))
        return lpt.Model(x, lpt.Activation("linear")(x))
    layer, shape = layer_of(kind, role, size)
    x = lpt.Input(shape, dtype="int32" if kind == "Embedding" else "float32")
    if layer.takes_list:
        y = lpt.Input(shape)
        return lpt.Model([x, y], layer([x, y]))
    return lpt.Model(x, layer(x, x) if kind == "MultiHeadAttention" else layer(x))


def generated_for_every_level(graph: Graph) -> None:
    for target in LEVELS:
        for part in optimize(graph, target):
            generate(part, target)


def differences_of(kind: str, number: int, size: int) -> list[str]:
    """A program of the layer at a size, its level, batch and role in turns."""
    role = roles(kind)[number % len(roles(kind))]
    model = model_of(kind, role, size)
    graph, step = model.trace(), training_step(model)
    generated_for_every_level(graph)
    batch = BATCHES[number % len(BATCHES)] if size < 512 else 2
    level = RUNNABLE[number % len(RUNNABLE)]
    made = step if number % 2 else graph
    return [
        f"{kind}, {role} {size}, batch {batch}: {d}" for d in wrong(made, random_arrays(made, batch, WORDS), [level])
    ]


KINDS = sorted(set(registry.entries) - {"Model", "Sequential"})


@pytest.mark.soak
@pytest.mark.parametrize("number", range(len(SIZES)), ids=lambda n: str(SIZES[n]))
def test_every_layer_compiles_and_is_right_at_a_size(number: int) -> None:
    assert [d for i, kind in enumerate(KINDS) for d in differences_of(kind, number + i, SIZES[number])] == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_right_at_one_of_the_sizes(kind: str) -> None:
    """Another size for each layer, so that each kind of size is there."""
    draw = zlib.crc32(kind.encode())
    sizes: list[Any] = [s for s in SIZES if s <= 129]
    role = roles(kind)[draw % len(roles(kind))]
    graph = model_of(kind, role, sizes[draw % len(sizes)]).trace()
    assert wrong(graph, random_arrays(graph, BATCHES[draw % 4], WORDS), [RUNNABLE[draw % len(RUNNABLE)]]) == []


@pytest.mark.parametrize("make", [lpt.LSTM, lpt.GRU], ids=lambda c: c.__name__)
def test_recurrent_layers_of_usual_sizes_compile_for_every_level(make: Any) -> None:
    generated_for_every_level(lpt.Sequential([lpt.Input((200, 64)), make(256)]).trace())
