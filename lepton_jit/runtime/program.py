"""A linked program with its manifest: a thread-safe callable on NumPy arrays."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jit.errors import ArgumentError, FileFormatError, LeptonError, OutOfMemoryError, OutOfRangeError, ShapeError
from lepton_jit.runtime import threads as thread_settings
from lepton_jit.runtime.arguments import Results, Signature, address_of, check_parameters
from lepton_jit.runtime.dimensions import dim_value
from lepton_jit.runtime.manifest import NUMPY_DTYPES, Manifest
from lepton_jit.runtime.native import Batches, Code, ContextRecord, StepRecord
from lepton_jit.runtime.plan import MemoryPlan, plan_memory
from lepton_jit.runtime.profile import Profile, StepTime

__all__ = ["Parameters", "Program"]


class Parameters:
    """The addresses of a program's parameters, checked once and then passed as they stand.

    `owner` keeps the memory alive. The program reads it on every call and overwrites the donated ones in place.
    """

    def __init__(self, addresses: Sequence[int], owner: object) -> None:
        self.addresses = tuple(addresses)
        self.owner = owner
        self._pointers = (ctypes.c_void_p * len(self.addresses))(*self.addresses)
        self.pointers_at = ctypes.addressof(self._pointers)


class Program:
    """`program(x, parameters=p)` runs compiled code; concurrent calls use a context each.

    `threads` beats `set_threads`, which beats the environment.
    """

    def __init__(self, manifest: Manifest, code: Code, *, threads: int | None = None) -> None:
        self.manifest = manifest
        self._code = code
        self._threads = None if threads is None else thread_settings.check_threads(threads)
        self._signature = Signature(manifest)
        returned = [output for i, output in enumerate(manifest.outputs) if i not in manifest.donations]
        self._results = Results(returned, manifest.symbols)
        self._empty = Parameters((), None)
        self._idle: list[_Call] = []

    def __call__(self, *inputs: Any, parameters: Parameters | None = None) -> tuple[np.ndarray, ...]:
        """Inputs by position, or one mapping by name -> fresh arrays for the outputs that are not donated.

        Casts dtypes, copies strided arrays, adds a missing batch axis. ShapeError, DTypeError and ArgumentError name
        the input, what was expected and what came; bad data that a kernel finds is an ArgumentError with its layer.
        """
        arrays, dims = self._signature.bind(inputs)
        results = self.allocate(dims)
        self.run(dims, parameters or self._empty, arrays, results)
        return tuple(results)

    def bind(self, arrays: Sequence[np.ndarray] | Mapping[str, np.ndarray]) -> Parameters:
        """Parameters by position or by name, C-contiguous and of exactly the declared dtypes and shapes."""
        if isinstance(arrays, Mapping):
            missing = [p.name for p in self.manifest.params if p.name not in arrays]
            if missing:
                raise ArgumentError(f"{self.manifest.name}: parameter {missing[0]!r} is missing")
            arrays = [arrays[p.name] for p in self.manifest.params]
        check_parameters(self.manifest, arrays)
        return Parameters([address_of(a) for a in arrays], tuple(arrays))

    def run(
        self, dims: Sequence[int], parameters: Parameters, inputs: Sequence[np.ndarray], outputs: Sequence[np.ndarray]
    ) -> None:
        """The call itself, on arrays that already have the declared types; `outputs` are those not donated.

        Does not check shapes: `__call__` does.
        """
        self.run_at(dims, parameters, [address_of(a) for a in inputs], [address_of(a) for a in outputs])

    def run_at(
        self,
        dims: Sequence[int],
        parameters: Parameters,
        inputs: Sequence[int],
        outputs: Sequence[int],
        batches: Batches | None = None,
    ) -> None:
        """`run` on addresses; with `batches` once for each of them, without Python in between.

        Their rows are the first inputs, `inputs` the others; each call's outputs overwrite the ones before.
        A context is idle again when its call has ended well. One that an exception left, from a signal handler perhaps,
        between any two lines of Python, is dropped with the exception: what it holds may contradict itself.
        """
        try:
            call = self._idle.pop()
        except IndexError:
            call = _Call(self.manifest, self._code)
        threads = self._threads or thread_settings.current_threads()
        if call.run(threads, dims, parameters, inputs, outputs, batches):
            raise self._error(call, dims)
        self._idle.append(call)

    def gather_rows(self, source: int, rows: int, count: int, row_bytes: int, destination: int) -> None:
        """destination[i] = source[rows[i]], rows of `row_bytes`, numbers i64[count]; all by address, unchecked."""
        assert self._code.support.gather_rows is not None
        threads = self._threads or thread_settings.current_threads()
        self._code.support.gather_rows(threads, source, rows, count, row_bytes, destination)

    def allocate(self, dims: tuple[int, ...]) -> list[np.ndarray]:
        """Fresh arrays for the outputs that are not donated, those of 1,024 elements and more on 64-byte boundaries."""
        return self._results.make(dims)

    def allocate_weights(self) -> list[np.ndarray]:
        """The same for a program without symbols, in one piece of memory if they are not too large: weights."""
        return self._results.make_together()

    def plan(self, **symbols: int) -> MemoryPlan:
        """The memory plan at given symbols: `program.plan(N=64)`."""
        missing = [s for s in self.manifest.symbols if s not in symbols]
        if missing:
            raise ArgumentError(f"{self.manifest.name}: plan needs a value for {', '.join(missing)}")
        threads = self._threads or thread_settings.current_threads()
        return plan_memory(self.manifest, self._code.support.plan, symbols, threads)

    def profile(self, *inputs: Any, parameters: Parameters | None = None, calls: int = 10) -> Profile:
        """The average time of each step over `calls` calls, after one that is not counted."""
        arrays, dims = self._signature.bind(inputs)
        results = self.allocate(dims)
        addresses = [address_of(a) for a in arrays], [address_of(a) for a in results]
        threads = self._threads or thread_settings.current_threads()
        call = _Call(self.manifest, self._code)
        if call.run(threads, dims, parameters or self._empty, *addresses):
            raise self._error(call, dims)
        records = call.start_profile(len(self.manifest.steps))
        for _ in range(calls):
            call.run(threads, dims, parameters or self._empty, *addresses)
        seconds = [r.nanoseconds * 1e-9 / max(1, calls) for r in records]
        values = dict(zip(self.manifest.symbols, dims, strict=True))
        steps = tuple(
            StepTime(s.kernel, s.layer, t, dim_value(s.flops, values), dim_value(s.bytes, values))
            for s, t in zip(self.manifest.steps, seconds, strict=True)
        )
        return Profile(self.manifest.name, calls, threads, steps)

    def _error(self, call: _Call, dims: Sequence[int]) -> LeptonError:
        """The error that a nonzero return code means."""
        record, inputs = call.record, list(call.inputs)
        name, code, index = self.manifest.name, record.code, record.index
        if code > 0:
            step = self.manifest.steps[record.step]
            message = self.manifest.errors.get(code, f"error {code}")
            message = f"{name}: {step.layer or step.kernel}: {message}"
            return OutOfRangeError(message + self._found(step.checked, index, dims, inputs))
        if code == -1:
            return OutOfMemoryError(f"{name}: out of memory: the arena needs {index:,} bytes")
        if code in (-2, -3):
            return ShapeError(f"{name}: a dimension is too large: its buffers are beyond any memory")
        return FileFormatError(f"{name}: error {code}: the program was built for another version of the runtime")

    def _found(self, checked: str, index: int, dims: Sequence[int], inputs: Sequence[int]) -> str:
        """The element that a kernel reported, where it is one of an input's."""
        shapes = self._signature.shapes(tuple(dims))
        for tensor, shape, address in zip(self.manifest.inputs, shapes, inputs, strict=True):
            if tensor.name == checked:
                dtype = NUMPY_DTYPES[tensor.dtype]
                memory = (ctypes.c_char * dtype.itemsize).from_address(address + index * dtype.itemsize)
                place = [int(i) for i in np.unravel_index(index, shape)]
                return f", got {np.frombuffer(memoryview(memory), dtype)[0]} at {place} of input {checked!r}"
        return f" (at element {index})"


