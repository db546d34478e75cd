"""Contractions by themselves on one core, as shares of the peak: `python -m benchmarks.contractions [WORD ...]`.

Convolutions of residual networks, forward and both gradients, and matrix products of an encoder: all of 100 MFLOP and
more with 128 products and more in a sum. `kernels` are the steps that multiply; `whole` counts padding, packing and
whatever else the compiler put around them. WORDs choose by name: `dx`, `3x3`, `matmul`.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich.table import Table

from benchmarks.layers import fastest
from benchmarks.machine import describe_machine
from benchmarks.peak import fma_peak
from benchmarks.report import console
from lepton_jit.compiler.build import build
from lepton_jit.compiler.executable import Executable
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.types import TensorType, dim_value
from lepton_jit.runtime.profile import Profile

__all__ = ["CONTRACTIONS", "Contraction", "measure"]

BOUND = 0.88
ROUNDS = 7
SECONDS_A_ROUND = 0.05


@dataclass(frozen=True)
class Contraction:
    """A graph with one contraction, and what it is measured with."""

    name: str
    batch: int
    flops: int
    summed: int
    graph: Callable[[], Graph]


@dataclass(frozen=True)
class Convolution:
    """A channels-last convolution of padding `kernel // 2`; `part` is "y", or the gradient "dx" or "dk"."""

    size: int
    channels: int
    filters: int
    kernel: int
    stride: int
    part: str

    @property
    def outputs(self) -> int:
        return (self.size - 1) // self.stride + 1

    def graph(self) -> Graph:
        b = Builder()
        x = b.input("x", TensorType.of("f32", "N", self.size, self.size, self.channels))
        # In training, weights change from step to step; in inference they are packed once.
        role = "parameter" if self.part == "y" else "input"
        k = b.input("k", TensorType.of("f32", self.kernel, self.kernel, self.channels, self.filters), role)
        with b.layer("contraction"):
            y = b(
                "convolution",
                x,
                k,
                lhs_spec=(0, 3, 1, 2),
                rhs_spec=(3, 2, 0, 1),
                out_spec=(0, 3, 1, 2),
                strides=(self.stride, self.stride),
                padding=((self.kernel // 2, self.kernel // 2),) * 2,
                lhs_dilation=(1, 1),
                rhs_dilation=(1, 1),
                window_reversal=(False, False),
                feature_group_count=1,
                batch_group_count=1,
            )
        b.output(y if self.part == "y" else _gradient(b, y, {"dx": x, "dk": k}[self.part]), self.part)
        return b.build()

    def contraction(self, batch: int) -> Contraction:
        summed = {
            "y": self.kernel**2 * self.channels,
            "dx": self.kernel**2 * self.filters,
            "dk": batch * self.outputs**2,
        }[self.part]
        flops = 2 * batch * self.outputs**2 * self.kernel**2 * self.channels * self.filters
        stride = f" stride {self.stride}" if self.stride > 1 else ""
        name = f"{self.part} {self.kernel}x{self.kernel}{stride}, {self.size} x {self.size} x {self.channels}"
        return Contraction(f"{name} -> {self.filters}, b{batch}", batch, flops, summed, self.graph)


def _gradient(b: Builder, y: Value, of: Value) -> Value:
    """The gradient of sum(y * dy): `y` itself is not computed."""
    dy = b.input("dy", y.type)
    with b.layer("contraction"):
        product = b("multiply", y, dy)
        loss = b("reduce", product, dimensions=tuple(range(y.type.rank)), kind="add")
        (gradient,) = b.emit("gradient", loss, of)
    return gradient


def _matmul(rows: int, depth: int, columns: int, part: str = "y") -> Contraction:
    """f32[N, depth] x f32[depth, columns]: N is the batch times the tokens."""

    def graph() -> Graph:
        b = Builder()
        x = b.input("x", TensorType.of("f32", "N", depth))
        k = b.input("k", TensorType.of("f32", depth, columns), "parameter" if part == "y" else "input")
        with b.layer("contraction"):
            y = _dot(b, x, k, batching=(), left=1, right=0)
        b.output(y if part == "y" else _gradient(b, y, {"dx": x, "dk": k}[part]), part)
        return b.build()

    summed = {"y": depth, "dx": columns, "dk": rows}[part]
    name = f"{part} matmul {rows} x {depth} x {columns}"
    return Contraction(name, rows, 2 * rows * depth * columns, summed, graph)


def _batched(count: int, rows: int, depth: int, columns: int, *, transposed: bool = False) -> Contraction:
    """f32[N, rows, depth] x f32[N, depth, columns], or the right side as f32[N, columns, depth]."""

    def graph() -> Graph:
        b = Builder()
        x = b.input("x", TensorType.of("f32", "N", rows, depth))
        k = b.input("k", TensorType.of("f32", "N", *((columns, depth) if transposed else (depth, columns))))
        with b.layer("contraction"):
            b.output(_dot(b, x, k, batching=(0,), left=2, right=2 if transposed else 1), "y")
        return b.build()

    name = f"batched matmul {count} x {rows} x {depth} x {columns}{' transposed' if transposed else ''}"
    return Contraction(name, count, 2 * count * rows * depth * columns, depth, graph)


def _dot(b: Builder, x: Value, y: Value, *, batching: tuple[int, ...], left: int, right: int) -> Value:
    return b(
        "dot_general",
        x,
        y,
        lhs_batching=batching,
        rhs_batching=batching,
        lhs_contracting=(left,),
        rhs_contracting=(right,),
    )


def _all() -> Iterator[Contraction]:
    # Inference of a residual network at batch 1.
    for size, channels in ((56, 64), (28, 128), (14, 256), (7, 512)):
        yield Convolution(size, channels, channels, 3, 1, "y").contraction(1)
    for size, channels in ((56, 64), (28, 128), (14, 256)):
        yield Convolution(size, channels, 2 * channels, 3, 2, "y").contraction(1)
    yield Convolution(224, 3, 64, 7, 2, "y").contraction(1)
    for size, channels, filters in ((56, 256, 64), (28, 512, 128), (28, 128, 512), (14, 1024, 256), (14, 256, 1024)):
        yield Convolution(size, channels, filters, 1, 1, "y").contraction(1)
    for size, channels, filters in ((7, 2048, 512), (7, 512, 2048)):
        yield Convolution(size, channels, filters, 1, 1, "y").contraction(1)
    for size, channels in ((56, 256), (28, 512), (14, 1024)):
        yield Convolution(size, channels, 2 * channels, 1, 2, "y").contraction(1)
    # Training on small images.
    for part in ("y", "dx", "dk"):
        for size, channels in ((32, 64), (16, 128), (8, 256), (4, 512)):
            yield Convolution(size, channels, channels, 3, 1, part).contraction(32)
        for size, channels in ((32, 64), (16, 128), (8, 256)):
            yield Convolution(size, channels, 2 * channels, 3, 2, part).contraction(32)
    # An encoder of width 384 on 128 tokens, batch 1 and 8.
    for depth, columns in ((384, 1152), (384, 1536), (1536, 384)):
        yield _matmul(128, depth, columns)
    for part in ("y", "dx", "dk"):
        for depth, columns in ((384, 384), (384, 1536), (1536, 384)):
            yield _matmul(1024, depth, columns, part)
    yield _batched(96, 128, 128, 32)
    yield _batched(16, 256, 256, 256)
    yield _batched(16, 256, 256, 256, transposed=True)


CONTRACTIONS = tuple(_all())


def measure(contraction: Contraction, rounds: int = ROUNDS) -> Profile:
    """The least time of every step; `peak` is not measured."""
    random = np.random.default_rng(0)
    executable = build(contraction.graph(), threads=1)

    def array(type: TensorType) -> np.ndarray:
        return random.random([dim_value(d, {"N": contraction.batch}) for d in type.shape], np.float32)

    graph = executable.graph
    executable.bind({i.name: array(i.value.type) for i in graph.inputs_of("parameter")})
    arrays = [array(i.value.type) for i in graph.inputs_of("input")]
    start = time.perf_counter()
    executable.run(*arrays)
    calls = max(1, round(SECONDS_A_ROUND / (time.perf_counter() - start)))
    return fastest([_profile(executable, arrays, calls) for _ in range(rounds)])


def _profile(executable: Executable, arrays: Sequence[np.ndarray], calls: int) -> Profile:
    return executable.program.profile(*arrays, parameters=executable.parameters, calls=calls)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.contractions",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", metavar="WORD", help="only contractions whose names have one of these")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"by default {ROUNDS}")
    options = parser.parse_args(arguments)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-1:])
    chosen = [c for c in CONTRACTIONS if not options.words or any(word in c.name for word in options.words)]
    table = Table(box=None, pad_edge=False)
    for header in ("contraction", "MFLOP", "sum", "us", "whole", "kernels", "steps"):
        table.add_column(header, justify="left" if header in ("contraction", "steps") else "right")
    shares = []
    for contraction in chosen:
        peak = max(fma_peak(1), fma_peak(1))
        profile = measure(contraction, options.rounds)
        kernels = sum(step.seconds for step in profile.steps if step.flops)
        share = contraction.flops / peak / kernels
        shares.append(share)
        table.add_row(
            contraction.name,
            f"{contraction.flops * 1e-6:.0f}",
            str(contraction.summed),
            f"{profile.seconds * 1e6:,.1f}",
            f"{contraction.flops / peak / profile.seconds:.0%}",
            f"{share:.0%}" if share >= BOUND else f"{share:.0%} *",
            ", ".join(f"{step.kernel} {step.seconds * 1e6:.0f}" for step in profile.steps),
        )
        print(f"{contraction.name}: {share:.1%}", file=sys.stderr)
    out = console()
    out.print(
        f"{describe_machine()['cpu']}, one core, least of {options.rounds} rounds; * under {BOUND:.0%} of the peak"
    )
    out.print(table)
    reached = sum(share >= BOUND for share in shares)
    out.print(f"{reached} of {len(shares)} reach {BOUND:.0%}; lowest {min(shares):.0%}, median {np.median(shares):.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
