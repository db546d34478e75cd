"""Bind the arguments of a call, tensors and plain options, to the parameters of a layer's `trace`.

A call has `inputs`, the tensors that `trace` cannot do without, and `arguments`: tensors, lists of tensors and options
(numbers, words, True, False) under their names, where they are not the default.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from lepton_jit.errors import ArgumentError

__all__ = ["CallSignature", "as_array", "leaves", "map_leaves", "signature_of"]


@dataclass(frozen=True)
class CallSignature:
    """The parameters of a `trace` behind `self` and `t`."""

    required: tuple[str, ...]
    optional: Mapping[str, Any]  # with their defaults
    many: bool  # takes any number of tensors

    def bind(self, owner: str, tensors: Sequence[Any], named: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        """The inputs in order, and the arguments that are not at their default; `training` is one of every layer."""
        defaults = {"training": None, **self.optional}
        names = () if self.many else (*self.required, *self.optional)
        if not self.many and len(tensors) > len(names):
            expected = "one tensor" if len(names) == 1 else f"at most {len(names)} tensors"
            raise ArgumentError(f"{owner}: expected {expected}, got {len(tensors)}")
        given = dict(zip(names, tensors, strict=False))
        for name, value in named.items():
            if name in given:
                raise ArgumentError(f"{owner}: got two values for the call argument {name!r}")
            if name not in defaults and (self.many or name not in self.required):
                known = ", ".join([*(() if self.many else self.required), *defaults])
                raise ArgumentError(f"{owner}: has no call argument {name!r}; expected some of {known}")
            given[name] = value
        arguments = {k: v for k, v in given.items() if k in defaults and v is not None and v is not defaults[k]}
        if self.many:
            return list(tensors), arguments
        for name in self.required:
            if given.get(name) is None:
                raise ArgumentError(f"{owner}: expected a tensor for the call argument {name!r}, got none")
        return [given[name] for name in self.required], arguments


@cache
def signature_of(trace: Callable[..., Any], takes_list: bool) -> CallSignature:
    """The signature by which a layer with this `trace` is called."""
    parameters = list(inspect.signature(trace).parameters.values())[2:]
    named = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    required = tuple(p.name for p in named if p.default is p.empty)
    optional = {p.name: p.default for p in named if p.default is not p.empty}
    return CallSignature(required, optional, takes_list or any(p.kind is p.VAR_POSITIONAL for p in parameters))


def leaves(value: Any) -> Iterator[Any]:
    """List the leaves of nested lists, in order."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def map_leaves(function: Callable[[Any], Any], value: Any) -> Any:
    """The same nested lists with `function` of what stands in them."""
    return [map_leaves(function, item) for item in value] if isinstance(value, (list, tuple)) else function(value)


def as_array(value: Any) -> Any:
    """An argument of a call on arrays: lists of numbers become arrays, options stay what they are."""
    if isinstance(value, (list, tuple)) and not any(hasattr(leaf, "__array__") for leaf in leaves(value)):
        return np.asarray(value)
    return map_leaves(lambda leaf: np.asarray(leaf) if hasattr(leaf, "__array__") else leaf, value)
