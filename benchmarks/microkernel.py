"""Share of the FMA peak that the contraction micro-kernel reaches; the peak is measured between the cases.

Run with `.venv/bin/python benchmarks/microkernel.py [--target x86-64-v3] [--only conv] [--rounds 5]`.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir

from lepton_jit.codegen.llvm.machine_code import compile_object
from lepton_jit.codegen.llvm.microkernel import SHAPE, ALayout, MicroKernel, emit_microkernel
from lepton_jit.codegen.target import Target, get_target

# Walks a table of calls: (function, a, b, c, shape, row_offsets, extras, row, column) each.
DRIVER = """
define void @drive(ptr %jobs, i64 %count, i64 %repeats) {
entry:
  br label %repeat
repeat:
  %done = phi i64 [0, %entry], [%done_next, %repeat_end]
  br label %body
body:
  %i = phi i64 [0, %repeat], [%i_next, %body]
  %job = getelementptr [9 x i64], ptr %jobs, i64 %i
  %f = load ptr, ptr %job
  %pa = getelementptr i64, ptr %job, i64 1
  %pb = getelementptr i64, ptr %job, i64 2
  %pc = getelementptr i64, ptr %job, i64 3
  %ps = getelementptr i64, ptr %job, i64 4
  %po = getelementptr i64, ptr %job, i64 5
  %a = load ptr, ptr %pa
  %b = load ptr, ptr %pb
  %c = load ptr, ptr %pc
  %s = load ptr, ptr %ps
  %o = load ptr, ptr %po
  call void %f(ptr %a, ptr %b, ptr %c, ptr %s, ptr %o, ptr null, i64 0, i64 0)
  %i_next = add i64 %i, 1
  %more = icmp ult i64 %i_next, %count
  br i1 %more, label %body, label %repeat_end
repeat_end:
  %done_next = add i64 %done, 1
  %again = icmp ult i64 %done_next, %repeats
  br i1 %again, label %repeat, label %exit
exit:
  ret void
}
"""

PEAK_CHAINS = 12


def peak_text(target: Target) -> str:
    """A loop of independent FMA chains, and nothing else."""
    lanes = target.lanes(32)
    vector = f"<{lanes} x float>"
    one = "<" + ", ".join(["float 0.5"] * lanes) + ">"
    fused = "fma" in target.required
    phis, body, total = [], [], []
    for i in range(PEAK_CHAINS):
        phis.append(f"%x{i} = phi {vector} [{one}, %entry], [%y{i}, %body]")
        if fused:
            body.append(f"%y{i} = call {vector} @llvm.fma({vector} %x{i}, {vector} {one}, {vector} {one})")
        else:
            body.append(f"%m{i} = fmul {vector} %x{i}, {one}\n%y{i} = fadd {vector} %m{i}, {one}")
        total.append(f"%t{i} = fadd {vector} {f'%t{i - 1}' if i else '%y0'}, %y{i}")
    lines = "\n".join([*phis, "%i = phi i64 [0, %entry], [%n, %body]", *body])
    return f"""
