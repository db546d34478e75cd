"""Describe a compiled program: its arguments, its steps, its memory. As JSON, it is checked when read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lepton_jit.errors import FileFormatError
from lepton_jit.runtime.dimensions import parse_polynomial

__all__ = ["MANIFEST_VERSION", "NUMPY_DTYPES", "ManifestBuffer", "Dim", "Manifest", "ManifestStep", "Tensor"]

MANIFEST_VERSION = 2
Dim = int | str

NUMPY_DTYPES: dict[str, np.dtype] = {
    "f16": np.dtype("float16"),
    "f32": np.dtype("float32"),
    "f64": np.dtype("float64"),
    "i8": np.dtype("int8"),
    "i16": np.dtype("int16"),
    "i32": np.dtype("int32"),
    "i64": np.dtype("int64"),
    "u8": np.dtype("uint8"),
    "u16": np.dtype("uint16"),
    "u32": np.dtype("uint32"),
    "u64": np.dtype("uint64"),
    "bool": np.dtype("bool"),
}


@dataclass(frozen=True)
class Tensor:
    """An argument or result: `role` says what for (`input`, `output`, `weight`, `state`, `random_key`...)."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]
    role: str = "input"

    def __str__(self) -> str:
        return f"{self.dtype}[{','.join(str(d).replace(' ', '') for d in self.shape)}]"


@dataclass(frozen=True)
class ManifestStep:
    """One kernel launch: the kernel, the layer that it came from, its floating-point operations and bytes moved.

    `checked` names the input of which it reports bad elements, if that is what it does.
    """

    kernel: str
    layer: str
    flops: Dim = 0
    bytes: Dim = 0
    checked: str = ""


@dataclass(frozen=True)
class ManifestBuffer:
    """A planned buffer: its bytes, and the steps from which to which (both included) it is alive.

    With `per_thread` every thread of a context has so many.
    """

    name: str
    size: Dim
    first: int
    last: int
    layer: str = ""
    per_thread: bool = False


@dataclass(frozen=True)
class Manifest:
    """A program's description.

    `prefix` starts its symbols (`<prefix>_run`). `donations` maps an output's index to the index of the parameter that
    it overwrites. `errors` gives the text of each code that a kernel reports. `features` are LLVM's names.
    """

    name: str
    prefix: str
    target: str
    architecture: str
    features: tuple[str, ...] = ()
    symbols: tuple[str, ...] = ()
    inputs: tuple[Tensor, ...] = ()
    outputs: tuple[Tensor, ...] = ()
    params: tuple[Tensor, ...] = ()
    donations: Mapping[int, int] = field(default_factory=dict)
    steps: tuple[ManifestStep, ...] = ()
    buffers: tuple[ManifestBuffer, ...] = ()
    errors: Mapping[int, str] = field(default_factory=dict)

    @property
    def interface(self) -> str:
        """A fingerprint of what a caller in C relies on: symbols, inputs and outputs, in order."""
        described = [self.symbols, *([(t.name, str(t)) for t in side] for side in (self.inputs, self.outputs))]
        return hashlib.blake2b(repr(described).encode(), digest_size=8).hexdigest()

    def to_json(self) -> str:
        """One line of JSON; `from_json` gives the same manifest back."""
        content = {"version": MANIFEST_VERSION} | dataclasses.asdict(self)
        content["donations"] = sorted(self.donations.items())
        content["errors"] = sorted(self.errors.items())
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> Manifest:
        """The manifest in a JSON text; FileFormatError names the field that is missing or wrong."""
        try:
            content = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FileFormatError(f"manifest: not JSON: {error}") from None
        reader = _Reader("manifest", content)
        if reader.integer("version") != MANIFEST_VERSION:
            raise FileFormatError(f"manifest: expected version {MANIFEST_VERSION}, got {content['version']}")
        manifest = Manifest(
            **{key: reader.text(key) for key in ("name", "prefix", "target", "architecture")},
            features=reader.texts("features"),
            symbols=reader.texts("symbols"),
            inputs=reader.records("inputs", _tensor),
            outputs=reader.records("outputs", _tensor),
            params=reader.records("params", _tensor),
            donations=dict(reader.pairs("donations", int)),
            steps=reader.records("steps", _step),
            buffers=reader.records("buffers", _buffer),
            errors=dict(reader.pairs("errors", str)),
        )
        _check(manifest)
        return manifest


