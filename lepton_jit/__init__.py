"""lepton_jit: models in, native CPU kernels out, for training and inference.

The names below are imported when they are first used, so that `import lepton_jit` takes no time and a program that
only runs an exported library never imports a compiler.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lepton_jit._version import __version__
from lepton_jit.errors import (
    ArgumentError,
    DTypeError,
    FileFormatError,
    GraphError,
    LeptonError,
    OutOfMemoryError,
    OutOfRangeError,
    ParseError,
    ShapeError,
    UnsupportedError,
)

if TYPE_CHECKING:
    from lepton_jit import (
        activations,
        callbacks,
        datasets,
        initializers,
        layers,
        losses,
        metrics,
        models,
        optimizers,
        regularizers,
    )
    from lepton_jit.compiler.compile import compile
    from lepton_jit.compiler.pipeline import set_winograd
    from lepton_jit.compiler.reading import parse
    from lepton_jit.layers import (
        GRU,
        LSTM,
        Activation,
        Add,
        Average,
        AveragePooling2D,
        BatchNormalization,
        Concatenate,
        Conv2D,
        Dense,
        DepthwiseConv2D,
        Dropout,
        Embedding,
        Flatten,
        GlobalAveragePooling1D,
        GlobalAveragePooling2D,
        GlobalMaxPooling1D,
        GlobalMaxPooling2D,
        Input,
        InputLayer,
        Layer,
        LayerNormalization,
        Masking,
        Maximum,
        MaxPooling2D,
        Minimum,
        MultiHeadAttention,
        Multiply,
        Reshape,
        SimpleRNN,
        Subtract,
        ZeroPadding2D,
    )
    from lepton_jit.loading import load
    from lepton_jit.models import Model, Sequential
    from lepton_jit.models.loading import load_model
    from lepton_jit.random import set_random_seed
    from lepton_jit.runtime.threads import set_threads

_SUBMODULES = (
    "activations",
    "callbacks",
    "datasets",
    "initializers",
    "layers",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "regularizers",
)
_HOMES = {
    "Model": "lepton_jit.models",
    "Sequential": "lepton_jit.models",
    "compile": "lepton_jit.compiler.compile",
    "load": "lepton_jit.loading",
    "load_model": "lepton_jit.models.loading",
    "parse": "lepton_jit.compiler.reading",
    "set_random_seed": "lepton_jit.random",
    "set_threads": "lepton_jit.runtime.threads",
    "set_winograd": "lepton_jit.compiler.pipeline",
}  # the other names are layers

__all__ = [
    "GRU",
    "LSTM",
    "Activation",
    "Add",
    "ArgumentError",
    "Average",
    "AveragePooling2D",
    "BatchNormalization",
    "Concatenate",
    "Conv2D",
    "DTypeError",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Embedding",
    "FileFormatError",
    "Flatten",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "GraphError",
    "Input",
    "InputLayer",
    "Layer",
    "LayerNormalization",
    "LeptonError",
    "Masking",
    "MaxPooling2D",
    "Maximum",
    "Minimum",
    "Model",
    "MultiHeadAttention",
    "Multiply",
    "OutOfMemoryError",
    "OutOfRangeError",
    "ParseError",
    "Reshape",
    "Sequential",
    "ShapeError",
    "SimpleRNN",
    "Subtract",
    "UnsupportedError",
    "ZeroPadding2D",
    "__version__",
    "activations",
    "callbacks",
    "compile",
    "datasets",
    "initializers",
    "layers",
    "load",
    "load_model",
    "losses",
    "metrics",
    "models",
    "optimizers",
    "parse",
    "regularizers",
    "set_random_seed",
    "set_threads",
    "set_winograd",
]


def __getattr__(name: str) -> Any:
    if name in _SUBMODULES:
        return import_module(f"lepton_jit.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'lepton_jit' has no attribute {name!r}")
    value = getattr(import_module(_HOMES.get(name, "lepton_jit.layers")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
