"""Compute the value of a tensor at an index, as statements of a kernel: what every fused operation becomes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lepton_jit.codegen.kernels.blocked_fold import first_totals, fold_loop
from lepton_jit.codegen.loops.ir import BOOL, I64, Affine, Atom, Const, Var
from lepton_jit.codegen.loops.kernel_builder import KernelBuilder, identity_of
from lepton_jit.errors import UnsupportedError
from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.op import Family, get_op
from lepton_jit.ir.ops.native import philox
from lepton_jit.ir.types import Dim, Shape, row_major

# The lane of a vector, as a variable of an index: its coefficient is the distance between neighbouring lanes.
LANE = "lane"

Indices = tuple[Affine, ...]
Provider = Callable[["Evaluator", Indices], Atom]


def linear(indices: Indices, shape: Shape) -> Affine:
    """The position of an element in a dense tensor."""
    total = Affine()
    for index, stride in zip(indices, row_major(shape), strict=True):
        total = total + index * stride
    return total


@dataclass
class Evaluator:
    """Computes values of a region at indices; region inputs are loaded from the buffers of the same value.

    `lanes` is the vector width of indices that contain LANE and `mask` says which lanes exist (None: all).
    `bound` holds values that the schedule has computed already, such as the sum over a row, and `providers` compute
    values in the schedule's own way.
    """

    kernel: KernelBuilder
    region: Graph
    buffers: Mapping[Value, str]
    lanes: int = 1
    mask: Atom | None = None
    bound: dict[Value, Atom] = field(default_factory=dict)
    providers: Mapping[Value, Provider] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._producers = self.region.producers()
        # numbers that were looked up, one a lane: variables of an index, as LANE is
        self._looked_up: dict[str, Var] = {}

    def value(self, value: Value, indices: Indices, guard: Atom | None = None) -> Atom:
        """Compute `value[indices]`; where `guard` is false nothing is read, and the result does not matter."""
        if value in self.bound:
            return self.bound[value]
        key = (value.name, indices, guard, self.mask, self.lanes)
        found = self.kernel.recall(key)
        if found is None:
            found = self._load(value, indices, guard) if value in self.buffers else self._compute(value, indices, guard)
            self.kernel.remember(key, found)
        return found

    def load_at(self, buffer: str, position: Affine, guard: Atom | None = None) -> Atom:
        """Load the element of a buffer at a linear position that may contain LANE."""
        k = self.kernel
        base, offsets = self._looked_up_part(position)
        if offsets is not None:
            return k.load(buffer, base, self.lanes, mask=self.both(self.mask, guard), offsets=offsets)
        step = position.coefficient(LANE)
        base = position - Affine.var(LANE) * step
        if self.lanes == 1 or (step == 0 and (guard is None or guard.lanes == 1)):
            return k.load(buffer, base, mask=guard)
        return k.load(buffer, base, self.lanes, step, self.both(self.mask, guard))

    def _load(self, value: Value, indices: Indices, guard: Atom | None) -> Atom:
        return self.load_at(self.buffers[value], linear(indices, value.type.shape), guard)

    def both(self, a: Atom | None, b: Atom | None) -> Atom | None:
        if a is None or b is None:
            return b if a is None else a
        return self.kernel.apply("and", a, b)

    def _compute(self, value: Value, indices: Indices, guard: Atom | None) -> Atom:
        if value in self.providers:
            return self.providers[value](self, indices)
        node = self._producers[value]
        if get_op(node.op).family is Family.ELEMENTWISE:
            return self._elementwise(node, [self.value(v, indices, guard) for v in node.operands])
        if node.op not in _RULES:
            raise UnsupportedError(f"layer {node.layer!r}: {node.op} cannot be part of a fused kernel")
        return _RULES[node.op](self, node, indices, guard)

    def _elementwise(self, node: Node, args: Sequence[Atom]) -> Atom:
        k = self.kernel
        attributes = node.attributes
        match node.op:
            case "compare":
                return k.compare(args[0], args[1], str(attributes["direction"]))
            case "convert" | "bitcast_convert":
                dtype = node.result.type.dtype
                return k.convert(args[0], dtype) if node.op == "convert" else k.bitcast_convert(args[0], dtype)
            case "select":
                return k.select(*args)
        native = get_op(node.op).native
        return native(k, *args) if native else k.apply(node.op, *args)

    def position(self, index: Affine) -> Atom:
        """An index as an i64 value, a vector if it contains LANE."""
        base, offsets = self._looked_up_part(index)
        if offsets is not None:
            return self.kernel.apply("add", self.kernel.index(base), offsets)
        step = index.coefficient(LANE)
        base = index - Affine.var(LANE) * step
        if self.lanes == 1 or step == 0:
            return self.kernel.index(base)
        return self.kernel.index(base, self.lanes, step)

    def look_up(self, number: Atom, size: int) -> Affine:
        """The index of a row by its number, clamped to those that exist."""
        k = self.kernel
        if number.dtype.name == "u64":
            number = k.apply("minimum", number, Const(size - 1, number.dtype))
        positive = k.apply("maximum", k.convert(number, I64), Const(0, I64))
        row = k.apply("minimum", positive, Const(size - 1, I64))
        if row.lanes > 1:
            self._looked_up[row.name] = row
        return Affine.var(row.name)

    def _looked_up_part(self, index: Affine) -> tuple[Affine, Var | None]:
        """Split an index: its scalar part, and each lane's offset if a vector of looked-up numbers is in it."""
        k = self.kernel
        vectors = [(self._looked_up[name], c) for name, c in index.terms if name in self._looked_up]
        if not vectors:
            return index, None
        step = index.coefficient(LANE)
        base = index - Affine.var(LANE) * step
        offsets: Var = k.index(Affine(), self.lanes, step)
        for row, coefficient in vectors:
            base = base - Affine.var(row.name) * coefficient
            offsets = k.apply("add", offsets, k.apply("multiply", row, k.index(Affine.of(coefficient))))
        return base, offsets


