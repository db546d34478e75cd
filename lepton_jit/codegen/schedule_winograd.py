"""Schedules of Winograd's transforms: one tile in registers, a vector of channels at a time."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from lepton_jit.codegen.cluster import Cluster, Planned, split_index, store_at, vector_loop
from lepton_jit.codegen.evaluate import linear
from lepton_jit.codegen.kernel_builder import KernelBuilder
from lepton_jit.codegen.loop_ir import I64, Affine, Atom, Const
from lepton_jit.codegen.target import Target
from lepton_jit.ir.ops.winograd import INPUT_TRANSFORM, KERNEL_TRANSFORM, OUTPUT_TRANSFORM, Matrix
from lepton_jit.ir.types import Dim, element_count

Square = list[list[Atom]]
# Operations of one tile, about: loads, stores and two transforms.
TILE_WORK = 160


def schedule_winograd_input(cluster: Cluster, target: Target) -> Planned:
    """An iteration transforms one row of tiles of one image."""
    (node,) = cluster.region.nodes
    (x,), result = node.operands, node.result
    tile: Any = node.attributes["tile"]
    _, batch, rows, columns, channels = result.type.shape
    k = cluster.builder()
    n, row = split_index(k, Affine.var("t"), [batch, rows])
    lanes = cluster.lanes(target)
    with k.loop(0, columns) as column:
        for c, mask in vector_loop(k, Affine(), Affine.of(channels), lanes):
            evaluator = cluster.evaluator(k, lanes, mask)
            size = range(tile + 2)
            square = [[evaluator.value(x, (n, row * tile + i, column * tile + j, c)) for j in size] for i in size]
            for p, value in enumerate(_flat(_both(k, INPUT_TRANSFORM[tile], square))):
                position = linear((Affine.of(p), n, row, column, c), result.type.shape)
                store_at(k, "o0", position, value, lanes, mask)
    work = columns * channels * TILE_WORK // lanes
    return (cluster.kernel(k, element_count((batch, rows)), work),), ()


def schedule_winograd_kernel(cluster: Cluster, target: Target) -> Planned:
    """An iteration transforms the kernels of one input channel to the features of one panel.

    Written in panels at once and read in whatever order the kernel has: the input gradient of 3 x 3, 512 -> 512 took
    11.6 ms for a reversed copy, its transform and the panels of that.
    """
    (node,) = cluster.region.nodes
    (kernel,), shape = node.operands, node.result.type.shape
    a: Any = node.attributes
    tile, (out_feature, in_feature, *spatial) = a["tile"], a["spec"]
    features: Any = kernel.type.shape[out_feature]
    panel = a["panel"] or features
    panels: Any = shape[1] if a["panel"] else 1
    k = cluster.builder()
    lanes = cluster.lanes(target)
    which, channel = split_index(k, Affine.var("t"), [panels, kernel.type.shape[in_feature]])

    def tap(at: Sequence[int], f: Affine) -> tuple[Affine, ...]:
        index = {out_feature: which * panel + f, in_feature: channel}
        for d, i, reversed_ in zip(spatial, at, a["reversal"], strict=True):
            index[d] = Affine.of(2 - i if reversed_ else i)
        return tuple(index[d] for d in range(4))

    def transform(count: Dim) -> None:
        for f, mask in vector_loop(k, Affine(), Affine.of(count), lanes):
            evaluator = cluster.evaluator(k, lanes, mask)
            square = [[evaluator.value(kernel, tap((i, j), f)) for j in range(3)] for i in range(3)]
            for p, value in enumerate(_flat(_both(k, KERNEL_TRANSFORM[tile], square))):
                store(p, f, value, mask)
        for f, mask in vector_loop(k, Affine.of(count), Affine.of(panel), lanes):
            for p in range((tile + 2) ** 2):
                store(p, f, Const(0, kernel.type.dtype), mask)

    def store(p: int, f: Affine, value: Atom, mask: Atom | None) -> None:
        where = (Affine.of(p), which, channel, f) if a["panel"] else (Affine.of(p), channel, f)
        store_at(k, "o0", linear(where, shape), value, lanes, mask)

    last = features - (panels - 1) * panel
    if last == panel or panels == 1:
        transform(last)
    else:
        with k.when(k.compare(k.index(which), Const(panels - 1, I64), "LT")):
            transform(panel)
        with k.otherwise():
            transform(last)
    extent = element_count((panels, kernel.type.shape[in_feature]))
    return (cluster.kernel(k, extent, panel * TILE_WORK // lanes),), ()


def schedule_winograd_output(cluster: Cluster, target: Target) -> Planned:
    """An iteration makes the results of one row of tiles of one image, and what the region makes of them."""
    node = next(n for n in cluster.region.nodes if n.op == "winograd_output")
    (products,) = node.operands
    a: Any = node.attributes
    tile, (height, width) = a["tile"], a["size"]
    _, batch, rows, columns, channels = products.type.shape
    k = cluster.builder()
    n, row = split_index(k, Affine.var("t"), [batch, rows])
    lanes = cluster.lanes(target)
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
            square = [
                [evaluator.value(products, (Affine.of(i * (tile + 2) + j), n, row, column, c)) for j in size]
                for i in size
            ]
            results = _both(k, OUTPUT_TRANSFORM[tile], square)
            for i, line in enumerate(results):
                for j, value in enumerate(line):
                    outside = [(row * tile + i, height)] if height % tile > 0 and i >= height % tile else []
                    outside += [(column * tile + j, width)] if width % tile > 0 and j >= width % tile else []
                    if not outside:
                        finish(i, j, column, c, mask, value)
                        continue
                    inside = [k.compare(k.index(at), Const(limit, I64), "LT") for at, limit in outside]
                    with k.when(inside[0] if len(inside) == 1 else k.apply("and", *inside)):
                        finish(i, j, column, c, mask, value)
    work = columns * channels * TILE_WORK // lanes
    return (cluster.kernel(k, element_count((batch, rows)), work),), ()


def _flat(square: Square) -> list[Atom]:
    return [value for line in square for value in line]


def _both(k: KernelBuilder, matrix: Matrix, square: Square) -> Square:
    """matrix @ square @ matrix^T."""
    columns = [_apply(k, matrix, list(column)) for column in zip(*square, strict=True)]
    return [_apply(k, matrix, list(line)) for line in zip(*columns, strict=True)]


def _apply(k: KernelBuilder, matrix: Matrix, values: Sequence[Atom]) -> list[Atom]:
    """matrix @ values, in about half of the operations that its elements ask for.

    Points come as +a and -a. So do pairs of columns, v and w with the same coefficients but for their signs: v + w and
    v - w serve all rows. Pairs of rows are the sum and the difference of their even and their odd part.
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
    """The same numbers but for some signs."""
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
    """The sum of the products, from a term with the coefficient 1 on if there is one."""
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
