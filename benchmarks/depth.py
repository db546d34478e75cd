"""How compile time grows with depth: `python -m benchmarks.depth [18 50 101 152]`.

Residual networks, from `lpt.compile` to the first result, in new processes: cold with an empty cache, cached with what
that left. Imports, the drawing of weights and the model's own construction are not counted. The processor's time, of
`lpt.compile` alone, is what to read on a machine that is not quiet.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from benchmarks.cases.resnet import BLOCKS
from benchmarks.machine import describe_machine
from benchmarks.report import console, progress

__all__ = ["compile_seconds", "main"]

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """\
import json, sys, time
import llvmlite.binding, lepton_jit.compiler.build, lepton_jit.codegen.generate
import lepton_jit as lpt
from benchmarks.case import Case, Problem
from benchmarks.cases.resnet import resnet
from benchmarks.peers.lepton import build_model

case = Case("resnet", resnet(int(sys.argv[1]), 1000), input_shape=(224, 224, 3), classes=1000, inference=(1,))
problem = Problem(case, "inference", 1)
model, x = build_model(problem), problem.x
start, processor = time.perf_counter(), time.process_time()
fast = lpt.compile(model)
processor = time.process_time() - processor
fast(x)
done = time.perf_counter()
steps = len(fast.executable.program.manifest.steps)
made = fast.executable
code = sum(map(len, made.main.objects + made.prepare.objects))
print(json.dumps({"processor": processor, "result": done - start, "steps": steps, "code": code}))
"""


def compile_seconds(depth: int, cache: str) -> dict[str, float]:
    """Seconds to the first `result`, `processor` seconds of compiling, the program's `steps`, and bytes of `code`."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, str(depth)],
        cwd=ROOT,
        env=os.environ | {"LEPTON_JIT_CACHE": cache},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    return json.loads(done.stdout)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.depth", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("depths", nargs="*", type=int, default=list(BLOCKS), help=f"of {', '.join(map(str, BLOCKS))}")
    parser.add_argument("--repeats", type=int, default=3, help="the least of so many; by default 3")
    options = parser.parse_args(arguments)
    table = Table(box=None, pad_edge=False)
    for header in ("layers", "steps", "code KB", "cold s", "cached s", "processor: cold s", "ms a layer", "cached s"):
        table.add_column(header, justify="right")
    for depth in options.depths:
        with progress(f"resnet{depth}") as watch:
            pairs = []
            for i in range(options.repeats):
                watch(f"{i + 1} of {options.repeats}")
                with tempfile.TemporaryDirectory(prefix="lepton-bench-") as cache:
                    pairs.append((compile_seconds(depth, cache), compile_seconds(depth, cache)))
        cold, cached = ({key: min(run[key] for run in runs) for key in runs[0]} for runs in zip(*pairs, strict=True))
        table.add_row(
            str(depth),
            f"{cold['steps']:.0f}",
            f"{cold['code'] / 1024:.0f}",
            f"{cold['result']:.3f}",
            f"{cached['result']:.3f}",
            f"{cold['processor']:.3f}",
            f"{cold['processor'] / depth * 1e3:.1f}",
            f"{cached['processor']:.3f}",
        )
    out = console()
    out.print(f"{describe_machine()['cpu']}, least of {options.repeats}, from compile to the first result")
    out.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
