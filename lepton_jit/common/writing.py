"""Files that appear when they are whole, and of which nothing is left if their writer is killed.

What is being written stands beside its destination as `.lepton-<random>.tmp`, locked by its writer. The system drops
the lock of a process that ends, however it ends; the next file that is written in that directory removes what has none.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lepton_jit.errors import ArgumentError

__all__ = ["file_path", "fresh_file", "whole_file", "work_folder"]

_TEMPORARY = re.compile(r"\.lepton-[0-9a-f]{16}\.tmp")


def file_path(owner: str, path: Any) -> Path:
    """An argument that names a file, new or old."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else None
    if not isinstance(text, str) or not Path(text).name or "\0" in text or not _encodes(text):
        raise ArgumentError(f"{owner}: expected the path of a file, got {path!r}")
    if os.path.isdir(text):
        raise ArgumentError(f"{owner}: expected the path of a file, got the directory {text}")
    return Path(text)


def _encodes(text: str) -> bool:
    """Tell whether a name can be encoded for the system; a lone surrogate that stands for no byte cannot."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return True


@contextmanager
def whole_file(path: Path, mode: int = 0o666) -> Iterator[BinaryIO]:
    """A file to write; it replaces `path` in one step when the block ends, and is gone if the block fails.

    A symbolic link stays one, and a file that was there keeps its mode; a new one gets `mode`, as the umask allows. A
    pipe or a device cannot be replaced, and is written to.
    """
    try:
        found = path.stat().st_mode
    except FileNotFoundError:
        found = None
    if found is not None and not stat.S_ISREG(found):
        with path.open("wb") as file:
            yield file
        return
    kept = None if found is None else stat.S_IMODE(found) & 0o777
    # Created with no more rights than it ends with, so that nobody can open it in between.
    with fresh_file(Path(os.path.realpath(path)), mode if kept is None else kept) as file:
        if kept is not None:
            os.fchmod(file.fileno(), kept)
        yield file


@contextmanager
def fresh_file(path: Path, mode: int, *, durable: bool = True) -> Iterator[BinaryIO]:
    """The same, whatever stands at `path`: a link is replaced, and an old mode does not matter.

    With `durable`, the old file or the new one is on the disk whenever the machine stops.
    """
    folder = path.parent
    name, handle = _claim(folder, lambda name: os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode))
    try:
        with open(handle, "wb", closefd=False) as file:
            yield file
            file.flush()
            if durable:
                os.fsync(handle)
        os.replace(name, path)
    except BaseException:
        name.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)  # and with it the lock, once the file has the name that it was written for
    if durable:
        _flush_directory(folder)
    _sweep(folder)


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A new directory inside `folder`, private, for as long as the block runs."""
    name, handle = _claim(folder, _make_directory)
    try:
        yield name
    finally:
        shutil.rmtree(name, ignore_errors=True)
        os.close(handle)


def _claim(folder: Path, create: Callable[[Path], int | None]) -> tuple[Path, int]:
    """A temporary name in `folder`, and the handle that `create` returned for it, locked."""
    while True:
        name = folder / f".lepton-{secrets.token_hex(8)}.tmp"
        try:
            handle = create(name)
        except OSError as error:
            error.filename = str(folder)  # what the user knows, and not a name made up here
            raise
        if handle is None:
            continue
        with suppress(OSError):  # a file system without locks: nothing is swept there
            fcntl.flock(handle, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):  # swept before it was locked
            if os.path.samestat(os.fstat(handle), os.stat(name)):
                return name, handle
        os.close(handle)


def _make_directory(name: Path) -> int | None:
    """The handle of a new directory; None if it was swept before it was opened."""
    name.mkdir(mode=0o700)
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return None


def _flush_directory(folder: Path) -> None:
    """Write the names in a directory to the disk, where that can be done."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except PermissionError:  # names may be entered, but not listed
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # a file system that cannot
            raise
    finally:
        os.close(handle)


def _sweep(folder: Path) -> None:
    """Remove what writers left behind that no longer live; what others may not touch stays."""
    with suppress(OSError):
        for name in os.listdir(folder):
            if _TEMPORARY.fullmatch(name):
                _remove_if_abandoned(folder / name)


def _remove_if_abandoned(path: Path) -> None:
    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)  # fails while its writer lives
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                shutil.rmtree(path)
            else:
                path.unlink()
        finally:
            os.close(handle)
