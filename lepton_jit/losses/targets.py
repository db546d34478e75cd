"""Define what a loss expects of `y`: its form, decided by shapes once, and its values, checked before anything runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lepton_jit.errors import ArgumentError, DTypeError, ShapeError
from lepton_jit.layers.base.symbolic import ShapeTuple

__all__ = ["LabelSpec"]


@dataclass(frozen=True)
class LabelSpec:
    """The labels of one output.

    `dense`: one number for each of the output's, in its element type. `classes`: one integer of `[0, classes)` for
    each row of the output's last axis.
    """

    output: str
    kind: Literal["dense", "classes"]
    shape: tuple[int, ...]  # without the batch
    dtype: str
    low: float = -np.inf
    high: float = np.inf

    @staticmethod
    def dense(output: str, shape: ShapeTuple, dtype: str, low: float = -np.inf, high: float = np.inf) -> LabelSpec:
        return LabelSpec(output, "dense", _known(shape[1:]), dtype, low, high)

    @staticmethod
    def classes(output: str, shape: ShapeTuple) -> LabelSpec:
        *rest, classes = _known(shape[1:])
        return LabelSpec(output, "classes", tuple(rest), "int32", 0, classes - 1)

    def prepare(self, y: object, *, where: str = "y") -> np.ndarray:
        """`y` in the form's shape, its values checked; its element type is still its own."""
        array = np.asarray(y)
        if array.dtype.kind not in "fiub":
            raise DTypeError(f"{where} for output {self.output!r}: expected an array of numbers, got {array.dtype}")
        array = self._reshaped(array, where)
        self._check_values(array, where)
        return array

    def _reshaped(self, array: np.ndarray, where: str) -> np.ndarray:
        wanted = (len(array), *self.shape) if array.ndim else self.shape
        if array.ndim and array.shape != wanted:
            if array.shape == (*wanted, 1):
                return array[..., 0]
            if (*array.shape, 1) == wanted:
                return array[..., None]
        if array.ndim == 0 or array.shape != wanted:
            shape = ", ".join(["N", *map(str, self.shape)])
            kind = "integer labels" if self.kind == "classes" else "values"
            raise ShapeError(
                f"{where} for output {self.output!r}: expected {kind} of shape ({shape}), got {array.shape}"
            )
        return array

    def _check_values(self, array: np.ndarray, where: str) -> None:
        """Not left to `check_indices` in the step, which sees one batch: `fit` looks at all rows before the first."""
        if array.size == 0 or array.dtype.kind == "b":
            return
        if array.dtype.kind == "f":
            # The sum is not finite if a value is not: one pass without a temporary array, and the rest is rare.
            with np.errstate(over="ignore", invalid="ignore"):
                suspicious = not np.isfinite(np.sum(array, dtype=np.float64))
            if suspicious and (bad := ~np.isfinite(array)).any():
                self._refuse(array, bad, "finite values", where)
            if self.kind == "classes" and (bad := array != np.floor(array)).any():
                self._refuse(array, bad, "integers", where)
        if array.min() < self.low or array.max() > self.high:
            self._refuse(array, (array < self.low) | (array > self.high), self._range(), where)

    def _range(self) -> str:
        if self.kind == "classes":
            return f"labels of 0 to {self.high:g}"
        return f"values of {self.low:g} or more" if np.isinf(self.high) else f"values in [{self.low:g}, {self.high:g}]"

    def _refuse(self, array: np.ndarray, bad: np.ndarray, expected: str, where: str) -> None:
        first = tuple(int(i) for i in np.argwhere(bad)[0])
        at = first[0] if len(first) == 1 else first
        raise ArgumentError(
            f"{where} for output {self.output!r}: expected {expected}, got {array[first]} at row {at}"
            + (f" ({int(bad.sum())} such values)" if bad.sum() > 1 else "")
        )


def _known(shape: ShapeTuple) -> tuple[int, ...]:
    return tuple(d for d in shape if d is not None)
