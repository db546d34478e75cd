"""`Model(inputs, outputs)`: layers that train, predict, and go into files."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from lepton_jit.callbacks import History
from lepton_jit.common import arguments
from lepton_jit.common.console import can_show, say
from lepton_jit.common.naming import auto_name
from lepton_jit.errors import ArgumentError, UnsupportedError
from lepton_jit.ir.graph import Graph
from lepton_jit.layers.base.layer import Layer
from lepton_jit.layers.base.registry import registry
from lepton_jit.layers.base.symbolic import SymbolicTensor, as_list
from lepton_jit.layers.functional import Functional
from lepton_jit.layers.network import Network
from lepton_jit.models import saving
from lepton_jit.models.summary import LINES, summary_table
from lepton_jit.optimizers.optimizer import Optimizer
from lepton_jit.training.steps import trace_inference
from lepton_jit.training.trainer import Trainer

__all__ = ["Model"]

P = ParamSpec("P")
R = TypeVar("R")


def of_trainer(method: Callable[Concatenate[Trainer, P], R]) -> Callable[Concatenate[Model, P], R]:
    """A method of the model that its trainer has, with the same arguments and the same docstring."""

    @wraps(method)
    def call(self: Model, *args: P.args, **kwargs: P.kwargs) -> R:
        return method(self._trainer, *args, **kwargs)

    return call


@registry.register
class Model(Functional):
    """The layers between symbolic inputs and outputs, with what trains them.

    >>> import lepton_jit as lpt
    >>> x = lpt.Input((4,), name="features")
    >>> Model(x, lpt.Dense(2, name="scores")(x)).count_params()
    10
    """

    def __init__(self, inputs: Any = None, outputs: Any = None, **options: Any) -> None:
        if type(self) is Model and options.get("name") is None:
            options["name"] = auto_name("Functional")  # Keras' name of such a model
        self._trainer = Trainer(self)
        super().__init__(inputs, outputs, **options)
        if type(self) is Model and (inputs is None or outputs is None):
            raise ArgumentError(f"{self.label}: expected Model(inputs, outputs); a list of layers makes a Sequential")

    def _set_network(self, network: Network | None, output: SymbolicTensor) -> None:
        super()._set_network(network, output)
        self._trainer.forget_programs()

    # Training and prediction

    compile = of_trainer(Trainer.compile)
    fit = of_trainer(Trainer.fit)
    evaluate = of_trainer(Trainer.evaluate)
    predict = of_trainer(Trainer.predict)
    train_on_batch = of_trainer(Trainer.train_on_batch)
    test_on_batch = of_trainer(Trainer.test_on_batch)
    predict_on_batch = of_trainer(Trainer.predict_on_batch)
    reset_metrics = of_trainer(Trainer.reset_metrics)

    @property
    def compiled(self) -> bool:
        """The flag whether `compile` was called."""
        return self._trainer.compiled

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that `compile` chose."""
        return self._trainer.optimizer

    @property
    def metrics_names(self) -> list[str]:
        """The names of what `evaluate` returns, in its order."""
        return self._trainer.metrics_names

    @property
    def history(self) -> History | None:
        """The history that the last `fit` reported."""
        return self._trainer.history

    @history.setter
    def history(self, history: History | None) -> None:
        self._trainer.history = history

    @property
    def stop_training(self) -> bool:
        """Set by a callback: `fit` ends after the batch under way."""
        return self._trainer.stop_training

    @stop_training.setter
    def stop_training(self, stop: bool) -> None:
        self._trainer.stop_training = stop

    def __call__(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The outputs for arrays or symbolic tensors; `mask` is that of the input, or a list of one for each."""
        tensors = list(inputs.values()) if isinstance(inputs, Mapping) else as_list(inputs)
        if any(isinstance(x, SymbolicTensor) for x in tensors):
            if isinstance(inputs, Mapping):
                tensors = [inputs[key] for key in self.input_keys]
            return Layer.__call__(self, tensors, training=training, mask=mask)
        if mask is not None:
            raise UnsupportedError(f"{self.label}: mask= on arrays; make it an input of the model")
        return self._trainer.call_on_arrays(inputs, arguments.boolean(self.label, "training", training or False))

    def trace(self, *_: Any) -> Graph:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The inference graph: inputs, weights as parameters, outputs."""
        self._require_built()
        return trace_inference(self)

    # Files, and what is read

    def save(self, filepath: str | os.PathLike[str], overwrite: bool = True) -> None:
        """Write layers, weights, what `compile` chose and the optimizer's state; the file appears when it is whole."""
        self._require_built()
        saving.save(self._trainer, filepath, overwrite)

    def save_weights(self, filepath: str | os.PathLike[str], overwrite: bool = True) -> None:
        """Write the weights alone."""
        self._require_built()
        saving.save_weights(self, filepath, overwrite)

    def load_weights(self, filepath: str | os.PathLike[str]) -> None:
        """Read the weights of a file that `save_weights` or `save` wrote; nothing changes if one does not fit."""
        self._require_built()
        saving.load_weights(self, filepath)

    def __reduce__(self) -> tuple[Callable[[bytes], Layer], tuple[bytes]]:
        """Copies and pickles hold what a file holds: data, and the name of the function that reads it."""
        return saving.model_of_bytes, (saving.bytes_of(self._trainer),)

    def summary(self, line_length: int | None = None, print_fn: Any = None) -> None:
        """Print a table of the layers, their outputs' shapes and their numbers of weights."""
        self._require_built()
        plain = print_fn is None and not can_show(LINES)
        (print_fn or say)(summary_table(self, line_length, ascii_only=plain))