declare {vector} @llvm.fma.v{lanes}f32({vector}, {vector}, {vector})
define void @peak(i64 %count, ptr %out) {{
entry:
  br label %body
body:
  {lines}
  %n = add i64 %i, 1
  %more = icmp ult i64 %n, %count
  br i1 %more, label %body, label %exit
exit:
  {chr(10).join(total)}
  store {vector} %t{PEAK_CHAINS - 1}, ptr %out, align 4
  ret void
}}
""".replace("@llvm.fma(", f"@llvm.fma.v{lanes}f32(")


class Library:
    """Linked object code, called by symbol."""

    def __init__(self, text: str, target: Target, symbols: list[str]) -> None:
        builder = llvm.JITLibraryBuilder().add_object_img(compile_object(text, target))
        for symbol in symbols:
            builder.export_symbol(symbol)
        self.tracker = builder.add_current_process().link(_jit(), f"library{next(_NUMBERS)}")
        self.address = {symbol: self.tracker[symbol] for symbol in symbols}


_NUMBERS = itertools.count()
_LLJIT: list[llvm.LLJIT] = []


def _jit() -> llvm.LLJIT:
    if not _LLJIT:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        _LLJIT.append(llvm.create_lljit_compiler())
    return _LLJIT[0]


def aligned(*shape: int) -> np.ndarray:
    """Random f32, on a 64-byte boundary as the arena gives it."""
    size = int(np.prod(shape))
    raw = np.empty(size + 16, np.float32)
    start = (-raw.ctypes.data % 64) // 4
    out = raw[start : start + size]
    out[:] = np.random.default_rng(0).standard_normal(size)
    return out.reshape(shape)


def split(total: int, most: int) -> list[tuple[int, int]]:
    """Even tiles (start, size): 49 by 14 -> 13 12 12 12."""
    count = -(-total // most)
    small, more = divmod(total, count)
    sizes = [small + 1] * more + [small] * (count - more)
    return [(sum(sizes[:i]), size) for i, size in enumerate(sizes)]


@dataclass
class Work:
    """The calls of one contraction, and what keeps their memory alive."""

    flops: int
    jobs: list[tuple] = field(default_factory=list)
    keep: list[np.ndarray] = field(default_factory=list)

    def shape(self, **values: int) -> int:
        defaults = dict.fromkeys(SHAPE, 0) | {"n2": 1, "n1": 1, "n0": 1}
        table = np.array([(defaults | values)[key] for key in SHAPE], np.int64)
        self.keep.append(table)
        return table.ctypes.data

    def add(self, kernel: MicroKernel, a: int, b: int, c: int, shape: int, offsets: int = 0) -> None:
        self.jobs.append((kernel, a, b, c, shape, offsets))


Case = Callable[[Target], Work]


def at(array: np.ndarray, element: int) -> int:
    """The address of an element."""
    return array.ctypes.data + element * array.itemsize


def ordered(rows: list, panels: list, order: str) -> list[tuple]:
    """`"panels"`: panels outside, so that one stays near while A streams; `"rows"`: the reverse."""
    if order == "panels":
        return [(r, p) for p in panels for r in rows]
    return [(r, p) for r in rows for p in panels]


def gemm(
    m: int,
    n: int,
    k: int,
    order: str = "panels",
    *,
    rows: int = 0,
    vectors: int = 0,
    panel_vectors: int = 0,
    packed: bool = True,
    block: int = 0,
    a_pad: int = 0,
    a_packed: bool = False,
    masked: bool = False,
) -> Case:
    """[m, k] @ [k, n]; `block`: K in blocks; `a_pad`: elements between rows of A; `a_packed`: A as [tile, k, row]."""

    def build(target: Target) -> Work:
        lanes, height, width = target.lanes(32), rows or target.tile_rows, vectors or target.tile_vectors
        pv = panel_vectors or target.tile_vectors
        panel, step, row_step, size = pv * lanes, width * lanes, k + a_pad, block or k
        work = Work(2 * m * n * k)
        a, b, c = aligned(m, row_step), aligned(k, n), aligned(m, n)
        offsets = np.arange(m, dtype=np.int64) * row_step
        work.keep += [a, b, c, offsets]
        for start in range(0, k, size):
            count = min(size, k - start)
            for (row, h), column in ordered(split(m, height), list(range(0, n, step)), order):
                kernel = MicroKernel(
                    target,
                    "f32",
                    h,
                    width,
                    pv,
                    "columns" if a_packed else "rows",
                    masked=masked,
                    accumulate=start > 0,
                    prefetch=2048 if packed else 0,
                )
                strides = {"b0": panel, "b_panel": k * panel} if packed else {"b0": n, "b_panel": panel}
                shape = work.shape(n0=count, a0=h if a_packed else 1, c_row=n, active=lanes, **strides)
                a_at = row * k + start * h if a_packed else start
                b_at = column * k + start * panel if packed else column + start * n
                c_at = row * n + column
                work.add(kernel, at(a, a_at), at(b, b_at), at(c, c_at), shape, at(offsets, row))
        return work

    return build


def standing_tile() -> Case:
    """The largest tile with steps of zero: what its loads leave of the peak when all of them hit L1."""

    def build(target: Target) -> Work:
        kernel = MicroKernel(target, "f32", target.tile_rows, target.tile_vectors, target.tile_vectors, prefetch=0)
        steps = 16384
        work = Work(2 * kernel.rows * kernel.width * steps)
        a, b, c = aligned(kernel.rows, 16), aligned(1, kernel.width), aligned(kernel.rows, kernel.width)
        offsets = np.arange(kernel.rows, dtype=np.int64) * 16
        work.keep += [a, b, c, offsets]
        work.add(kernel, at(a, 0), at(b, 0), at(c, 0), work.shape(n0=steps, c_row=kernel.width), at(offsets, 0))
        return work

    return build


def conv(
    batch: int,
    size: int,
    cin: int,
    cout: int,
    order: str = "panels",
    *,
    pad: int = 1,
    block: int = 0,
    vectors: int = 0,
    rows: int = 0,
) -> Case:
    """3x3, channels last, on an image that stands in its border; `block`: input channels at a time."""

    def build(target: Target) -> Work:
        lanes, width = target.lanes(32), vectors or target.tile_vectors
        panel = target.tile_vectors * lanes
        padded, out = size + 2 * pad, size + 2 * pad - 2
        k = 9 * cin
        work = Work(2 * batch * out * out * cout * k)
        x, w, y = aligned(batch, padded, padded, cin), aligned(k, cout), aligned(batch, out, out, cout)
        pixel = np.arange(padded * padded, dtype=np.int64).reshape(padded, padded)[:out, :out]
        image = np.arange(batch, dtype=np.int64)[:, None, None] * padded * padded
        offsets = np.ascontiguousarray((pixel + image).ravel() * cin)
        work.keep += [x, w, y, offsets]
        step = width * lanes
        for start in range(0, cin, block or cin):
            if block:
                sums = {
                    "n2": 3,
                    "a2": padded * cin,
                    "b2": 3 * block * panel,
                    "n1": 3,
                    "a1": cin,
                    "b1": block * panel,
                    "n0": block,
                }
            else:
                sums = {"n1": 3, "a1": padded * cin, "b1": 3 * cin * panel, "n0": 3 * cin}
            shape = work.shape(**sums, a0=1, b0=panel, b_panel=k * panel, c_row=cout)
            tiles = split(batch * out * out, rows or target.tile_rows)
            for (row, h), column in ordered(tiles, list(range(0, cout, step)), order):
                kernel = MicroKernel(target, "f32", h, width, target.tile_vectors, accumulate=start > 0)
                b_at = column * k + 9 * start * panel
                work.add(kernel, at(x, start), at(w, b_at), at(y, row * cout + column), shape, at(offsets, row))
        return work

    return build


def weight_gradient(batch: int, size: int, cin: int, cout: int, block: int, layout: ALayout = "columns") -> Case:
    """3x3 without padding; `block` images at a time are summed into the result."""

    def build(target: Target) -> Work:
        panel = target.tile_vectors * target.lanes(32)
        out = size - 2
        work = Work(2 * batch * out * out * cout * 9 * cin)
        x, dy, dw = aligned(batch, size, size, cin), aligned(batch, out, out, cout), aligned(9 * cin, cout)
        taps = np.arange(size * size).reshape(size, size)[:3, :3].ravel() * cin
        offsets = np.ascontiguousarray((taps[:, None] + np.arange(cin)).ravel().astype(np.int64))
        work.keep += [x, dy, dw, offsets]
        shape = work.shape(
            n2=block, a2=size * size * cin, b2=out * out * cout,
            n1=out, a1=size * cin, b1=out * cout,
            n0=out, a0=cin, b0=cout, c_row=cout,
        )  # fmt: skip
        if layout == "columns":
            tiles = [(kh * 3 * cin + r, h) for kh in range(3) for r, h in split(3 * cin, target.tile_rows)]
        else:
            tiles = split(9 * cin, target.tile_rows)
        for image in range(0, batch, block):
            for (row, height), column in ordered(tiles, list(range(0, cout, panel)), "panels"):
                kernel = MicroKernel(
                    target,
                    "f32",
                    height,
                    target.tile_vectors,
                    target.tile_vectors,
                    layout,
                    accumulate=image > 0,
                    prefetch=0,
                )
                start = image * size * size * cin + (int(offsets[row]) if layout == "columns" else 0)
                b = at(dy, image * out * out * cout + column)
                work.add(kernel, at(x, start), b, at(dw, row * cout + column), shape, at(offsets, row))
        return work

    return build


def _gradients(*cases: tuple[ALayout, int]) -> tuple[tuple[ALayout, int], ...]:
    return cases


CASES: dict[str, Case] = {
    "the tile alone, steps of zero": standing_tile(),
    "gemm K=64, one panel": gemm(168, 32, 64),
    "gemm K=64, one panel, masked": gemm(168, 32, 64, masked=True),
    "gemm K=256, one panel": gemm(168, 32, 256),
    "gemm K=1024, one panel": gemm(168, 32, 1024),
    "gemm K=1024, one panel, A rows 64 bytes off 4096": gemm(168, 32, 1024, a_pad=16),
    "gemm K=1024, one panel, A packed": gemm(168, 32, 1024, a_packed=True),
    "gemm K=1024, one panel, blocks of 256": gemm(168, 32, 1024, block=256),
    **{
        f"gemm {m}x{n}x{k}, {order} outside": gemm(m, n, k, order)
        for m, n, k in ((168, 512, 256), (168, 512, 1024), (672, 1024, 4096))
        for order in ("panels", "rows")
    },
    **{f"gemm 672x1024x4096, blocks of {block}": gemm(672, 1024, 4096, block=block) for block in (128, 256, 512, 1024)},
    "gemm 672x1024x4096, blocks of 256, A padded": gemm(672, 1024, 4096, block=256, a_pad=16),
    "gemm 672x1024x4096, blocks of 256, A packed": gemm(672, 1024, 4096, block=256, a_packed=True),
    "gemm 672x1024x4096, blocks of 512, A packed": gemm(672, 1024, 4096, block=512, a_packed=True),
    "gemm 168x512x256, B unpacked": gemm(168, 512, 256, packed=False),
    "gemm 168x1024x1024, B unpacked": gemm(168, 1024, 1024, packed=False, a_pad=16),
    **{
        f"conv {s}x{s}x{c}, {order} outside": conv(1, s, c, c, order)
        for s, c in ((56, 64), (28, 128), (14, 256), (7, 512))
        for order in ("panels", "rows")
    },
    **{f"conv 28x28x128, {b} channels at a time": conv(1, 28, 128, 128, block=b) for b in (16, 32)},
    **{f"conv 14x14x256, {b} channels at a time": conv(1, 14, 256, 256, block=b) for b in (16, 32, 64)},
    **{f"conv 7x7x512, {b} channels at a time": conv(1, 7, 512, 512, block=b) for b in (16, 32, 64, 128)},
    "conv 7x7x512, 7 rows x 4 vectors": conv(1, 7, 512, 512, vectors=4, rows=7),
    "conv 7x7x512, batch 8": conv(8, 7, 512, 512),
    "conv 7x7x512, batch 8, 32 channels at a time": conv(8, 7, 512, 512, block=32),
    "digits conv1 28x28x1->32, batch 64": conv(64, 28, 1, 32, pad=0),
    "digits conv1 28x28x1->32, batch 4": conv(4, 28, 1, 32, pad=0),
    "digits conv2 13x13x32->64, batch 64, panels outside": conv(64, 13, 32, 64, pad=0),
    "digits conv2 13x13x32->64, batch 64, rows outside": conv(64, 13, 32, 64, "rows", pad=0),
    **{
        f"digits conv1 weight gradient, {layout}, {block} images": weight_gradient(64, 28, 1, 32, block, layout)
        for layout, block in _gradients(("columns", 64), ("rows", 64), ("rows", 4))
    },
    **{
        f"digits conv2 weight gradient, {layout}, {block} images": weight_gradient(64, 13, 32, 64, block, layout)
        for layout, block in _gradients(("columns", 64), ("rows", 64), ("columns", 8), ("columns", 2))
    },
    "dense 64x1600x128, panels outside": gemm(64, 128, 1600),
    "dense 64x1600x128, rows outside": gemm(64, 128, 1600, "rows"),
    "dense 64x1600x128, blocks of 400": gemm(64, 128, 1600, block=400),
    **{f"dense 1x1600x128, 1 row x {v}": gemm(1, 128, 1600, vectors=v) for v in (2, 4, 8)},
    **{f"dense 1x4096x4096, 1 row x {v}": gemm(1, 4096, 4096, vectors=v) for v in (2, 4, 8)},
    **{
        f"gemm K=256, tile {r} x {v}": gemm(4 * r, 128, 256, rows=r, vectors=v)
        for r, v in ((1, 8), (2, 8), (3, 8), (3, 4), (4, 4), (5, 4), (6, 4), (7, 4), (7, 2), (5, 2), (3, 2))
    },
    **{f"gemm K=256, tile {r} x 1": gemm(4 * r, 64, 256, rows=r, vectors=1, panel_vectors=1) for r in (7, 14, 24)},
}  # fmt: skip


class Bench:
    def __init__(self, target: Target) -> None:
        self.target = target
        self.library = Library(peak_text(target), target, ["peak"])
        self.peak_function = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(self.library.address["peak"])
        self.sink = np.zeros(64, np.float32)

    def peak(self) -> float:
        """FLOP per second of the FMA-only loop, over about 20 ms."""
        count = 3_000_000
        start = time.thread_time()
        self.peak_function(count, self.sink.ctypes.data)
        return 2 * self.target.lanes(32) * PEAK_CHAINS * count / (time.thread_time() - start)

    def measure(self, case: Case, rounds: int) -> tuple[float, float]:
        """Median share of peak, and gigaflops."""
        work = case(self.target)
        kernels = sorted({job[0] for job in work.jobs}, key=repr)
        module = ir.Module()
        names = {kernel: f"kernel{i}" for i, kernel in enumerate(kernels)}
        for kernel, name in names.items():
            emit_microkernel(module, kernel, name)
        library = Library(str(module) + DRIVER, self.target, [*names.values(), "drive"])
        jobs = np.array([[library.address[names[j[0]]], *j[1:], 0, 0, 0] for j in work.jobs], np.int64)
        drive = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)(library.address["drive"])
        repeats = max(1, int(0.02 * self.peak() / work.flops))
        drive(jobs.ctypes.data, len(jobs), 1)
        shares, rates = [], []
        for _ in range(rounds):
            before = self.peak()
            start = time.thread_time()  # not the wall clock: others may use this machine
            drive(jobs.ctypes.data, len(jobs), repeats)
            rate = work.flops * repeats / (time.thread_time() - start)
            shares.append(rate / ((before + self.peak()) / 2))
            rates.append(rate)
        return statistics.median(shares), statistics.median(rates) / 1e9


def compile_times(target: Target) -> None:
    for label, heights in (
        ("the largest tile", [target.tile_rows]),
        (f"rows 1..{target.tile_rows}", range(1, target.tile_rows + 1)),
    ):
        start = time.perf_counter()
        module = ir.Module()
        for rows in heights:
            emit_microkernel(
                module, MicroKernel(target, "f32", rows, target.tile_vectors, target.tile_vectors), f"k{rows}"
            )
        text = str(module)
        middle = time.perf_counter()
        size = len(compile_object(text, target))
        end = time.perf_counter()
        print(f"{label}: emission {(middle - start) * 1e3:.1f} ms, LLVM {(end - middle) * 1e3:.1f} ms, {size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", default="native")
    parser.add_argument("--only", default="")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    target = get_target(options.target)
    bench = Bench(target)
    print(f"{target.name}: peak {bench.peak() / 1e9:.1f} GFLOP/s on {llvm.get_host_cpu_name()}")
    compile_times(target)
    for name, case in CASES.items():
        if options.only in name:
            share, rate = bench.measure(case, options.rounds)
            print(f"{name:52s} {share:6.1%} {rate:8.1f} GFLOP/s", flush=True)


if __name__ == "__main__":
    main()
