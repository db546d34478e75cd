"""The container of model files: safetensors, with a configuration as JSON and a checksum in its metadata.

The bytes follow from what is written: the same model gives the same file in every process. Reading is strict: every
defect is a FileFormatError that says what was expected.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors import SafetensorError, deserialize

from lepton_jit.errors import FileFormatError, UnsupportedError
from lepton_jit.ir.types import DTYPES

__all__ = ["Tensors", "decode", "encode"]

_FORMAT = "lepton-jit"
_VERSION = 2
_KINDS = ("model", "weights")
_MAX_JSON = 1 << 24
_DTYPES = {
    "F32": "f32", "F64": "f64", "I8": "i8", "I16": "i16", "I32": "i32", "I64": "i64",
    "U8": "u8", "U16": "u16", "U32": "u32", "U64": "u64", "BOOL": "bool",
}  # fmt: skip
_TYPE_NAMES = {DTYPES[ours].numpy: theirs for theirs, ours in _DTYPES.items()}

Tensors = dict[str, np.ndarray]


# Writing


def encode(kind: str, config: Mapping[str, Any], tensors: Tensors) -> list[Any]:
    """The pieces of a file, one after the other; UnsupportedError for what `decode` would refuse."""
    arrays = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in tensors.items()}
    try:
        document = json.dumps({"kind": kind, **config}, allow_nan=False, separators=(",", ":"))
        _parse_json(document)
        header = _header(document, arrays)
        _parse_json(header)
    except (FileFormatError, RecursionError) as error:
        raise UnsupportedError(f"save: the model is too large or too deeply nested for a file: {error}") from None
    data = header.encode()
    data += b" " * (-len(data) % 8)  # so that the tensors are aligned
    return [len(data).to_bytes(8, "little"), data, *(arrays[name] for name in _file_order(arrays))]


def _header(document: str, arrays: Tensors) -> str:
    entries: dict[str, Any] = {
        "__metadata__": {
            "format": _FORMAT,
            "version": str(_VERSION),
            "config": document,
            "crc32": str(_checksum(document, arrays)),
        }
    }
    start = 0
    for name in _file_order(arrays):
        array = arrays[name]
        end = start + array.nbytes
        entries[name] = {"dtype": _TYPE_NAMES[array.dtype], "shape": array.shape, "data_offsets": (start, end)}
        start = end
    return json.dumps(entries, separators=(",", ":"))


def _file_order(arrays: Tensors) -> list[str]:
    """The widest elements first, so that each tensor stands at a multiple of its own."""
    return sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))


def _checksum(document: str, tensors: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of the configuration and of names and bytes of all tensors, in the order of the names."""
    crc = zlib.crc32(document.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].data, zlib.crc32(name.encode(), crc))
    return crc


# Reading


def decode(data: bytes) -> tuple[dict[str, Any], Tensors]:
    """Configuration and tensors of what `encode` gave."""
    metadata, tensors = _parse(data)
    if metadata.get("format") != _FORMAT:
        raise FileFormatError(f"expected a file of {_FORMAT}, got format {metadata.get('format')!r}")
    if metadata.get("version") != str(_VERSION):
        raise FileFormatError(f"expected version {_VERSION} of the format, got {metadata.get('version')!r}")
    document = metadata.get("config", "")
    _compare_checksum(metadata.get("crc32"), document, tensors)
    config = _parse_json(document)
    if config.get("kind") not in _KINDS:
        raise FileFormatError(f"expected kind 'model' or 'weights', got {config.get('kind')!r}")
    return config, tensors


def _compare_checksum(expected: str | None, document: str, tensors: Mapping[str, np.ndarray]) -> None:
    if expected != str(_checksum(document, tensors)):
        raise FileFormatError("the checksum does not fit: the file is damaged")


def _parse(data: bytes) -> tuple[dict[str, str], Tensors]:
    """Metadata and tensors of a safetensors file; the library checks offsets and sizes."""
    if len(data) < 8:
        raise FileFormatError(f"expected a safetensors file, got {len(data)} bytes")
    try:
        entries = deserialize(data)
    except SafetensorError as error:
        raise FileFormatError(f"expected a safetensors file: {error}") from error
    header = _parse_json(data[8 : 8 + int.from_bytes(data[:8], "little")].decode())
    metadata = header.get("__metadata__", {})
    tensors = {}
    for name, entry in entries:
        if entry["dtype"] not in _DTYPES:
            raise FileFormatError(f"tensor {name!r}: expected one of {', '.join(_DTYPES)}, got {entry['dtype']}")
        dtype = DTYPES[_DTYPES[entry["dtype"]]].numpy
        tensors[name] = np.frombuffer(entry["data"], dtype).reshape(entry["shape"])
    return metadata, tensors


def _parse_json(text: str) -> dict[str, Any]:
    """A JSON object of bounded size, without NaN, infinity and repeated keys; Python bounds its depth."""
    if len(text) > _MAX_JSON:
        raise FileFormatError(f"expected a configuration of at most {_MAX_JSON} characters, got {len(text)}")
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"expected JSON: {error}") from error
    except RecursionError:
        raise FileFormatError("expected a configuration that is nested less deeply") from None
    if not isinstance(value, dict):
        raise FileFormatError(f"expected a JSON object, got {type(value).__name__}")
    return value


def _no_constant(name: str) -> Any:
    raise FileFormatError(f"expected finite numbers, got {name}")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise FileFormatError(f"expected different keys, got {[k for k, _ in pairs]}")
    return result
