"""Execute a kernel of the loop IR with NumPy, one statement at a time, every index checked: its meaning."""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lepton_jit.codegen.loops.ir import (
    Affine,
    Apply,
    Atom,
    Buffer,
    CeilDiv,
    Const,
    Contract,
    Epilogue,
    Expr,
    Fetch,
    Horizontal,
    If,
    Index,
    Kernel,
    Let,
    Load,
    Loop,
    Report,
    Slices,
    Stmt,
    Store,
    Trn,
    Var,
)
from lepton_jit.codegen.loops.printer import print_statement
from lepton_jit.codegen.loops.verifier import ITERATION
from lepton_jit.errors import GraphError, OutOfRangeError
from lepton_jit.ir.op import get_op
from lepton_jit.ir.types import Dim, DType, dim_value

__all__ = ["iteration_count", "run_kernel"]

NOBODY = -1
# Indices into the flat memory of a buffer; a slice is checked by its ends.
Place = np.ndarray | slice


def run_kernel(
    kernel: Kernel,
    buffers: Mapping[str, np.ndarray],
    symbols: Mapping[str, int],
    *,
    undefined: Collection[str] = (),
    fused: bool = True,
    seed: int = 0,
    iterations: range | None = None,
) -> None:
    """Run all iterations (or some), in an order drawn from `seed`, on flat arrays by name; results are written there.

    `undefined` names the buffers that hold nothing yet; `fused=False` is a target without fused multiply-add. Raises
    GraphError, naming kernel, statement and index, for an index outside its buffer, an element that is read before
    anything wrote it, one that an iteration reads or writes after another wrote it (so any order gives the same), and
    one that is not in the iteration's slice where the kernel says that it has slices; OutOfRangeError where the kernel
    reports bad data.

    >>> from lepton_jit.codegen.loops.parser import parse_kernel
    >>> kernel = parse_kernel('''kernel @double(a0: f32[N], o0: f32[N]) parallel %t in 0 to N grain 64 {
    ...   %x: f32 = load a0[%t]
    ...   %y: f32 = add(%x, %x)
    ...   store o0[%t] = %y
    ... }''')
    >>> arrays = {"a0": np.arange(3, dtype=np.float32), "o0": np.empty(3, np.float32)}
    >>> run_kernel(kernel, arrays, {"N": 3}, undefined=["o0"])
    >>> arrays["o0"].tolist()
    [0.0, 2.0, 4.0]
    """
    memories = {b.name: _memory(kernel, b, buffers, symbols, b.name in undefined) for b in kernel.buffers}
    _share_writers(memories.values())
    extent = iteration_count(kernel, symbols)
    order = np.random.default_rng(seed).permutation(np.array(iterations or range(extent), np.int64))
    with np.errstate(all="ignore"):
        for t in order.tolist():
            if kernel.slices is not None:
                _enter_slice(kernel, kernel.slices, memories, t, extent)
            _Iteration(kernel.name, memories, symbols, t, fused).run(kernel.body)


def iteration_count(kernel: Kernel, symbols: Mapping[str, int]) -> int:
    """The value of the extent."""
    extent = kernel.extent
    return extent.value(symbols) if isinstance(extent, CeilDiv) else dim_value(extent, symbols)


def _enter_slice(kernel: Kernel, slices: Slices, memories: Mapping[str, _Memory], t: int, extent: int) -> None:
    """Local buffers may be touched, and all written, in one index of their leading dimension only."""
    which, batch = t // slices.count, extent // slices.count
    for name, memory in memories.items():
        size = memory.array.size // batch
        memory.writable = range(which * size, (which + 1) * size)
        memory.readable = memory.writable if name in slices.local else range(memory.array.size)


@dataclass
class _Writers:
    """Remembers, for each element of some memory, the iteration that wrote it."""

    iterations: np.ndarray
    some: bool = False  # anything has been written


@dataclass
class _Memory:
    """A buffer, and who wrote its elements."""

    array: np.ndarray
    dtype: DType
    writers: _Writers
    undefined: bool
    readable: range
    writable: range


def _memory(
    kernel: Kernel, buffer: Buffer, arrays: Mapping[str, np.ndarray], symbols: Mapping[str, int], undefined: bool
) -> _Memory:
    name, dtype, size = buffer.name, buffer.dtype, dim_value(buffer.size, symbols)
    if name not in arrays:
        raise GraphError(f"kernel {kernel.name}: no array for the buffer {name}")
    array = arrays[name]
    if array.dtype != dtype.numpy or array.shape != (size,):
        raise GraphError(
            f"kernel {kernel.name}: {name}: expected a flat array of {size} {dtype}, got {array.dtype} {array.shape}"
        )
    return _Memory(array, dtype, _Writers(np.full(size, NOBODY)), undefined, range(size), range(size))


