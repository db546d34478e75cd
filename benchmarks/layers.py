"""Where the time of one of our programs goes: `python -m benchmarks.layers resnet50 [--threads 2]`.

The steps that lose most, by what they take beyond their operations at the peak, with operations, share of the peak,
traffic and layer; and the same for kinds of steps.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from rich.table import Table

from benchmarks.case import Problem
from benchmarks.cases import CASES
from benchmarks.machine import describe_machine
from benchmarks.peak import fma_peak
from benchmarks.peers.lepton import build_native
from benchmarks.report import console
from lepton_jit.runtime.profile import Profile, StepTime

__all__ = ["Row", "fastest", "main", "rows_by_kernel", "rows_by_step"]

# Of so many short profiles, each step's least time counts: what else runs on the machine only ever adds.
ROUNDS = 11
SECONDS_A_ROUND = 0.02
HEADERS = ("step", "us", "share", "MFLOP", "GFLOP/s", "of peak", "KB", "GB/s", "lost us", "layer", "kernel")


@dataclass(frozen=True)
class Row:
    """Steps together: seconds, operations and bytes of a call; `lost`, the seconds beyond those at the peak."""

    name: str
    layer: str
    kernel: str
    seconds: float
    flops: int
    bytes: int
    lost: float


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    problem = _problem(options)
    # Before anything is compiled: a pool with more workers than processors would be measured otherwise.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.threads :])
    native = build_native(problem, options.threads)
    start = time.perf_counter()
    native.run()
    calls = max(1, round(SECONDS_A_ROUND / (time.perf_counter() - start)))
    peak = fma_peak(options.threads)
    profile = fastest([native.profile(calls) for _ in range(options.rounds)])
    profile = replace(profile, peak=max(peak, fma_peak(options.threads)))
    _print(problem, profile, options)
    return 0


def fastest(profiles: Sequence[Profile]) -> Profile:
    """Each step's least time of several profiles of one program."""
    first = profiles[0]
    times = [min(p.steps[i].seconds for p in profiles) for i in range(len(first.steps))]
    steps = tuple(replace(s, seconds=t) for s, t in zip(first.steps, times, strict=True))
    return replace(first, steps=steps)


def rows_by_step(profile: Profile) -> list[Row]:
    """A row a step, in the order of the program."""
    return [_row(str(i), step.layer, step.kernel, [step], profile) for i, step in enumerate(profile.steps)]


def rows_by_kernel(profile: Profile) -> list[Row]:
    """A row for each kind of kernel, with the number of its steps; those first that lose most."""
    kinds: dict[str, list[StepTime]] = {}
    for step in profile.steps:
        kinds.setdefault(step.kernel, []).append(step)
    rows = [_row(f"x {len(steps)}", "", kernel, steps, profile) for kernel, steps in kinds.items()]
    return sorted(rows, key=lambda row: -row.lost)


def _row(name: str, layer: str, kernel: str, steps: Sequence[StepTime], profile: Profile) -> Row:
    seconds, flops, traffic = (sum(getattr(s, key) for s in steps) for key in ("seconds", "flops", "bytes"))
    assert profile.peak is not None
    return Row(name, layer, kernel, seconds, flops, traffic, seconds - flops / profile.peak)


def _print(problem: Problem, profile: Profile, options: argparse.Namespace) -> None:
    assert profile.peak is not None
    rows = rows_by_step(profile)
    flops = sum(row.flops for row in rows)
    out = console()
    out.print(
        f"{problem.label}, {options.threads} thread{'s' if options.threads > 1 else ''}, {describe_machine()['cpu']}, "
        f"FMA peak {profile.peak * 1e-9:.0f} GFLOP/s: {profile.seconds * 1e3:.3f} ms in {len(rows)} steps, "
        f"{flops * 1e-6:,.0f} MFLOP, {flops / profile.seconds / profile.peak:.1%} of peak"
    )
    if options.steps:
        out.print(_table("Every step", rows, profile))
    most = sorted(rows, key=lambda row: -row.lost)[: options.top]
    out.print(_table(f"The {len(most)} steps that lose most", most, profile))
    out.print(_table("Kinds of steps, those first that lose most", rows_by_kernel(profile)[: options.top], profile))


def _table(title: str, rows: Sequence[Row], profile: Profile) -> Table:
    table = Table(title=f"\n{title}", title_justify="left", title_style="bold", box=None, pad_edge=False)
    for header in HEADERS:
        text = header in ("layer", "kernel")
        table.add_column(header, justify="left" if text else "right", no_wrap=not text, overflow="fold")
    for row in rows:
        rate = row.flops / row.seconds if row.seconds else 0.0
        table.add_row(
            row.name,
            f"{row.seconds * 1e6:,.1f}",
            f"{row.seconds / profile.seconds:.1%}",
            f"{row.flops * 1e-6:,.1f}" if row.flops else "",
            f"{rate * 1e-9:.1f}" if row.flops else "",
            f"{rate / profile.peak:.0%}" if row.flops and profile.peak else "",
            f"{row.bytes / 1024:,.0f}",
            f"{row.bytes / row.seconds * 1e-9:.1f}" if row.seconds else "",
            f"{row.lost * 1e6:,.1f}",
            row.layer,
            row.kernel,
        )
    return table


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.layers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("case", choices=list(CASES), metavar="CASE", help=f"of {', '.join(CASES)}")
    parser.add_argument("--mode", choices=("inference", "training"), help="by default the first that the case has")
    parser.add_argument("--batch", type=int, help="by default the case's first")
    parser.add_argument("--fixed", action="store_true", help="a model of this batch only")
    parser.add_argument("--threads", type=int, default=1, help="by default 1")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"by default {ROUNDS}")
    parser.add_argument("--top", type=int, default=20, help="how many of the steps that lose most; by default 20")
    parser.add_argument("--steps", action="store_true", help="every step as well, in order")
    return parser


def _problem(options: argparse.Namespace) -> Problem:
    problems = [p for p in CASES[options.case].problems() if options.mode in (None, p.mode)]
    if not problems:
        sys.exit(f"benchmarks.layers: {options.case} has no {options.mode}")
    return replace(problems[0], batch=options.batch or problems[0].batch, fixed=options.fixed)


if __name__ == "__main__":
    sys.exit(main())
