"""Compile time and peak memory, in a new process for each contender.

`python -m benchmarks.fresh '{"case": "mlp", "mode": "inference", "batch": 1, "threads": 1, "peer": "JAX"}'` prints
JSON. `compare` starts such processes: twice with the same empty cache, so that the second finds what the first left.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.worker import MARK, PROGRESS, limit_processors

__all__ = ["compare", "exported_peak_bytes", "import_seconds", "onnx_runtime_peak_bytes", "run_process"]

ROOT = Path(__file__).resolve().parent.parent

C_PROGRAM = """\
#include <stdio.h>
#include <stdlib.h>
#include "model.h"
int main(int argc, char **argv) {
    if (argc != 5) return 2;
    long batch = atol(argv[1]), in = atol(argv[2]), out = atol(argv[3]), calls = atol(argv[4]);
    INPUT *x = calloc(batch * in, sizeof *x);
    float *y = calloc(batch * out, sizeof *y);
    while (calls--)
        if (model(batch, x, y)) return 1;
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    while (fgets(line, sizeof line, status)) fputs(line, stdout);
    return 0;
}
"""
ONNX_PROGRAM = """\
import sys
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = int(sys.argv[1])
session = onnxruntime.InferenceSession("model.onnx", options, providers=["CPUExecutionProvider"])
x = numpy.load("x.npy")
for _ in range(int(sys.argv[2])):
    session.run(None, {"input": x})
print(open("/proc/self/status").read())
"""
CALLS = 20


def main() -> None:
    request = json.loads(sys.argv[1])
    limit_processors(request["threads"])
    print(MARK + json.dumps(_measure(request)))


def _measure(request: Mapping[str, Any]) -> dict[str, float]:
    """Seconds of importing, and from the network's definition to the first result; the process's peak memory."""
    # The number of processors is limited by now; peers read it when they are imported.
    from benchmarks.cases import requested
    from benchmarks.contender import OURS, PEERS

    problem = requested(request)
    _ = problem.weights, problem.x, problem.labels
    peer = PEERS[request["peer"]]
    start = time.perf_counter()
    import_module(f"benchmarks.peers.{peer.module}")
    if request["peer"] == OURS:
        # Imported late for the sake of modules that need no compiler; without this, it would count as compiling.
        for name in ("llvmlite.binding", "lepton_jit.compiler.build"):
            import_module(name)
    imported = time.perf_counter()
    contender = peer.build(problem, request["threads"])
    contender.call()
    done = time.perf_counter()
    for _ in range(CALLS):
        contender.call()
    return {"import": imported - start, "compile": done - imported, "peak_bytes": _peak_bytes()}


def _peak_bytes() -> int:
    return _peak_of(Path("/proc/self/status").read_text())


def _peak_of(status: str) -> int:
    # Not `ru_maxrss`, which a process takes over from the one that started it.
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024


def compare(request: Mapping[str, Any], peer: str) -> dict[str, float]:
    """`cold` and `cached` compile times in seconds, `import` in seconds, `peak_bytes` of the whole process."""
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as cache:
        environment = {
            "LEPTON_JIT_CACHE": f"{cache}/lepton",
            "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
            "JAX_COMPILATION_CACHE_DIR": f"{cache}/jax",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        runs = [run_process("benchmarks.fresh", {**request, "peer": peer}, environment) for _ in range(2)]
    cold, cached = runs
    return {
        "import": cached["import"],
        "cold": cold["compile"],
        "cached": cached["compile"],
        "peak_bytes": cached["peak_bytes"],
    }


def exported_peak_bytes(request: Mapping[str, Any]) -> int:
    """Peak memory of a C program around the exported module."""
    import lepton_jit as lpt
    from benchmarks.case import Problem
    from benchmarks.cases import CASES
    from benchmarks.peers.lepton import build_model

    problem = Problem(CASES[request["case"]], "inference", request["batch"])
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as folder:
        lpt.compile(build_model(problem)).export(Path(folder) / "model.so")
        (Path(folder) / "main.c").write_text(C_PROGRAM)
        words = problem.case.vocabulary is not None
        command = [
            "cc",
            "-O2",
            f"-DINPUT={'int32_t' if words else 'float'}",
            "main.c",
            "./model.so",
            "-o",
            "main",
            "-Wl,-rpath,$ORIGIN",
        ]
        subprocess.run(command, cwd=folder, check=True)
        sizes = [request["batch"], problem.x[0].size, problem.case.classes, CALLS]
        done = subprocess.run([f"{folder}/main", *map(str, sizes)], capture_output=True, text=True, check=True)
    return _peak_of(done.stdout)


def onnx_runtime_peak_bytes(request: Mapping[str, Any]) -> int:
    """Peak memory of a process that imports nothing but ONNX Runtime and NumPy, and reads the model from a file."""
    import numpy as np

    from benchmarks.case import Problem
    from benchmarks.cases import CASES
    from benchmarks.peers.onnx_runtime import channels_first, onnx_model

    problem = Problem(CASES[request["case"]], "inference", request["batch"])
    with tempfile.TemporaryDirectory(prefix="lepton-bench-") as folder:
        (Path(folder) / "model.onnx").write_bytes(onnx_model(problem, fused=True))
        np.save(Path(folder) / "x.npy", channels_first(problem))
        command = [sys.executable, "-c", ONNX_PROGRAM, str(request["threads"]), str(CALLS)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return _peak_of(done.stdout)


def import_seconds(module: str, repeats: int) -> float:
    """The median time of importing a module in a new process, the interpreter's own start taken off."""
    code = f"import time; s = time.perf_counter(); import {module}; print(time.perf_counter() - s)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout)
        for _ in range(repeats)
    ]
    return sorted(times)[repeats // 2]


def run_process(
    module: str,
    request: Mapping[str, Any],
    environment: Mapping[str, str] | None = None,
    watch: Callable[[str], None] = lambda _: None,
) -> Any:
    """What a module of this package answers to a request, as its own process; `watch` is told of its progress."""
    threads = str(request["threads"])
    limits = dict.fromkeys(
        ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "LEPTON_JIT_THREADS"), threads
    )
    command = [sys.executable, "-W", "ignore", "-m", module, json.dumps(request)]
    env = os.environ | limits | dict(environment or {})
    log = []
    with tempfile.TemporaryFile("w+") as output:
        with subprocess.Popen(command, cwd=ROOT, env=env, stdout=output, stderr=subprocess.PIPE, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith(PROGRESS):
                    watch(line.removeprefix(PROGRESS).strip())
                else:
                    log.append(line)
        output.seek(0)
        lines = output.read().splitlines()
    answers = [line.removeprefix(MARK) for line in lines if line.startswith(MARK)]
    if process.returncode or len(answers) != 1:
        told = "\n".join(lines) + "".join(log)
        sys.exit(f"{module} {json.dumps(request)} failed with code {process.returncode}:\n{told}")
    return json.loads(answers[0])


if __name__ == "__main__":
    main()
