"""Compiled objects kept on disk: private to the user, checksummed, written atomically, bounded in size."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path

from lepton_jit.common.writing import fresh_file
from lepton_jit.environment import Environment, read_environment

__all__ = ["DEFAULT_LIMIT", "ObjectCache", "open_cache"]

DEFAULT_LIMIT = 512 * 2**20
_MAGIC = b"LPTCACH1"
_DIGEST_BYTES = 32
_SUFFIX = ".entry"
_log = logging.getLogger(__name__)


def open_cache(environment: Environment | None = None) -> ObjectCache | None:
    """The cache that the environment asks for, or `None` if it is off."""
    environment = read_environment() if environment is None else environment
    return None if environment.cache is None else ObjectCache(environment.cache)


class ObjectCache:
    """Named byte blobs under string keys, in `directory/objects`.

    A failure of the disk is a miss, as is a damaged, foreign or publicly writable entry; the next `put` replaces it.
    When the entries outgrow `limit` bytes, those not used for longest are removed.
    """

    def __init__(self, directory: Path, limit: int = DEFAULT_LIMIT) -> None:
        self.directory = Path(directory) / "objects"
        self.limit = limit

    def get(self, key: str) -> dict[str, bytes] | None:
        """The blobs stored under `key`, or `None`."""
        path = self._path(key)
        try:
            content = _read_private(path)
            if content is None:
                return None
            blobs = _decode(key, content)
            if blobs is None:
                _log.debug("cache entry %s is damaged and will be replaced", path)
                return None
            os.utime(path)
        except OSError as error:
            _log.debug("cache entry %s cannot be read: %s", path, error)
            return None
        return blobs

    def put(self, key: str, blobs: Mapping[str, bytes]) -> bool:
        """Store blobs under `key`; whether that worked. Other processes see the old entry or the new, never a part."""
        path = self._path(key)
        try:
            if not self._make_directory():
                return False
            # Not flushed to the disk: an entry that was lost is found damaged, and compiled again.
            with fresh_file(path, 0o600, durable=False) as file:
                file.write(_encode(key, blobs))
            self._evict(keep=path)
        except OSError as error:
            _log.debug("cache entry %s cannot be written: %s", path, error)
            return False
        return True

    def _path(self, key: str) -> Path:
        return self.directory / (hashlib.blake2b(key.encode(), digest_size=20).hexdigest() + _SUFFIX)

    def _make_directory(self) -> bool:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = self.directory.stat()
        private = status.st_uid == os.getuid() and not status.st_mode & 0o022
        if not private:
            _log.warning("the object cache %s can be written by others and is not used", self.directory)
        return private

    def _evict(self, keep: Path) -> None:
        entries: list[tuple[float, int, Path]] = []
        for path in self.directory.iterdir():
            with contextlib.suppress(OSError):  # removed by another process
                status = path.stat()
                if path.suffix == _SUFFIX:
                    entries.append((status.st_mtime, status.st_size, path))
        excess = sum(size for _, size, _ in entries) - self.limit
        for _, size, path in sorted(entries):
            if excess <= 0:
                return
            if path != keep:
                path.unlink(missing_ok=True)
                excess -= size


def _read_private(path: Path) -> bytes | None:
    """The content of a regular file that only this user can write, else `None`."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o022:
            return None
        return file.read()


def _encode(key: str, blobs: Mapping[str, bytes]) -> bytes:
    """Magic, digest of the rest, then key and blobs as pairs of name and content, each with its length before it."""
    parts = [key.encode(), *(part for name, blob in blobs.items() for part in (name.encode(), blob))]
    body = b"".join(struct.pack("<Q", len(part)) + part for part in parts)
    return _MAGIC + _digest(body) + body


def _decode(key: str, content: bytes) -> dict[str, bytes] | None:
    head = len(_MAGIC) + _DIGEST_BYTES
    body = content[head:]
    if content[: len(_MAGIC)] != _MAGIC or content[len(_MAGIC) : head] != _digest(body):
        return None
    parts: list[bytes] = []
    position = 0
    while position < len(body):
        (length,) = struct.unpack_from("<Q", body, position)
        parts.append(body[position + 8 : position + 8 + length])
        position += 8 + length
    stored, *pairs = parts
    if stored != key.encode():
        return None
    return {name.decode(): blob for name, blob in zip(pairs[::2], pairs[1::2], strict=True)}


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST_BYTES).digest()
