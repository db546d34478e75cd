"""How many threads: the smallest of what the system and the user allow."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_jit.errors import ArgumentError
from lepton_jit.runtime.threads import cgroup_quota, check_threads, current_threads, default_threads, set_threads


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.mark.parametrize(
    ("files", "membership", "expected"),
    [
        ({}, "0::/\n", None),
        ({"cpu.max": "max 100000"}, "0::/\n", None),
        ({"cpu.max": "150000 100000"}, "0::/\n", 2),
        ({"cpu.max": "20000 100000"}, "0::/\n", 1),
        ({"a/b/cpu.max": "300000 100000", "a/cpu.max": "200000 100000"}, "0::/a/b\n", 2),
        ({"cpu.max": "200000 100000"}, "0::/docker/not/mounted/here\n", 2),
        (
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "250000", "cpu,cpuacct/job/cpu.cfs_period_us": "100000"},
            "4:cpu,cpuacct:/job\n",
            3,
        ),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "4:cpu:/\n", None),
        ({"cpu.max": "garbage"}, "0::/\n", None),
    ],
)
def test_quotas_of_control_groups(tmp_path: Path, files: dict[str, str], membership: str, expected: int | None) -> None:
    root = tmp_path / "cgroup"
    for name, text in files.items():
        write(root / name, text)
    write(tmp_path / "self", membership)
    assert cgroup_quota(root, tmp_path / "self") == expected


def test_a_system_without_control_groups_has_no_quota(tmp_path: Path) -> None:
    assert cgroup_quota(tmp_path, tmp_path / "missing") is None


def test_the_environment_lowers_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    default_threads.cache_clear()
    monkeypatch.setenv("LEPTON_JIT_THREADS", "1")
    try:
        assert default_threads() == 1
    finally:
        monkeypatch.undo()
        default_threads.cache_clear()


def test_set_threads_beats_the_default() -> None:
    set_threads(7)
    try:
        assert current_threads() == 7
    finally:
        set_threads(None)
    assert current_threads() == default_threads()


@pytest.mark.parametrize("threads", [0, -1, 1025, 2.0, "2", None])
def test_a_bad_thread_count_is_refused(threads: object) -> None:
    with pytest.raises(ArgumentError, match="threads: expected"):
        check_threads(threads)  # pyright: ignore[reportArgumentType]
