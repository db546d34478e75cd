"""Models as files: one safetensors file with the weights, and the configuration as JSON in its metadata.

A file holds tensors and the names and arguments of known layers, never code. Reading it is strict: every defect is a
FileFormatError that says what was expected, and no model comes out of a file that is not whole.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from safetensors import SafetensorError, deserialize
from safetensors.numpy import save as serialize_arrays

from lepton_jit import arguments
from lepton_jit.errors import ArgumentError, FileFormatError, LeptonError
from lepton_jit.ir.types import DTYPES
from lepton_jit.layers import registry
from lepton_jit.layers.weight import without_values
from lepton_jit.writing import whole_file

if TYPE_CHECKING:
    from lepton_jit.models import Model

__all__ = ["Saveable", "load_model"]

_FORMAT = "lepton-jit"
_VERSION = 1
_MAX_JSON = 1 << 24
_MAX_DEPTH = 64
_DTYPES = {
    "F32": "f32", "F64": "f64", "I8": "i8", "I16": "i16", "I32": "i32", "I64": "i64",
    "U8": "u8", "U16": "u16", "U32": "u32", "U64": "u64", "BOOL": "bool",
}  # fmt: skip

PathLike = str | os.PathLike[str]
Tensors = dict[str, np.ndarray]


class Saveable:
    """The part of a model that goes into files."""

    def save(self, filepath: PathLike, overwrite: bool = True) -> None:
        """Write layers, weights, what `compile` chose and the optimizer's state; the file appears when it is whole."""
        model = cast("Model", self)
        model._require_built()
        config: dict[str, Any] = {"model": registry.serialize(model)}
        tensors = {f"weights/{path}": array for path, array in model.weights_by_name().items()}
        if model.compiled:
            optimizer = model.optimizer
            config["compile"] = {
                **model.objective.get_config(),
                "optimizer": {"class_name": type(optimizer).__name__, "config": optimizer.get_config()},
                "frozen": model.trained.frozen,
            }
            tensors |= {f"optimizer/{name}": array for name, array in optimizer.slots.items()}
            tensors |= {"state/step": optimizer.iterations, "state/seed": model._seed}
        _write(filepath, "model", config, tensors, overwrite)

    def save_weights(self, filepath: PathLike, overwrite: bool = True) -> None:
        """Write the weights alone."""
        model = cast("Model", self)
        model._require_built()
        tensors = {f"weights/{path}": array for path, array in model.weights_by_name().items()}
        _write(filepath, "weights", {}, tensors, overwrite)

    def load_weights(self, filepath: PathLike) -> None:
        """Read the weights of a file that `save_weights` or `save` wrote; nothing changes if one does not fit."""
        model = cast("Model", self)
        model._require_built()
        with _as_file_errors(filepath):
            _, tensors = _read(filepath)
            _assign_weights(model, tensors)


def load_model(filepath: PathLike) -> Model:
    """The model that `save` wrote: weights, what `compile` chose and the optimizer's state."""
    # Registers the classes of models; imported late, since models are built on this module.
    import_module("lepton_jit.models")
    with _as_file_errors(filepath):
        config, tensors = _read(filepath)
        if config["kind"] != "model" or "model" not in config:
            raise FileFormatError(f"expected a model, got a file of {config['kind']}; use model.load_weights")
        with without_values():
            model = cast("Model", registry.deserialize(config["model"]))
        if not hasattr(model, "network") or not model.built:
            raise FileFormatError(f"expected a model, got the configuration of a {type(model).__name__}")
        _assign_weights(model, tensors)
        if "compile" in config:
            _restore_training(model, config["compile"], tensors)
        return model


# Writing


def _write(filepath: PathLike, kind: str, config: dict[str, Any], tensors: Tensors, overwrite: bool) -> None:
    path = Path(filepath)
    if path.is_dir():
        raise ArgumentError(f"save: expected the path of a file, got the directory {path}")
    if not overwrite and path.exists():
        raise ArgumentError(f"save: {path} exists; pass overwrite=True to replace it")
    contiguous = {name: np.ascontiguousarray(a).reshape(a.shape) for name, a in tensors.items()}
    document = json.dumps({"kind": kind, **config}, allow_nan=False, separators=(",", ":"))
    metadata = {
        "format": _FORMAT,
        "version": str(_VERSION),
        "config": document,
        "crc32": str(_checksum(document, contiguous)),
    }
    data = serialize_arrays(contiguous, metadata)
    with whole_file(path) as file:
        file.write(data)


def _checksum(document: str, tensors: Mapping[str, np.ndarray]) -> int:
    """CRC-32 of the configuration and of names and bytes of all tensors, in the order of the names."""
    crc = zlib.crc32(document.encode())
    for name in sorted(tensors):
        crc = zlib.crc32(tensors[name].tobytes(), zlib.crc32(name.encode(), crc))
    return crc


