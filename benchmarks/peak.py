"""The FMA peak of this machine, measured: a loop of independent chains of the widest vectors, and nothing else."""

from __future__ import annotations

import ctypes
import time
from concurrent.futures import ThreadPoolExecutor

import llvmlite.binding as llvm
import numpy as np

from lepton_jit.codegen.machine_code import compile_object
from lepton_jit.codegen.target import Target, get_target

__all__ = ["Peak"]

# More chains than an FMA has cycles of latency times units, fewer than there are registers.
CHAINS = 12
SECONDS = 0.02


class Peak:
    """`measure(threads)` is the floating-point operations per second of so many threads together."""

    def __init__(self, target: Target | None = None) -> None:
        self.target = target or get_target("native")
        builder = llvm.JITLibraryBuilder().add_object_img(compile_object(_text(self.target), self.target))
        builder.export_symbol("peak")
        self._engine = llvm.create_lljit_compiler()
        self._library = builder.add_current_process().link(self._engine, "peak")
        self._run = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(self._library["peak"])
        self._count = 100_000
        while (elapsed := self._seconds()) < SECONDS:
            self._count = int(self._count * max(2.0, 0.5 * SECONDS / elapsed))

    def measure(self, threads: int = 1) -> float:
        with ThreadPoolExecutor(threads) as pool:
            start = time.perf_counter()
            # ctypes lets go of the interpreter's lock.
            list(pool.map(lambda _: self._seconds(), range(threads)))
            elapsed = time.perf_counter() - start
        return threads * self._count * CHAINS * 2 * self.target.lanes(32) / elapsed

    def _seconds(self) -> float:
        sink = np.zeros(self.target.lanes(32), np.float32)
        start = time.perf_counter()
        self._run(self._count, sink.ctypes.data)
        return time.perf_counter() - start


def _text(target: Target) -> str:
    lanes = target.lanes(32)
    vector = f"<{lanes} x float>"
    half = "<" + ", ".join(["float 0.5"] * lanes) + ">"
    fused = "fma" in target.required or target.name == "aarch64"
    lines = [f"%x{i} = phi {vector} [{half}, %entry], [%y{i}, %body]" for i in range(CHAINS)]
    lines.append("%i = phi i64 [0, %entry], [%next, %body]")
    for i in range(CHAINS):
        if fused:
            lines.append(f"%y{i} = call {vector} @llvm.fma.v{lanes}f32({vector} %x{i}, {vector} {half}, {vector} {half})")
        else:
            lines += [f"%m{i} = fmul {vector} %x{i}, {half}", f"%y{i} = fadd {vector} %m{i}, {half}"]
    sums = [f"%t{i} = fadd {vector} {f'%t{i - 1}' if i > 1 else '%y0'}, %y{i}" for i in range(1, CHAINS)]
    body, total = "\n  ".join(lines), "\n  ".join(sums)
    return f"""
declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})
define void @peak(i64 %count, ptr %out) {{
entry:
  br label %body
body:
  {body}
  %next = add i64 %i, 1
  %more = icmp ult i64 %next, %count
  br i1 %more, label %body, label %exit
exit:
  {total}
  store {vector} %t{CHAINS - 1}, ptr %out, align 4
  ret void
}}
"""
