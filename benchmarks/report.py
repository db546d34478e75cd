"""The tables of a run, and its chart."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contender import OURS

__all__ = [
    "FROM_FILE",
    "IN_C",
    "best_peer",
    "medians",
    "print_fresh",
    "print_fresh_summary",
    "print_measurement",
    "print_summary",
    "progress",
    "write_chart",
]

WIDTH = 150
IN_C = f"{OURS}, exported, in C"
FROM_FILE = "ONNX Runtime alone, model file"


def console() -> Console:
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=WIDTH)


def medians(measurement: Mapping[str, Any]) -> dict[str, float]:
    """Seconds per call by contender, the fastest first."""
    found = {name: statistics.median(times) for name, times in measurement["seconds"].items()}
    return dict(sorted(found.items(), key=lambda item: item[1]))


def best_peer(measurement: Mapping[str, Any]) -> tuple[str, float] | None:
    """The fastest of the others and its median; None if nobody else took part."""
    others = [(name, time) for name, time in medians(measurement).items() if name != OURS]
    return others[0] if others else None


def print_measurement(label: str, measurement: Mapping[str, Any]) -> None:
    """A table of one problem at one number of threads."""
    peak = statistics.median(measurement["peaks"])
    spread = (max(measurement["peaks"]) - min(measurement["peaks"])) / peak
    ours = medians(measurement).get(OURS)
    table = Table(box=None, pad_edge=False)
    for header in ("contender", "median ms", "lowest ms", "times ours", "GFLOP/s", "of peak", "answer differs by"):
        table.add_column(header, justify="left" if header == "contender" else "right")
    for name, seconds in medians(measurement).items():
        rate = measurement["flops"] / seconds
        table.add_row(
            name,
            f"{seconds * 1e3:.4f}",
            f"{min(measurement['seconds'][name]) * 1e3:.4f}",
            f"{seconds / ours:.2f}" if ours else "",
            f"{rate * 1e-9:.1f}",
            f"{rate / peak:.1%}",
            f"{measurement['errors'][name]:.0e}",
        )
    out = console()
    out.print(f"\n{label}, FMA peak {peak * 1e-9:.0f} GFLOP/s (rounds differ by {spread:.0%})", markup=False)
    out.print(table)
    for name, reason in measurement["missing"].items():
        out.print(f"{name}: left out, {reason}", markup=False)


@contextmanager
def progress(label: str) -> Iterator[Callable[[str], None]]:
    """A line that says what is going on, on a terminal; elsewhere, nothing."""
    start = time.perf_counter()
    with Console(stderr=True).status(label) as status:
        yield lambda what: status.update(f"{label}: {what} (after {time.perf_counter() - start:.0f} s)")


def print_summary(measurements: Mapping[str, Mapping[str, Any]]) -> None:
    """Best peer against ours for every problem, and the geometric means by mode and number of threads."""
    table = Table(box=None, pad_edge=False)
    for header in ("problem", "ours ms", "of peak", "best peer", "ms", "best peer / ours", "arena MB", "plan's gap"):
        table.add_column(header, justify="left" if header in ("problem", "best peer") else "right")
    ratios: dict[str, dict[str, float]] = {}
    for label, measurement in measurements.items():
        best, ours = best_peer(measurement), medians(measurement).get(OURS)
        if best is None or ours is None:
            continue
        group = f"{measurement['mode']}, {measurement['threads']} thread{'s' if measurement['threads'] > 1 else ''}"
        ratios.setdefault(group, {})[label] = best[1] / ours
        share = measurement["flops"] / ours / statistics.median(measurement["peaks"])
        times = f"{best[1] * 1e3:.4f}", f"{best[1] / ours:.2f}"
        table.add_row(label, f"{ours * 1e3:.4f}", f"{share:.0%}", best[0], *times, *_plan_cells(measurement["plan"]))
    if not ratios:
        return
    out = console()
    out.print("\nSummary")
    out.print(table)
    for group, found in ratios.items():
        lowest = min(found, key=lambda label: found[label])
        out.print(
            f"{group}: geometric mean of best peer / ours {_geometric_mean(list(found.values())):.2f} of {len(found)}, "
            f"lowest {found[lowest]:.2f} ({lowest.partition(',')[0]})",
            markup=False,
        )


def _plan_cells(plan: Mapping[str, int]) -> tuple[str, str]:
    gap = plan["arena"] / plan["lower_bound"] - 1 if plan["lower_bound"] else 0.0
    return f"{plan['arena'] / 2**20:.2f}", f"{gap:.2%}"


def print_fresh(label: str, rows: Mapping[str, Mapping[str, float]]) -> None:
    """Compile time and memory, of new processes."""
    table = Table(box=None, pad_edge=False)
    for header in ("contender", "import s", "compile cold s", "from its cache s", "peak memory MB"):
        table.add_column(header, justify="left" if header == "contender" else "right")
    for name, row in rows.items():
        times = [f"{row[key]:.3f}" if key in row else "" for key in ("import", "cold", "cached")]
        table.add_row(name, *times, f"{row['peak_bytes'] / 2**20:.0f}")
    out = console()
    out.print(f"\n{label}, new processes", markup=False)
    out.print(table)


def print_fresh_summary(fresh: Mapping[str, Mapping[str, Mapping[str, float]]]) -> None:
    """Compile times, and the processes' peak memory against those that they are to stay under."""
    if not fresh:
        return
    table = Table(box=None, pad_edge=False)
    headers = ("problem", "cold s", "cached s", "ours MB", "PyTorch MB", "in C MB", "ONNX Runtime MB")
    for header in headers:
        table.add_column(header, justify="left" if header == "problem" else "right")
    for label, rows in fresh.items():
        names = (OURS, "PyTorch", IN_C, FROM_FILE)
        memory = [f"{rows[name]['peak_bytes'] / 2**20:.0f}" if name in rows else "" for name in names]
        table.add_row(label, f"{rows[OURS]['cold']:.3f}", f"{rows[OURS]['cached']:.3f}", *memory)
    out = console()
    out.print("\nNew processes: compile times without imports, peak memory")
    out.print(table)


def write_chart(path: Path, measurements: Mapping[str, Mapping[str, Any]], title: str) -> None:
    """A PNG with the time of every contender, as a multiple of ours; ImportError without matplotlib."""
    import matplotlib as mpl  # an optional extra: only the chart needs it

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import ScalarFormatter

    labels = [label for label in measurements if OURS in measurements[label]["seconds"]]
    names = _in_order(name for label in labels for name in measurements[label]["seconds"] if name != OURS)
    figure, axes = plt.subplots(figsize=(9, 1.2 + 0.2 * len(labels) * max(1, len(names))))
    height = 0.8 / max(1, len(names))
    for i, name in enumerate(names):
        points = [(row, _times_ours(measurements[label], name)) for row, label in enumerate(labels)]
        shown = [(row + (i + 0.5) * height - 0.4, value) for row, value in points if value is not None]
        if not shown:
            continue
        bars = axes.barh([y for y, _ in shown], [value for _, value in shown], height, label=name)
        axes.bar_label(bars, fmt="%.2f", fontsize=6, padding=2)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(labels)), labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(ScalarFormatter())
    axes.set_xlabel(f"time as a multiple of {OURS} (right of the line: slower)", fontsize=8)
    axes.set_title(title, fontsize=9)
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _times_ours(measurement: Mapping[str, Any], name: str) -> float | None:
    found = medians(measurement)
    return found[name] / found[OURS] if name in found else None


def _geometric_mean(values: Sequence[float]) -> float:
    return math.exp(statistics.fmean(math.log(v) for v in values))


def _in_order(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