def _broadcast(e: Evaluator, node: Node, indices: Indices, guard: Atom | None) -> Atom:
    (operand,) = node.operands
    dimensions = node.attributes["dimensions"]
    inner = tuple(Affine() if size == 1 else indices[d] for size, d in zip(operand.type.shape, dimensions, strict=True))
    return e.value(operand, inner, guard)


def _transpose(e: Evaluator, node: Node, indices: Indices, guard: Atom | None) -> Atom:
    inner: list[Affine] = [Affine()] * len(indices)
    for i, source in enumerate(node.attributes["permutation"]):
        inner[source] = indices[i]
    return e.value(node.operands[0], tuple(inner), guard)


def _slice(e: Evaluator, node: Node, indices: Indices, guard: Atom | None) -> Atom:
    start, strides = node.attributes["start"], node.attributes["strides"]
    inner = tuple(index * step + first for index, first, step in zip(indices, start, strides, strict=True))
    return e.value(node.operands[0], inner, guard)


def _take(e: Evaluator, node: Node, indices: Indices, guard: Atom | None) -> Atom:
    table, numbers = node.operands
    axis = node.attributes["axis"]
    end = axis + numbers.type.rank
    row = e.look_up(e.value(numbers, indices[axis:end], guard), table.type.shape[axis])
    return e.value(table, (*indices[:axis], row, *indices[end:]), guard)


def _reverse(e: Evaluator, node: Node, indices: Indices, guard: Atom | None) -> Atom:
    shape = node.operands[0].type.shape
    flipped = node.attributes["dimensions"]
    inner = tuple(Affine.of(shape[d] - 1) - i if d in flipped else i for d, i in enumerate(indices))
    return e.value(node.operands[0], inner, guard)


def _pad(e: Evaluator, node: Node, indices: Indices, guard: Atom | None) -> Atom:
    operand, padding = node.operands
    low, high = node.attributes["low"], node.attributes["high"]
    inner = tuple(index - first for index, first in zip(indices, low, strict=True))
    inside = inside_bounds(e, inner, operand.type.shape, list(zip(low, high, strict=True)), guard)
    value = e.value(operand, inner, inside)
    outside = e.value(padding, (), guard)
    return value if inside is None or inside is guard else e.kernel.select(inside, value, outside)


def _constant(e: Evaluator, node: Node, indices: Indices, guard: Atom | None) -> Atom:
    value = node.attributes["value"]
    while isinstance(value, tuple):  # the fusion pass lets only uniform constants in
        value = value[0]
    return Const(value, node.result.type.dtype)


def _iota(e: Evaluator, node: Node, indices: Indices, guard: Atom | None) -> Atom:
    index = indices[node.attributes["dimension"]]
    return e.kernel.convert(e.position(index), node.result.type.dtype)


