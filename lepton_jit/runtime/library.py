"""Shared libraries in memory, told apart by what they contain and not by what they are called.

The system's loader takes a name that it knows, or a file that it has open, for the library of before, whatever is in it
now. So each content is opened once, under a name that nothing was opened under yet.
"""

from __future__ import annotations

import ctypes
import itertools
import shutil
import tempfile
import threading
from typing import BinaryIO

__all__ = ["open_library"]

_lock = threading.Lock()
_serial = itertools.count(1)
# By digest. Exported libraries are never unloaded, since workers live in them: nothing is kept that would go.
_opened: dict[bytes, ctypes.CDLL] = {}


def open_library(file: BinaryIO, digest: bytes) -> ctypes.CDLL:
    """The library that an open file holds, whose content has this digest; OSError if it is none.

    The very file that was checked, whatever its name leads to now.
    """
    with _lock:
        if digest not in _opened:
            library = _open(file)
            if any(library._handle == other._handle for other in _opened.values()):
                library = _open_copy(file)  # an open library's file was written over in place
            _opened[digest] = library
        return _opened[digest]


def _open(file: BinaryIO) -> ctypes.CDLL:
    # A number in binary, spelled as steps that lead nowhere: `/` or `./`.
    steps = format(next(_serial), "b").replace("0", "/").replace("1", "./")
    return ctypes.CDLL(f"/{steps}proc/self/fd/{file.fileno()}")


def _open_copy(file: BinaryIO) -> ctypes.CDLL:
    with tempfile.TemporaryFile() as copy:
        file.seek(0)
        shutil.copyfileobj(file, copy)
        copy.flush()
        return _open(copy)
