"""Kernels that run a few rows at a time, one after the other: the same results, and fewer rows between them."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from lepton_jit.codegen.loops.ir import Buffer, CeilDiv, Kernel, Progress, Reach
from lepton_jit.codegen.program import chain, lower
from lepton_jit.codegen.program.lowered import Launch, Lowered, Step
from lepton_jit.codegen.target import Target, native_target
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import DTYPES, Dim, Poly, TensorType, dim_value, typical_batch
from tests.codegen.loop_programs import chain_turns, iteration_count, walk_of
from tests.codegen.programs import differences, everywhere, fused, linked, lowered, run_loops
from tests.levels import at_every_level, for_every_target, level

CHANNELS_LAST = {"lhs_spec": (0, 3, 1, 2), "rhs_spec": (3, 2, 0, 1), "out_spec": (0, 3, 1, 2)}


@pytest.fixture(autouse=True)
def chained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small images make chains of many turns."""
    monkeypatch.setattr(lower, "CHAINED_BYTES", 0)
    monkeypatch.setattr(lower, "CHAINED_FLOPS", 1 << 40)
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


def blocks(size: int, stride: int, images: int | str = "N") -> Graph:
    """A 3 x 3 convolution, and an inverted bottleneck of mobilenetv2 with its residual."""
    b = Builder("blocks")
    x = b("relu", convolved(b, b.input("x", TensorType.of("f32", images, size, size + 3, 3)), "stem", 3, 18, stride))
    y = b("relu6", convolved(b, x, "expand", 1, 30))
    y = b("relu6", convolved(b, y, "depthwise", 3, 30, stride, groups=30))
    y = convolved(b, y, "project", 1, 18)
    b.output(b("add", x, y) if stride == 1 else y, "y")
    return b.build()


def has_chains(made: Lowered) -> bool:
    return any(isinstance(step, Step) and step.turn > 0 for step in made.steps)


def arrays_of(graph: Graph, batch: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(batch)
    shapes = {i.name: [dim_value(d, {"N": batch}) for d in i.value.type.shape] for i in graph.inputs}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [5, 16])
def test_every_target_has_chains(size: int, stride: int) -> None:
    assert everywhere(blocks(size, stride), has_chains)


@pytest.mark.parametrize("stride", [1, 2])
@at_every_level
def test_chains_compute_what_their_steps_do(target: Target, stride: int) -> None:
    for size in (5, 16):
        graph = blocks(size, stride)
        made = fused(graph, target)
        assert has_chains(made.lowered)
        program = linked(made)
        for batch in (1, 3):
            arrays = arrays_of(graph, batch)
            (y,) = program(*arrays.values())
            assert differences({"y": y}, run_graph(graph, arrays), {"float32": 1e-5}) == []
    arrays = arrays_of(small := blocks(7, stride), 2)
    found = run_loops(lowered(small, target), arrays, {"N": 2}, fused=target.name != "x86-64")
    assert differences(found, run_graph(small, arrays), {"float32": 1e-5}) == []


