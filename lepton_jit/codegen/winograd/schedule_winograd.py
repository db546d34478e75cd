"""Schedule Winograd's transforms: one tile in registers, a vector of channels at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from lepton_jit.codegen.kernels.cluster import Cluster, Planned, split_index, store_at, transposed, vector_loop
from lepton_jit.codegen.kernels.evaluate import LANE, Evaluator, linear
from lepton_jit.codegen.loops.ir import I64, Affine, Atom, Const, Kernel
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder
from lepton_jit.codegen.target import Target
from lepton_jit.ir.graph import Node
from lepton_jit.ir.ops.winograd import INPUT_TRANSFORM, KERNEL_TRANSFORM, OUTPUT_TRANSFORM, Matrix
from lepton_jit.ir.types import Dim, Shape, element_count

Square = list[list[Atom]]
# The operations of one tile, roughly: loads, stores and two transforms.
TILE_WORK = 160


def schedule_winograd_input(cluster: Cluster, target: Target) -> Planned:
    """Schedule the transform of images; an iteration has one row of tiles of one image."""
    (node,) = cluster.region.nodes

    def write(k: KernelBuilder, line: Sequence[Affine]) -> None:
        def place(position: int, column: Affine, channel: Affine) -> tuple[str, Affine]:
            return "o0", linear((Affine.of(position), *line, column, channel), node.result.type.shape)

        transform_input(cluster, k, node, target, line, place)

    return _by_lines(cluster, target, node.result.type.shape, write)


def _by_lines(
    cluster: Cluster, target: Target, shape: Shape, write: Callable[[KernelBuilder, Sequence[Affine]], None]
) -> Planned:
    """A kernel whose iterations `write` one line of tiles, (image, line), transformed; `shape` is that of all."""
    _, batch, rows, columns, channels = shape
    k = cluster.builder()
    write(k, split_index(k, Affine.var("t"), [batch, rows]))
    work = columns * channels * TILE_WORK // cluster.lanes(target)
    return (cluster.kernel(k, element_count((batch, rows)), work),), ()


def transform_input(
    cluster: Cluster,
    k: KernelBuilder,
    node: Node,
    target: Target,
    line: Sequence[Affine],
    place: Callable[[int, Affine, Affine], tuple[str, Affine]],
) -> None:
    """Transform one line of tiles, (image, line), to the places of each position, column and channel."""
    (n, row), (x,), lanes = line, node.operands, cluster.lanes(target)
    tile: Any = node.attributes["tile"]
    *_, columns, channels = node.result.type.shape
    with k.loop(0, columns) as column:
        for c, mask in vector_loop(k, Affine(), Affine.of(channels), lanes):
            evaluator = cluster.evaluator(k, lanes, mask)
            size = range(tile + 2)
            square = [[evaluator.value(x, (n, row * tile + i, column * tile + j, c)) for j in size] for i in size]
            for p, value in enumerate(_flat(_both(k, INPUT_TRANSFORM[tile], square))):
                store_at(k, *place(p, column, c), value, lanes, mask)


def schedule_winograd_kernel(cluster: Cluster, target: Target) -> Planned:
    """Schedule the transform of kernels; an iteration has those of some input channels to the features of one panel.

    It reads kernels in whatever order they have, and writes panels of packed B at once.
    """
    made = _Kernels(cluster, target)
    return ((made.in_squares() if made.features_apart() else made.by_channels()),), ()


class _Kernels:
    """Writes [tap of the transform][panel][input channel][feature of the panel], behind the last feature zeros."""

    def __init__(self, cluster: Cluster, target: Target) -> None:
        (self.node,) = cluster.region.nodes
        (self.kernel,), self.shape = self.node.operands, self.node.result.type.shape
        a: Any = self.node.attributes
        self.cluster, self.k, self.lanes = cluster, cluster.builder(), cluster.lanes(target)
        self.tile, self.reversal = a["tile"], a["reversal"]
        self.out_feature, self.in_feature, *self.spatial = a["spec"]
        features: Any = self.kernel.type.shape[self.out_feature]
        self.channels: Any = self.kernel.type.shape[self.in_feature]
        self.paneled = a["panel"] > 0
        self.panel: Any = a["panel"] or features
        self.panels: Any = self.shape[1] if self.paneled else 1
        self.last = features - (self.panels - 1) * self.panel

    def features_apart(self) -> bool:
        """Tell whether channels are contiguous in the kernel, features are not, and both fill whole vectors."""
        last = self.kernel.type.rank - 1
        sizes = (self.channels, self.panel, self.last)
        return self.in_feature == last and all(isinstance(n, int) and n % self.lanes == 0 for n in sizes)

    def by_channels(self) -> Kernel:
        k = self.k
        self.which, self.channel = split_index(k, Affine.var("t"), [self.panels, self.channels])
        self._panel(self._transform)
        extent = element_count((self.panels, self.channels))
        return self.cluster.kernel(k, extent, self.panel * TILE_WORK // self.lanes)

    def in_squares(self) -> Kernel:
        """The kernel for features apart: it transposes squares of channels and features, which saves gathers.

        They are transposed into the place of the first nine results, and read there.
        """
        k, lanes = self.k, self.lanes
        blocks = self.channels // lanes
        self.which, block = split_index(k, Affine.var("t"), [self.panels, blocks])
        self._panel(lambda columns: self._squares(block * lanes, columns))
        extent = element_count((self.panels, blocks))
        return self.cluster.kernel(k, extent, self.panel * TILE_WORK)

    def _panel(self, fill: Callable[[Dim], None]) -> None:
        """`fill` a panel with its features; the last panel may have fewer."""
        k = self.k
        if self.last == self.panel or self.panels == 1:
            fill(self.last)
            return
        with k.when(k.compare(k.index(self.which), Const(self.panels - 1, I64), "LT")):
            fill(self.panel)
        with k.otherwise():
            fill(self.last)

    def _squares(self, channel: Affine, columns: Dim) -> None:
        k, lanes = self.k, self.lanes
        with k.loop(0, columns, lanes) as first:
            for tap in range(9):
                self._transpose(tap, channel, first)
        with k.loop(0, lanes) as i:
            self.channel = channel + i
            with k.loop(0, columns, lanes) as f:
                taps: list[Atom] = [k.load("o0", self._place(tap, f), lanes) for tap in range(9)]
                self._store([taps[n : n + 3] for n in (0, 3, 6)], f + Affine.var(LANE), None)
            self._zeros(columns)

    def _transpose(self, tap: int, channel: Affine, first: Affine) -> None:
        k = self.k
        index = {self.in_feature: channel}
        rows = [self._at(divmod(tap, 3), index, first + f) for f in range(self.lanes)]
        loads: list[Atom] = [
            k.load(self.cluster.inputs[self.kernel], linear(row, self.kernel.type.shape), self.lanes) for row in rows
        ]
        for i, value in enumerate(transposed(k, loads)):
            self.channel = channel + i
            k.store("o0", self._place(tap, first), value, self.lanes)

    def _at(self, tap: Sequence[int], index: dict[int, Affine], f: Affine) -> tuple[Affine, ...]:
        index = index | {self.out_feature: self.which * self.panel + f}
        for d, i, reversed_ in zip(self.spatial, tap, self.reversal, strict=True):
            index[d] = Affine.of(2 - i if reversed_ else i)
        return tuple(index[d] for d in range(4))

    def _transform(self, count: Dim) -> None:
        k = self.k
        index = {self.in_feature: self.channel}
        for f, mask in vector_loop(k, Affine(), Affine.of(count), self.lanes):
            evaluator = self.cluster.evaluator(k, self.lanes, mask)
            square = [[evaluator.value(self.kernel, self._at((i, j), index, f)) for j in range(3)] for i in range(3)]
            self._store(square, f, mask)
        self._zeros(count)

    def _store(self, square: Square, f: Affine, mask: Atom | None) -> None:
        for p, value in enumerate(_flat(_both(self.k, KERNEL_TRANSFORM[self.tile], square))):
            store_at(self.k, "o0", self._place(p, f), value, self.lanes, mask)

    def _zeros(self, count: Dim) -> None:
        for f, mask in vector_loop(self.k, Affine.of(count), Affine.of(self.panel), self.lanes):
            for p in range((self.tile + 2) ** 2):
                store_at(self.k, "o0", self._place(p, f), Const(0, self.kernel.type.dtype), self.lanes, mask)

    def _place(self, p: int, f: Affine) -> Affine:
        where = (Affine.of(p), self.which, self.channel, f) if self.paneled else (Affine.of(p), self.channel, f)
        return linear(where, self.shape)


def schedule_winograd_output(cluster: Cluster, target: Target) -> Planned:
    """Schedule the transform of products, and the region's rest; an iteration has one row of tiles of one image."""
    node = next(n for n in cluster.region.nodes if n.op == "winograd_output")
    (products,) = node.operands

    def write(k: KernelBuilder, line: Sequence[Affine]) -> None:
        def load(evaluator: Evaluator, position: int, column: Affine, channel: Affine) -> Atom:
            return evaluator.value(products, (Affine.of(position), *line, column, channel))

        transform_output(cluster, k, node, target, line, load)

    return _by_lines(cluster, target, products.type.shape, write)


