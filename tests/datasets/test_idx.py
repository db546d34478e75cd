"""IDX files: what is read back, and that a damaged one is named with its offset."""

from __future__ import annotations

import gzip
import random
import struct
from pathlib import Path

import numpy as np
import pytest

from lepton_jit.datasets import read_idx
from lepton_jit.errors import FileFormatError

pytestmark = pytest.mark.tiny

CODES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def idx_bytes(array: np.ndarray) -> bytes:
    header = bytes([0, 0, CODES[array.dtype.str[1:]], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def read(directory: Path, content: bytes) -> np.ndarray:
    path = directory / "content-idx"
    path.write_bytes(content)
    return read_idx(path)


def error_of(directory: Path, content: bytes) -> str:
    with pytest.raises(FileFormatError) as caught:
        read(directory, content)
    return str(caught.value).removeprefix(f"{directory / 'content-idx'}: ")


@pytest.mark.parametrize("code", CODES)
@pytest.mark.parametrize("shape", [(6,), (2, 3), (0, 28, 28), (1, 2, 3, 4)])
@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_reads_back_every_element_type(tmp_path, code, shape, pack):
    expected = (np.arange(np.prod(shape)) * 11 - (0 if code == "u1" else 100)).astype(code).reshape(shape)

    actual = read(tmp_path, pack(idx_bytes(expected)))

    assert actual.dtype == expected.dtype
    assert actual.flags.writeable
    np.testing.assert_array_equal(actual, expected)


VALID = idx_bytes(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "offset 0: expected an IDX header of 4 bytes, got 0"),
        (VALID[:3], "offset 3: expected an IDX header of 4 bytes, got 3"),
        (b"\1" + VALID[1:], "offset 0: expected the zero bytes of an IDX magic number, got 01000802"),
        (
            b"\0\0\7" + VALID[3:],
            "offset 2: expected an element type of 0x08, 0x09, 0x0b, 0x0c, 0x0d, 0x0e, got 0x07",
        ),
        (b"\0\0\x08\0" + VALID[4:], "offset 3: expected a rank of 1 to 32, got 0"),
        (b"\0\0\x08\xff" + bytes(2000), "offset 3: expected a rank of 1 to 32, got 255"),
        (VALID[:9], "offset 9: expected 2 dimensions of 4 bytes, got the end of the file"),
        (VALID[:-1], "offset 12: expected 6 bytes of elements for shape (2, 3), got a file that holds at most 5"),
        (VALID + b"\0", "offset 18: expected the end of the file, got more bytes"),
        (gzip.compress(VALID[:-1], mtime=0), "offset 17: expected 6 bytes of elements for shape (2, 3), got 5"),
        (gzip.compress(VALID + b"\0", mtime=0), "offset 18: expected the end of the file, got more bytes"),
        (
            b"\0\0\x08\3" + b"\xff" * 12 + bytes(8),
            f"offset 16: expected {(2**32 - 1) ** 3} bytes of elements for shape (4294967295, 4294967295, 4294967295), "
            "got a file that holds at most 8",
        ),
        (
            b"\0\0\x08\3" + bytes(4) + b"\xff" * 8,
            "offset 4: expected dimensions within 64 bits, got (0, 4294967295, 4294967295)",
        ),
    ],
)
def test_a_damaged_file_is_named_with_its_offset(tmp_path, content, expected):
    assert error_of(tmp_path, content) == expected


def test_a_claim_that_gzip_cannot_hold_asks_for_no_memory(tmp_path):
    content = gzip.compress(b"\0\0\x08\2" + struct.pack(">2I", 2**31, 2**31) + bytes(100))

    assert "got a file that holds at most" in error_of(tmp_path, content)


@pytest.mark.parametrize("cut", [10, 20, -1], ids=["header", "data", "checksum"])
def test_truncated_gzip(tmp_path, cut):
    assert error_of(tmp_path, gzip.compress(VALID, mtime=0)[:cut]).startswith("damaged gzip data, near offset")


def test_gzip_whose_checksum_does_not_fit(tmp_path):
    content = bytearray(gzip.compress(VALID, mtime=0))
    content[-6] ^= 1

    assert "CRC check failed" in error_of(tmp_path, bytes(content))


def mutate(content: bytes, seed: int) -> bytes:
    """Flip bits, cut, repeat or insert: one to three of these, drawn by `seed`."""
    draw = random.Random(seed)
    mutated = bytearray(content)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(min(len(mutated), draw.choice([20, len(mutated)])) or 1)
        match draw.randrange(4):
            case 0:
                mutated[place : place + 1] = bytes([draw.randrange(256)])
            case 1:
                del mutated[place:]
            case 2:
                mutated[place:place] = mutated[: draw.randrange(40)]
            case _:
                mutated[place:place] = draw.randbytes(draw.randrange(1, 9))
    return bytes(mutated)


def test_two_hundred_mutated_files_give_an_error_or_a_result(tmp_path):
    images = idx_bytes((np.arange(5 * 28 * 28) % 251).astype(np.uint8).reshape(5, 28, 28))
    outcomes = {"error": 0, "result": 0}

    for seed in range(200):
        original = images if seed % 2 else gzip.compress(images, mtime=0)
        try:
            result = read(tmp_path, mutate(original, seed))
        except FileFormatError as error:
            outcomes["error"] += "offset" in str(error)
        else:
            assert isinstance(result, np.ndarray), f"seed {seed}"
            outcomes["result"] += 1

    assert min(outcomes.values()) > 0
    assert sum(outcomes.values()) == 200