class _Call:
    """A native context with the arrays of pointers for one call at a time."""

    def __init__(self, manifest: Manifest, code: Code) -> None:
        self._context = code.support.context_create(1)
        address = self._context.value
        if address is None:
            raise OutOfMemoryError(f"{manifest.name}: no memory for a context")
        self._address = address
        self._run = code.run
        self._run_at = code.run_at
        self._support = code.support
        self.record = ContextRecord.from_address(address)
        self._manifest = manifest
        self._slots = [i for i in range(len(manifest.outputs)) if i not in manifest.donations]
        # The arguments of the last call, so that the next one sets only what differs.
        self._threads = 1
        self._dims: Sequence[int] = ()
        self._parameters: Parameters | None = None
        self._dims_array = (ctypes.c_int64 * len(manifest.symbols))()
        self.inputs = (ctypes.c_void_p * len(manifest.inputs))()
        self._outputs = (ctypes.c_void_p * len(manifest.outputs))()
        # Numbers reach native code in 0.4 us, arrays in 0.6.
        arrays = self._dims_array, self.inputs, self._outputs
        self._dims_at, self._inputs_at, self._outputs_at = map(ctypes.addressof, arrays)

    def run(
        self,
        threads: int,
        dims: Sequence[int],
        parameters: Parameters,
        inputs: Sequence[int],
        outputs: Sequence[int],
        batches: Batches | None = None,
    ) -> int:
        """Call the program on addresses, or on one batch after the other; the first error code."""
        if self._threads != threads:
            self._support.context_set_threads(self._address, threads)
            self._threads = threads
        if self._parameters is not parameters:
            self._use(parameters)
        if self._dims != dims:
            self._dims_array[:] = dims
            self._dims = tuple(dims)
        pointers = self._outputs
        for slot, address in zip(self._slots, outputs, strict=True):
            pointers[slot] = address
        if batches is not None:
            return self._run_batches(parameters, inputs, batches)
        self.inputs[:] = inputs
        return self._run(self._address, self._dims_at, parameters.pointers_at, self._inputs_at, self._outputs_at)

    def _run_batches(self, parameters: Parameters, inputs: Sequence[int], batches: Batches) -> int:
        columns, run_batches = batches.columns, self._support.run_batches
        assert run_batches is not None
        self.inputs[len(columns) :] = inputs
        arguments = self._address, self._dims_at, parameters.pointers_at, self._inputs_at, self._outputs_at
        at = batches.order, batches.first * batches.rows, batches.rows, batches.count
        return run_batches(self._run_at, *arguments, columns, len(columns), *at)

    def _use(self, parameters: Parameters) -> None:
        """Point donated outputs at the parameters that they overwrite."""
        expected = len(self._manifest.params)
        if len(parameters.addresses) != expected:
            raise ArgumentError(f"expected {expected} bound parameters, got {len(parameters.addresses)}")
        for output, param in self._manifest.donations.items():
            self._outputs[output] = parameters.addresses[param]
        self._parameters = parameters

    def start_profile(self, steps: int) -> ctypes.Array[StepRecord]:
        """The table that the runtime adds to from now on."""
        if self._support.context_profile(self._address, max(1, steps)):
            raise OutOfMemoryError(f"{self._manifest.name}: no memory for a profile")
        return (StepRecord * steps).from_address(self.record.profile)
