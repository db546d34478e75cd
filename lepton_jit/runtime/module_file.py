"""The file of an exported module: an ELF shared library, then its manifest, then a footer with a checksum.

    library | manifest: JSON, UTF-8 | u64 bytes of the manifest, u32 version, u32 zero, BLAKE2b of all before, magic

The footer stands last, where the dynamic linker does not look: a file is checked whole before it is opened as code.
"""

from __future__ import annotations

import hashlib
import os
import re
import struct
from pathlib import Path
from typing import BinaryIO

from lepton_jit.errors import FileFormatError, UnsupportedError
from lepton_jit.runtime.cpu import cpu_features, host_architecture
from lepton_jit.runtime.manifest import Manifest

__all__ = ["check_header", "check_host", "is_module", "read_module", "read_sealed", "seal"]

_MAGIC = b"LEPTONJT"
_VERSION = 1
_SIZES = struct.Struct("<QII")
_DIGEST_BYTES = 32
_FOOTER_BYTES = _SIZES.size + _DIGEST_BYTES + len(_MAGIC)
_ELF_HEADER = struct.Struct("<6s12sH")  # identification of a 64-bit little-endian file, padding and type, machine
_ELF_IDENTIFICATION = b"\x7fELF\x02\x01"
_ELF_MACHINES = {"x86_64": 62, "aarch64": 183}
_CHUNK = 2**20


def is_module(path: str | os.PathLike[str]) -> bool:
    """Tell whether a file ends as an exported module does; says nothing about its being whole."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if size < _FOOTER_BYTES:
            return False
        file.seek(size - len(_MAGIC))
        return file.read() == _MAGIC


def seal(library: Path, manifest: Manifest, file: BinaryIO) -> None:
    """Copy a shared library to `file`, with manifest and footer behind it."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    content = manifest.to_json().encode()
    with library.open("rb") as source:
        while chunk := source.read(_CHUNK):
            digest.update(chunk)
            file.write(chunk)
    end = content + _SIZES.pack(len(content), _VERSION, 0)
    digest.update(end)
    file.write(end + digest.digest() + _MAGIC)


def read_module(path: str | os.PathLike[str]) -> Manifest:
    """The manifest of a module whose checksum is right; FileFormatError names file and offset of what is wrong."""
    with open(path, "rb") as file:
        return read_sealed(file, path)[0]


def read_sealed(file: BinaryIO, path: str | os.PathLike[str]) -> tuple[Manifest, bytes]:
    """The same of an open file, and the digest of everything in it."""
    size = file.seek(0, os.SEEK_END)
    if size < _FOOTER_BYTES + _ELF_HEADER.size:
        raise FileFormatError(f"{path}: offset {size}: not an exported module: the file ends too early")
    start = size - _FOOTER_BYTES
    file.seek(start)
    footer = file.read(_FOOTER_BYTES)
    if not footer.endswith(_MAGIC):
        raise FileFormatError(f"{path}: offset {size - len(_MAGIC)}: not an exported module, or a truncated one")
    length, version, _ = _SIZES.unpack_from(footer)
    if version != _VERSION:
        raise FileFormatError(f"{path}: offset {start + 8}: expected module version {_VERSION}, got {version}")
    if length > start - _ELF_HEADER.size:
        raise FileFormatError(f"{path}: offset {start}: a manifest of {length} bytes does not fit in the file")
    digest = _digest(file, start + _SIZES.size)
    if digest != footer[_SIZES.size : -len(_MAGIC)]:
        raise FileFormatError(f"{path}: offset {start + _SIZES.size}: wrong checksum: the file is damaged")
    file.seek(start - length)
    manifest = _parse(file.read(length), path, start - length)
    file.seek(0)
    _check_elf(file.read(_ELF_HEADER.size), manifest, path)
    return manifest, digest


def check_host(manifest: Manifest, who: str) -> None:
    """UnsupportedError unless this machine can run the program."""
    host = host_architecture()
    if manifest.architecture != host:
        raise UnsupportedError(f"{who}: built for {manifest.architecture}, but this machine is {host}")
    missing = sorted(set(manifest.features) - cpu_features())
    if missing:
        raise UnsupportedError(f"{who}: built for {manifest.target}; this processor lacks {', '.join(missing)}")


def check_header(manifest: Manifest, path: Path) -> None:
    """FileFormatError if the C header beside a module is that of another interface: an export ended between the two."""
    header = path.with_suffix(".h")
    text = header.read_text(errors="replace") if header.is_file() else ""
    found = re.search(r"\w_interface_([0-9a-f]{16});", text)
    if found and found[1] != manifest.interface:
        raise FileFormatError(
            f"{path}: expected a header of interface {manifest.interface} beside it, got {header} of {found[1]}; "
            f"an export may have been interrupted: export again, or remove the header"
        )


def _digest(file: BinaryIO, end: int) -> bytes:
    """BLAKE2b of the first `end` bytes."""
    digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
    file.seek(0)
    while end > 0 and (chunk := file.read(min(end, _CHUNK))):
        digest.update(chunk)
        end -= len(chunk)
    return digest.digest()


def _parse(content: bytes, path: str | os.PathLike[str], offset: int) -> Manifest:
    try:
        return Manifest.from_json(content.decode())
    except (FileFormatError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: offset {offset}: {error}") from None


def _check_elf(header: bytes, manifest: Manifest, path: str | os.PathLike[str]) -> None:
    identification, _, machine = _ELF_HEADER.unpack(header)
    if identification != _ELF_IDENTIFICATION:
        raise FileFormatError(f"{path}: offset 0: expected a 64-bit ELF file")
    expected = _ELF_MACHINES.get(manifest.architecture)
    if machine != expected:
        raise FileFormatError(
            f"{path}: offset 18: expected ELF machine {expected} for {manifest.architecture}, got {machine}"
        )
