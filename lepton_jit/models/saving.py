"""Models as files: one safetensors file with the weights, and the configuration as JSON in its metadata.

A file holds tensors and the names and arguments of known layers, never code; no model comes out of a file that is not
whole. Copies and pickles of a model are made of the same bytes.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from lepton_jit import optimizers
from lepton_jit.common import arguments
from lepton_jit.common.writing import file_path, whole_file
from lepton_jit.errors import ArgumentError, FileFormatError, LeptonError, UnsupportedError
from lepton_jit.layers.base.registry import registry, serialize
from lepton_jit.layers.functional import Functional
from lepton_jit.models.model_file import Tensors, decode, encode
from lepton_jit.runtime.arguments import aligned_copy
from lepton_jit.tracing.weight import assign_all, without_values
from lepton_jit.training.trainer import Trainer

__all__ = ["bytes_of", "load_weights", "model_in", "model_of_bytes", "save", "save_weights"]

PathLike = str | os.PathLike[str]


def save(trainer: Trainer, filepath: PathLike, overwrite: bool) -> None:
    """Write layers, weights, what `compile` chose and the optimizer's state; the file appears when it is whole."""
    _write(filepath, _whole_model(trainer), overwrite)


def save_weights(model: Functional, filepath: PathLike, overwrite: bool) -> None:
    """Write the weights alone."""
    _write(filepath, encode("weights", {}, _weights(model)), overwrite)


def load_weights(model: Functional, filepath: PathLike) -> None:
    """Read the weights of a file that either of them wrote; nothing changes if one does not fit."""
    path = file_path("load_weights", filepath)
    with _as_file_errors(path):
        _, tensors = decode(_content(path))
        _assign_weights(model, tensors)


def bytes_of(trainer: Trainer) -> bytes:
    """The bytes of a file of the trainer's model."""
    return b"".join(_whole_model(trainer))


def model_in(filepath: PathLike) -> Functional:
    """The model that a file holds, built."""
    path = file_path("load", filepath)
    with _as_file_errors(path):
        model = model_of_bytes(_content(path))
        if not model.built:
            raise FileFormatError("expected a model with weights")
        return model


def model_of_bytes(data: bytes) -> Functional:
    """The model that these bytes of a file describe."""
    config, tensors = decode(data)
    if config["kind"] != "model" or "model" not in config:
        raise FileFormatError(f"expected a model, got a file of {config['kind']}; use model.load_weights")
    model = without_values(lambda: registry.deserialize(config["model"]))
    trainer = getattr(model, "_trainer", None)
    if not isinstance(model, Functional) or not isinstance(trainer, Trainer):
        raise FileFormatError(f"expected a model, got the configuration of a {type(model).__name__}")
    _assign_weights(model, tensors)
    _freeze(model, config.get("frozen", []))
    if "compile" in config:
        _restore_training(trainer, config["compile"], tensors)
    for name, target in _state(trainer).items():
        _expect(name, tensors.get(name), (), target.dtype)
        target[...] = tensors[name]
    return model


# Writing


def _whole_model(trainer: Trainer) -> list[Any]:
    """The pieces of a file with everything that the rest of the model's life depends on."""
    model = trainer.model
    try:
        config: dict[str, Any] = {"model": serialize(model)}
    except RecursionError:
        raise UnsupportedError(f"save: {model.label} is too deeply nested for a file") from None
    tensors = _weights(model) | _state(trainer)
    config["frozen"] = [path for path, weight in model.weight_paths().items() if not weight.trainable]
    if trainer.compiled:
        optimizer = trainer.optimizer
        config["compile"] = {
            **trainer.objective.get_config(),
            "optimizer": {"class_name": type(optimizer).__name__, "config": optimizer.get_config()},
            "frozen": trainer.trained.frozen,
            "undecayed": [path for path in model.weight_paths() if not optimizer.decays(path)],
        }
        tensors |= {f"optimizer/{name}": array for name, array in optimizer.slots.items()}
    return encode("model", config, tensors)


def _weights(model: Functional) -> Tensors:
    return {f"weights/{path}": array for path, array in model.weights_by_name().items()}


def _state(trainer: Trainer) -> Tensors:
    """The numbers that training counts with: the arrays themselves."""
    state = {"state/forward_step": trainer.forward_step, "state/seed": trainer.seed}
    return state | {"state/step": trainer.optimizer.iterations} if trainer.compiled else state