def transform_output(
    cluster: Cluster,
    k: KernelBuilder,
    node: Node,
    target: Target,
    line: Sequence[Affine],
    load: Callable[[Evaluator, int, Affine, Affine], Atom],
) -> None:
    """Write the results of one line of tiles, (image, line), and what the region makes of them."""
    (n, row), a, lanes = line, node.attributes, cluster.lanes(target)
    tile: Any = a["tile"]
    height, width = a["size"]
    *_, columns, channels = node.operands[0].type.shape
    ((output, buffer),) = cluster.outputs.items()

    def finish(i: int, j: int, column: Affine, c: Affine, mask: Atom | None, value: Atom) -> None:
        indices = (n, row * tile + i, column * tile + j, c)
        evaluator = cluster.evaluator(k, lanes, mask)
        evaluator.bound[node.result] = value
        store_at(k, buffer, linear(indices, output.type.shape), evaluator.value(output, indices), lanes, mask)

    with k.loop(0, columns) as column:
        for c, mask in vector_loop(k, Affine(), Affine.of(channels), lanes):
            evaluator = cluster.evaluator(k, lanes, mask)
            size = range(tile + 2)
            square = [[load(evaluator, i * (tile + 2) + j, column, c) for j in size] for i in size]
            for i, values in enumerate(_both(k, OUTPUT_TRANSFORM[tile], square)):
                for j, value in enumerate(values):
                    outside = [(row * tile + i, height)] if height % tile > 0 and i >= height % tile else []
                    outside += [(column * tile + j, width)] if width % tile > 0 and j >= width % tile else []
                    if not outside:
                        finish(i, j, column, c, mask, value)
                        continue
                    inside = [k.compare(k.index(at), Const(limit, I64), "LT") for at, limit in outside]
                    with k.when(inside[0] if len(inside) == 1 else k.apply("and", *inside)):
                        finish(i, j, column, c, mask, value)


