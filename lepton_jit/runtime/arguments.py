"""Checking and casting a program's arguments, and working out its symbols from their shapes."""

from __future__ import annotations

import ctypes
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jit.errors import ArgumentError, DTypeError, OutOfMemoryError, ShapeError
from lepton_jit.runtime.dimensions import Polynomial, parse_polynomial
from lepton_jit.runtime.manifest import NUMPY_DTYPES, Manifest, Tensor
from lepton_jit.runtime.plan import ALIGNMENT

__all__ = [
    "Results",
    "Signature",
    "address_of",
    "aligned_copy",
    "aligned_empty",
    "cast",
    "check_parameters",
    "describe",
]

# Sets of dims whose shapes are kept, as many as a context keeps plans.
KEPT_SHAPES = 64
# Results of so many elements are read fast enough to gain by whole cache lines.
ALIGNED_ELEMENTS = 1024
# Weights up to so much are one piece of memory, for which NumPy asks for huge pages from 4 MB on: an encoder's call
# takes 2 to 3 % less time, resnet18's and mobilenetv2's 1.5 %. Of more, those of 4 MB have them anyway (resnet50: 0.4 %
# less), and some hosts take 300 ms to find 118 MB of such pages.
ONE_PIECE_BYTES = 64 << 20
# Arrays of this much start on such a boundary, in memory that is larger by as much: from 4 MB on NumPy asks for huge
# pages. A step of text_gap, whose table of 2.5 MB goes by with its moments, takes 432 us instead of 452.
HUGE_PAGE = 2 << 20
_DENSE = 0x001 | 0x100  # NPY_ARRAY_C_CONTIGUOUS | NPY_ARRAY_ALIGNED, in `flags.num`
_from_buffer = ctypes.c_char.from_buffer
_addressof = ctypes.addressof


def address_of(array: np.ndarray) -> int:
    """The address of an array's first element; `array.ctypes.data` takes four times as long on writable arrays."""
    try:
        return _addressof(_from_buffer(array))  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):  # read-only or empty
        return array.ctypes.data