@pytest.mark.parametrize("images", ["N", 1, 3])
def test_what_lies_between_in_one_program_is_as_large_as_in_one_sample(
    images: int | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A chain begins where a sample has more than the caches keep, or all of a known batch together."""
    chains = []
    for between in (33 * 30 * 30 * 4 - 1, 33 * 30 * 30 * 4, 3 * 33 * 30 * 30 * 4):  # of one image, in bytes
        monkeypatch.setattr(lower, "CHAINED_BYTES", between)
        chains.append(everywhere(graph := blocks(30, 1, images), has_chains))
    assert chains == [True, images == 3, False]
    arrays = arrays_of(graph, 3 if images == 3 else 1)
    monkeypatch.setattr(lower, "CHAINED_BYTES", 0)
    made, expected = fused(graph, native_target()), run_graph(graph, arrays)
    for threads in (1, 2, 5):
        (y,) = linked(made, threads)(*arrays.values())
        assert differences({"y": y}, expected, {"float32": 1e-5}) == []


def test_a_chain_has_the_same_bits_in_every_batch_and_on_any_number_of_threads() -> None:
    graph = blocks(30, 1)
    made, arrays = fused(graph, native_target()), arrays_of(graph, 5)
    _, *kernels = arrays.values()
    one, *several = (linked(made, threads) for threads in (1, 2, 3, 64))
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
    assert not has_chains(alone.lowered)
    assert linked(alone)(*arrays.values())[0].tobytes() == found.tobytes()


@for_every_target
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [30, 61])
def test_what_a_turn_needs_fits_into_the_windows_of_a_thread(size: int, stride: int, target: Target) -> None:
    (step,) = (s for s in lowered(blocks(size, stride), target).steps if isinstance(s, Step) and s.turn)
    for batch, parts in itertools.product((1, 2, 20), (1, 2, 3, 5)):
        walk = walk_of(step.launches, {"N": batch})
        turns = [t for part in range(parts) for t in chain_turns(walk, step.turn, part, parts)]
        for j, (launch, most) in enumerate(
            zip(step.launches, chain.rows_in_a_turn(step.launches, step.turn), strict=True)
        ):
            needed = [walk.rows(j, turn.goals[j]) - walk.rows(j, turn.begins[j]) for turn in turns]
            assert max(needed) <= most
            done = {i for turn in turns for i in range(turn.done[j], turn.goals[j])}
            assert done == set(range(iteration_count(launch.kernel, {"N": batch})))


@pytest.mark.parametrize("turn", [1, 3])
def test_no_window_is_too_small_however_launches_are_cut_and_read(turn: int) -> None:
    rng = random.Random(turn)
    for _ in range(400):
        launches, symbols = random_chain(rng), {"N": rng.randint(1, 4)}
        assert chain.in_step(launches)
        most = chain.rows_in_a_turn(launches, turn)
        walk = walk_of(launches, symbols)
        turns = [there for part in range(2) for there in chain_turns(walk, turn, part, 2)]
        for j, (launch, rows) in enumerate(zip(launches, most, strict=True)):
            assert max(walk.rows(j, there.goals[j]) - walk.rows(j, there.begins[j]) for there in turns) <= rows
            done = {i for there in turns for i in range(there.done[j], there.goals[j])}
            assert done == set(range(iteration_count(launch.kernel, symbols)))


def two_maps(rows: Dim, extent: Dim, reading: Dim) -> list[Launch]:
    """Launches without bodies: `extent` iterations make `rows` rows, of each of which one of `reading` rows is made."""
    written = Progress(1, rows, 8, ())
    read = Progress(1, reading, 8, (("a0", Reach(1, 1, 1, 8)),))
    buffers = tuple(Buffer(name, DTYPES["f32"], 1) for name in ("a0", "o0"))
    kernels = (Kernel("k", buffers, count, 1, (), progress=p) for count, p in ((extent, written), (reading, read)))
    return [Launch(kernel, (number, number + 1)) for number, kernel in enumerate(kernels)]


N = Poly.symbol("N")


@pytest.mark.parametrize(
    ("rows", "extent", "reading", "expected"),
    [(6 * N, 3 * N, 6 * N, True), (24, 3 * N, 24, False), (6 * N, 12, 6 * N, False), (6 * N, 3 * N, 24, False)],
)
def test_launches_that_keep_step_in_the_typical_batch_alone_are_no_chain(
    rows: Dim, extent: Dim, reading: Dim, expected: bool
) -> None:
    """A batch of 4 has 24 rows and 12 iterations."""
    with typical_batch(4):
        assert chain.in_step(two_maps(rows, extent, reading)) == expected


def random_chain(rng: random.Random) -> list[Launch]:
    """Launches without bodies, each of which reads lines or rows of the one before, as no kernel may do yet."""
    launches: list[Launch] = []
    images, lines, per, reads = Poly.symbol("N"), rng.randint(4, 20), rng.randint(1, 3), ()
    for number in range(rng.randint(2, 4)):
        count, width, each = images * (lines * per), rng.randint(1, 3), rng.randint(1, 2)
        unit = rng.randint(1, min(3, lines * per))
        groups = rng.randint(1, lines * per // unit)
        extent = rng.choice([images * (groups * each), CeilDiv(count, unit * rng.randint(1, 4), each)])
        progress = Progress(each, count, width, reads, unit)
        buffers = tuple(Buffer(name, DTYPES["f32"], 1) for name in ("a0", "o0"))
        launches.append(Launch(Kernel("k", buffers, extent, 1, (), progress=progress), (number, number + 1)))
        if rng.random() < 0.4:
            reads = (("a0", Reach(1, 1, 1, width)),)
            continue
        stride, taps = rng.randint(1, 3), rng.randint(1, 4)
        low = rng.randint(0, taps - 1)
        results = max(1, (lines + low - taps) // stride + rng.randint(0, 1))
        line, size, per = per * width, lines, rng.randint(1, 3)
        reads, lines = (("a0", Reach(per, results, size, line, stride, low, taps)),), results
    return launches


def test_a_result_that_others_read_too_is_whole_behind_a_chain() -> None:
    """The second convolution reads every other line, and not the last one."""
    b = Builder("kept")
    y = b("relu", convolved(b, b.input("x", TensorType.of("f32", "N", 12, 70, 8)), "expand", 1, 16))
    z = convolved(b, y, "depthwise", 1, 16, stride=2, groups=16)
    b.output(y, "y")
    b.output(z, "z")
    graph = b.build()
    made, arrays = fused(graph, native_target()), arrays_of(graph, 2)
    assert everywhere(graph, has_chains)
    expected = run_graph(graph, arrays)
    for threads in (1, 2, 5):
        y_found, z_found = linked(made, threads)(*arrays.values())
        assert differences({"y": y_found, "z": z_found}, expected, {"float32": 1e-5}) == []
    assert differences(run_loops(made.lowered, arrays, {"N": 2}), expected, {"float32": 1e-5}) == []


def pooled(b: Builder, x: Value, window: int, stride: int) -> Value:
    """Max pooling without padding: the last lines may go unread."""
    spatial = {"window": (1, window, window, 1), "strides": (1, stride, stride, 1), "dilation": (1,) * 4}
    return b("reduce_window", x, kind="maximum", padding=((0, 0),) * 4, **spatial)


def random_network(rng: random.Random) -> Graph:
    """Convolutions, windows and sums, some of whose results leave as well."""
    b = Builder("network")
    images = rng.choice(["N", "N", 1, 4])
    x = b.input("x", TensorType.of("f32", images, rng.randint(9, 30), rng.randint(9, 40), rng.choice([3, 8, 17])))
    for i in range(rng.randint(2, 7)):
        channels, height = x.type.shape[-1], min(d for d in x.type.shape[1:3] if isinstance(d, int))
        assert isinstance(channels, int)
        kind = rng.choice(["expand", "project", "depthwise", "convolution", "pool", "residual"])
        stride = rng.choice([1, 1, 2]) if height > 8 else 1
        if kind == "pool" and height > 4:
            x = pooled(b, x, rng.choice([2, 3]), rng.choice([1, 2]))
        elif kind == "depthwise":
            x = b("relu6", convolved(b, x, f"k{i}", rng.choice([1, 3, 5]), channels, stride, groups=channels))
        elif kind == "residual":
            x = b("add", x, convolved(b, x, f"k{i}", rng.choice([1, 3]), channels))
        else:
            taps = 3 if kind == "convolution" else 1
            x = b("relu", convolved(b, x, f"k{i}", taps, rng.choice([4, 16, 24, 40]), stride))
        if rng.random() < 0.15:
            b.output(x, f"y{i}")
    b.output(b("negate", x), "y")
    return b.build()


@pytest.mark.parametrize("seed", [*range(12), *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(12, 60))])
def test_random_networks_have_the_same_bits_in_chains_and_without(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = random_network(random.Random(seed))
    monkeypatch.setattr(chain, "TURN_BYTES", 1 << random.Random(seed).randint(10, 16))
    target = level(seed)
    chained_one = fused(graph, target)
    with monkeypatch.context() as alone:
        alone.setattr(lower, "CHAINED_BYTES", 1 << 40)
        plain = linked(fused(graph, target))
    programs = [linked(chained_one, threads) for threads in (1, 2, 3)]
    for batch in (1, 4):
        arrays = list(arrays_of(graph, batch).values())
        expected = [y.tobytes() for y in plain(*arrays)]
        for program in programs:
            assert [y.tobytes() for y in program(*arrays)] == expected


def joined_steps(made: Lowered) -> list[tuple[bool, int]]:
    """Whether each step of several kernels is a chain, and how many there are."""
    steps = [s for s in made.steps if isinstance(s, Step) and len(s.launches) > 1]
    return sorted((s.turn > 0, len(s.launches)) for s in steps)


def test_a_chain_of_three_kernels_and_a_pair_in_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lower, "CHAINED_BYTES", 1 << 12)
    b = Builder("both")
    x = b.input("x", TensorType.of("f32", "N", 20, 20, 8))
    y = convolved(b, b("relu", convolved(b, x, "depthwise", 3, 8, groups=8)), "project", 1, 8)
    b.output(convolved(b, y, "expand", 1, 8), "y")
    narrow = b.input("narrow", TensorType.of("f32", "N", 6, 9))
    z = b("slice", narrow, start=(0, 0, 1), limit=(*narrow.type.shape[:2], 9), strides=(1, 1, 1))
    b.output(z, "z")
    b.output(b("transpose", z, permutation=(0, 2, 1)), "transposed")
    graph = b.build()
    assert everywhere(graph, joined_steps) == [(False, 2), (True, 3)]
    arrays = arrays_of(graph, 9)
    found = dict(
        zip((o.name for o in graph.outputs), linked(fused(graph, native_target()))(*arrays.values()), strict=True)
    )
    assert differences(found, run_graph(graph, arrays), {"float32": 1e-5}) == []
