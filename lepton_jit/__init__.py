"""lepton_jit: models in, native CPU kernels out, for training and inference.

The names below are imported when they are first used, so that `import lepton_jit` takes no time and a program that
only runs an exported library never imports a compiler. A type checker takes them from the imports that it alone sees.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from lepton_jit import errors
from lepton_jit._version import __version__ as __version__
from lepton_jit.errors import *

if TYPE_CHECKING:
    from lepton_jit import activations as activations
    from lepton_jit import callbacks as callbacks
    from lepton_jit import datasets as datasets
    from lepton_jit import initializers as initializers
    from lepton_jit import layers as layers
    from lepton_jit import losses as losses
    from lepton_jit import metrics as metrics
    from lepton_jit import models as models
    from lepton_jit import optimizers as optimizers
    from lepton_jit import regularizers as regularizers
    from lepton_jit.compiler.compile import compile as compile
    from lepton_jit.compiler.graph_view import to_networkx as to_networkx
    from lepton_jit.compiler.pipeline import set_winograd as set_winograd
    from lepton_jit.compiler.reading import parse as parse
    from lepton_jit.layers import *
    from lepton_jit.loading import load as load
    from lepton_jit.models import *
    from lepton_jit.models.loading import load_model as load_model
    from lepton_jit.random import set_random_seed as set_random_seed
    from lepton_jit.runtime.threads import set_threads as set_threads

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
    "to_networkx": "lepton_jit.compiler.graph_view",
}


def _public_names() -> list[str]:
    return sorted(["__version__", *errors.__all__, *_SUBMODULES, *_HOMES, *import_module("lepton_jit.layers").__all__])


def _found(name: str) -> Any:
    if name == "__all__":
        return _public_names()
    if name in _SUBMODULES:
        return import_module(f"lepton_jit.{name}")
    # All other names are layers, which begin with a capital; who asks for another module must not import them.
    home = import_module(_HOMES.get(name, "lepton_jit.layers")) if name in _HOMES or name[0].isupper() else None
    if home is None or name not in home.__all__:
        raise AttributeError(f"module 'lepton_jit' has no attribute {name!r}")
    value = globals()[name] = getattr(home, name)
    return value


if not TYPE_CHECKING:  # A type checker that sees `__getattr__` accepts every name.
    __getattr__, __dir__ = _found, _public_names
