"""Kernels that run a few rows at a time, one after the other: the same results, and fewer rows between them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from lepton_jit.codegen import chain, lower
from lepton_jit.codegen.lowered import Step
from lepton_jit.codegen.target import Target, native_target
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import TensorType, dim_value
from tests.codegen.loop_programs import chain_spans, iteration_count
from tests.codegen.programs import RUNNABLE, differences, fused, linked, run_loops

CHANNELS_LAST = {"lhs_spec": (0, 3, 1, 2), "rhs_spec": (3, 2, 0, 1), "out_spec": (0, 3, 1, 2)}


@pytest.fixture(autouse=True)
def chained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images make chains of many turns."""
    monkeypatch.setattr(lower, "CHAINED_BYTES", 0)
    monkeypatch.setattr(chain, "TURN_BYTES", 1 << 12)


def convolved(b: Builder, x: Value, name: str, taps: int, filters: int, stride: int = 1, groups: int = 1) -> Value:
    kernel = b.input(name, TensorType.of("f32", taps, taps, x.type.shape[-1] // groups, filters))  # pyright: ignore[reportOptionalOperand]
    before = taps // 2
    return b(
        "convolution",
        x,
        kernel,
        **CHANNELS_LAST,
        strides=(stride, stride),
        padding=((before, before), (before, before)),
        lhs_dilation=(1, 1),
        rhs_dilation=(1, 1),
        window_reversal=(False, False),
        feature_group_count=groups,
        batch_group_count=1,
    )


def blocks(size: int, stride: int) -> Graph:
    """A 3 x 3 convolution, and an inverted bottleneck of mobilenetv2 with its residual."""
    b = Builder("blocks")
    x = b("relu", convolved(b, b.input("x", TensorType.of("f32", "N", size, size + 3, 3)), "stem", 3, 18, stride))
    y = b("relu6", convolved(b, x, "expand", 1, 30))
    y = b("relu6", convolved(b, y, "depthwise", 3, 30, stride, groups=30))
    y = convolved(b, y, "project", 1, 18)
    b.output(b("add", x, y) if stride == 1 else y, "y")
    return b.build()


def arrays_of(graph: Graph, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    shapes = {i.name: [dim_value(d, {"N": batch}) for d in i.value.type.shape] for i in graph.inputs}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("target", RUNNABLE, ids=lambda t: t.name)
def test_chains_compute_what_their_steps_do(target: Target, stride: int) -> None:
    for size in (5, 16):
        graph = blocks(size, stride)
        made = fused(graph, target)
        assert any(isinstance(s, Step) and s.turn for s in made.lowered.steps)
        for batch in (1, 3):
            arrays = arrays_of(graph, batch)
            expected = run_graph(graph, arrays)
            (y,) = linked(made)(*arrays.values())
            assert differences({"y": y}, expected, {"float32": 1e-5}) == []
    arrays = arrays_of(small := blocks(7, stride), 2)
    found = run_loops(fused(small, target).lowered, arrays, {"N": 2}, fused=target.name != "x86-64")
    assert differences(found, run_graph(small, arrays), {"float32": 1e-5}) == []


def test_a_chain_has_the_same_bits_in_every_batch_and_on_any_number_of_threads() -> None:
    graph = blocks(30, 1)
    made, arrays = fused(graph, native_target()), arrays_of(graph, 5)
    _, *kernels = arrays.values()
    one, *several = (linked(made, threads) for threads in (1, 2, 3, 64))  # 64 parts would be too short
    (whole,) = one(*arrays.values())
    for program in several:
        assert program(*arrays.values())[0].tobytes() == whole.tobytes()
    assert one(arrays["x"][:2], *kernels)[0].tobytes() == whole[:2].tobytes()
    assert one(arrays["x"][:0], *kernels)[0].shape == (0, *whole.shape[1:])


def test_a_chain_leaves_no_bit_to_how_it_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = blocks(24, 2)
    arrays = arrays_of(graph, 1)
    (found,) = linked(fused(graph, native_target()))(*arrays.values())
    monkeypatch.setattr(lower, "CHAINED_BYTES", 1 << 40)
    alone = fused(graph, native_target())
    assert not any(isinstance(s, Step) and s.turn for s in alone.lowered.steps)
    assert linked(alone)(*arrays.values())[0].tobytes() == found.tobytes()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [30, 61])
def test_threads_that_share_a_chain_compute_nothing_twice(size: int, stride: int) -> None:
    steps = fused(blocks(size, stride), native_target()).lowered.steps
    (step,) = (s for s in steps if isinstance(s, Step) and s.turn)
    last = step.launches[-1].kernel
    assert last.progress is not None
    shared = 0
    for batch, parts in itertools.product((1, 2, 20), (1, 2, 3, 5)):
        turns = -(-iteration_count(last, {"N": batch}) // last.progress.each // step.turn)
        if parts > 1 and parts * chain.least_turns(step.launches, step.turn) > turns:
            continue
        shared = max(shared, parts)
        done = [x for spans in chain_spans(step, {"N": batch}, parts) for x in spans]
        for launch in step.launches:
            iterations = sorted(i for x, span in done if x is launch for i in span)
            assert iterations == list(range(iteration_count(launch.kernel, {"N": batch})))
    assert shared == 5
