"""`python -m benchmarks [CASE ...]`: measure, print, and write a machine-readable result and a chart."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.case import Problem
from benchmarks.cases import CASES
from benchmarks.contender import OURS, PEERS
from benchmarks.fresh import compare, exported_peak_bytes, import_seconds, onnx_runtime_peak_bytes, run_process
from benchmarks.machine import describe_machine
from benchmarks.report import progress
from benchmarks.timing import Protocol

EXAMPLES = """\
examples:
  python -m benchmarks                                everything; about an hour on two cores
  python -m benchmarks mnist_cnn --threads 1          one case on one core
  python -m benchmarks mlp --quick                    does it run? The figures mean nothing.
  python -m benchmarks --mode training --peers PyTorch JAX
"""
QUICK = Protocol(rounds=3, block=0.01, pause=0.01)
QUIET_LOAD = 0.5
# The package imports its parts when they are first used, so that the first line alone would flatter it.
IMPORTS = {
    "lepton_jit": "lepton_jit",
    "numpy": "numpy",
    "lepton_jit, layers and models": "lepton_jit.models",
    "lepton_jit, all for compiling": "lepton_jit.models, lepton_jit.compiler.build, llvmlite.binding",
}
RESULTS = Path(__file__).resolve().parent / "results"


def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    problems = _problems(options)
    options.output.mkdir(parents=True, exist_ok=True)
    machine = describe_machine()
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    print(f"{machine['cpu']} ({machine['target']}), {machine['processors']} processors, load {machine['load']:.1f}")
    print(f"Python {machine['python']}, {versions}")
    if machine["load"] > QUIET_LOAD:
        # Seen here: a step of PyTorch on two threads took 255 ms instead of 25, as its workers spin.
        print("Other programs are running: do not trust these figures, least of all those of several threads.")
    result: dict[str, Any] = {"machine": machine, "protocol": dataclasses.asdict(_protocol(options))}
    result["import_seconds"] = {
        what: import_seconds(modules, 1 if options.quick else 5) for what, modules in IMPORTS.items()
    }
    for what, seconds in result["import_seconds"].items():
        print(f"import {what}: {seconds * 1e3:.0f} ms")
    result["measurements"] = _measure_all(options, problems)
    report.print_summary(result["measurements"])
    fresh = not options.quick if options.fresh is None else options.fresh
    result["fresh"] = _fresh_all(options, problems) if fresh else {}
    report.print_fresh_summary(result["fresh"])
    _write(options.output, result)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    peers = [name for name in PEERS if name != OURS]
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"of {', '.join(CASES)}; by default all")
    parser.add_argument("--mode", choices=("inference", "training"), help="by default both")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="by default 1 2")
    parser.add_argument("--peers", nargs="*", default=peers, metavar="PEER", help=f"of {', '.join(map(repr, peers))}")
    parser.add_argument("--fixed", action="store_true", help="our models take their batch only, as many ONNX files do")
    parser.add_argument("--rounds", type=int, default=Protocol.rounds, help=f"by default {Protocol.rounds}")
    parser.add_argument("--quick", action="store_true", help="a short run, to see whether everything works")
    parser.add_argument(
        "--fresh",
        action=argparse.BooleanOptionalAction,
        help="compile times and memory, of new processes; by default yes, but not with --quick",
    )
    parser.add_argument("--output", type=Path, default=RESULTS, metavar="DIR", help="by default benchmarks/results")
    return parser


def _protocol(options: argparse.Namespace) -> Protocol:
    return QUICK if options.quick else Protocol(rounds=options.rounds)


def _problems(options: argparse.Namespace) -> list[Problem]:
    unknown = [name for name in options.cases if name not in CASES]
    unknown += [name for name in options.peers if name not in PEERS]
    if unknown:
        sys.exit(
            f"benchmarks: expected cases of {', '.join(CASES)} and peers of {', '.join(PEERS)}, got {unknown[0]!r}"
        )
    chosen = [CASES[name] for name in options.cases] or list(CASES.values())
    problems = [p for case in chosen for p in case.problems() if options.mode in (None, p.mode)]
    return [dataclasses.replace(p, fixed=options.fixed) for p in problems]


def _request(problem: Problem, threads: int) -> dict[str, Any]:
    what = {"case": problem.case.name, "mode": problem.mode, "batch": problem.batch, "fixed": problem.fixed}
    return {**what, "threads": threads}


def _measure_all(options: argparse.Namespace, problems: Sequence[Problem]) -> dict[str, Any]:
    protocol = dataclasses.asdict(_protocol(options))
    measurements = {}
    for problem in problems:
        for threads in options.threads:
            request = _request(problem, threads)
            label = f"{problem.label}, {threads} thread{'s' if threads > 1 else ''}"
            wanted = {**request, "peers": [OURS, *options.peers], "protocol": protocol}
            with progress(label) as watch:
                found = run_process("benchmarks.worker", wanted, watch=watch)
            measurements[label] = {**request, **found}
            report.print_measurement(label, measurements[label])
    return measurements


def _fresh_all(options: argparse.Namespace, problems: Sequence[Problem]) -> dict[str, Any]:
    """At the largest number of threads, and of every mode at the first batch that the case has."""
    found: dict[str, Any] = {}
    seen = set()
    for problem in problems:
        if (problem.case.name, problem.mode) in seen:
            continue
        seen.add((problem.case.name, problem.mode))
        request = _request(problem, max(options.threads))
        names = [name for name in (OURS, *options.peers) if PEERS[name].takes(problem)]
        rows: dict[str, Any] = {}
        with progress(f"{problem.label}, new processes") as watch:
            for name in names:
                watch(name)
                if PEERS[name].why_not(problem) is None:
                    rows[name] = compare(request, name)
        if problem.mode == "inference":
            rows[report.IN_C] = {"peak_bytes": exported_peak_bytes(request)}
            if "ONNX Runtime" in rows:
                rows[report.FROM_FILE] = {"peak_bytes": onnx_runtime_peak_bytes(request)}
        found[problem.label] = rows
        report.print_fresh(problem.label, rows)
    return found


def _write(directory: Path, result: dict[str, Any]) -> None:
    stem = directory / time.strftime("%Y-%m-%d-%H%M%S")
    data = stem.with_suffix(".json")
    data.write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{data}")
    if not any(report.best_peer(m) for m in result["measurements"].values()):
        return
    try:
        chart = stem.with_suffix(".png")
        machine = result["machine"]
        report.write_chart(chart, result["measurements"], f"{machine['cpu']} ({machine['target']})")
        print(chart)
    except ImportError as error:
        print(f"no chart: {error}")


if __name__ == "__main__":
    sys.exit(main())