def _compare_checksum(expected: str | None, document: str, tensors: Mapping[str, np.ndarray]) -> None:
    if expected != str(_checksum(document, tensors)):
        raise FileFormatError("the checksum does not fit: the file is damaged")


# Reading


@contextmanager
def _as_file_errors(filepath: PathLike) -> Iterator[None]:
    """Every defect of a file's contents as a FileFormatError that names the file."""
    try:
        yield
    except OSError:
        raise
    except LeptonError as error:
        raise FileFormatError(f"{os.fspath(filepath)}: {error}") from error
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError, MemoryError) as error:
        # The classes check their arguments; this is for combinations of values that none of them foresaw.
        raise FileFormatError(f"{os.fspath(filepath)}: not a valid configuration: {error!r}") from error


def _read(filepath: PathLike) -> tuple[dict[str, Any], Tensors]:
    data = Path(filepath).read_bytes()
    metadata, tensors = _parse(data)
    if metadata.get("format") != _FORMAT:
        raise FileFormatError(f"expected a file of {_FORMAT}, got format {metadata.get('format')!r}")
    if metadata.get("version") != str(_VERSION):
        raise FileFormatError(f"expected version {_VERSION} of the format, got {metadata.get('version')!r}")
    document = metadata.get("config", "")
    _compare_checksum(metadata.get("crc32"), document, tensors)
    config = _parse_json(document)
    if config.get("kind") not in ("model", "weights"):
        raise FileFormatError(f"expected kind 'model' or 'weights', got {config.get('kind')!r}")
    return config, tensors


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
    """A JSON object of bounded size and depth, without NaN, infinity and repeated keys."""
    if len(text) > _MAX_JSON:
        raise FileFormatError(f"expected a configuration of at most {_MAX_JSON} characters, got {len(text)}")
    depth = deepest = 0
    for character in text:
        if character in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in "]}":
            depth -= 1
    if deepest > _MAX_DEPTH:
        raise FileFormatError(f"expected a configuration of at most {_MAX_DEPTH} levels, got {deepest}")
    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=_unique_keys)
    except json.JSONDecodeError as error:
        raise FileFormatError(f"expected JSON: {error}") from error
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


def _assign_weights(model: Model, tensors: Tensors) -> None:
    """Compare names, shapes and element types of all weights, then assign."""
    wanted = model.weight_paths()
    given = {name.removeprefix("weights/"): a for name, a in tensors.items() if name.startswith("weights/")}
    if set(wanted) != set(given):
        missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
        raise FileFormatError(f"expected the model's weights: missing {missing}, not known {extra}")
    for path, weight in wanted.items():
        _expect(f"weight {path!r}", given[path], weight.shape, weight.dtype.numpy)
    for path, weight in wanted.items():
        weight.assign(given[path])


def _expect(what: str, array: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise FileFormatError(f"{what}: expected {dtype}{list(shape)}, got {array.dtype}{list(array.shape)}")


def _restore_training(model: Model, config: Any, tensors: Tensors) -> None:
    per_output = ("loss", "loss_weights", "metrics", "weighted_metrics")
    keys = (*per_output, "optimizer", "frozen")
    if not isinstance(config, Mapping) or set(config) != set(keys):
        raise FileFormatError(f"compile: expected {', '.join(keys)}, got {config!r}")
    for key in (*per_output, "frozen"):
        arguments.sequence("compile", key, config[key])
    several = len(model.outputs) > 1
    wanted = {key: config[key] if several else _only(key, config[key]) for key in per_output}
    model.compile(config["optimizer"], **wanted)
    model.trained.frozen = config["frozen"]
    slots = {name.removeprefix("optimizer/"): a for name, a in tensors.items() if name.startswith("optimizer/")}
    paths = model.weight_paths()
    for name, array in slots.items():
        path, _, slot = name.rpartition("/")
        if path not in paths or slot not in model.optimizer.slot_names:
            raise FileFormatError(f"optimizer: not a slot of {type(model.optimizer).__name__}: {name!r}")
        _expect(f"optimizer slot {name!r}", array, paths[path].shape, paths[path].dtype.numpy)
    for name, target in (("state/step", model.optimizer.iterations), ("state/seed", model._seed)):
        if name not in tensors:
            raise FileFormatError(f"expected the tensor {name!r}")
        _expect(name, tensors[name], (), target.dtype)
        target[...] = tensors[name]
    model.optimizer.slots.update({name: array.copy() for name, array in slots.items()})


def _only(key: str, values: Any) -> Any:
    if len(values) != 1:
        raise FileFormatError(f"compile: {key}: expected one entry for one output, got {len(values)}")
    return values[0]
