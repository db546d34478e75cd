"""One process that measures one problem at one number of threads: every contender checked, then all interleaved.

`python -m benchmarks.worker '{"case": "mlp", "mode": "inference", "batch": 1, "threads": 1, ...}'` prints JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

__all__ = ["ANSWER_TOLERANCE", "MARK", "PROGRESS", "limit_processors", "measure"]

ANSWER_TOLERANCE = 1e-4
# What a log of a peer may say on standard output must not be taken for the result.
MARK = "benchmark-result:"
# Lines of standard error that the command shows while it waits.
PROGRESS = "benchmark-progress:"


def main() -> None:
    request = json.loads(sys.argv[1])
    limit_processors(request["threads"])
    result = measure(request)
    print(MARK + json.dumps(result))


def limit_processors(threads: int) -> None:
    """Before any peer is imported: XLA has no other setting, and a pool beyond the limit cannot cheat."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-threads:])


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Times in seconds per call and round, the measured peaks, and why a contender is missing."""
    # Peers read the number of processors when they are imported, so that nothing may be before the limit is set.
    from benchmarks.cases import requested
    from benchmarks.contender import OURS, PEERS
    from benchmarks.peak import fma_peak
    from benchmarks.timing import Protocol, interleave

    problem = requested(request)
    threads = request["threads"]
    calls, answers, missing, first_answers = {}, {}, {}, {}
    for name in request["peers"]:
        if not PEERS[name].takes(problem):
            continue
        if (reason := PEERS[name].why_not(problem)) is not None:
            missing[name] = reason
            continue
        start = time.perf_counter()
        _tell(f"{name}: compiling")
        try:
            contender = PEERS[name].build(problem, threads)
        except ImportError as error:
            missing[name] = f"not installed: {error}"
            continue
        answers[name] = contender.answer()
        first_answers[name] = time.perf_counter() - start
        calls[name] = contender.call
    errors = _check(problem.label, answers)
    peaks: list[float] = []
    protocol = Protocol(**request["protocol"])

    def between_rounds() -> None:
        peaks.append(fma_peak(threads))
        _tell(f"round {len(peaks)} of {protocol.rounds}")

    times = interleave(calls, protocol, between_rounds)
    return {
        "flops": problem.flops,
        "seconds": times,
        "peaks": peaks,
        "missing": missing,
        "errors": errors,
        "first_answers": first_answers,
        "plan": _plan(problem, threads) if OURS in calls else None,
    }


def _plan(problem: Any, threads: int) -> dict[str, int]:
    """Bytes of our memory plan; its program is in the cache by now."""
    from benchmarks.peers.lepton import build_native

    plan = build_native(problem, threads).plan()
    return {"arena": plan.arena, "lower_bound": plan.lower_bound}


def _tell(progress: str) -> None:
    print(PROGRESS + progress, file=sys.stderr, flush=True)


def _check(label: str, answers: dict[str, Any]) -> dict[str, float]:
    """The relative error of each answer against the first peer's, or against ours; too large a one ends the run."""
    import numpy as np

    from benchmarks.contender import OURS

    reference = next((name for name in answers if name != OURS), OURS)
    expected = np.asarray(answers[reference], np.float64)
    errors = {}
    for name, answer in answers.items():
        got = np.asarray(answer, np.float64)
        if got.shape != expected.shape:
            sys.exit(f"{label}: {name} answers with shape {got.shape}, {reference} with {expected.shape}")
        errors[name] = float(np.abs(got - expected).max() / np.abs(expected).max())
        if not errors[name] <= ANSWER_TOLERANCE:
            values = f"{got.ravel()[:5]}, {expected.ravel()[:5]}"
            sys.exit(f"{label}: {name} differs from {reference} by {errors[name]:.1e}: {values}")
    return errors


if __name__ == "__main__":
    main()
