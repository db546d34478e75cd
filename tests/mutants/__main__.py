"""Mutation testing: `python -m tests.mutants` draws mutants by a fixed seed, and counts those that the tests notice.

Each mutant runs in a process forked from one that has imported pytest and NumPy, but nothing of this package: the
module is mutated while it is imported, and no file changes. What was found is kept in a file, a line a mutant, so that
a run goes on where it was stopped; `--again` runs those once more that were alive.
"""

from __future__ import annotations

import argparse
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import resource
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tests.mutants.candidates import Mutant, mutants_of
from tests.mutants.suites import SUITES, Suite

ROOT = Path(__file__).resolve().parents[2]
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
PRELOADED = ("hypothesis", "llvmlite.binding", "llvmlite.ir", "networkx", "numpy", "pytest", "safetensors.numpy")
# Hypothesis comes with a plugin, and would rather be imported by it.
PYTEST = ("-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-W", "ignore::pytest.PytestAssertRewriteWarning")
MEMORY = 6 << 30
# A mutant that takes so many seconds of processor time, or that waits so long for ever, is noticed by the clock.
PROCESSOR, WAIT = 120, 1200
Stages = tuple[tuple[str, ...], ...]
KILLED, ALIVE, TIMEOUT, EQUAL = "killed", "alive", "timeout", "equivalent"


def main() -> int:
    options = _options()
    known = _read(options.results)
    equivalent = _equivalent()
    drawn = _drawn(options.count, options.seed)
    if options.list:
        print("\n".join(f"{known.get(m.key, {}).get('state', '-'):8} {m.key}" for m, _ in drawn))
        return 0
    waiting = [
        (mutant, suite)
        for mutant, suite in drawn
        if mutant.key not in equivalent
        and options.only in mutant.key
        and (mutant.key not in known or (options.again and known[mutant.key]["state"] == ALIVE))
    ]
    # What fails without any change would kill every mutant.
    unchanged = [(Mutant(s.paths(ROOT)[0], f"{s.files[0]}: nothing changed", 0, 0, 0, ""), s) for s in SUITES]
    unchanged = [pair for pair in unchanged if pair[0].key not in known and not options.only]
    _preload()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # whoever stops this stops what it has started
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with options.results.open("a") as results:
        for batch in (waiting, unchanged):
            for record in _run(batch, options.jobs, options.long):
                known[record["key"]] = record
                print(f"{record['state']:8} {record['seconds']:6.1f} s  {record['key']}  {record['test']}", flush=True)
                if batch is unchanged and record["state"] != ALIVE:
                    return 1
                print(json.dumps(record), file=results, flush=True)
    states = {m.key: EQUAL if m.key in equivalent else known.get(m.key, {}).get("state", "not run") for m, _ in drawn}
    print(_table(drawn, states))
    print(
        *(
            f"{EQUIVALENT.name}: no mutant is called {key!r}"
            for key in equivalent.keys() - {mutant.key for mutant, _ in _candidates()}
        ),
        sep="\n",
    )
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=main.__doc__)
    parser.add_argument("--count", type=int, default=300, help="how many to draw")
    parser.add_argument("--seed", type=int, default=21)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "mutants.jsonl")
    parser.add_argument("--only", default="", help="run those whose name contains this")
    parser.add_argument("--again", action="store_true", help="run those that were alive once more")
    parser.add_argument("--long", action="store_true", help="with the tests that take long")
    parser.add_argument("--list", action="store_true", help="print what is drawn, and its state")
    return parser.parse_args()


def _drawn(count: int, seed: int) -> list[tuple[Mutant, Suite]]:
    """In the order of the draw, so that what has run so far is a fair sample as well."""
    return sorted(_candidates(), key=lambda pair: pair[0].rank(seed))[:count]


def _candidates() -> list[tuple[Mutant, Suite]]:
    files = [(file, suite) for suite in SUITES for file in suite.paths(ROOT)]
    return [(mutant, suite) for file, suite in files for mutant in mutants_of(ROOT, file)]


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    return {record["key"]: record for record in map(json.loads, path.read_text().splitlines())}


def _equivalent() -> dict[str, str]:
    """Mutants that no test can notice, each with the reason: lines of a name and an indented reason below it."""
    lines = [line for line in EQUIVALENT.read_text().splitlines() if line and not line.startswith("#")]
    return {key: reason.strip() for key, reason in zip(lines[::2], lines[1::2], strict=True)}


