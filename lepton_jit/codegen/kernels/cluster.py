"""The input of a schedule, a fused region with names for its buffers, and the helpers that all schedules share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from lepton_jit.codegen.kernels.evaluate import LANE, Evaluator, Indices, Provider, linear, tail_mask
from lepton_jit.codegen.loops.ir import (
    I64,
    Affine,
    Apply,
    Atom,
    Buffer,
    Const,
    Expr,
    Extent,
    Index,
    Kernel,
    Let,
    Load,
    Progress,
    Slices,
    Var,
    walk,
)
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.codegen.target import Target
from lepton_jit.errors import ShapeError
from lepton_jit.ir.graph import Graph, Input, Node, Output, Value
from lepton_jit.ir.types import Dim, DType, Poly, Shape, element_count, typical

# Iterations are handed to threads in chunks of about this many scalar operations, some ten microseconds of work.
CHUNK_WORK = 32768
# The output of a schedule: kernels, and the scratch buffers (type and size) that pass values from one to the next.
Planned = tuple[tuple[Kernel, ...], tuple[tuple[DType, Dim], ...]]
# The parts of a split sum (split-K), which are computed side by side.
SPLITS = 8
# With fewer samples than this, kernels do not run slice by slice, but one after the other, each with all of its
# iterations in parallel; the bits are the same either way.
LEAST_SLICES = 8
# Registers of one wide vector: their chains of dependent operations run at the same time, where a processor's own
# lookahead overlaps fewer (docs/measurements.md, wide vectors).
REGISTERS = 4
# The number of instructions for an element from which wide vectors pay.
LONG_CHAIN = 14


@dataclass(frozen=True)
class Cluster:
    """A region whose inputs and outputs are buffers; the order of `buffers` is that of the kernel's frame.

    `unpacked` is an input that may have no reader: the tensor that B of a contraction was packed from. `providers`
    compute values in a schedule's own way.
    """

    region: Graph
    layer: str = ""
    providers: Mapping[Value, Provider] = field(default_factory=dict, hash=False)
    unpacked: Value | None = None

    @property
    def inputs(self) -> dict[Value, str]:
        return {entry.value: f"a{i}" for i, entry in enumerate(self.region.inputs)}

    @property
    def outputs(self) -> dict[Value, str]:
        return {entry.value: f"o{i}" for i, entry in enumerate(self.region.outputs)}

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        named = [*self.inputs.items(), *self.outputs.items()]
        return tuple(Buffer(name, value.type.dtype, value.type.elements) for value, name in named)

    def evaluator(self, kernel: KernelBuilder, lanes: int = 1, mask: Atom | None = None) -> Evaluator:
        return Evaluator(kernel, self.region, self.inputs, lanes, mask, providers=self.providers)

    def lanes(self, target: Target) -> int:
        """The lanes of a register for the widest float of the region, or for 4 bytes where it has none."""
        sizes = [v.type.dtype.bytes for v in self.region.values() if v.type.dtype.is_float]
        sizes += [4] if not sizes else []
        return target.lanes(8 * max(sizes))

    def builder(self) -> KernelBuilder:
        kernel = KernelBuilder()
        kernel.buffers = {b.name: b for b in self.buffers}
        return kernel

    def kernel(
        self,
        builder: KernelBuilder,
        extent: Extent,
        work: Dim,
        flops: Dim = 0,
        extra: Sequence[Buffer] = (),
        slices: Slices | None = None,
        progress: Progress | None = None,
        turning: Dim = 0,
    ) -> Kernel:
        """The finished kernel; `work` is the number of operations of one iteration."""
        grain = max(1, CHUNK_WORK // max(1, typical(work)))
        buffers = (*self.buffers, *extra)
        body = builder.statements
        return Kernel("kernel", buffers, extent, grain, body, self.layer, flops, slices, progress, turning)

    def local_inputs(self, batch: Dim) -> frozenset[str]:
        """The buffers whose index n alone index n of every result reads; `batch` is their leading dimension."""
        builder = self.builder()
        evaluator = self.evaluator(builder)
        for value in self.outputs:
            evaluator.value(value, tuple(Affine.var(f"d{i}") for i in range(value.type.rank)))
        inputs = {name: v.type for v, name in self.inputs.items() if v.type.rank and v.type.shape[0] == batch}
        apart = set()
        for stmt in walk(builder.statements):
            if isinstance(stmt, Let) and isinstance(stmt.expr, Load) and stmt.expr.buffer in inputs:
                slice_ = element_count(inputs[stmt.expr.buffer].shape[1:])
                if stmt.expr.index.coefficient("d0") != slice_:
                    apart.add(stmt.expr.buffer)
        return frozenset(set(inputs) - apart)


def cluster_of(node: Node) -> tuple[Cluster, tuple[Value, ...]]:
    """The region that a node computes and the operands that are its inputs; a single operation is a region of one."""
    if node.op == "fusion":
        return Cluster(node.regions[0], node.layer), node.operands
    operands = tuple(dict.fromkeys(node.operands))
    region = Graph(
        node.op,
        tuple(Input(v, v.name) for v in operands),
        (node,),
        tuple(Output(v, v.name) for v in node.results),
    )
    return Cluster(region, node.layer), operands


def slice_count(extent: Extent, shape: Shape, products: bool = False) -> int:
    """The iterations of one batch slice: those for one index of the leading dimension, their slowest digit; else 0.

    The leading dimension has to be a symbol. For `products`, each with operands of its own, it may also be a number of
    at least LEAST_SLICES; other kernels of a known batch run in chains.
    """
    if products and shape and isinstance(shape[0], int) and isinstance(extent, int):
        return extent // shape[0] if shape[0] >= LEAST_SLICES and extent % shape[0] == 0 else 0
    if not shape or not isinstance(shape[0], Poly) or not isinstance(extent, Poly):
        return 0
    try:
        count = extent // shape[0]
    except ShapeError:
        return 0
    return count if isinstance(count, int) else 0


@dataclass(frozen=True)
class Axis:
    """Neighbouring dimensions that every access of a kernel walks as one."""

    dimensions: tuple[int, ...]
    extent: Dim


def merge_dimensions(
    shape: Shape, accesses: Sequence[tuple[Dim, ...]], apart: Sequence[object] | None = None
) -> list[Axis]:
    """The loops that a kernel needs: dimension d joins d + 1 where each access has step[d] = step[d+1] * extent[d+1].

    Dimensions whose entries in `apart` differ are never joined.

    >>> merge_dimensions((2, 3, 4), [(12, 4, 1), (4, 0, 1)])
    [Axis(dimensions=(0,), extent=2), Axis(dimensions=(1,), extent=3), Axis(dimensions=(2,), extent=4)]
    >>> merge_dimensions((2, 3, 4), [(12, 4, 1)])
    [Axis(dimensions=(0, 1, 2), extent=24)]
    """
    axes: list[Axis] = []
    for d in reversed(range(len(shape))):
        if shape[d] == 1:
            continue
        if axes:
            inner = axes[-1].dimensions[-1]
            same = apart is None or apart[d] == apart[inner]
            if same and all(steps[d] == steps[inner] * axes[-1].extent for steps in accesses):
                axes[-1] = Axis((d, *axes[-1].dimensions), axes[-1].extent * shape[d])
                continue
        axes.append(Axis((d,), shape[d]))
    return axes[::-1]


def accesses_of(
    cluster: Cluster, values: Sequence[Value], rank: int, extra: Sequence[Buffer] = ()
) -> list[tuple[Dim, ...]]:
    """The step of each read of a kernel in each dimension, found by computing the values once."""
    names = [f"d{i}" for i in range(rank)]
    exprs = _computed_once(cluster, values, rank, extra)
    return [tuple(e.index.coefficient(n) for n in names) for e in exprs if isinstance(e, (Load, Index))]


def is_long_chain(cluster: Cluster, values: Sequence[Value], rank: int, extra: Sequence[Buffer] = ()) -> bool:
    """Tell whether an element takes many instructions, none on indices or random bits, which fill many registers."""
    applied = [e for e in _computed_once(cluster, values, rank, extra) if isinstance(e, Apply)]
    indices = any(a.dtype.bytes == 8 and not a.dtype.is_float for e in applied for a in e.args)
    return len(applied) >= LONG_CHAIN and not indices


def _computed_once(cluster: Cluster, values: Sequence[Value], rank: int, extra: Sequence[Buffer]) -> list[Expr]:
    """The expressions that compute one element of each value, at the indices d0, d1, ..."""
    builder = cluster.builder()
    builder.buffers |= {b.name: b for b in extra}
    evaluator = cluster.evaluator(builder)
    indices = tuple(Affine.var(f"d{i}") for i in range(rank))
    for value in values:
        evaluator.value(value, indices[: value.type.rank])
    return [stmt.expr for stmt in walk(builder.statements) if isinstance(stmt, Let)]


def spread(axes: Sequence[Axis], positions: Sequence[Affine], rank: int) -> Indices:
    """Indices of all dimensions: a merged axis counts in its last one, the others stay at zero."""
    indices = [Affine()] * rank
    for axis, position in zip(axes, positions, strict=True):
        indices[axis.dimensions[-1]] = position
    return tuple(indices)


def split_index(kernel: KernelBuilder, index: Affine, extents: Sequence[Dim | Atom]) -> list[Affine]:
    """The row-major digits of an index: for extents (A, B, C) i // (B*C), i // C % B, i % C.

    Only the digits of extents other than 1 cost a division.
    """
    digits: list[Affine] = []
    rest: Var = kernel.index(index)
    real = [i for i, extent in enumerate(extents) if extent != 1]
    for i in reversed(range(len(extents))):
        extent = extents[i]
        if i not in real:
            digits.append(Affine())
        elif i == real[0]:
            digits.append(Affine.var(rest.name))
        else:
            size = number_of(kernel, extent)
            digits.append(Affine.var(kernel.apply("modulo", rest, size).name))
            rest = kernel.apply("floor_divide", rest, size)
    return digits[::-1]


def transposed(kernel: KernelBuilder, rows: Sequence[Atom]) -> list[Atom]:
    """Transpose a square of n vectors of n lanes, n a power of two, in log2(n) rounds of pairs.

    Where there are fewer vectors, the missing ones are zeros.
    """
    dtype, lanes = rows[0].dtype, rows[0].lanes
    values = [*rows, *[Const(0.0, dtype, lanes)] * (lanes - len(rows))]
    width = len(values) // 2
    while width:
        for i in (i for i in range(len(values)) if not i & width):
            pair = values[i], values[i + width]
            values[i], values[i + width] = (kernel.trn(*pair, width, odd) for odd in (False, True))
        width //= 2
    return values


def ceil_divide(kernel: KernelBuilder, dividend: Atom, divisor: Atom) -> Var:
    raised = kernel.apply("subtract", kernel.apply("add", dividend, divisor), Const(1, I64))
    return kernel.apply("floor_divide", raised, divisor)


def lowest_covering(kernel: KernelBuilder, count: Atom, heights: Sequence[int]) -> Atom:
    """The lowest of some increasing heights that is not below `count`, or the highest."""
    height: Atom = Const(heights[-1], I64)
    for lower in reversed(heights[:-1]):
        height = kernel.select(kernel.compare(count, Const(lower, I64), "LE"), Const(lower, I64), height)
    return height


def number_of(kernel: KernelBuilder, extent: Dim | Atom) -> Atom:
    """An extent as a value in the kernel."""
    return extent if isinstance(extent, (Var, Const)) else kernel.index(Affine.of(extent))


def part_of(kernel: KernelBuilder, part: Affine, extent: Dim | Atom, count: Dim | Atom = SPLITS) -> tuple[Var, Var]:
    """First and last + 1 index of one of `count` parts of an extent; a part may be empty."""
    total, parts = number_of(kernel, extent), number_of(kernel, count)
    bounds = (kernel.apply("multiply", kernel.index(part + i), total) for i in (0, 1))
    begin, end = (kernel.apply("floor_divide", bound, parts) for bound in bounds)
    return begin, end


def combined_parts(value: Value, kind: str, buffer: str = "s0") -> Provider:
    """A provider of `value`: the parts of a split sum, one behind the other in a buffer, combined in order."""

    def total(evaluator: Evaluator, indices: Indices) -> Atom:
        position = linear(indices, value.type.shape)
        result: Atom = evaluator.load_at(buffer, position)
        for part in range(1, SPLITS):
            other = evaluator.load_at(buffer, position + value.type.elements * part)
            result = evaluator.kernel.apply(kind, result, other)
        return result

    return total


def side_by_side(lanes: int, extent: Dim) -> int:
    """The lanes of a wide vector: of REGISTERS registers, or of fewer that cover the extent as well.

    >>> [side_by_side(16, extent) for extent in (10, 20, 100, 1000)]
    [16, 32, 64, 64]
    """
    registers = REGISTERS
    while isinstance(extent, int) and registers > 1 and extent <= lanes * registers // 2:
        registers //= 2
    return lanes * registers


def is_whole(extent: Dim, lanes: int) -> bool:
    """Tell whether full vectors cover the extent, whatever the symbols are."""
    if isinstance(extent, int):
        return extent % lanes == 0
    return all(c % lanes == 0 for _, c in extent.terms)


def vector_loop(
    kernel: KernelBuilder, start: Affine, stop: Affine, lanes: int, whole: bool = False
) -> Iterator[tuple[Affine, Atom | None]]:
    """Yield (first index, mask) for the parts of [start, stop): full vectors in a loop, then one masked rest.

    The body of each part has to be written before the next part is drawn. `whole`: full vectors are known to cover it.
    """
    count = stop - start
    static = count.constant if not count.terms and isinstance(count.constant, int) else None
    if static is not None:
        full: Affine = start + (static - static % lanes)
    elif whole:
        full = stop
    else:
        left = kernel.apply("modulo", kernel.index(count), kernel.index(Affine.of(lanes)))
        full = stop - Affine.var(left.name)
    if full != start:
        with kernel.loop(start, full, lanes) as i:
            yield i + Affine.var(LANE), None
    if full == stop:
        return
    rest = full + Affine.var(LANE), tail_mask(kernel, stop - full, lanes)
    if static is not None:
        yield rest
        return
    with kernel.when(kernel.compare(kernel.index(stop - full), kernel.constant(0, "i64"), "GT")):
        yield rest


def store_at(kernel: KernelBuilder, buffer: str, position: Affine, value: Atom, lanes: int, mask: Atom | None) -> None:
    """Store the lanes of a value from a linear position that contains LANE once."""
    kernel.store(buffer, position - Affine.var(LANE), value, lanes, mask)
