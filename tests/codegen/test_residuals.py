"""Results of contractions that are written over a residual."""

from __future__ import annotations

import numpy as np
import pytest

from lepton_jit.codegen.program.lowered import Lowered
from lepton_jit.codegen.target import Target
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import Poly, TensorType
from tests.codegen.programs import differences, fused, run_loops, run_native
from tests.levels import RUNNABLE, for_every_target

SUMS = {"lhs_contracting": (1,), "rhs_contracting": (0,), "lhs_batching": (), "rhs_batching": ()}


def block(rows: int, width: int, keeps: bool = False) -> Graph:
    """`rows` times N rows: a hidden layer, then one that adds what both came from; a last layer reads the sum."""
    b = Builder("block")
    x = b.input("x", TensorType.of("f32", rows * Poly.symbol("N"), width))

    def dense(of: Value, name: str) -> Value:
        return b("dot_general", of, b.input(name, TensorType.of("f32", width, width)), **SUMS)

    before = b("negate", dense(x, "a"))
    after = b("maximum", b("add", dense(dense(before, "b"), "c"), before), 0.0)
    last = dense(after, "d")
    b.output(b("add", last, before) if keeps else last, "y")
    return b.build()


def replaced(made: Lowered) -> int:
    """Contractions whose result stands where one of their operands does."""
    launches = [x for step in made.steps for x in step.launches if x.kernel.flops]
    frames = [dict(zip((b.name for b in x.kernel.buffers), x.buffers, strict=True)) for x in launches]
    return sum(frame["o0"] in [n for name, n in frame.items() if name.startswith("a")] for frame in frames)


@for_every_target
def test_what_replaces_such_a_result_stands_there_too(target: Target) -> None:
    """As in a training step of a residual network, whose later kernels work in place of sums."""
    b, rows, width = Builder("later"), target.tile_rows * 3, 32
    x = b.input("x", TensorType.of("f32", rows * Poly.symbol("N"), width))
    weights = [b.input(n, TensorType.of("f32", width, width)) for n in "abcde"]
    before = b("negate", b("dot_general", x, weights[0], **SUMS))
    hidden = b("dot_general", before, weights[1], **SUMS)
    summed = b("maximum", b("add", b("dot_general", hidden, weights[2], **SUMS), before), 0.0)
    total = b("reduce", b("dot_general", summed, weights[3], **SUMS), dimensions=(0, 1), kind="add")
    scaled = b("multiply", summed, b("broadcast_in_dim", total, shape=summed.type.shape, dimensions=()))
    b.output(b("dot_general", scaled, weights[4], **SUMS), "y")
    graph = b.build()
    rng = np.random.default_rng(0)
    arrays = {"x": rng.normal(size=(rows, width)).astype(np.float32)}
    arrays |= {n: rng.normal(size=(width, width)).astype(np.float32) / 6 for n in "abcde"}
    made, expected = fused(graph, target), run_graph(graph, arrays)
    frames = [x.buffers for step in made.lowered.steps for x in step.launches if len(set(x.buffers)) < len(x.buffers)]
    assert len(frames) == 2
    assert frames[0][-1] == frames[1][-1]
    if target in RUNNABLE:
        assert differences(run_native(made, arrays, 2), expected, {"float32": 1e-5}) == []
    assert differences(run_loops(made.lowered, arrays, {"N": 1}), expected, {"float32": 1e-5}) == []


@for_every_target
@pytest.mark.parametrize(
    ("fewer", "width", "keeps", "expected"),
    [
        (0, 32, False, 1),
        (0, 32, True, 0),  # the residual is still read
        (1, 32, False, 0),  # some tiles move back over rows that are done
        (0, 400, False, 1),  # the left side is packed
        (1, 400, False, 0),
    ],
)
def test_a_residual_that_dies_is_replaced(fewer: int, width: int, keeps: bool, expected: int, target: Target) -> None:
    """Of three tiles, or `fewer` rows."""
    rows = target.tile_rows * 3 - fewer
    graph = block(rows, width, keeps)
    made = fused(graph, target)
    assert replaced(made.lowered) == expected
    rng = np.random.default_rng(rows + width)
    for batch in (1, 3):
        arrays = {"x": rng.integers(-2, 3, (rows * batch, width)).astype(np.float32)}
        arrays |= {n: rng.integers(-1, 2, (width, width)).astype(np.float32) for n in "abcd"}
        arrays = {e.name: arrays[e.name] for e in graph.inputs}
        expected_arrays = run_graph(graph, arrays)
        for threads in (1, 2, 3) if target in RUNNABLE else ():
            assert differences(run_native(made, arrays, threads), expected_arrays) == []
        if width < 100 and batch == 3:
            assert differences(run_loops(made.lowered, arrays, {"N": batch}), expected_arrays) == []
