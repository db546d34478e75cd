"""The memory that this process may still take. LLVM ends the process where it gets none, so that it is asked before."""

from __future__ import annotations

import resource
from pathlib import Path

from lepton_jit.errors import OutOfMemoryError

__all__ = ["cgroup_room", "require_memory"]

_MB = 2**20


def require_memory(what: str, *, address_space: int, data: int) -> None:
    """OutOfMemoryError unless the limits of this process and its control groups leave so many bytes for `what`."""
    limits = [
        ("RLIMIT_AS", address_space, _limit_room(resource.RLIMIT_AS, "VmSize")),
        ("RLIMIT_DATA", data, _limit_room(resource.RLIMIT_DATA, "VmData")),
        ("the control group's memory.max", data, cgroup_room()),
    ]
    for name, needed, room in limits:
        if room is not None and room < needed:
            raise OutOfMemoryError(
                f"{what} needs about {needed // _MB} MB more memory, and {name} leaves {max(0, room) // _MB} MB"
            )


def _limit_room(limit: int, used: str) -> int | None:
    most, _ = resource.getrlimit(limit)
    if most == resource.RLIM_INFINITY:
        return None
    lines = Path("/proc/self/status").read_text().splitlines()
    return most - next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{used}:"))


def cgroup_room(root: Path = Path("/sys/fs/cgroup"), membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """The bytes that control groups of version 2 leave, those of files counted as free; None if they set no limit."""
    try:
        path = next(line[3:] for line in membership.read_text().splitlines() if line.startswith("0::"))
    except (OSError, StopIteration):
        return None
    groups = [root.joinpath(*Path(path).parts[1:i]) for i in range(1, len(Path(path).parts) + 1)]
    rooms = [room for group in groups if (room := _room_of(group)) is not None]
    return min(rooms, default=None)


def _room_of(group: Path) -> int | None:
    try:
        most, used = int((group / "memory.max").read_text()), int((group / "memory.current").read_text())
        files = [line.split()[1] for line in (group / "memory.stat").read_text().splitlines() if line[:5] == "file "]
        return most - used + int(files[0])
    except (OSError, ValueError, IndexError):  # no such group, or "max"
        return None