def _share_writers(memories: Iterable[_Memory]) -> None:
    """Let an operand and the result that replaces it share writers: they are one memory under two names."""
    known: dict[int, _Writers] = {}
    for memory in memories:
        memory.writers = known.setdefault(memory.array.ctypes.data, memory.writers)


class _Iteration:
    """One value of `t`. Values are arrays of lanes, scalars arrays of rank 0."""

    def __init__(
        self, kernel: str, memories: Mapping[str, _Memory], symbols: Mapping[str, int], t: int, fused: bool
    ) -> None:
        self.kernel = kernel
        self.memories = memories
        self.symbols = symbols
        self.t = t
        self.fused = fused
        self.values: dict[str, np.ndarray] = {ITERATION: np.asarray(t)}
        self.stmt: Stmt | None = None

    def run(self, body: Iterable[Stmt]) -> None:
        for stmt in body:
            self.stmt = stmt
            match stmt:
                case Let():
                    self.values[stmt.var.name] = self.expression(stmt.var, stmt.expr)
                case Store():
                    self.store(stmt)
                case Loop():
                    self.loop(stmt)
                case If():
                    self.run(stmt.then if self.atom(stmt.condition) else stmt.orelse)
                case Report():
                    raise OutOfRangeError(
                        f"kernel {self.kernel}: report {stmt.code} at element {self.affine(stmt.index)}"
                    )
                case Fetch():
                    pass
                case Contract():
                    self.contract(stmt)

    def loop(self, loop: Loop) -> None:
        for carry in loop.carries:
            self.values[carry.var.name] = _spread(self.atom(carry.init), _shape(carry.var.lanes))
        for i in range(self.affine(loop.start), self.affine(loop.stop), loop.step):
            self.values[loop.var] = np.asarray(i)
            self.run(loop.body)
            following = [_spread(self.atom(c.next), _shape(c.var.lanes)) for c in loop.carries]
            self.values.update(zip((c.var.name for c in loop.carries), following, strict=True))

    # Memory

    def fail(self, message: str) -> GraphError:
        text = print_statement(self.stmt).splitlines()[0] if self.stmt is not None else ""
        return GraphError(f"kernel {self.kernel}: `{text}` with %t = {self.t}: {message}")

    def check(self, buffer: str, place: Place, allowed: range) -> None:
        """Check that every element of the place may be touched."""
        if isinstance(place, np.ndarray) and not place.size:
            return
        memory, (low, high) = self.memories[buffer], _bounds(place)
        if low < allowed.start or high >= allowed.stop:
            indices = np.r_[place]
            outside = indices[(indices < allowed.start) | (indices >= allowed.stop)]
            part = f" from {allowed.start} on" if allowed.start else ""
            raise self.fail(f"index {outside[0]} is outside the {len(allowed)} elements of {buffer}{part}")
        if memory.writers.some:
            writers = memory.writers.iterations[place]
            others = (writers != NOBODY) & (writers != self.t)
            if others.any():
                index, writer = np.r_[place][others][0], writers[others][0]
                raise self.fail(f"{buffer}[{index}] is also written by the iteration %t = {writer}")

    def read(self, buffer: str, place: Place) -> np.ndarray:
        memory = self.memories[buffer]
        self.check(buffer, place, memory.readable)
        if memory.undefined and (unwritten := memory.writers.iterations[place] == NOBODY).any():
            raise self.fail(f"{buffer}[{np.r_[place][unwritten][0]}] is read, but nothing wrote it")
        return memory.array[place].copy()

    def read_lanes(self, load: Load, place: Place, lanes: int) -> np.ndarray:
        """The elements; lanes that the mask leaves out are `other`, or zero."""
        if load.mask is None:
            return self.read(load.buffer, place)
        active = _spread(self.atom(load.mask), (lanes,))
        result = np.zeros(lanes, self.memories[load.buffer].dtype.numpy)
        if load.other is not None:
            result[...] = self.atom(load.other)
        result[active] = self.read(load.buffer, np.r_[place][active])
        return result

    def write(self, buffer: str, place: Place, value: np.ndarray) -> None:
        memory = self.memories[buffer]
        self.check(buffer, place, memory.writable)
        memory.array[place] = value
        memory.writers.iterations[place] = self.t
        memory.writers.some = True

    def store(self, store: Store) -> None:
        place, value = _lanes(self.affine(store.index), 1, store.lanes), _spread(self.atom(store.value), (store.lanes,))
        if store.mask is not None:
            active = _spread(self.atom(store.mask), (store.lanes,))
            place, value = np.r_[place][active], value[active]
        self.write(store.buffer, place, value)

    # Values

    def dim(self, dim: Dim) -> int:
        return dim if isinstance(dim, int) else dim_value(dim, self.symbols)

    def affine(self, index: Affine) -> int:
        total = self.dim(index.constant)
        for name, coefficient in index.terms:
            total += self.dim(coefficient) * int(self.values[name])
        return total

    def atom(self, atom: Atom) -> np.ndarray:
        if isinstance(atom, Var):
            return self.values[atom.name]
        return _constant(atom)

    def expression(self, var: Var, expr: Expr) -> np.ndarray:
        match expr:
            case Apply():
                return self.apply(var, expr, _shape(var.lanes))
            case Load():
                first = self.affine(expr.index)
                if expr.offsets is None:
                    place = _lanes(first, self.dim(expr.step), var.lanes)
                else:
                    place = first + _spread(self.atom(expr.offsets), (var.lanes,))
                return self.read_lanes(expr, place, var.lanes).reshape(_shape(var.lanes))
            case Index():
                lanes = self.affine(expr.index) + np.arange(var.lanes) * self.dim(expr.step)
                return lanes.astype(np.int64).reshape(_shape(var.lanes))
            case Horizontal(op, arg):
                return self.horizontal(op, arg)
            case Trn(first, second, width, odd):
                result = np.empty(var.lanes, var.dtype.numpy)
                for half, x in enumerate((first, second)):
                    parts = _spread(self.atom(x), (var.lanes,)).reshape(-1, 2, width)
                    result.reshape(-1, 2, width)[:, half] = parts[:, int(odd)]
                return result

    def horizontal(self, op: str, arg: Atom) -> np.ndarray:
        """Combine the lanes by halves."""
        value = np.broadcast_to(self.atom(arg), arg.lanes)
        while value.size > 1:
            value = np.asarray(_meaning(op, [value[: value.size // 2], value[value.size // 2 :]], {}))
        return value.reshape(())

    def apply(self, var: Var, expr: Apply, shape: tuple[int, ...]) -> np.ndarray:
        args = [_spread(self.atom(a), shape) for a in expr.args]
        return _primitive(expr.op, args, expr.detail, var.dtype, self.fused)

    # Micro-kernels

    def contract(self, stmt: Contract) -> None:
        """Run a micro-kernel by its definition: each element is a chain of multiply-adds over K, last loop fastest."""
        rows = stmt.rows if isinstance(stmt.rows, int) else int(self.atom(stmt.rows))
        if rows not in stmt.heights:
            raise self.fail(f"expected one of {stmt.heights} rows, got {rows}")
        columns = np.arange(self.affine(stmt.columns))
        out = self.affine(stmt.out[1]) + np.arange(rows)[:, None] * self.dim(stmt.out_row) + columns
        total = np.zeros(out.shape, stmt.tile.dtype.numpy)
        if stmt.accumulate:
            total = self.read(stmt.out[0], out)
        lhs = self.affine(stmt.lhs[1]) + self.row_offsets(stmt, rows)
        rhs = self.affine(stmt.rhs[1]) + self.column_offsets(stmt, columns)
        left, right = self.steps(stmt.sums)
        a = self.read(stmt.lhs[0], left[:, None] + lhs)
        b = self.read(stmt.rhs[0], right[:, None] + rhs)
        total = _sums_of_products(a, b, total, self.fused)
        if stmt.tile.epilogue is not None:
            total = self.epilogue(stmt, stmt.tile.epilogue, total)
        self.write(stmt.out[0], out, total)

    def row_offsets(self, stmt: Contract, rows: int) -> np.ndarray:
        if not isinstance(stmt.rows_apart, tuple):
            return np.arange(rows) * self.dim(stmt.rows_apart)
        start = self.affine(stmt.row_start)
        if not 0 <= start <= len(stmt.rows_apart) - rows:
            raise self.fail(f"rows {start} to {start + rows} of a table of {len(stmt.rows_apart)}")
        return np.array(stmt.rows_apart[start : start + rows], np.int64)

    def column_offsets(self, stmt: Contract, columns: np.ndarray) -> np.ndarray:
        """The offsets of columns, which lie side by side within a panel."""
        tile = stmt.tile
        if tile.vectors <= tile.panel_vectors:
            return columns
        # only the last vector may be partly empty, and lanes are a power of two
        lanes = 1 << (-(-columns.size // tile.vectors) - 1).bit_length()
        panel, within = np.divmod(columns, lanes * tile.panel_vectors)
        return panel * self.dim(stmt.rhs_panel) + within

    def steps(self, sums: Sequence[tuple[Affine, Dim, Dim]]) -> tuple[np.ndarray, np.ndarray]:
        """Yield how far A and B have moved, for each product in order."""
        left = right = np.zeros(1, np.int64)
        for extent, lhs, rhs in sums:
            count = self.affine(extent)
            if count < 1:
                raise self.fail(f"a tile sums at least one product, got the extent {count}")
            turns = np.arange(count)
            left, right = ((at[:, None] + turns * self.dim(step)).ravel() for at, step in ((left, lhs), (right, rhs)))
        return left, right

    def epilogue(self, stmt: Contract, epilogue: Epilogue, total: np.ndarray) -> np.ndarray:
        inner = _Iteration(self.kernel, self.memories, self.symbols, self.t, self.fused)
        inner.values[epilogue.args[0].name] = total
        rows, columns = (np.arange(n) for n in total.shape)
        for arg, extra in zip(epilogue.args[1:], stmt.extras, strict=True):
            place = self.affine(extra.index) + rows[:, None] * self.dim(extra.row_step) + columns * extra.column_step
            inner.values[arg.name] = self.read(extra.buffer, place)
        for let in epilogue.body:
            inner.stmt = let
            if not isinstance(let.expr, Apply):
                raise inner.fail("expected a primitive in an epilogue")
            inner.values[let.var.name] = inner.apply(let.var, let.expr, total.shape)
        return np.broadcast_to(inner.atom(epilogue.result), total.shape)


def _lanes(first: int, step: int, lanes: int) -> Place:
    """The elements at which the lanes of a vector lie."""
    if step > 0:
        return slice(first, first + (lanes - 1) * step + 1, step)
    return first + np.arange(lanes) * step


def _bounds(place: Place) -> tuple[int, int]:
    """The lowest and the highest index."""
    if isinstance(place, slice):
        return place.start, place.stop - 1
    return int(place.min()), int(place.max())


def _spread(value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return value if value.shape == shape else np.broadcast_to(value, shape)


def _shape(lanes: int) -> tuple[int, ...]:
    return () if lanes == 1 else (lanes,)


@functools.cache
def _constant(const: Const) -> np.ndarray:
    dtype = const.dtype
    if dtype.is_float or dtype.kind == "bool":
        return np.asarray(const.value, dtype.numpy)
    # integers wrap
    return np.asarray(int(const.value) & (2 ** (8 * dtype.bytes) - 1), f"u{dtype.bytes}").view(dtype.numpy)


def _primitive(op: str, args: Sequence[np.ndarray], detail: str, dtype: DType, fused: bool) -> np.ndarray:
    """The meaning of a primitive: that of the operation of the graph with its name, where there is one."""
    match op:
        case "fma":
            return _multiply_add(args[0], args[1], args[2], fused)
        case "floor_divide":
            return np.floor_divide(*args)
        case "modulo":
            return np.remainder(*args)
        case "compare":
            return _meaning(op, args, {"direction": detail})
        case "convert" | "bitcast_convert":
            return _meaning(op, args, {"dtype": dtype})
    return _meaning(op, args, {})


def _meaning(op: str, args: Sequence[np.ndarray], attributes: Mapping[str, object]) -> np.ndarray:
    (result,) = get_op(op).reference(args, attributes, {})  # pyright: ignore[reportArgumentType]
    return np.asarray(result)


def _multiply_add(a: np.ndarray, b: np.ndarray, c: np.ndarray, fused: bool) -> np.ndarray:
    """Compute a*b + c rounded once, in the next wider format: for f32 the product is exact there, for f64 nearly."""
    if not fused:
        return a * b + c
    wide = _wider(a.dtype)
    return (a.astype(wide) * b.astype(wide) + c).astype(a.dtype)


def _sums_of_products(a: np.ndarray, b: np.ndarray, total: np.ndarray, fused: bool) -> np.ndarray:
    """Compute total[rows, columns] + a[k, rows] * b[k, columns] for each k in order, by multiply-adds."""
    wide, total = _wider(a.dtype) if fused else a.dtype, total.copy()
    for products in a.astype(wide)[:, :, None] * b.astype(wide)[:, None, :]:
        np.add(products, total, out=total, casting="same_kind")
    return total


def _wider(dtype: np.dtype) -> type[np.floating]:
    return np.float64 if dtype == np.float32 else np.longdouble
