"""The memory planner: never an overlap, close to the lower bound, fast."""

from __future__ import annotations

import ctypes
import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_jit.errors import ShapeError
from lepton_jit.runtime.plan import lower_bound, plan_offsets
from tests.runtime.programs import affine

Intervals = list[tuple[int, int, int]]  # bytes, first step, last step


def plan(intervals: Intervals) -> tuple[int, list[int]]:
    native = affine()._code.support.plan
    sizes, first, last = ([i[k] for i in intervals] for k in range(3))
    return plan_offsets(native, sizes, first, last)


def bound(intervals: Intervals) -> int:
    return lower_bound(*([i[k] for i in intervals] for k in range(3)))


def overlaps(intervals: Intervals, offsets: list[int]) -> list[tuple[int, int]]:
    """The pairs of buffers that share a step and a byte."""
    return [
        (a, b)
        for b in range(len(intervals))
        for a in range(b)
        if intervals[a][1] <= intervals[b][2]
        and intervals[b][1] <= intervals[a][2]
        and offsets[a] < offsets[b] + intervals[b][0]
        and offsets[b] < offsets[a] + intervals[a][0]
    ]


def inference(rng: random.Random, layers: int) -> Intervals:
    """A chain with short skips: each value is read by the next layer, some by a later one."""
    return [
        (int(2 ** rng.uniform(8, 20)), k, k + 1 + (rng.random() < 0.3) * rng.randrange(1, 5)) for k in range(layers)
    ]


def training(rng: random.Random, layers: int) -> Intervals:
    """Activations that wait for the backward pass, gradients and scratch that do not."""
    result = []
    for k in range(layers):
        size = int(rng.choice([1, 2, 4, 8, 16, 32]) * rng.uniform(5000, 10000))
        back = 2 * layers - 1 - k
        result += [(size, k, back), (size, back, back + 1), (int(rng.uniform(1e3, 2e5)), back, back)]
    return result


def random_intervals(rng: random.Random, n: int) -> Intervals:
    starts = [rng.randrange(n // 2 + 1) for _ in range(n)]
    return [(int(2 ** rng.uniform(6, 20)), s, s + int(rng.expovariate(1 / 8))) for s in starts]


@given(st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 12), st.integers(0, 6)), max_size=20))
def test_buffers_that_share_a_step_share_no_byte(drawn: Intervals) -> None:
    intervals = [(size, first, first + length) for size, first, length in drawn]
    total, offsets = plan(intervals)
    assert overlaps(intervals, offsets) == []
    assert [o % 64 for o in offsets] == [0] * len(offsets)
    assert total >= bound(intervals)
    assert all(o + s <= total for o, (s, _, _) in zip(offsets, intervals, strict=True))


@pytest.mark.parametrize(
    ("kind", "count", "mean", "worst"),
    [
        (inference, 40, 0.0, 0.0),
        (training, 20, 0.003, 0.03),
        (training, 60, 0.003, 0.02),
        (random_intervals, 200, 0.02, 0.1),
    ],
)
def test_the_gap_to_the_lower_bound_is_small(kind, count: int, mean: float, worst: float) -> None:
    rng = random.Random(1)
    gaps = []
    for _ in range(15):
        intervals = kind(rng, count)
        gaps.append(plan(intervals)[0] / bound(intervals) - 1)
    assert sum(gaps) / len(gaps) <= mean
    assert max(gaps) <= worst


def test_a_plan_of_three_hundred_buffers_takes_milliseconds() -> None:
    intervals = random_intervals(random.Random(2), 300)
    times = []
    for _ in range(5):
        start = time.thread_time()  # of the processor: other programs take none of it
        plan(intervals)
        times.append(time.thread_time() - start)
    assert min(times) < 0.03


def test_a_thousand_buffers_are_planned() -> None:
    intervals = training(random.Random(3), 333)
    total, offsets = plan(intervals)
    assert overlaps(intervals, offsets) == []
    assert total / bound(intervals) < 1.02


def test_no_buffer_needs_no_memory() -> None:
    assert plan([]) == (0, [])
    assert plan([(0, 0, 3), (0, 1, 2)])[0] == 0


def test_a_size_beyond_any_memory_is_refused() -> None:
    with pytest.raises(ShapeError, match="beyond any memory"):
        plan([(2**50, 0, 1)])


@pytest.mark.parametrize(
    "intervals",
    [
        [(256, 1, 5), (192, 0, 4), (128, 2, 3), (448, 4, 8), (64, 2, 5), (192, 4, 4), (320, 5, 8)],
        [(256, 2, 5), (320, 5, 9), (320, 5, 8), (384, 0, 4), (384, 1, 5), (448, 2, 6)],
    ],
)
def test_one_of_the_orders_reaches_the_lower_bound(intervals: Intervals) -> None:
    """Largest first, or in the order of their time, leaves gaps here."""
    assert plan(intervals)[0] == bound(intervals)


@pytest.mark.parametrize("sizes", [(64, 2**46 + 1), (-1, 64)])
def test_the_native_planner_refuses_sizes_by_itself(sizes: tuple[int, int]) -> None:
    """An exported program has no Python around it."""
    arrays = (
        (ctypes.c_int64 * 2)(*sizes),
        (ctypes.c_int32 * 2)(0, 0),
        (ctypes.c_int32 * 2)(1, 1),
        (ctypes.c_int64 * 2)(),
    )
    assert affine()._code.support.plan(2, *arrays) == -2
