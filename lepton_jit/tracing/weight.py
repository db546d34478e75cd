"""A weight: one array that its layer owns, that training updates in place and programs are bound to."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import ContextVar, copy_context
from typing import Any, Protocol, TypeVar

import numpy as np

from lepton_jit.errors import DTypeError, ShapeError
from lepton_jit.initializers import Initializer
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import DType, TensorType
from lepton_jit.runtime.arguments import aligned_empty

__all__ = ["Weight", "assign_all", "without_values"]

T = TypeVar("T")


class Penalty(Protocol):
    """A weight's regularizer: `trace` adds the penalty on its value, a scalar."""

    def trace(self, t: Any, weight: Value) -> Value: ...


_allocate: ContextVar[bool] = ContextVar("allocate", default=True)  # of this thread alone: others build meanwhile


def without_values(make: Callable[[], T]) -> T:
    """Return what `make` returns. Weights that it makes get a shape but no array: a file's values follow, whose shapes
    are compared first.

    It runs in a context of its own, so that nothing has to be set back, however it ends.
    """
    context = copy_context()
    context.run(_allocate.set, False)
    return context.run(make)


class Weight:
    """A named tensor of a layer. `version` grows with every change, so that programs know when to read it again."""

    def __init__(
        self,
        name: str,
        shape: Sequence[int],
        dtype: DType,
        initializer: Initializer,
        *,
        regularizer: Penalty | None = None,
        trainable: bool = True,
    ) -> None:
        self.name = name
        self.shape = tuple(shape)
        self.dtype = dtype
        self.initializer = initializer
        self.regularizer = regularizer
        self.trainable = trainable
        self.version = 0
        self._array: np.ndarray | None = None
        if _allocate.get():
            self.array[...] = initializer(self.shape, dtype.numpy)

    @property
    def array(self) -> np.ndarray:
        """The array itself, not a copy; it stays the same object for the weight's life."""
        if self._array is None:
            zeros = aligned_empty(self.shape, self.dtype.numpy)
            zeros[...] = 0
            self._array = zeros
        return self._array

    @property
    def type(self) -> TensorType:
        return TensorType(self.dtype, self.shape)

    @property
    def size(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64))

    def check(self, value: Any, owner: str) -> np.ndarray:
        """`value` as an array of this weight's shape and type, or an error."""
        array = np.asarray(value)
        if array.dtype.kind not in "fiub":
            raise DTypeError(f"{owner}: expected an array of {self.dtype.numpy.name}, got {array.dtype}")
        if array.shape != self.shape:
            raise ShapeError(f"{owner}: expected shape {self.shape}, got {array.shape}")
        return array

    def assign(self, value: Any) -> None:
        """Overwrite the values, in place."""
        assign_all([self], [self.check(value, f"weight {self.name!r}")])

    def numpy(self) -> np.ndarray:
        """A copy of the values."""
        return self.array.copy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.array, dtype=dtype)

    def __repr__(self) -> str:
        return f"<Weight {self.name}: {self.type}>"


def assign_all(weights: Sequence[Weight], values: Sequence[np.ndarray]) -> None:
    """Overwrite the values of weights with arrays of their shapes: of all, or of none if a signal handler raises.

    No line of Python runs between two of them; versions grow before as well, since nothing after is certain to run.
    """
    _count_change(weights)
    deque(map(np.ndarray.__setitem__, [w.array for w in weights], itertools.repeat(...), values), maxlen=0)
    _count_change(weights)


def _count_change(weights: Sequence[Weight]) -> None:
    for weight in weights:
        weight.version += 1