def _write(filepath: PathLike, pieces: list[Any], overwrite: bool) -> None:
    path = file_path("save", filepath)
    if not overwrite and path.exists():
        raise ArgumentError(f"save: {path} exists; pass overwrite=True to replace it")
    with whole_file(path) as file:
        file.writelines(pieces)


# Reading


@contextmanager
def _as_file_errors(path: Path) -> Iterator[None]:
    """Raise every defect of a file's contents as a FileFormatError that names the file."""
    try:
        yield
    except OSError:
        raise
    except LeptonError as error:
        raise FileFormatError(f"{path}: {error}") from error
    except (TypeError, ValueError, KeyError, OverflowError, RecursionError, MemoryError) as error:
        # The classes check their arguments; this is for combinations of values that none of them foresaw.
        raise FileFormatError(f"{path}: not a valid configuration: {error!r}") from error


def _content(path: Path) -> bytes:
    with path.open("rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise FileFormatError("expected a regular file, got a device or a pipe")
        return file.read()


def _assign_weights(model: Functional, tensors: Tensors) -> None:
    """Compare names, shapes and element types of all weights, then assign."""
    wanted = model.weight_paths()
    given = {name.removeprefix("weights/"): a for name, a in tensors.items() if name.startswith("weights/")}
    if set(wanted) != set(given):
        missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
        raise FileFormatError(f"expected the model's weights: missing {missing}, not known {extra}")
    for path, weight in wanted.items():
        _expect(f"weight {path!r}", given[path], weight.shape, weight.dtype.numpy)
    assign_all(list(wanted.values()), [given[path] for path in wanted])


def _expect(what: str, array: np.ndarray | None, shape: tuple[int, ...], dtype: np.dtype) -> None:
    if array is None:
        raise FileFormatError(f"expected the tensor {what!r}")
    if array.shape != shape or array.dtype != dtype:
        raise FileFormatError(f"{what}: expected {dtype}{list(shape)}, got {array.dtype}{list(array.shape)}")


def _freeze(model: Functional, frozen: Any) -> None:
    weights = model.weight_paths()
    for path in _known_paths(model, "frozen", frozen):
        weights[path].trainable = False


def _known_paths(model: Functional, what: str, given: Any) -> set[str]:
    known, paths = model.weight_paths(), arguments.sequence("file", what, given)
    for path in paths:
        if not isinstance(path, str) or path not in known:
            raise FileFormatError(f"{what}: expected names of weights, got {path!r}")
    return set(paths)


def _restore_training(trainer: Trainer, config: Any, tensors: Tensors) -> None:
    keys = ("loss", "loss_weights", "metrics", "weighted_metrics")
    names = (*keys, "optimizer", "frozen", "undecayed")
    if not isinstance(config, Mapping) or set(config) != set(names):
        raise FileFormatError(f"compile: expected {', '.join(names)}, got {config!r}")
    for key in (*keys, "frozen"):
        arguments.sequence("compile", key, config[key])
    model = trainer.model
    several = len(model.outputs) > 1
    wanted = {key: config[key] if several else _only(key, config[key]) for key in keys}
    optimizer = optimizers.get(config["optimizer"])
    undecayed = _known_paths(model, "undecayed", config["undecayed"])
    if undecayed:
        # Whole names, not the patterns that found them: a pattern of a stranger's may search for ever.
        optimizer.exclude_from_weight_decay(var_names=[rf"\A{re.escape(path)}\Z" for path in sorted(undecayed)])
    trainer.set_training(optimizer, wanted)
    trainer.trained.frozen = config["frozen"]
    slots = {name.removeprefix("optimizer/"): a for name, a in tensors.items() if name.startswith("optimizer/")}
    for path, weight in model.weight_paths().items():
        for name in [f"{path}/{slot}" for slot in optimizer.slot_names if f"{path}/{slot}" in slots]:
            array = slots.pop(name)
            _expect(f"optimizer slot {name!r}", array, weight.shape, weight.dtype.numpy)
            optimizer.slots[name] = aligned_copy(array)
    if slots:
        raise FileFormatError(f"optimizer: not a slot of {type(optimizer).__name__}: {min(slots)!r}")


def _only(key: str, values: Any) -> Any:
    if len(values) != 1:
        raise FileFormatError(f"compile: {key}: expected one entry for one output, got {len(values)}")
    return values[0]