def _flat(square: Square) -> list[Atom]:
    return [value for line in square for value in line]


def _both(k: KernelBuilder, matrix: Matrix, square: Square) -> Square:
    """Compute matrix @ square @ matrix^T."""
    columns = [_apply(k, matrix, list(column)) for column in zip(*square, strict=True)]
    return [_apply(k, matrix, list(line)) for line in zip(*columns, strict=True)]


def _apply(k: KernelBuilder, matrix: Matrix, values: Sequence[Atom]) -> list[Atom]:
    """Compute matrix @ values, in about half of the operations that its elements take one by one.

    Points of the transform come as +a and -a. Pairs of columns, whose coefficients differ in signs only, need the sum
    and the difference of their two values, which serve all rows. Pairs of rows are the sum and the difference of their
    even and their odd part.
    """
    matrix, values = _without_pairs_of_columns(k, matrix, values)
    results: list[Atom] = []
    while len(results) < len(matrix):
        r = len(results)
        row = matrix[r]
        if r + 1 < len(matrix) and _are_paired(row, matrix[r + 1]):
            even = [a if a == b else Fraction(0) for a, b in zip(row, matrix[r + 1], strict=True)]
            odd = [a if a != b else Fraction(0) for a, b in zip(row, matrix[r + 1], strict=True)]
            e, o = _combined(k, even, values), _combined(k, odd, values)
            results += [k.apply("add", e, o), k.apply("subtract", e, o)]
        else:
            results.append(_combined(k, row, values))
    return results


def _are_paired(a: Sequence[Fraction], b: Sequence[Fraction]) -> bool:
    """Tell whether two rows or columns differ, and in signs only."""
    return all(abs(x) == abs(y) for x, y in zip(a, b, strict=True)) and tuple(a) != tuple(b)


def _without_pairs_of_columns(
    k: KernelBuilder, matrix: Matrix, values: Sequence[Atom]
) -> tuple[Matrix, Sequence[Atom]]:
    columns = list(zip(*matrix, strict=True))
    made: list[tuple[tuple[Fraction, ...], Atom]] = []
    i = 0
    while i < len(columns):
        if i + 1 < len(columns) and _are_paired(columns[i], columns[i + 1]):
            pairs = list(zip(columns[i], columns[i + 1], strict=True))
            v, w = values[i], values[i + 1]
            made.append((tuple(a if a == b else Fraction(0) for a, b in pairs), k.apply("add", v, w)))
            made.append((tuple(a if a != b else Fraction(0) for a, b in pairs), k.apply("subtract", v, w)))
            i += 2
        else:
            made.append((columns[i], values[i]))
            i += 1
    return tuple(zip(*(c for c, _ in made), strict=True)), [v for _, v in made]


def _combined(k: KernelBuilder, coefficients: Sequence[Fraction], values: Sequence[Atom]) -> Atom:
    """Compute the sum of the products, beginning with a term of coefficient 1 if there is one."""
    terms = sorted(((c, v) for c, v in zip(coefficients, values, strict=True) if c), key=lambda term: term[0] != 1)
    (first, total), *rest = terms
    if first != 1:
        total = k.apply("multiply", total, Const(float(first), total.dtype))
    for coefficient, value in rest:
        if abs(coefficient) == 1:
            total = k.apply("add" if coefficient == 1 else "subtract", total, value)
        else:
            total = k.apply("fma", value, Const(float(coefficient), value.dtype), total)
    return total