def _dimension_value(e: Evaluator, node: Node, indices: Indices, guard: Atom | None) -> Atom:
    return e.kernel.convert(e.kernel.index(Affine.of(node.attributes["value"])), node.result.type.dtype)


def _random(e: Evaluator, node: Node, indices: Indices, guard: Atom | None) -> Atom:
    k = e.kernel
    seed, step = (e.value(v, (), guard) for v in node.operands)
    element = k.convert(e.position(linear(indices, node.result.type.shape)), "u64")

    def halves(x: Atom) -> tuple[Atom, Atom]:
        high = k.shift_right_logical(x, k.constant(32, "u64"))  # pyright: ignore[reportAttributeAccessIssue]
        return k.convert(x, "u32"), k.convert(high, "u32")

    stream = k.constant(node.attributes["stream"], "u32")
    step_low, _ = halves(k.convert(step, "u64"))
    key_low, key_high = halves(seed)
    element_low, element_high = halves(element)
    return philox(k, key_low, key_high, element_low, element_high, stream, step_low)


# Windows up to this many taps are written out; larger ones become loops (a global pooling of 7 x 7 has 49).
UNROLLED_TAPS = 16


def _reduce_window(e: Evaluator, node: Node, indices: Indices, guard: Atom | None) -> Atom:
    """Combine the taps of a window in row-major order, from the identity; taps in the padding are left out."""
    (operand,) = node.operands
    window, strides, padding = (node.attributes[a] for a in ("window", "strides", "padding"))
    dilation = node.attributes.get("dilation") or (1,) * len(window)
    kind = str(node.attributes["kind"])
    first = identity_of(kind, operand.type.dtype)
    bases = [i * s - low for i, s, (low, _) in zip(indices, strides, padding, strict=True)]

    def combine(total: Atom, offsets: Sequence[Affine]) -> Atom:
        inner = tuple(base + offset * d for base, offset, d in zip(bases, offsets, dilation, strict=True))
        inside = inside_bounds(e, inner, operand.type.shape, padding, guard)
        value = e.value(operand, inner, inside)
        if inside is not None and inside is not guard:
            value = e.kernel.select(inside, value, first)
        return value if total is first else e.kernel.apply(kind, total, value)

    if math.prod(window) <= UNROLLED_TAPS:
        total: Atom = first
        for offsets in itertools.product(*(range(w) for w in window)):
            total = combine(total, [Affine.of(o) for o in offsets])
        return total
    kinds = [(kind, first.dtype)]

    def level(extents: Sequence[int], totals: list[Atom], offsets: list[Affine]) -> list[Atom]:
        if not extents:
            return [combine(totals[0], offsets)]
        extent, *rest = extents
        if extent == 1:
            return level(rest, totals, [*offsets, Affine()])
        each = math.prod(rest)
        return fold_loop(
            e.kernel, kinds, (0, extent), 1, extent, totals, lambda i, t: level(rest, t, [*offsets, i]), each
        )

    return level(window, first_totals(kinds, e.lanes), [])[0]


def inside_bounds(
    e: Evaluator, indices: Indices, shape: Shape, padding: Sequence[tuple[Dim, Dim]], guard: Atom | None
) -> Atom | None:
    """The condition `guard` and 0 <= index < size, in the dimensions and at the ends where there may be padding."""
    k = e.kernel
    inside = guard
    for index, size, (low, high) in zip(indices, shape, padding, strict=True):
        if not isinstance(low, int) or low > 0:
            inside = e.both(inside, k.compare(e.position(index), Const(0, I64), "GE"))
        if not isinstance(high, int) or high > 0:
            inside = e.both(inside, k.compare(e.position(index), k.index(Affine.of(size)), "LT"))
    return inside


_RULES: dict[str, Callable[[Evaluator, Node, Indices, Atom | None], Atom]] = {
    "broadcast_in_dim": _broadcast,
    "transpose": _transpose,
    "slice": _slice,
    "take": _take,
    "reverse": _reverse,
    "pad": _pad,
    "constant": _constant,
    "iota": _iota,
    "dimension_value": _dimension_value,
    "rng_bit_generator": _random,
    "reduce_window": _reduce_window,
}


def tail_mask(kernel: KernelBuilder, count: Affine | Dim, lanes: int) -> Atom:
    """The mask of the first `count` lanes."""
    return kernel.apply(
        "compare", kernel.index(Affine(), lanes, 1), kernel.index(Affine.of(count)), dtype=BOOL, detail="LT"
    )
