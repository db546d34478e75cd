"""Names that objects get when the user gives none: `conv2d`, `conv2d_1`, ..."""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection

__all__ = ["auto_name", "numbered", "reset_names", "snake_case", "uniquify"]

_numbers: dict[str, itertools.count[int]] = {}


def snake_case(name: str) -> str:
    """The class name in Keras' spelling.

    >>> snake_case("MaxPooling2D"), snake_case("Conv2D"), snake_case("InputLayer")
    ('max_pooling2d', 'conv2d', 'input_layer')
    """
    name = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def auto_name(class_name: str) -> str:
    """The next free name of a class in this process."""
    base = snake_case(class_name)
    # Two calls that are one step each, so that threads that build layers at once never get the same name.
    number = next(_numbers.setdefault(base, itertools.count()))
    return f"{base}_{number}" if number else base


def reset_names() -> None:
    """Start counting again, as in a fresh process."""
    _numbers.clear()


def numbered(name: str, taken: Collection[str]) -> str:
    """The name with the first number that makes it a new one.

    >>> numbered("mse", {"mse", "mse_1"})
    'mse_2'
    """
    return next(candidate for n in itertools.count(1) if (candidate := f"{name}_{n}") not in taken)


def uniquify(names: list[str]) -> list[str]:
    """Distinct names in the same order: repeated ones are numbered.

    >>> uniquify(["dense", "add", "dense"])
    ['dense', 'add', 'dense_1']
    """
    result: list[str] = []
    for name in names:
        result.append(numbered(name, {*names, *result}) if name in result else name)
    return result
