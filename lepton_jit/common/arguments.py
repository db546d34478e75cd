"""Checks of what a user passes: each returns the argument in its plain form, or names owner, expected and got."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jit.errors import ArgumentError, UnsupportedError

__all__ = [
    "boolean",
    "choice",
    "integer",
    "integer_tuple",
    "model",
    "number",
    "only_defaults",
    "optional_number",
    "pair",
    "sequence",
    "text",
]


def integer(owner: str, name: str, value: Any, *, low: int | None = 1) -> int:
    """An integer of at least `low`."""
    expected = "an integer" if low is None else "a positive integer" if low == 1 else f"an integer of at least {low}"
    if isinstance(value, (bool, np.bool_)):
        raise ArgumentError(f"{owner}: {name}: expected {expected}, got {value!r}")
    try:
        result = operator.index(value)
    except TypeError:
        raise ArgumentError(f"{owner}: {name}: expected {expected}, got {value!r}") from None
    if low is not None and result < low:
        raise ArgumentError(f"{owner}: {name}: expected {expected}, got {value!r}")
    if abs(result) >= 1 << 62:
        raise ArgumentError(f"{owner}: {name}: expected {expected} below 2**62, got {value!r}")
    return result


def sequence(owner: str, name: str, value: Any) -> tuple[Any, ...]:
    """A sequence as a tuple."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        raise ArgumentError(f"{owner}: {name}: expected a tuple of integers, got {value!r}")
    return tuple(value)


def integer_tuple(
    owner: str, name: str, value: Any, *, length: int | None = None, low: int | None = 1
) -> tuple[int, ...]:
    """A sequence of integers as a tuple."""
    items = sequence(owner, name, value)
    if length is not None and len(items) != length:
        raise ArgumentError(f"{owner}: {name}: expected {length} integers, got {value!r}")
    return tuple(integer(owner, name, item, low=low) for item in items)


def pair(owner: str, name: str, value: Any, *, low: int = 1) -> tuple[int, int]:
    """One integer for both dimensions, or two.

    >>> pair("conv2d", "strides", 2), pair("conv2d", "strides", (1, 2))
    ((2, 2), (1, 2))
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        first, second = integer_tuple(owner, name, value, length=2, low=low)
        return first, second
    one = integer(owner, name, value, low=low)
    return one, one


def number(owner: str, name: str, value: Any, *, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite number in `[low, high]` as a float."""
    bounds = f" in [{low:g}, {high:g}]" if (low, high) != (-math.inf, math.inf) else ""
    if isinstance(value, (bool, str, bytes, complex)) or value is None or np.ndim(value):
        raise ArgumentError(f"{owner}: {name}: expected a number{bounds}, got {value!r}")
    try:
        result = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ArgumentError(f"{owner}: {name}: expected a number{bounds}, got {value!r}") from None
    if not math.isfinite(result) or not low <= result <= high:
        raise ArgumentError(f"{owner}: {name}: expected a number{bounds}, got {value!r}")
    return result


def optional_number(owner: str, name: str, value: Any, *, low: float = -math.inf) -> float | None:
    """A number, or None where it is None."""
    return None if value is None else number(owner, name, value, low=low)


def boolean(owner: str, name: str, value: Any) -> bool:
    """True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise ArgumentError(f"{owner}: {name}: expected True or False, got {value!r}")
    return bool(value)


def text(owner: str, name: str, value: Any) -> str:
    """A string of Unicode that is not empty."""
    if not isinstance(value, str) or not value or any("\ud800" <= c <= "\udfff" for c in value):
        raise ArgumentError(f"{owner}: {name}: expected a name, got {value!r}")
    return value


def choice(owner: str, name: str, value: Any, allowed: Sequence[str]) -> str:
    """One of the allowed words, in lower case."""
    word = value.lower() if isinstance(value, str) else value
    if word not in allowed:
        raise ArgumentError(f"{owner}: {name}: expected one of {', '.join(map(repr, allowed))}, got {value!r}")
    return word


def model(owner: str, value: Any, methods: Sequence[str]) -> None:
    """ArgumentError unless these methods make a model of it."""
    if isinstance(value, type) or not all(hasattr(value, name) for name in methods):
        raise ArgumentError(f"{owner}: expected a model, got {value!r}")


def only_defaults(owner: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """UnsupportedError where one of Keras' arguments is not at its default, ArgumentError where it is none of them."""
    for name, value in given.items():
        if name not in defaults:
            raise ArgumentError(f"{owner}: has no argument {name!r}")
        if value is not defaults[name] and value != defaults[name]:
            raise UnsupportedError(f"{owner}: {name}={value!r} is not supported, only {defaults[name]!r}")
