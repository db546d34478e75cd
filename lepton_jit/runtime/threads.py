"""Choose how many threads a program uses: an explicit argument beats `set_threads`, which beats the environment."""

from __future__ import annotations

import functools
import math
import operator
import os
from pathlib import Path

from lepton_jit.environment import read_environment
from lepton_jit.errors import ArgumentError

__all__ = ["MAX_THREADS", "check_threads", "current_threads", "default_threads", "set_threads"]

MAX_THREADS = 1024
_chosen: int | None = None


def set_threads(threads: int | None) -> None:
    """Set the number of threads of every program that was compiled without one; `None` goes back to the default.

    Takes effect with the next call. Results are the same bits for any number.
    """
    global _chosen
    _chosen = None if threads is None else check_threads(threads)


def current_threads() -> int:
    """The number of threads of programs that were compiled without one."""
    return _chosen or default_threads()


def check_threads(threads: int) -> int:
    """`threads` as an `int`; ArgumentError unless it is an integer in 1 ... 1024."""
    try:
        count = operator.index(threads)
    except TypeError:
        count = None
    if count is None or isinstance(threads, bool):
        raise ArgumentError(f"threads: expected an integer, got {threads!r}")
    if not 1 <= count <= MAX_THREADS:
        raise ArgumentError(f"threads: expected 1 to {MAX_THREADS}, got {count}")
    return count


@functools.cache
def default_threads() -> int:
    """The smallest of the processors that this process may use, its cgroup's quota and LEPTON_JIT_THREADS."""
    limits = [len(os.sched_getaffinity(0)), cgroup_quota(), read_environment().threads]
    return min(MAX_THREADS, *(n for n in limits if n is not None))


def cgroup_quota(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """The processors that control groups grant this process, rounded up; `None` if they set no limit.

    Version 2 keeps `quota period` in `cpu.max`, version 1 in two files; each group up to the root can set a limit.
    """
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas = [q for line in lines for q in _quotas_of(root, line)]
    return max(1, math.ceil(min(quotas))) if quotas else None


def _quotas_of(root: Path, line: str) -> list[float]:
    """The limits of one line `hierarchy:controllers:path` of /proc/self/cgroup."""
    _, _, rest = line.partition(":")
    controllers, _, path = rest.partition(":")
    if controllers and "cpu" not in controllers.split(","):
        return []
    base = root / controllers if controllers else root
    # Inside a container the path is often the host's, while its own group is mounted at the root.
    groups = [base, *(base / "/".join(Path(path).parts[1:i]) for i in range(2, len(Path(path).parts) + 1))]
    if controllers:
        groups += [root / "cpu"]
    return [q for group in groups if (q := _read_quota(group)) is not None]


def _read_quota(group: Path) -> float | None:
    try:
        if (group / "cpu.max").exists():
            quota, period = (group / "cpu.max").read_text().split()[:2]
        else:
            quota = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        return int(quota) / int(period) if int(quota) > 0 and int(period) > 0 else None
    except (OSError, ValueError):  # no such group, or "max"
        return None
