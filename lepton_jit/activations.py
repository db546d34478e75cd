"""Activation functions: `get("relu")`, `relu(array)`, and the argument `activation=` of layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lepton_jit.common import arguments
from lepton_jit.common.configurable import Registry
from lepton_jit.errors import ArgumentError, DTypeError
from lepton_jit.ir.graph import Value
from lepton_jit.tracing import Tracer, evaluate

__all__ = [
    "Activation",
    "elu",
    "exponential",
    "gelu",
    "get",
    "hard_sigmoid",
    "hard_silu",
    "leaky_relu",
    "linear",
    "log_softmax",
    "mish",
    "registry",
    "relu",
    "relu6",
    "selu",
    "sigmoid",
    "silu",
    "softmax",
    "softplus",
    "softsign",
    "tanh",
]

registry: Registry[Activation] = Registry("activation")


@dataclass(frozen=True)
class Activation:
    """A named function of one tensor with fixed options.

    >>> relu(np.array([-1.0, 2.0], "float32"))
    array([0., 2.], dtype=float32)
    """

    name: str
    function: Callable[..., Value] = field(repr=False, compare=False)
    options: Mapping[str, Any] = field(default_factory=dict)

    def trace(self, t: Tracer, x: Value) -> Value:
        """The activated value of `x`, inside a trace."""
        return self.function(t, x, **self.options)

    def with_options(self, **options: Any) -> Activation:
        """The same function with other options, such as `leaky_relu.with_options(negative_slope=0.1)`."""
        unknown = set(options) - set(self.options)
        if unknown:
            raise ArgumentError(
                f"activation {self.name}: expected options of {sorted(self.options)}, got {sorted(unknown)}"
            )
        checked = {k: _checked_option(self.name, k, v) for k, v in options.items()}
        return replace(self, options={**self.options, **checked})

    def __call__(self, x: Any, **options: Any) -> np.ndarray:
        """The activated array; integers are taken as float32."""
        chosen = self.with_options(**options) if options else self
        array = np.asarray(x)
        if array.dtype.kind not in "fiub":
            raise DTypeError(f"activation {self.name}: expected an array of numbers, got {type(x).__name__}")
        return evaluate(chosen.trace, array if array.dtype.kind == "f" else array.astype("float32"))

    def to_config(self) -> Any:
        """The name, or name and options where they are not the default ones."""
        if self.options == registry.named(self.name).options:
            return self.name
        return {"class_name": self.name, "config": dict(self.options)}

    def __reduce__(self) -> tuple[Any, ...]:
        return get, (self.to_config(),)

    def __repr__(self) -> str:
        options = "".join(f", {k}={v!r}" for k, v in self.options.items())
        return f"<activation {self.name}{options}>"

    def __hash__(self) -> int:
        return hash(self.name)


def _operation(name: str, op: str | None = None, **options: Any) -> Activation:
    """Enter the activation that is an operation of the graph IR, of the same name unless another is given."""
    op = op or name

    def trace(t: Tracer, x: Value, **given: Any) -> Value:
        if "axis" in given:
            given["axis"] = _axis(t, x, given["axis"])
        result = t(op, x, **given)
        t.applied[result] = (op, x)
        return result

    return registry.enter(name, Activation(name, trace, options))


def _axis(t: Tracer, x: Value, axis: int) -> int:
    if not -x.type.rank <= axis < x.type.rank:
        raise ArgumentError(
            f"layer {t.b.current_layer!r}: expected an axis of a tensor of rank {x.type.rank}, got {axis}"
        )
    return axis % x.type.rank


def _checked_option(name: str, option: str, value: Any) -> Any:
    owner = f"activation {name}"
    if option == "axis":
        return arguments.integer(owner, option, value, low=None)
    if option == "approximate":
        return arguments.boolean(owner, option, value)
    return arguments.number(owner, option, value)


linear = registry.enter("linear", Activation("linear", lambda t, x: x))
relu = _operation("relu")
relu6 = _operation("relu6")
leaky_relu = _operation("leaky_relu", negative_slope=0.2)
elu = _operation("elu", alpha=1.0)
selu = _operation("selu")
silu = _operation("silu")
gelu = _operation("gelu", approximate=False)
softplus = _operation("softplus")
softsign = _operation("softsign")
sigmoid = _operation("sigmoid", "logistic")
hard_sigmoid = _operation("hard_sigmoid")
hard_silu = _operation("hard_silu")
mish = _operation("mish")
tanh = _operation("tanh")
exponential = _operation("exponential")
softmax = _operation("softmax", axis=-1)
log_softmax = _operation("log_softmax", axis=-1)

registry.alias(swish=silu, hard_swish=hard_silu)


def get(identifier: Any) -> Activation:
    """An activation from its name, configuration, or as it stands; None is `linear`.

    >>> get("swish")
    <activation silu>
    """
    if identifier is None:
        return linear
    if isinstance(identifier, Activation):
        return identifier
    if isinstance(identifier, str) and (found := registry.find(identifier)) is not None:
        return found
    if isinstance(identifier, Mapping) and isinstance(identifier.get("config"), Mapping):
        return get(str(identifier.get("class_name"))).with_options(**identifier["config"])
    raise ArgumentError(
        f"activation: expected one of {', '.join(sorted(registry.entries))} or a function of "
        f"lepton_jit.activations, got {identifier!r}"
    )
