"""Make batches for a program from a user's arrays: shapes, element types, gathered rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jit.errors import ArgumentError, DTypeError, ShapeError
from lepton_jit.layers.base.symbolic import SymbolicTensor, as_list
from lepton_jit.runtime.arguments import address_of, aligned_empty
from lepton_jit.runtime.native import Batches, ColumnRecord

__all__ = [
    "Column",
    "Rows",
    "as_rows",
    "by_name",
    "check_weights",
    "class_weights",
    "labels_by_name",
    "split_validation",
]


# gather(source, rows, count, row_bytes, destination): copies rows whose numbers stand at `rows`; all by address.
Gather = Callable[[int, int, int, int, int], None]

# Arrays up to this many bytes, labels above all, are converted once; larger ones batch by batch, to save memory.
CONVERTED_AT_ONCE = 2**20


class Column:
    """Rows of one array, in the element type of one input; buffers are reused from batch to batch.

    Rows are handed over as addresses: behind a step that filled the caches, one view of an array costs 5 us.
    """

    def __init__(self, source: np.ndarray, dtype: Any, batch_size: int) -> None:
        self.dtype = np.dtype(dtype)
        if source.nbytes <= CONVERTED_AT_ONCE:
            source = source.astype(self.dtype, copy=False)
        self._source = np.require(source, requirements=["C_CONTIGUOUS", "ALIGNED"])
        self._source_at = address_of(self._source)
        self._row_bytes = self._source.nbytes // max(1, len(source))
        self.fits = self._source.dtype == self.dtype
        shape = (min(batch_size, len(source)), *source.shape[1:])
        self._gathered = aligned_empty(shape, self._source.dtype)  # of which no page is touched before it is used
        self._gathered_at = address_of(self._gathered)
        self._converted = self._gathered if self.fits else aligned_empty(shape, self.dtype)

    def at(self, start: int, stop: int) -> int:
        """The address of rows that follow each other, in place where the element type fits."""
        if self.fits:
            return self._source_at + start * self._row_bytes
        return self._convert(self._source[start:stop])

    def gathered(self, rows_at: int, count: int, gather: Gather) -> int:
        """The address of a buffer with these rows, which the next batch overwrites."""
        gather(self._source_at, rows_at, count, self._row_bytes, self._gathered_at)
        return self._gathered_at if self.fits else self._convert(self._gathered[:count])

    def record(self, shuffled: bool) -> ColumnRecord:
        """The record that native code reads of it."""
        return ColumnRecord(self._source_at, self._gathered_at if shuffled else None, self._row_bytes)

    def _convert(self, rows: np.ndarray) -> int:
        np.copyto(self._converted[: len(rows)], rows, casting="unsafe")
        return address_of(self._converted)


class Rows:
    """Columns of equal length, in batches. Their addresses are good as long as this object lives."""

    def __init__(self, columns: Sequence[tuple[np.ndarray, Any]], batch_size: int) -> None:
        self.batch_size = batch_size
        self._columns = [Column(source, dtype, batch_size) for source, dtype in columns]
        self.count = len(columns[0][0])

    @property
    def batch_count(self) -> int:
        return -(-self.count // self.batch_size)

    def batches(self, first: int = 0) -> Iterator[tuple[int, int, list[int]]]:
        """First row, last row + 1 and addresses of each batch from number `first` on, as the rows stand."""
        for start, stop in self._spans(first):
            yield start, stop, [c.at(start, stop) for c in self._columns]

    def shuffled(self, order: np.ndarray, gather: Gather, first: int = 0) -> Iterator[tuple[int, int, list[int]]]:
        """The same in another order: row number i of all is `order[i]`, i64[count]."""
        order_at = address_of(order)
        for start, stop in self._spans(first):
            rows_at = order_at + start * order.itemsize
            yield start, stop, [c.gathered(rows_at, stop - start, gather) for c in self._columns]

    def native(self, order: np.ndarray | None) -> Batches | None:
        """The batches of full size for native code; None if something is converted."""
        if not all(c.fits for c in self._columns):
            return None
        records = [c.record(order is not None) for c in self._columns]
        columns = (ColumnRecord * len(records))(*records)
        order_at = None if order is None else address_of(order)
        return Batches(columns, self.batch_size, order_at, 0, self.count // self.batch_size)

    def _spans(self, first: int) -> Iterator[tuple[int, int]]:
        for start in range(first * self.batch_size, self.count, self.batch_size):
            yield start, min(start + self.batch_size, self.count)


def by_name(what: str, value: Any, keys: Sequence[str]) -> list[Any]:
    """One entry for every input or output, from one array, a list, or a dict by name."""
    if isinstance(value, Mapping):
        if set(value) != set(keys):
            raise ArgumentError(f"{what}: expected a dict with {list(keys)}, got {sorted(map(str, value))}")
        return [value[key] for key in keys]
    if len(keys) == 1:
        if isinstance(value, tuple) or (
            isinstance(value, list) and len(value) == 1 and isinstance(value[0], np.ndarray)
        ):
            if len(value) != 1:
                raise ArgumentError(f"{what}: expected one array, got {len(value)}")
            return [value[0]]
        return [value]
    entries = as_list(value)
    if len(entries) != len(keys):
        raise ArgumentError(f"{what}: expected {len(keys)} arrays for {list(keys)}, got {len(entries)}")
    return entries


def labels_by_name(what: str, value: Any, judged: Sequence[str], outputs: Sequence[str]) -> list[Any]:
    """The entry of each output that is judged, where the others may have one too, None or not."""
    if isinstance(value, Mapping) and set(judged) <= set(value) <= set(outputs):
        return [value[name] for name in judged]
    for_all = isinstance(value, (list, tuple)) and len(value) == len(outputs) > len(judged)
    if for_all and any(entry is None or isinstance(entry, np.ndarray) for entry in value):
        return [entry for name, entry in zip(outputs, value, strict=True) if name in judged]
    return by_name(what, value, judged)


def as_rows(owner: str, name: str, value: Any, x: SymbolicTensor, *, one_sample: bool = False) -> np.ndarray:
    """An array of shape `(N, *x.shape[1:])`; its element type is still its own, and can be cast to `x.dtype`.

    `one_sample`: a sample without a batch axis becomes a batch of one.
    """
    array = _numeric(f"{owner}: input {name!r}", value)
    _check_integers(f"{owner}: input {name!r}", array, np.dtype(x.dtype))
    shape = x.shape
    sample = shape[1:]
    if array.shape[1:] == sample and array.ndim == len(shape):
        return array
    if one_sample and array.shape == sample:
        return array[None]
    # As in Keras, a last dimension of 1 may be left out or be too many.
    if sample and sample[-1] == 1 and array.ndim and array.shape[1:] == sample[:-1]:
        return array[..., None]
    if array.ndim > 1 and array.shape[-1] == 1 and array.shape[1:-1] == sample:
        return array[..., 0]
    expected = ", ".join(["N", *map(str, sample)])
    raise ShapeError(f"{owner}: input {name!r}: expected shape ({expected}), got {array.shape}")


def _numeric(what: str, value: Any) -> np.ndarray:
    if value is None:
        raise ArgumentError(f"{what}: expected an array, got None")
    if hasattr(value, "__next__") or (hasattr(value, "__getitem__") and not hasattr(value, "__len__")):
        raise DTypeError(f"{what}: expected an array, got {type(value).__name__}")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ShapeError(f"{what}: expected an array, got rows of different lengths ({error})") from None
    if array.dtype.kind not in "fiub":
        raise DTypeError(f"{what}: expected an array of numbers, got {array.dtype}")
    return array


def _check_integers(what: str, array: np.ndarray, wanted: np.dtype) -> None:
    """ArgumentError unless every value keeps its value in an integer type; other types round."""
    if wanted.kind not in "iub" or np.can_cast(array.dtype, wanted):
        return
    low, high = (0, 1) if wanted.kind == "b" else (np.iinfo(wanted).min, np.iinfo(wanted).max)
    if array.dtype.kind == "f":
        fits = (array >= low) & (array < high + 1.0) & (array == np.floor(array))  # NaN is not equal to itself
    else:
        fits = (array >= low) & (array <= high)
    if not fits.all():
        first = tuple(int(i) for i in np.argwhere(~fits)[0])
        raise ArgumentError(f"{what}: expected integers that {wanted} can hold, got {array[first]} at {list(first)}")


def check_weights(what: str, value: Any, count: int) -> np.ndarray:
    """Sample weights: one finite number for each of `count` rows."""
    array = _numeric(what, value)
    if array.shape not in ((count,), (count, 1)):
        raise ShapeError(f"{what}: expected shape ({count},), got {array.shape}")
    if not np.isfinite(array).all():
        raise ArgumentError(f"{what}: expected finite numbers")
    return array.reshape(count)


def class_weights(y: np.ndarray, weights: Mapping[int, float]) -> np.ndarray:
    """The weight of each row's class; classes that are not mentioned weigh 1."""
    if not isinstance(weights, Mapping) or not weights:
        raise ArgumentError(f"class_weight: expected a dict from class to weight, got {weights!r}")
    labels = y
    if y.ndim > 1:
        labels = y.reshape(len(y)) if y[0].size == 1 else y.argmax(axis=-1)
    if labels.ndim != 1 or (labels != np.floor(labels)).any():
        raise ArgumentError("class_weight: expected labels that are classes, one for each row")
    result = np.ones(len(labels), np.float32)
    for label, weight in weights.items():
        if isinstance(label, bool) or not isinstance(label, (int, np.integer)) or not np.isfinite(weight):
            raise ArgumentError(f"class_weight: expected integers to finite numbers, got {label!r}: {weight!r}")
        result[labels == label] = weight
    return result


def split_validation(arrays: Sequence[np.ndarray], split: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """The first rows and the last `split` of them, of every array."""
    if isinstance(split, bool) or not isinstance(split, (int, float, np.floating)) or not 0 < split < 1:
        raise ArgumentError(f"validation_split: expected a number between 0 and 1, got {split!r}")
    count = len(arrays[0])
    at = int(np.floor(count * (1.0 - split)))
    if at in (0, count):
        raise ArgumentError(f"validation_split: expected rows on both sides, but {split} of {count} rows leaves none")
    return [a[:at] for a in arrays], [a[at:] for a in arrays]
