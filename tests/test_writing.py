"""Files are the old ones or the new ones, whole, whenever a writer stops; and nothing else stays behind."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from lepton_jit.common import writing
from lepton_jit.common.writing import fresh_file, whole_file, work_folder

LEFTOVER = ".lepton-0123456789abcdef.tmp"


def write(path: Path, data: bytes = b"new") -> None:
    with whole_file(path) as file:
        file.write(data)


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_a_new_file_has_the_mode_that_the_umask_allows_and_an_old_one_keeps_its_own(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        write(tmp_path / "new")
    finally:
        os.umask(old)
    (tmp_path / "old").touch(0o600)
    (tmp_path / "old").chmod(0o604)

    write(tmp_path / "old")

    assert (mode(tmp_path / "new"), mode(tmp_path / "old")) == (0o640, 0o604)


def test_the_umask_of_the_process_is_never_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "umask")

    write(tmp_path / "m")
    write(tmp_path / "m")


def test_a_file_that_was_private_is_never_readable_by_others_while_it_is_written(tmp_path: Path) -> None:
    (tmp_path / "m").touch()
    (tmp_path / "m").chmod(0o600)

    with whole_file(tmp_path / "m"):
        assert {mode(path) for path in tmp_path.iterdir()} == {0o600}


@pytest.mark.parametrize("exists", [True, False])
def test_a_symbolic_link_stays_and_its_target_is_written(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to("there/m")
    if exists:
        (tmp_path / "there" / "m").write_bytes(b"old")

    write(tmp_path / "link")

    assert os.readlink(tmp_path / "link") == "there/m"
    assert (tmp_path / "there" / "m").read_bytes() == b"new"
    assert [p.name for p in (tmp_path / "there").iterdir()] == ["m"]


def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    received: list[bytes] = []
    reader = threading.Thread(target=lambda: received.append((tmp_path / "pipe").read_bytes()))
    reader.start()

    write(tmp_path / "pipe")

    reader.join(10)
    assert received == [b"new"]


def test_a_name_of_255_bytes_can_be_written(tmp_path: Path) -> None:
    write(tmp_path / ("m" * 255))

    assert [len(p.name) for p in tmp_path.iterdir()] == [255]


def test_a_block_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path / "m", b"old")

    def stopped() -> None:
        with work_folder(tmp_path) as work, whole_file(tmp_path / "m") as file:
            (work / "x").write_bytes(b"half")
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()

    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("m", b"old")]


def test_the_file_is_on_the_disk_before_it_has_its_name_and_the_name_when_the_block_has_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    flush, replace = os.fsync, os.replace

    def noted_flush(handle: int) -> None:
        done.append("directory" if os.path.samestat(os.fstat(handle), os.stat(tmp_path)) else "file")
        flush(handle)

    def noted_replace(source: Any, target: Any) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(writing.os, "fsync", noted_flush)
    monkeypatch.setattr(writing.os, "replace", noted_replace)
    write(tmp_path / "m")

    assert done == ["file", "rename", "directory"]


def test_what_dead_writers_left_is_swept_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    (tmp_path / LEFTOVER).write_bytes(b"half")
    dead = tmp_path / LEFTOVER.replace("0", "1")
    dead.mkdir()
    (dead / "program.o").write_bytes(b"half")
    (tmp_path / ".lepton-notes.tmp").write_bytes(b"a user's")

    with whole_file(tmp_path / "other") as living, work_folder(tmp_path) as work:
        write(tmp_path / "m")
        assert work.is_dir()
        living.write(b"whole")

    assert {p.name for p in tmp_path.iterdir()} == {"m", "other", ".lepton-notes.tmp"}
    assert (tmp_path / "other").read_bytes() == b"whole"


def test_a_name_that_is_swept_before_its_writer_locked_it_is_given_up_for_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, swept = fcntl.flock, []

    def swept_once(handle: int, how: int) -> None:
        if not swept:
            (found,) = tmp_path.iterdir()
            found.unlink()
            swept.append(found.name)
        lock(handle, how)

    monkeypatch.setattr(writing.fcntl, "flock", swept_once)
    write(tmp_path / "m")

    assert [p.name for p in tmp_path.iterdir()] == ["m"]
    assert len(swept) == 1


def test_a_fresh_file_replaces_a_link_and_a_mode(tmp_path: Path) -> None:
    (tmp_path / "kept").write_bytes(b"kept")
    (tmp_path / "kept").chmod(0o666)
    (tmp_path / "m").symlink_to("kept")

    with fresh_file(tmp_path / "m", 0o600) as file:
        file.write(b"new")

    assert (tmp_path / "kept").read_bytes() == b"kept"
    assert (mode(tmp_path / "m"), (tmp_path / "m").is_symlink()) == (0o600, False)


KILLS = """
import os, random, signal, sys, time
from pathlib import Path

import lepton_jit as lpt
from lepton_jit.runtime.module_file import check_header, read_module

kind, folder, kills = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
first = [lpt.Dense(60, kernel_initializer=lpt.initializers.Constant(i), input_shape=(300,)) for i in range(2)]
models = [lpt.Sequential([layer, lpt.Dense(i + 1)]) for i, layer in enumerate(first)]
if kind == "save":
    path, longest = folder / "m.lepton", 0.03
    writes = [lambda m=m: m.save(path) for m in models]
    whole = lambda: lpt.load(path).layers[0].kernel.array.mean() in (0, 1)
else:
    path, longest = folder / "m.so", 0.5
    compiled = [lpt.compile(m, threads=1) for m in models]
    writes = [lambda f=f: f.export(path) for f in compiled]

    def whole():
        manifest = read_module(path)
        declared = (folder / "m.h").read_text()
        try:
            check_header(manifest, path)
        except lpt.FileFormatError as error:
            return "another interface" not in declared and "export again" in str(error)
        return f"float[N][{manifest.outputs[0].shape[1]}], written" in declared

writes[0]()
draw, turn, left = random.Random(0), 0, 0
while turn < kills or not left and turn < 100:  # one kill at least in the middle of a write
    child = os.fork()
    if child == 0:
        while True:
            for write in writes:
                write()
    time.sleep(draw.uniform(0, longest))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert whole(), turn
    left += any(name.startswith(".lepton-") for name in os.listdir(folder))
    turn += 1
time.sleep(0.3)  # a linker that outlived its parent
writes[0]()
assert whole()
print(left > 0, sorted(os.listdir(folder)))
"""


@pytest.mark.parametrize("kills", [4, pytest.param(200, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind, files", [("save", ["m.lepton"]), ("export", ["m.h", "m.so"])])
def test_a_killed_writer_leaves_whole_files_and_the_next_write_removes_the_rest(
    tmp_path: Path, kind: str, files: list[str], kills: int
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLS, kind, tmp_path, str(kills)], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == f"True {files}\n"


def test_a_directory_that_takes_no_new_files_is_named_at_once() -> None:
    for make in (lambda: fresh_file(Path("/proc/m"), 0o600), lambda: work_folder(Path("/proc"))):
        with pytest.raises(FileNotFoundError, match=r"No such file or directory: '/proc'$"), make():
            pass


def test_a_folder_that_is_swept_before_it_is_opened_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []

    def sweep_first(name: Path, *args: Any) -> int:
        opened.append(name)
        if len(opened) == 1:
            name.rmdir()
        return real(name, *args)

    real = os.open
    monkeypatch.setattr(os, "open", sweep_first)
    with work_folder(tmp_path) as work:
        assert ([work], 2) == (list(tmp_path.iterdir()), len(opened))