def _preload() -> None:
    os.environ.update(LEPTON_JIT_CACHE="off", KERAS_BACKEND="jax", OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1")
    for name in PRELOADED:
        importlib.import_module(name)
    os.chdir(ROOT)


@dataclass
class _Child:
    mutant: Mutant
    report: Path
    started: float


def _run(waiting: Sequence[tuple[Mutant, Suite]], jobs: int, long: bool) -> Iterator[dict[str, Any]]:
    pending = list(reversed(waiting))
    running: dict[int, _Child] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            while pending or running:
                while pending and len(running) < jobs:
                    mutant, suite = pending.pop()
                    report = Path(folder) / str(len(pending))
                    running[_fork(mutant, _stages(mutant, suite, long), report)] = _Child(
                        mutant, report, time.monotonic()
                    )
                yield from _finished(running)
        finally:
            for pid in running:
                os.killpg(pid, signal.SIGKILL)


def _stages(mutant: Mutant, suite: Suite, long: bool) -> Stages:
    doctests = ((mutant.file,),) if b">>> " in (ROOT / mutant.file).read_bytes() else ()
    return doctests + suite.stages + suite.long * long


def _finished(running: dict[int, _Child]) -> Iterator[dict[str, Any]]:
    time.sleep(0.02)
    for pid, child in list(running.items()):
        late = time.monotonic() - child.started > WAIT
        if late:
            os.killpg(pid, signal.SIGKILL)
        done, status, usage = os.wait4(pid, 0 if late else os.WNOHANG)
        if not done:
            continue
        del running[pid]
        test = child.report.read_text() if child.report.exists() else ""
        code, seconds = os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime
        state = TIMEOUT if late or seconds >= PROCESSOR else KILLED if code else ALIVE
        yield {"key": child.mutant.key, "state": state, "seconds": round(seconds, 1), "test": test}


def _fork(mutant: Mutant, stages: Stages, report: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code = 1
    try:
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CPU, (PROCESSOR, PROCESSOR))
        quiet = os.open(os.devnull, os.O_WRONLY)
        os.dup2(quiet, 1)
        os.dup2(quiet, 2)
        _install(mutant)
        code = _test(stages, report)
    finally:
        os._exit(code)


def _test(stages: Stages, report: Path) -> int:
    """0 if every test passes."""
    import pytest

    class Names:
        """Writes down the test that is running: the last one is the one that noticed the mutant."""

        @staticmethod
        def pytest_runtest_logstart(nodeid: str) -> None:
            report.write_text(nodeid)

    for stage in stages:
        report.write_text(f"import of {stage[0]}")
        code = pytest.main([*PYTEST, *stage], plugins=[Names()])
        if code:
            return int(code)
    return 0


def _install(mutant: Mutant) -> None:
    """From here on the module is imported with the change, or the file of native code read with it."""
    path = ROOT / mutant.file
    text = mutant.text(path.read_bytes())
    if path.suffix == ".py":
        name = mutant.file.removesuffix(".py").replace("/", ".")
        sys.meta_path.insert(0, _Finder(name, path, compile(text, str(path), "exec", dont_inherit=True)))
        importlib.import_module(name)  # before pytest reads its doctests from the file
        return
    read_text = Path.read_text

    def mutated(self: Path, *args: Any, **options: Any) -> str:
        return text.decode() if self == path else read_text(self, *args, **options)

    Path.read_text = mutated


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        self.name, self.path, self.code = name, path, code

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> Any:
        if fullname != self.name:
            return None
        loader = _Loader(fullname, self.path, self.code)
        return importlib.util.spec_from_file_location(fullname, self.path, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, name: str, path: Path, code: CodeType) -> None:
        super().__init__(name, str(path))
        self.code = code

    def get_code(self, fullname: str) -> CodeType:
        return self.code


def _table(drawn: Sequence[tuple[Mutant, Suite]], states: dict[str, str]) -> str:
    """Of each file, and of all: how many were drawn, noticed (by a test or the clock), alive and equivalent."""
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    for mutant, suite in drawn:
        for row in (f"{suite.name}: {mutant.file.removeprefix('lepton_jit/')}", "~ all"):
            counts[row][states[mutant.key]] += 1
    lines = ["| part | drawn | killed | alive | equivalent | not run | killed of the rest |", "|---|" + "--:|" * 6]
    for row, count in sorted(counts.items()):
        killed, total = count[KILLED] + count[TIMEOUT], count.total()
        share = 100 * killed / max(total - count[EQUAL] - count["not run"], 1)
        cells = (total, killed, count[ALIVE], count[EQUAL], count["not run"], f"{share:.0f} %")
        lines.append(f"| {row.removeprefix('~ ')} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
