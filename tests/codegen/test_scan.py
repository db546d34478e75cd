"""Loops: every way in which a carried or stacked value can stand in memory, rows in blocks, the same bits always."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest

from lepton_jit.codegen.contraction import tiles as contraction_tiles
from lepton_jit.codegen.generate import Generated, generate
from lepton_jit.codegen.loops.interpreter import iteration_count, run_kernel
from lepton_jit.codegen.loops.parser import parse_kernels
from lepton_jit.codegen.program.lower import lower
from lepton_jit.codegen.program.lowered import IndependentRows, Lowered, Scan
from lepton_jit.codegen.program.step_printer import print_steps
from lepton_jit.codegen.target import TARGETS, Target, native_target
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.loops import scan
from lepton_jit.ir.types import THREADS_NAME, Dim, TensorType, dim_value
from lepton_jit.passes.lower_contractions import LowerContractions
from tests.codegen.programs import differences, everywhere, fused, linked, run_loops, run_native
from tests.ir.loops import MATMUL, arrays_for, lstm, running_sum
from tests.levels import NAMED, RUNNABLE, at_every_level, for_every_target, level

Values = Sequence[Value]
# (builder, carries, slices, captured) -> (new carries, values to stack)
Body = Callable[[Builder, Values, Values, Values], tuple[Values, Values]]
WIDTH = 5


def compiled(graph: Graph, target: Target | None = None) -> Generated:
    """The program with one kernel an operation."""
    target = target or native_target()
    return generate(with_contractions(graph, target), target)


def lowered(graph: Graph, target: Target) -> Lowered:
    """Its kernels, for any target."""
    return lower(with_contractions(graph, target), target)


def with_contractions(graph: Graph, target: Target) -> Graph:
    return without_products(graph, LowerContractions(target.vector_bytes * target.tile_vectors))


def without_products(graph: Graph, lower: LowerContractions) -> Graph:
    nodes = [replace(n, regions=tuple(without_products(r, lower) for r in n.regions)) for n in graph.nodes]
    return lower.apply(replace(graph, nodes=tuple(nodes)))


def scan_of(made: Lowered) -> Scan:
    (found,) = (step for step in made.steps if isinstance(step, Scan))
    return found


def rows_of(made: Lowered) -> IndependentRows | None:
    """What runs in blocks through all turns of the one loop."""
    return scan_of(made).rows


def loop(body: Body, carries: int = 2, length: Dim | str = "T", reverse: bool = False) -> Graph:
    """`body` on carries and two scanned arrays of [N, 5], with a captured matrix w: f32[5, 5]."""
    b = Builder("loop")
    first = [b.input(f"c{i}", TensorType.of("f32", "N", WIDTH)) for i in range(carries)]
    arrays = [b.input(name, TensorType.of("f32", length, "N", WIDTH)) for name in ("x", "y")]
    w = b.input("w", TensorType.of("f32", WIDTH, WIDTH))
    final, stacked = scan(b, body, first, arrays, [w], reverse=reverse)
    for i, value in enumerate([*final, *stacked]):
        b.output(value, f"r{i}")
    return b.build()


def agree(graph: Graph, sizes: Sequence[dict[str, int]], target: Target | None = None) -> Generated:
    """Native code and loops against the interpreter of the graph."""
    made = compiled(graph, target)
    for symbols in sizes:
        arrays = arrays_for(graph, **symbols)
        expected = run_graph(graph, arrays)
        assert differences(run_native(made, arrays, threads=2), expected) == [], symbols
        for by_rows in (True, False):
            found = run_loops(made.lowered, arrays, symbols, made.target.name != "x86-64", by_rows)
            assert differences(found, expected) == [], symbols
    return made


def product(b: Builder, x: Value, w: Value) -> Value:
    return b("dot_general", x, w, **MATMUL)


def reshaped(b: Builder, x: Value, shape: Sequence[Dim]) -> Value:
    return b("reshape", x, shape=tuple(shape))


SIZES = [{"T": 0, "N": 2}, {"T": 1, "N": 1}, {"T": 2, "N": 17}, {"T": 3, "N": 3}]

BODIES: dict[str, Body] = {
    "read_in_place": lambda b, c, s, w: ([b("add", c[0], s[0]), b("multiply", c[1], s[1])], []),
    "in_turns": lambda b, c, s, w: ([product(b, c[0], w[0]), b("add", product(b, c[1], w[0]), s[0])], []),
    "stacked_too": lambda b, c, s, w: ([h := product(b, c[0], w[0]), g := b("add", c[1], h)], [h, g, g]),
    "old_value_stacked": lambda b, c, s, w: ([product(b, c[0], w[0]), b("add", c[1], s[0])], [c[0], c[1], c[1]]),
    "old_and_new_stacked": lambda b, c, s, w: ([h := product(b, c[0], w[0]), c[1]], [c[0], h, s[1]]),
    "swapped": lambda b, c, s, w: ([c[1], c[0]], [c[0]]),
    "the_same_twice": lambda b, c, s, w: ([h := b("add", c[0], c[1]), h], []),
    "from_the_array": lambda b, c, s, w: ([s[0], b("negate", c[0])], [s[1]]),
    "read_later": lambda b, c, s, w: (
        [h := b("add", c[0], s[0]), b("multiply", h, c[0])],
        [b("subtract", c[0], c[1])],
    ),
    "constant": lambda b, c, s, w: ([b.full(2.0, c[0].type), c[1]], [b.constant(np.arange(3.0), c[0].type.dtype)]),
    "reshaped": lambda b, c, s, w: (
        [reshaped(b, b("tanh", reshaped(b, c[0], (c[0].type.shape[0], WIDTH, 1))), c[0].type.shape), c[1]],
        [reshaped(b, c[1], (c[0].type.shape[0], 1, WIDTH))],
    ),
}


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("body", BODIES)
def test_carried_and_stacked_values_end_where_they_belong(body: str, reverse: bool) -> None:
    agree(loop(BODIES[body], reverse=reverse), SIZES)


@at_every_level
def test_an_lstm_on_every_level(target: Target) -> None:
    made = compiled(lstm(), target)
    arrays = arrays_for(lstm(), N=3)
    assert differences(run_native(made, arrays), run_graph(lstm(), arrays)) == []


@pytest.mark.parametrize("length", [0, 1, 5, "T"])
def test_lengths_known_and_unknown(length: Dim | str) -> None:
    agree(running_sum(length), [{"T": 0}, {"T": 1}, {"T": 4}])
    agree(loop(BODIES["stacked_too"], length=length), SIZES)


def test_a_loop_that_carries_nothing_and_one_that_scans_nothing() -> None:
    agree(loop(lambda b, c, s, w: ([], [product(b, s[0], w[0])]), carries=0), SIZES)
    b = Builder("powers")
    x = b.input("x", TensorType.of("f32", "N", 3))
    (last,), () = scan(b, lambda b, c, s, w: ([b("multiply", c[0], w[0])], []), [x], (), [x], length=6)
    b.output(last, "y")
    agree(b.build(), [{"N": 4}])


def test_a_loop_in_a_loop() -> None:
    def inner(b: Builder, c: Values, s: Values, w: Values) -> tuple[Values, Values]:
        h = b("add", product(b, c[0], w[1]), s[0])
        return [h], [b("multiply", h, w[0]), c[0]]

    def outer(b: Builder, c: Values, s: Values, w: Values) -> tuple[Values, Values]:
        rows = reshaped(b, s[0], (1, *s[0].type.shape))
        array = b("concatenate", rows, reshaped(b, s[1], rows.type.shape), rows, dimension=0)
        (h,), stacked = scan(b, inner, [c[0]], [array], [c[1], w[0]], reverse=True)
        return [h, b("subtract", c[1], h)], stacked

    agree(loop(outer), SIZES)


# Blocks of rows


@pytest.mark.parametrize("body", ["read_in_place", "in_turns", "stacked_too", "old_value_stacked", "reshaped"])
def test_rows_that_are_independent_run_in_blocks(body: str) -> None:
    rows = everywhere(loop(BODIES[body]), rows_of, lowered)
    assert rows is not None
    assert rows.symbol == "N"


def mean_of_batch(b: Builder, c: Values, s: Values, w: Values) -> tuple[Values, Values]:
    total = b("reduce", c[0], dimensions=(0,), kind="add")
    return [b("subtract", s[0], b.broadcast(total, c[0].type.shape)), c[1]], []


def from_the_other_end(b: Builder, c: Values, s: Values, w: Values) -> tuple[Values, Values]:
    return [b("add", s[0], b("reverse", c[0], dimensions=(0,))), c[1]], []


def numbered_rows(b: Builder, c: Values, s: Values, w: Values) -> tuple[Values, Values]:
    numbers = b("iota", dtype=c[0].type.dtype, shape=c[0].type.shape, dimension=0)
    return [b("add", c[0], numbers), c[1]], []


def size_of_batch(b: Builder, c: Values, s: Values, w: Values) -> tuple[Values, Values]:
    size = b("dimension_value", value=c[0].type.shape[0], dtype=c[0].type.dtype)
    return [b("add", c[0], b.broadcast(size, c[0].type.shape)), c[1]], []


def products_of_rows(b: Builder, c: Values, s: Values, w: Values) -> tuple[Values, Values]:
    sums = MATMUL | {"lhs_contracting": (0,), "rhs_contracting": (0,)}
    return [product(b, c[0], b("dot_general", s[0], s[1], **sums)), c[1]], []


@pytest.mark.parametrize(
    "body",
    [mean_of_batch, from_the_other_end, numbered_rows, size_of_batch, products_of_rows],
    ids=lambda f: f.__name__,
)
def test_rows_that_depend_on_each_other_do_not(body: Body) -> None:
    agree(loop(body), SIZES)
    assert everywhere(loop(body), rows_of, lowered) is None


def test_a_row_has_the_same_bits_in_every_batch_and_on_any_number_of_threads() -> None:
    graph = lstm(steps=3, units=40, channels=6)
    programs = {threads: linked(compiled(graph), threads) for threads in (1, 2, 3)}
    arrays = arrays_for(graph, N=65)
    weights = {n: arrays[n] for n in ("kernel", "recurrent", "bias")}

    def results(batch: int, threads: int) -> list[bytes]:
        x, h, c = arrays["x"][:, :batch], arrays["h"][:batch], arrays["c"][:batch]
        program = programs[threads]
        return [y.tobytes() for y in program(x, h, c, parameters=program.bind(weights))]

    h, c, every = (np.frombuffer(y, np.float32) for y in results(65, 1))
    h, c, every = h.reshape(65, 40), c.reshape(65, 40), every.reshape(3, 65, 40)
    for batch in (1, 2, 15, 16, 17, 33, 65):
        expected = [y.tobytes() for y in (h[:batch], c[:batch], every[:, :batch])]
        assert [results(batch, threads) for threads in programs] == [expected] * 3, batch


def wide_product(b: Builder, c: Values, s: Values, w: Values) -> tuple[Values, Values]:
    """Its left side is packed first where the right side does not stay in a cache."""
    y = product(b, c[0], w[0])
    return [b("add", b("slice", y, start=(0, 0), limit=c[0].type.shape, strides=(1, 1)), s[0])], []


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda t: t.name)
def test_blocks_that_run_side_by_side_have_scratch_memory_of_their_own(
    target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contraction_tiles, "PACKED_B_L2_BYTES", 0)
    b = Builder("loop")
    carry, array = (b.input(n, TensorType.of("f32", *s)) for n, s in (("c", ("N", 64)), ("x", (2, "N", 64))))
    (last,), _ = scan(b, wide_product, [carry], [array], [b.input("w", TensorType.of("f32", 64, 128))])
    b.output(last, "y")
    graph = b.build()
    made = fused(graph, target)

    (scratch,) = (made.lowered.buffers[n] for n in scan_of(made.lowered).scratch)
    assert isinstance(scratch.block, int)
    assert all(dim_value(scratch.elements, {"N": n}) >= -(-n // 16) * scratch.block for n in range(1, 100))
    arrays = arrays_for(graph, N=17)
    assert differences(run_loops(made.lowered, arrays, {"N": 17}), run_graph(graph, arrays)) == []
    if target in RUNNABLE:
        arrays = arrays_for(graph, N=65)
        assert differences(run_native(made, arrays, threads=2), run_graph(graph, arrays)) == []


def rows_of_numbers(turns: int = 7) -> Graph:
    """y[t, n] = table[numbers[t, n]] @ w, which loops over turns read."""
    b = Builder("gates")
    numbers = b("check_indices", b.input("numbers", TensorType.of("i32", turns, "N")), low=0, high=9)
    table, w = b.input("table", TensorType.of("f32", 10, 24)), b.input("w", TensorType.of("f32", 24, 80))
    x = b("take", table, numbers, axis=0)
    b.output(b("dot_general", x, w, **MATMUL | {"lhs_contracting": (2,)}), "y")
    return b.build()


@at_every_level
@pytest.mark.parametrize("batch", [0, 1, 16, 17, 32, 41, 64])
def test_what_loops_read_is_right_for_any_batch(batch: int, target: Target) -> None:
    graph, turns = rows_of_numbers(), 7
    arrays = arrays_for(graph, N=batch)
    arrays["numbers"] = np.arange(turns * batch, dtype=np.int32).reshape(turns, batch) % 10
    made, expected = compiled(graph, target), run_graph(graph, arrays)
    for threads in (1, 2, 3):
        assert differences(run_native(made, arrays, threads=threads), expected) == [], threads
    if batch in (0, 17) or (batch == 32 and target == level(0)):  # the interpreter of loops takes its time
        assert differences(run_loops(made.lowered, arrays, {"N": batch}, threads=1 + batch % 3), expected) == []


@pytest.mark.parametrize("target", NAMED[:2], ids=lambda t: t.name)  # AArch64 has seven blocks of rows: no half
@pytest.mark.parametrize("op", ["take", "affine_contraction"])
def test_the_first_half_of_iterations_makes_what_the_first_half_of_samples_reads(op: str, target: Target) -> None:
    graph, batch, turns = rows_of_numbers(), 32, 7
    (step,) = (s for s in lowered(graph, target).steps if s.op == op)
    kernel = step.launches[-1].kernel
    rng, symbols = np.random.default_rng(0), {"N": batch, THREADS_NAME: 2}
    frame = {b.name: rng.uniform(1, 2, dim_value(b.size, symbols)).astype(b.dtype.numpy) for b in kernel.buffers}
    frame["o0"][:] = 0
    run_kernel(kernel, frame, symbols, iterations=range(iteration_count(kernel, symbols) // 2))
    written = frame["o0"].reshape(turns, batch, -1).astype(bool)
    assert (written[:, :16].all(), written[:, 16:].any()) == (True, False)


# Random bodies


def random_body(seed: int) -> Body:
    """Some ten operations on what is there, results drawn from all of it."""
    rng = np.random.default_rng(seed)

    def body(b: Builder, carries: Values, slices: Values, captured: Values) -> tuple[Values, Values]:
        values = [*carries, *slices]
        for _ in range(rng.integers(1, 8)):
            x, y = (values[i] for i in rng.integers(len(values), size=2))
            match rng.integers(6):
                case 0:
                    values.append(b("add", x, y))
                case 1:
                    values.append(b("tanh", b("multiply", x, y)))
                case 2:
                    values.append(product(b, x, captured[0]))
                case 3:
                    values.append(b("reverse", x, dimensions=(int(rng.integers(2)),)))
                case 4:
                    total = b("reduce", x, dimensions=(1,), kind="maximum")
                    values.append(b("subtract", y, b.broadcast(total, y.type.shape, dimensions=(0,))))
                case 5:
                    values.append(reshaped(b, b("negate", x), y.type.shape))
        chosen = [values[-1 - int(rng.integers(min(5, len(values))))] for _ in range(len(carries))]
        return chosen, [values[i] for i in rng.integers(len(values), size=rng.integers(4))]

    return body


@pytest.mark.parametrize("seed", range(12))
def test_random_bodies(seed: int) -> None:
    graph = loop(random_body(seed), carries=1 + seed % 3, reverse=seed % 2 == 1)
    agree(graph, [{"T": 0, "N": 1}, {"T": 3, "N": 18}], level(seed))


# What people read


@for_every_target
def test_the_text_of_the_loops_shows_where_a_scan_begins_and_ends(target: Target) -> None:
    made = lowered(loop(BODIES["old_value_stacked"], reverse=True), target)
    text = print_steps(made.steps)
    assert [line for line in text.splitlines() if line.startswith("//")] == [
        "// scan of '': T turns, from the last to the first; blocks of up to 16 rows go through all of them; "
        "N is the number of rows of a block",
        "// at the first turn",
        "// at the first turn",
        "// end of the scan of ''",
    ]
    assert parse_kernels(text) == [launch.kernel for step in made.steps for launch in step.launches]


def test_a_scan_is_one_step_of_the_profile() -> None:
    graph = lstm(steps=7)
    made = compiled(graph)
    arrays = arrays_for(graph, N=3)
    program = linked(made)
    weights = program.bind({n: arrays[n] for n in ("kernel", "recurrent", "bias")})
    profile = program.profile(arrays["x"], arrays["h"], arrays["c"], parameters=weights, calls=1)
    (step,) = (s for s in profile.steps if s.kernel.startswith("scan("))
    assert step.flops == 7 * 3 * 2 * 20 * (3 + 5)
