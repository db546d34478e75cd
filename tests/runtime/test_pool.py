"""The thread pool: every iteration once, the same bits on any number of threads; busy, nested, forked, idle."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from lepton_jit.runtime.arguments import address_of
from lepton_jit.runtime.program import Program
from tests.runtime.programs import COUNT, GATE, MEET, NESTED, affine, elementwise, one_step


def counts(program: Program, n: int) -> np.ndarray:
    """How often each of n iterations ran."""
    x, y = np.zeros(n, np.float32), np.zeros(n, np.float32)
    program.run((n,), program.bind([]), (x,), (y,))
    return y


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
@pytest.mark.parametrize("grain", [1, 7, 64, 1000])
def test_every_iteration_runs_exactly_once(threads: int, grain: int) -> None:
    program = one_step("count", elementwise(COUNT), grain=grain, threads=threads)
    for n in (0, 1, 2, 63, 64, 65, 999, 1000, 1001):
        assert counts(program, n).tolist() == [1.0] * n


@pytest.mark.parametrize("grain", [-1, -7, -64])
def test_a_kernel_that_turns_runs_every_iteration_once_in_both_directions(grain: int) -> None:
    for threads in (1, 2):
        program = one_step("count", elementwise(COUNT), grain=grain, threads=threads)
        for n in (0, 1, 2, 63, 64, 65, 999):
            x, y, bound = np.zeros(n, np.float32), np.zeros(n, np.float32), program.bind([])
            for _ in range(4):
                program.run((n,), bound, (x,), (y,))
            assert y.tolist() == [4.0] * n


@pytest.mark.parametrize("threads", [1, 2, 8])
@pytest.mark.parametrize("width", [1, 3, 784, 20_000])
def test_rows_are_gathered_as_numpy_takes_them(threads: int, width: int) -> None:
    random = np.random.default_rng(0)
    table, rows = random.integers(0, 256, (90, width), np.uint8), random.permutation(90)[:64]
    taken = np.zeros((65, width), np.uint8)
    affine(threads).gather_rows(address_of(table), address_of(rows), len(rows), width, address_of(taken))
    assert (taken[:64] == table[rows]).all()
    assert not taken[64].any()


def test_ten_thousand_jobs_in_a_row_lose_no_iteration() -> None:
    program = one_step("count", elementwise(COUNT), grain=1, threads=4)
    x, y = np.zeros(5, np.float32), np.zeros(5, np.float32)
    bound = program.bind([])
    for _ in range(10_000):
        program.run((5,), bound, (x,), (y,))
    assert y.tolist() == [10_000.0] * 5


def test_threads_do_not_change_a_bit() -> None:
    x = np.random.default_rng(0).normal(size=5000).astype(np.float32)
    results = []
    for threads in (1, 2, 8):
        program = affine(threads)
        (y,) = program(x, parameters=program.bind([np.array([0.1], np.float32)]))
        results.append(y.tobytes())
    assert results[1:] == results[:-1]


def test_two_chunks_run_at_the_same_time_on_two_threads() -> None:
    program = one_step("meet", MEET, grain=1, threads=2)
    assert [program(np.zeros(2))[0].tolist() for _ in range(3)] == [[1.0, 1.0]] * 3


def test_one_thread_runs_the_whole_range_in_one_call() -> None:
    program = one_step("alone", MEET, grain=1, threads=1)
    assert program(np.zeros(2))[0][0] == 0.0


def test_a_sleeping_worker_comes_back() -> None:
    program = one_step("meet_again", MEET, grain=1, threads=2)
    for _ in range(3):
        time.sleep(0.02)
        assert program(np.zeros(2))[0].tolist() == [1.0, 1.0]


def test_parallel_loops_inside_parallel_loops_run_alone() -> None:
    program = one_step("nested", NESTED, grain=1, threads=4)
    assert program(np.zeros(40))[0].tolist() == [8.0] * 40


def test_fifty_python_threads_call_at_once() -> None:
    program = affine(2)
    bound = program.bind([np.array([1.0], np.float32)])
    wrong: list[int] = []

    def call(seed: int) -> None:
        x = np.random.default_rng(seed).normal(size=200 + seed).astype(np.float32)
        for _ in range(20):
            (y,) = program(x, parameters=bound)
            if not np.array_equal(y, 2 * x + np.float32(1)):
                wrong.append(seed)

    workers = [threading.Thread(target=call, args=(seed,)) for seed in range(50)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert wrong == []


def in_child(check: Callable[[], bool]) -> bool:
    """The result of `check` in a forked child, which may take ten seconds."""
    pid = os.fork()
    if pid == 0:
        try:
            os._exit(0 if check() else 1)
        finally:
            os._exit(2)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.005)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    return False


def test_a_forked_child_starts_workers_of_its_own() -> None:
    program = one_step("meet_in_child", MEET, grain=1, threads=2)
    met = [[1.0, 1.0]] * 3
    assert [program(np.zeros(2))[0].tolist() for _ in range(3)] == met
    assert in_child(lambda: [program(np.zeros(2))[0].tolist() for _ in range(3)] == met)
    assert [program(np.zeros(2))[0].tolist() for _ in range(3)] == met


@contextlib.contextmanager
def busy_pool() -> Iterator[None]:
    """Another thread holds the pool: its kernel waits at a gate until the block ends."""
    program = one_step("gate", GATE, grain=1, threads=2)
    gate = np.zeros(2, np.float32)
    runner = threading.Thread(target=program, args=(gate,))
    runner.start()
    try:
        time.sleep(0.01)
        yield
        assert runner.is_alive()
    finally:
        gate[:] = 1
        runner.join()


def test_a_child_forked_while_the_pool_was_busy_is_not_stuck() -> None:
    program = one_step("meet_after_busy", MEET, grain=1, threads=2)
    program(np.zeros(2))
    with busy_pool():
        assert in_child(lambda: program(np.zeros(2))[0].tolist() == [1.0, 1.0])


def test_a_caller_that_finds_the_pool_busy_runs_alone() -> None:
    program = one_step("count_alone", elementwise(COUNT), grain=1, threads=2)
    with busy_pool():
        assert counts(program, 100).tolist() == [1.0] * 100


def test_an_idle_pool_burns_no_core() -> None:
    program = one_step("count_idle", elementwise(COUNT), grain=1, threads=2)
    counts(program, 100)
    time.sleep(0.01)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.05
