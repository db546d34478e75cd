"""Every pass of the pipeline, and the split, keep what a random graph computes."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from lepton_jit.codegen.target import get_target
from lepton_jit.compiler.pipeline import AFTER_SPLIT, optimize, pipeline
from lepton_jit.ir.graph import Graph, Input, Output, Value
from lepton_jit.passes.base import Pass
from lepton_jit.passes.check_numerics import CheckNumerics
from lepton_jit.passes.dce import EliminateDeadCode
from lepton_jit.passes.manager import Observer, Observers, apply_everywhere
from lepton_jit.passes.observers import VerifyStructure
from lepton_jit.passes.rewriting.rewrite import Rewriter
from lepton_jit.passes.split_prepare import SPLIT
from tests.random_graphs import RandomGraph, random_graph
from tests.random_search import search

TARGET = get_target("x86-64-v3")
CHANNELS_LAST = (0, 3, 1, 2)


@pytest.fixture(autouse=True)
def winograd_wherever_it_is_possible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random images are too small for it to be worth it."""
    monkeypatch.setattr("lepton_jit.passes.winograd.LEAST_CHANNELS", 1)
    monkeypatch.setattr("lepton_jit.passes.winograd.WORTH_IT", np.inf)


class Changes(Observer):
    """Counts the graphs that each stage changes; AssertionError for an unchanged graph that is another object."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def after(self, pass_: Pass, before: Graph, after: Graph, seconds: float) -> None:
        self.counts[pass_.name] += after is not before
        assert after is before or str(after) != str(before), f"{pass_} returned an equal graph, not the one it got"

    def split(self, before: Graph, prepare: Graph, main: Graph) -> tuple[Observer, Observer]:
        self.counts[SPLIT] += bool(prepare.nodes)
        return self, self


def check(case: RandomGraph, changes: Changes | None = None) -> None:
    graph, arrays = with_convolution(case)
    changes = changes or Changes()
    # Passes remove what dies by their own rewrites; here an output is missing from the first.
    fewer = replace(graph, outputs=graph.outputs[:-1] or graph.outputs)
    changes.after(EliminateDeadCode(), fewer, apply_everywhere(EliminateDeadCode(), fewer), 0.0)
    # NumPy sums in another order where a weight has come to lie contiguously; Winograd's algorithm rounds by itself.
    optimize(fewer, TARGET, Observers(VerifyStructure(), CheckNumerics(arrays, tolerance=1e-5), changes))


def with_convolution(case: RandomGraph) -> tuple[Graph, dict[str, np.ndarray]]:
    """The graph with a plain 3 x 3 convolution of its first image, if it has one, which the winograd pass can take."""
    image = next((entry.value for entry in case.graph.inputs if _is_image(entry.value)), None)
    if image is None:
        return case.graph, dict(case.arrays)
    b = Rewriter(case.graph)
    for node in case.graph.nodes:
        b.append(node)
    shape = (3, 3, image.type.shape[3], 2)
    kernel = b.fresh(image.type.with_shape(shape))
    spec = {"lhs_spec": CHANNELS_LAST, "rhs_spec": (3, 2, 0, 1), "out_spec": CHANNELS_LAST}
    ones = {"strides": (1, 1), "lhs_dilation": (1, 1), "rhs_dilation": (1, 1)}
    groups = {"feature_group_count": 1, "batch_group_count": 1}
    result = b(
        "convolution", image, kernel, padding=((1, 1), (2, 0)), window_reversal=(False, False), **spec, **ones, **groups
    )
    graph = replace(
        case.graph,
        inputs=(*case.graph.inputs, Input(kernel, "plain", "parameter")),
        nodes=tuple(b.nodes),
        outputs=(Output(result, "convolution"), *case.graph.outputs),
    )
    numbers = np.random.default_rng(len(graph.nodes)).normal(size=shape).astype(np.float32)
    return graph, {**case.arrays, "plain": numbers}


def _is_image(value: Value) -> bool:
    return (
        value.type.rank == 4
        and value.type.dtype.name == "f32"
        and all(isinstance(d, int) and d > 0 for d in value.type.shape[1:])
    )


@pytest.mark.fuzz
def test_every_pass_keeps_what_a_random_graph_computes(fuzz_seeds: range) -> None:
    # A fifth: each graph is run by the interpreter before and after two dozen passes.
    search(check, fuzz_seeds[::5])


def test_every_pass_of_the_pipeline_has_something_to_do_in_these_graphs() -> None:
    changes = Changes()
    idle = {p.name for p in (*pipeline(TARGET), *AFTER_SPLIT)} | {SPLIT}
    for seed in range(400):
        check(random_graph(seed), changes)
        idle = {name for name in idle if not changes.counts[name]}
        if not idle:
            break
    assert idle == set()