class _Reader:
    """Typed access to one JSON object; every failure names the path of the field."""

    def __init__(self, path: str, content: Any) -> None:
        if not isinstance(content, dict):
            raise FileFormatError(f"{path}: expected an object, got {type(content).__name__}")
        self.path = path
        self.content = content

    def _get(self, key: str, kind: type) -> Any:
        if key not in self.content:
            raise FileFormatError(f"{self.path}: {key!r} is missing")
        value = self.content[key]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise FileFormatError(f"{self.path}.{key}: expected {kind.__name__}, got {type(value).__name__}")
        return value

    def text(self, key: str) -> str:
        return self._get(key, str)

    def integer(self, key: str) -> int:
        return self._get(key, int)

    def boolean(self, key: str) -> bool:
        return self._get(key, bool)

    def texts(self, key: str) -> tuple[str, ...]:
        values = self._get(key, list)
        if not all(isinstance(v, str) for v in values):
            raise FileFormatError(f"{self.path}.{key}: expected a list of strings")
        return tuple(values)

    def dim(self, key: str) -> Dim:
        return _dim(f"{self.path}.{key}", self.content.get(key))

    def dims(self, key: str) -> tuple[Dim, ...]:
        return tuple(_dim(f"{self.path}.{key}", value) for value in self._get(key, list))

    def records(self, key: str, read: Callable[[_Reader], Any]) -> tuple[Any, ...]:
        return tuple(read(_Reader(f"{self.path}.{key}[{i}]", v)) for i, v in enumerate(self._get(key, list)))

    def pairs(self, key: str, kind: type) -> list[tuple[int, Any]]:
        pairs = self._get(key, list)
        for pair in pairs:
            good = isinstance(pair, list) and len(pair) == 2 and type(pair[0]) is int and type(pair[1]) is kind
            if not good:
                raise FileFormatError(f"{self.path}.{key}: expected pairs of int and {kind.__name__}, got {pair!r}")
        return [(a, b) for a, b in pairs]


def _dim(path: str, value: Any) -> Dim:
    if type(value) is int:
        return value
    if type(value) is not str:
        raise FileFormatError(f"{path}: expected an integer or a polynomial, got {type(value).__name__}")
    try:
        parse_polynomial(value)
    except ValueError as error:
        raise FileFormatError(f"{path}: {error}") from None
    return value


def _tensor(reader: _Reader) -> Tensor:
    tensor = Tensor(reader.text("name"), reader.text("dtype"), reader.dims("shape"), reader.text("role"))
    if tensor.dtype not in NUMPY_DTYPES:
        raise FileFormatError(f"{reader.path}.dtype: expected one of {', '.join(NUMPY_DTYPES)}, got {tensor.dtype!r}")
    return tensor


def _step(reader: _Reader) -> ManifestStep:
    flops, moved = reader.dim("flops"), reader.dim("bytes")
    return ManifestStep(reader.text("kernel"), reader.text("layer"), flops, moved, reader.text("checked"))


def _buffer(reader: _Reader) -> ManifestBuffer:
    first, last = reader.integer("first"), reader.integer("last")
    if not 0 <= first <= last < 2**31:
        raise FileFormatError(f"{reader.path}: expected 0 <= first <= last, got {first} and {last}")
    return ManifestBuffer(
        reader.text("name"), reader.dim("size"), first, last, reader.text("layer"), reader.boolean("per_thread")
    )


def _check(manifest: Manifest) -> None:
    """Check what one field demands of another."""
    tensors = (*manifest.inputs, *manifest.outputs, *manifest.params)
    dims = [d for t in tensors for d in t.shape]
    dims += [d for s in manifest.steps for d in (s.flops, s.bytes)] + [b.size for b in manifest.buffers]
    texts = {d for d in dims if isinstance(d, str)}
    unknown = sorted({s for d in texts for s in parse_polynomial(d).symbols} - set(manifest.symbols))
    if unknown:
        raise FileFormatError(f"manifest: {unknown[0]!r} is used as a dimension, but is not among the symbols")
    for output, param in manifest.donations.items():
        if not (0 <= output < len(manifest.outputs) and 0 <= param < len(manifest.params)):
            raise FileFormatError(f"manifest.donations: no output {output} or no parameter {param}")