def aligned_empty(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialized array on a 64-byte boundary, where vector loads cross no cache line; of 2 MB, on a huge page's.

    >>> aligned_empty((100, 100), np.dtype("float32")).ctypes.data % 64
    0
    """
    count = math.prod(shape) * dtype.itemsize
    boundary = ALIGNMENT if count < HUGE_PAGE else HUGE_PAGE
    try:
        memory = np.empty(count + boundary, np.uint8)
    except MemoryError:
        raise OutOfMemoryError(f"no memory for {count:,} bytes of {dtype}{list(shape)}") from None
    start = -address_of(memory) % boundary
    return memory[start : start + count].view(dtype).reshape(shape)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """The same numbers on a 64-byte boundary."""
    result = aligned_empty(array.shape, array.dtype)
    result[...] = array
    return result


def describe(array: np.ndarray) -> str:
    """An array's type in this project's notation.

    >>> describe(np.zeros((2, 3), np.float32))
    'f32[2,3]'
    """
    name = next((n for n, d in NUMPY_DTYPES.items() if d == array.dtype), str(array.dtype))
    return f"{name}[{','.join(map(str, array.shape))}]"


def cast(array: np.ndarray, dtype: np.dtype, who: str) -> np.ndarray:
    """`array` in `dtype`, C-contiguous and aligned, the same object if it is already.

    Bool, integers and floats become any float; to integers only values that keep their value are cast (ArgumentError);
    anything but numbers is a DTypeError.
    """
    if array.dtype.kind not in "biuf":
        raise DTypeError(f"{who}: expected numbers that can be cast to {dtype}, got {array.dtype}")
    if array.dtype != dtype:
        with np.errstate(invalid="ignore", over="ignore"):
            result = array.astype(dtype, order="C")
        if dtype.kind in "biu" and not np.array_equal(result, array):
            first = tuple(int(i) for i in np.argwhere(result != array)[0])
            raise ArgumentError(
                f"{who}: expected values that {dtype} can hold exactly, got {array[first]} at {list(first)}"
            )
        return result
    return np.require(array, requirements=["C_CONTIGUOUS", "ALIGNED"])


def check_parameters(manifest: Manifest, arrays: Sequence[np.ndarray]) -> None:
    """ShapeError, DTypeError or ArgumentError unless the arrays are what the program's code will read and overwrite."""
    declared = manifest.params
    if len(arrays) != len(declared):
        raise ArgumentError(f"{manifest.name}: expected {len(declared)} parameters, got {len(arrays)}")
    overwritten = set(manifest.donations.values())
    for index, (tensor, array) in enumerate(zip(declared, arrays, strict=True)):
        who = f"{manifest.name}: parameter {tensor.name!r}"
        if array.dtype != NUMPY_DTYPES[tensor.dtype]:
            raise DTypeError(f"{who}: expected {tensor}, got {describe(array)}")
        if array.shape != tensor.shape:
            raise ShapeError(f"{who}: expected {tensor}, got {describe(array)}")
        if not (array.flags.c_contiguous and array.flags.aligned):
            raise ArgumentError(f"{who}: expected a contiguous and aligned array")
        if index in overwritten and not array.flags.writeable:
            raise ArgumentError(f"{who}: expected a writable array, since the program overwrites it")


class Shapes:
    """The shapes of some tensors as a function of the symbols' values; the results for the last dims are kept."""

    def __init__(self, tensors: Sequence[Tensor], symbols: Sequence[str]) -> None:
        self._symbols = tuple(symbols)
        self._shapes = [[parse_polynomial(dim) for dim in t.shape] for t in tensors]
        self.at = functools.lru_cache(KEPT_SHAPES)(self._at)

    def _at(self, dims: tuple[int, ...]) -> list[tuple[int, ...]]:
        values = dict(zip(self._symbols, dims, strict=True))
        return [tuple(dim.value(values) for dim in shape) for shape in self._shapes]


class Results:
    """Fresh arrays for outputs, those of 1,024 elements and more on 64-byte boundaries."""

    def __init__(self, tensors: Sequence[Tensor], symbols: Sequence[str]) -> None:
        self._dtypes = [NUMPY_DTYPES[t.dtype] for t in tensors]
        self._shapes = Shapes(tensors, symbols)
        self._recipes = functools.lru_cache(KEPT_SHAPES)(self._recipes_at)

    def make(self, dims: tuple[int, ...]) -> list[np.ndarray]:
        return [make(shape, dtype) for make, shape, dtype in self._recipes(dims)]

    def make_together(self) -> list[np.ndarray]:
        """Make arrays without symbols in one piece of memory, up to ONE_PIECE_BYTES; it lives as long as any of it."""
        shapes = self._shapes.at(())
        sizes = [math.prod(shape) * dtype.itemsize for shape, dtype in zip(shapes, self._dtypes, strict=True)]
        ends = list(itertools.accumulate(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes))
        if not ends or ends[-1] > ONE_PIECE_BYTES:
            return self.make(())
        memory = aligned_empty((ends[-1],), np.dtype(np.uint8))
        return [
            memory[start : start + size].view(dtype).reshape(shape)
            for start, size, dtype, shape in zip([0, *ends], sizes, self._dtypes, shapes, strict=False)
        ]

    def _recipes_at(self, dims: tuple[int, ...]) -> list[tuple[Any, tuple[int, ...], np.dtype]]:
        """The function that makes each array, and its arguments."""
        return [
            (np.empty if math.prod(shape) < ALIGNED_ELEMENTS else aligned_empty, shape, dtype)
            for shape, dtype in zip(self._shapes.at(dims), self._dtypes, strict=True)
        ]


class Signature:
    """The inputs of a program: takes what the user gives, returns arrays to run on and the symbols' values."""

    def __init__(self, manifest: Manifest) -> None:
        self._who = manifest.name
        self._symbols = manifest.symbols
        self._inputs = [_Input(t, manifest) for t in manifest.inputs]
        self._names = [t.name for t in manifest.inputs]
        self._dtypes = [i.dtype for i in self._inputs]
        self._shapes = Shapes(manifest.inputs, manifest.symbols)
        # The symbols' values for sets of shapes that were solved before.
        self._solved: dict[tuple[tuple[int, ...], ...], tuple[int, ...]] = {}

    def bind(self, values: Sequence[Any]) -> tuple[Sequence[np.ndarray], tuple[int, ...]]:
        """Positional inputs, or one mapping from names -> arrays in the declared types, and dims."""
        dims = self._known(values)
        if dims is not None:
            return values, dims
        if len(values) == 1 and isinstance(values[0], Mapping):
            values = self._ordered(values[0])
        if len(values) != len(self._inputs):
            names = ", ".join(self._names)
            raise ArgumentError(f"{self._who}: expected {len(self._inputs)} inputs ({names}), got {len(values)}")
        arrays = [i.convert(v) for i, v in zip(self._inputs, values, strict=True)]
        dims = self._solve(arrays)
        if len(self._solved) >= KEPT_SHAPES:
            self._solved.clear()
        self._solved[tuple(a.shape for a in arrays)] = dims
        return arrays, dims

    def shapes(self, dims: tuple[int, ...]) -> list[tuple[int, ...]]:
        """The inputs' shapes for the symbols' values."""
        return self._shapes.at(dims)

    def _known(self, values: Sequence[Any]) -> tuple[int, ...] | None:
        """The dims, if every value is an array that can be used as it stands, in shapes that were seen before."""
        if len(values) != len(self._dtypes):
            return None
        shapes = []
        for value, dtype in zip(values, self._dtypes, strict=True):
            if type(value) is not np.ndarray or value.dtype is not dtype or value.flags.num & _DENSE != _DENSE:
                return None
            shapes.append(value.shape)
        return self._solved.get(tuple(shapes))

    def _ordered(self, named: Mapping[str, Any]) -> list[Any]:
        missing = [n for n in self._names if n not in named]
        unknown = [n for n in named if n not in self._names]
        if missing or unknown:
            raise ArgumentError(f"{self._who}: expected inputs named {self._names}, got {list(named)}")
        return [named[n] for n in self._names]

    def _solve(self, arrays: Sequence[np.ndarray]) -> tuple[int, ...]:
        """The symbols' values from the shapes: bare symbols first, then what follows from them."""
        values: dict[str, int] = {}
        origin: dict[str, str] = {}
        dims = [
            (dim, array.shape[axis], spec.tensor.name)
            for spec, array in zip(self._inputs, arrays, strict=True)
            for axis, dim in enumerate(spec.dims)
        ]
        for dim, got, name in sorted(dims, key=lambda d: len(d[0].terms)):
            unknown = [s for s in dim.symbols if s not in values]
            if len(unknown) == 1 and (solved := dim.solve(unknown[0], got, values)) is not None and solved >= 0:
                values[unknown[0]] = solved
                origin[unknown[0]] = name
        for symbol in self._symbols:
            if symbol not in values:
                raise ShapeError(f"{self._who}: the inputs' shapes do not determine {symbol}")
        self._compare(arrays, values, origin)
        return tuple(values[s] for s in self._symbols)

    def _compare(self, arrays: Sequence[np.ndarray], values: dict[str, int], origin: dict[str, str]) -> None:
        expected = self._shapes.at(tuple(values[s] for s in self._symbols))
        for spec, array, shape in zip(self._inputs, arrays, expected, strict=True):
            if array.shape != shape:
                known = "".join(f", {s} = {v} from input {origin[s]!r}" for s, v in values.items())
                raise ShapeError(f"{spec.who}: expected {spec.tensor}{known}, got {describe(array)}")


class _Input:
    """One declared input."""

    def __init__(self, tensor: Tensor, manifest: Manifest) -> None:
        self.tensor = tensor
        self.who = f"{manifest.name}: input {tensor.name!r}"
        self.dtype = NUMPY_DTYPES[tensor.dtype]
        self.dims: list[Polynomial] = [parse_polynomial(d) for d in tensor.shape]
        constants = [d.constant for d in self.dims]
        first = tensor.shape[0] if tensor.shape else None
        batched = isinstance(first, str) and first in manifest.symbols and None not in constants[1:]
        self.batch = first if batched else None
        self.rank = len(tensor.shape)
        self.tail = tuple(constants[1:])

    def convert(self, value: Any) -> np.ndarray:
        try:
            array = np.asarray(value)
        except ValueError:
            raise ShapeError(f"{self.who}: expected an array of {self.tensor}, got a ragged sequence") from None
        array = cast(array, self.dtype, self.who)
        if self.batch is not None and array.shape == self.tail:
            array = array[np.newaxis]
        matching = array.ndim == self.rank and all(
            dim.constant in (None, size) for dim, size in zip(self.dims, array.shape, strict=True)
        )
        if not matching:
            raise ShapeError(f"{self.who}: expected {self.tensor}, got {describe(np.asarray(value))}")
        return array
