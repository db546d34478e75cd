"""The time of each step of a program."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Profile", "StepTime"]


@dataclass(frozen=True)
class StepTime:
    """One kernel launch: seconds per call, floating-point operations and bytes moved per call."""

    kernel: str
    layer: str
    seconds: float
    flops: int
    bytes: int


@dataclass(frozen=True)
class Profile:
    """The step times of a program; `peak` is the machine's floating-point operations per second, if it was measured."""

    program: str
    calls: int
    threads: int
    steps: tuple[StepTime, ...]
    peak: float | None = None

    @property
    def seconds(self) -> float:
        """The time of all steps in one call."""
        return sum(s.seconds for s in self.steps)

    def __str__(self) -> str:
        total = self.seconds or 1.0
        lines = [
            f"profile of {self.program}: {self.calls} calls, {self.threads} threads, {self.seconds * 1e6:,.1f} us each",
            f"{'us':>10} {'share':>7} {'GFLOP/s':>9} {'of peak':>8} {'GB/s':>7}  {'kernel':<32} layer",
        ]
        for s in self.steps:
            rate = s.flops / s.seconds if s.seconds else 0.0
            peak = f"{100 * rate / self.peak:.0f} %" if self.peak and s.flops else "-"
            traffic = s.bytes / s.seconds * 1e-9 if s.seconds else 0.0
            lines.append(
                f"{s.seconds * 1e6:>10,.1f} {100 * s.seconds / total:>5.1f} % {rate * 1e-9:>9.1f} {peak:>8} "
                f"{traffic:>7.1f}  {s.kernel:<32} {s.layer}".rstrip()
            )
        return "\n".join(lines)
