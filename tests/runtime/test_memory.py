"""Limits of memory: an error that says how much is needed, and never the end of the process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_jit.errors import OutOfMemoryError
from lepton_jit.runtime.memory import cgroup_room, require_memory

LIMITED = """
import resource, sys
import numpy as np
import lepton_jit as lpt
import lepton_jit.compiler.build

model = lpt.Sequential([lpt.Dense(8, activation="relu", input_shape=(4,)), lpt.Dense(3)])
limit, key, room = getattr(resource, sys.argv[1]), sys.argv[2], int(sys.argv[3]) << 20
used = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key))
resource.setrlimit(limit, (used + room, used + room))
try:
    print(lpt.compile(model)(np.ones((2, 4))).shape)
except lpt.OutOfMemoryError as error:
    print("OutOfMemoryError:", error)
"""

COMPILED = "(2, 3)"


def compile_within(limit: str, megabytes: int) -> str:
    key = {"RLIMIT_AS": "VmSize", "RLIMIT_DATA": "VmData"}[limit]
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, limit, key, str(megabytes)],
        capture_output=True, text=True, check=False, timeout=120, env={**os.environ, "LEPTON_JIT_CACHE": "off"},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("limit", "megabytes", "message"),
    [
        ("RLIMIT_AS", 90, "OutOfMemoryError: compiling needs about 128 MB more memory, and RLIMIT_AS leaves"),
        ("RLIMIT_AS", 400, COMPILED),
        ("RLIMIT_DATA", 40, "OutOfMemoryError: compiling needs about 48 MB more memory, and RLIMIT_DATA leaves"),
        ("RLIMIT_DATA", 300, COMPILED),
    ],
)
def test_a_compilation_within_a_limit_works_or_says_what_it_needs(limit: str, megabytes: int, message: str) -> None:
    assert compile_within(limit, megabytes).startswith(message)


@pytest.mark.soak
@pytest.mark.parametrize("limit", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_no_limit_ends_the_process_while_it_compiles(limit: str) -> None:
    found = [compile_within(limit, megabytes) for megabytes in range(5, 400, 25)]
    assert {answer.split(":")[0] for answer in found} == {COMPILED, "OutOfMemoryError"}


def test_without_limits_nothing_is_required() -> None:
    require_memory("a test", address_space=0, data=0)


def test_the_control_groups_up_to_the_root_leave_the_least_that_one_of_them_leaves(tmp_path: Path) -> None:
    for name, most, used, files in (("a", "1000", 900, 50), ("a/b", "max", 100, 0), ("a/b/c", "700", 400, 10)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "memory.max").write_text(most)
        (folder / "memory.current").write_text(str(used))
        (folder / "memory.stat").write_text(f"anon 1\nfile {files}\nfile_mapped 7\n")
    membership = tmp_path / "membership"
    membership.write_text("1:cpu:/x\n0::/a/b/c\n")
    assert cgroup_room(tmp_path, membership) == 150
    assert cgroup_room(tmp_path / "elsewhere", membership) is None


def test_a_room_that_is_too_small_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lepton_jit.runtime.memory.cgroup_room", lambda: 5 << 20)
    with pytest.raises(OutOfMemoryError, match=r"a test needs about 7 MB .*, and the control group.* leaves 5 MB"):
        require_memory("a test", address_space=0, data=7 << 20)
