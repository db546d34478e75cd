"""IDX, the format that handwritten digits are published in.

offset  size    meaning
0       2       zero
2       1       element type, a code of `ELEMENT_TYPES`
3       1       rank r
4       4 * r   dimensions, unsigned 32-bit, big-endian
4 + 4r  ...     elements, row by row, big-endian; nothing follows
"""

from __future__ import annotations

import gzip
import io
import math
import os
import zlib
from pathlib import Path

import numpy as np

from lepton_jit.errors import FileFormatError

__all__ = ["read_idx"]

ELEMENT_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
HIGHEST_RANK = 32
GZIP_MAGIC = b"\x1f\x8b"
# Deflate cannot do better (258 bytes for two bits), so a larger claim is a lie, found before memory is asked for.
GZIP_HIGHEST_RATIO = 1032


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """Read an IDX file, plain or gzip (its content decides, not its name), into a fresh array in native byte order.

    Raises FileFormatError, with the offset in the uncompressed content, if the file is not exactly one IDX array.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        compressed = file.read(2) == GZIP_MAGIC
        file.seek(0)
        if not compressed:
            return _read_array(file, str(path), capacity=size)
        try:
            with gzip.GzipFile(fileobj=file) as content:
                return _read_array(content, str(path), capacity=size * GZIP_HIGHEST_RATIO)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            message = f"{path}: damaged gzip data, near offset {file.tell()} of {size} compressed bytes: {error}"
            raise FileFormatError(message) from error


def _read_array(file: io.BufferedIOBase, source: str, capacity: int) -> np.ndarray:
    dtype, shape, start = _read_header(file, source)
    length = math.prod(shape) * dtype.itemsize
    if start + length > capacity:
        raise FileFormatError(
            f"{source}: offset {start}: expected {length} bytes of elements for shape {shape}, "
            f"got a file that holds at most {max(capacity - start, 0)}"
        )
    array = np.empty(shape, dtype)
    got = _read_into(file, array.reshape(-1).view(np.uint8))
    if got < length:
        raise FileFormatError(
            f"{source}: offset {start + got}: expected {length} bytes of elements for shape {shape}, got {got}"
        )
    if file.read(1):
        raise FileFormatError(f"{source}: offset {start + length}: expected the end of the file, got more bytes")
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_header(file: io.BufferedIOBase, source: str) -> tuple[np.dtype, tuple[int, ...], int]:
    magic = file.read(4)
    if len(magic) < 4:
        raise FileFormatError(f"{source}: offset {len(magic)}: expected an IDX header of 4 bytes, got {len(magic)}")
    if magic[:2] != b"\0\0":
        raise FileFormatError(f"{source}: offset 0: expected the zero bytes of an IDX magic number, got {magic.hex()}")
    if magic[2] not in ELEMENT_TYPES:
        known = ", ".join(f"{code:#04x}" for code in ELEMENT_TYPES)
        raise FileFormatError(f"{source}: offset 2: expected an element type of {known}, got {magic[2]:#04x}")
    rank = magic[3]
    if not 1 <= rank <= HIGHEST_RANK:
        raise FileFormatError(f"{source}: offset 3: expected a rank of 1 to {HIGHEST_RANK}, got {rank}")
    dimensions = file.read(4 * rank)
    start = 4 + len(dimensions)
    if len(dimensions) < 4 * rank:
        raise FileFormatError(
            f"{source}: offset {start}: expected {rank} dimensions of 4 bytes, got the end of the file"
        )
    shape = tuple(int.from_bytes(dimensions[i : i + 4], "big") for i in range(0, len(dimensions), 4))
    # NumPy refuses an empty array whose other dimensions overflow; no file needs one.
    if 0 in shape and math.prod(d for d in shape if d) >= 2**60:
        raise FileFormatError(f"{source}: offset 4: expected dimensions within 64 bits, got {shape}")
    return np.dtype(ELEMENT_TYPES[magic[2]]), shape, start


def _read_into(file: io.BufferedIOBase, target: np.ndarray) -> int:
    """Fill `target` as far as the file goes; a read may return less than it was asked for."""
    view = target.data
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            break
        done += count
    return done
