"""The tables of a run, and its chart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.contender import OURS

__all__ = ["best_peer", "medians", "print_fresh", "print_measurement", "print_summary", "write_chart"]

WIDTH = 150


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
    for name, time in medians(measurement).items():
        rate = measurement["flops"] / time
        table.add_row(
            name,
            f"{time * 1e3:.4f}",
            f"{min(measurement['seconds'][name]) * 1e3:.4f}",
            f"{time / ours:.2f}" if ours else "",
            f"{rate * 1e-9:.1f}",
            f"{rate / peak:.1%}",
            f"{measurement['errors'][name]:.0e}",
        )
    out = console()
    out.print(f"\n{label}, FMA peak {peak * 1e-9:.0f} GFLOP/s (rounds differ by {spread:.0%})", markup=False)
    out.print(table)
    for name, reason in measurement["missing"].items():
        out.print(f"{name}: left out, {reason}", markup=False)


def print_summary(measurements: Mapping[str, Mapping[str, Any]]) -> None:
    """Best peer against ours for every problem, and the geometric means."""
    table = Table(box=None, pad_edge=False)
    for header in ("problem", "ours ms", "best peer", "ms", "best peer / ours"):
        table.add_column(header, justify="left" if header in ("problem", "best peer") else "right")
    ratios: dict[str, list[float]] = {}
    for label, measurement in measurements.items():
        best, ours = best_peer(measurement), medians(measurement).get(OURS)
        if best is None or ours is None:
            continue
        ratios.setdefault(measurement["mode"], []).append(best[1] / ours)
        table.add_row(label, f"{ours * 1e3:.4f}", best[0], f"{best[1] * 1e3:.4f}", f"{best[1] / ours:.2f}")
    if not ratios:
        return
    out = console()
    out.print("\nSummary")
    out.print(table)
    for mode, found in ratios.items():
        out.print(f"{mode}: geometric mean {_geometric_mean(found):.2f}, lowest {min(found):.2f}")


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
