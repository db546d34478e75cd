"""`python -m benchmarks.overhead [CASE ...]`: what Python costs around native code, in calls, steps and batches."""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

import lepton_jit as lpt
from benchmarks.case import Problem
from benchmarks.cases import CASES
from benchmarks.peers.lepton import build_model
from lepton_jit.compiler import executable
from lepton_jit.compiler.build import build
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.types import TensorType
from lepton_jit.runtime.native import Code

ROWS = 4096
ROUNDS = 9
SECONDS = 3.0  # of rounds at least: those of fast steps differ by 1 % from one to the next


class NativeClock:
    """Adds up the time inside of native code, of every program that is linked from now on."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls = 0
        link, clock = executable.link, time.perf_counter

        def timed_link(*arguments: Any) -> Code:
            code = link(*arguments)
            run_batches = code.support.run_batches
            assert run_batches is not None

            def timed(*pointers: Any) -> int:
                start = clock()
                result = code.run(*pointers)
                self.seconds += clock() - start
                self.calls += 1
                return result

            def timed_batches(*arguments: Any) -> int:
                start = clock()
                result = run_batches(*arguments)
                self.seconds += clock() - start
                self.calls += arguments[-1]
                return result

            return replace(code, run=timed, support=replace(code.support, run_batches=timed_batches))

        executable.link = timed_link

    def reset(self) -> None:
        self.seconds, self.calls = 0.0, 0


def empty_call() -> dict[str, float]:
    """Seconds of a call of a program with nothing to do: an input, its negative, of 4 numbers."""
    b = Builder("empty")
    b.output(b("negate", b.input("x", TensorType.of("f32", "N"))), "y")
    empty = build(b.build())
    empty.bind({})
    x = np.zeros(4, np.float32)
    model, row = lpt.compile(lpt.Sequential([lpt.Activation("relu", input_shape=(4,))])), x[None]
    return {"Executable.run": fastest(lambda: empty.run(x)), "CompiledModel()": fastest(lambda: model(row))}


def fastest(call: Callable[[], Any], calls: int = 2000) -> float:
    """Seconds per call of the best of some blocks."""
    best = float("inf")
    for _ in range(ROUNDS):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        best = min(best, (time.perf_counter() - start) / calls)
    return best


def share(native: NativeClock, call: Callable[[], Any], bare: Callable[[], Any]) -> tuple[float, float, float]:
    """Seconds per native step, and medians of what a run takes above their sum, in all and in Python, as shares of it.

    Steps are timed in `bare`, which runs the same ones on rows in place: what gathers rows is no step, but no Python.
    """
    call()
    found = []
    end = time.perf_counter() + SECONDS
    while len(found) < ROUNDS or time.perf_counter() < end:
        native.reset()
        bare()
        steps, count = native.seconds, native.calls
        native.reset()
        start = time.perf_counter()
        call()
        seconds = time.perf_counter() - start
        found.append((steps / count, seconds / steps - 1, (seconds - native.seconds) / steps))
    step, above, python = (statistics.median(column) for column in zip(*found, strict=True))
    return step, above, python


def allocated(call: Callable[[], Any]) -> int:
    """Bytes that Python holds more after a call than before, once it has run twice."""
    call()
    call()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()


def runs(problem: Problem) -> dict[str, tuple[Callable[[], Any], Callable[[], Any]]]:
    """Calls that go through some batches each, and what runs the same steps on rows in place.

    Nothing is learned: near an optimum gradients become denormal numbers, and steps slower from round to round.
    """
    model = build_model(problem)
    model.compile(optimizer=lpt.optimizers.Adam(0.0), loss="sparse_categorical_crossentropy")
    repeats = -(-ROWS // len(problem.x))
    x, y = (np.concatenate([a] * repeats) for a in (problem.x, problem.labels))
    options: dict[str, Any] = {"batch_size": problem.batch, "verbose": 0}
    calls: dict[str, Callable[[], Any]] = {
        "evaluate": lambda: model.evaluate(x, y, **options),
        "predict": lambda: model.predict(x, **options),
        "train_on_batch": lambda: model.train_on_batch(problem.x, problem.labels),
    }
    ordered = {"fit": (lambda: model.fit(x, y, **options), lambda: model.fit(x, y, shuffle=False, **options))}
    return ordered | {name: (call, call) for name, call in calls.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument("cases", nargs="*", default=["mlp", "mnist_cnn"], help=f"of {', '.join(CASES)}")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    lpt.set_threads(options.threads)
    for name, seconds in empty_call().items():
        print(f"{name + ', empty program':<36} {seconds * 1e6:8.2f} us")
    native = NativeClock()
    for name in options.cases:
        for what, (run, bare) in runs(Problem(CASES[name], "training", options.batch)).items():
            seconds, above, python = share(native, run, bare)
            print(
                f"{name + ', ' + what:<36} {seconds * 1e6:8.1f} us native per batch, {above * 100:+5.1f} % in all, "
                f"{python * 100:+5.1f} % in Python, {allocated(run):,} bytes held"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
