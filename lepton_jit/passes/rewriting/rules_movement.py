"""Laws of movements and reductions. A rule's docstring is its law."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lepton_jit.ir.graph import Attribute, Node, Value
from lepton_jit.ir.ops.rules import at_least_zero
from lepton_jit.ir.types import Dim, Shape
from lepton_jit.passes.rewriting.matching import constant_node, flat_elements, is_splat_of, producer_of
from lepton_jit.passes.rewriting.rewrite import Rewriter, Rule

__all__ = ["MOVEMENT_RULES"]

Ints = Sequence[int]


def constant_of_one_number(rewriter: Rewriter, node: Node) -> Value | None:
    """law: a constant with one number everywhere is a broadcast of that number"""
    shape = node.result.type.shape
    numbers = flat_elements(node.attributes["value"]) if shape else []
    if len({repr(number) for number in numbers}) != 1:
        return None
    return rewriter.full(numbers[0], node.result.type)


def move_scalar(rewriter: Rewriter, node: Node) -> Value | None:
    """law: however a broadcast scalar is moved, it is that scalar broadcast to the result's shape"""
    scalar = _broadcast_scalar(rewriter, node.operands[0])
    return None if scalar is None else rewriter.broadcast(scalar, node.result.type.shape)


def broadcast_nothing(rewriter: Rewriter, node: Node) -> Value | None:
    """law: a broadcast of no scalar that repeats nothing is x, or x reshaped where it adds dimensions of 1"""
    (x,), dimensions = node.operands, _ints(node, "dimensions")
    if list(dimensions) != sorted(dimensions) or x.type.rank == 0:
        return None
    if x.type.elements != node.result.type.elements:
        return None
    return _reshaped(rewriter, x, node.result.type.shape)


def broadcast_broadcast(rewriter: Rewriter, node: Node) -> Value | None:
    """law: broadcast(broadcast(x, d), e) == broadcast(x, [e[i] for i in d])"""
    inner = producer_of(rewriter, node.operands[0], "broadcast_in_dim")
    if inner is None:
        return None
    outer = _ints(node, "dimensions")
    dimensions = [outer[d] for d in _ints(inner, "dimensions")]
    return rewriter.broadcast(inner.operands[0], node.result.type.shape, dimensions)


def broadcast_transposed(rewriter: Rewriter, node: Node) -> Value | None:
    """law: broadcast(transpose(x, p), d) == broadcast(x, e) with e[p[i]] == d[i]"""
    inner = producer_of(rewriter, node.operands[0], "transpose")
    if inner is None:
        return None
    goes_to = dict(zip(_ints(inner, "permutation"), _ints(node, "dimensions"), strict=True))
    dimensions = [goes_to[d] for d in range(len(goes_to))]
    return rewriter("broadcast_in_dim", inner.operands[0], shape=node.result.type.shape, dimensions=dimensions)


def broadcast_reshaped(rewriter: Rewriter, node: Node) -> Value | None:
    """law: broadcast(reshape(x), d) == broadcast(x, e) where the reshape only adds dimensions of 1"""
    inner = producer_of(rewriter, node.operands[0], "reshape")
    if inner is None:
        return None
    (x,), outer = inner.operands, _ints(node, "dimensions")
    kept = _dimensions_kept(x.type.shape, inner.result.type.shape)
    return None if kept is None else rewriter.broadcast(x, node.result.type.shape, [outer[d] for d in kept])


def reshape_nothing(rewriter: Rewriter, node: Node) -> Value | None:
    """law: reshape(x) == x for x of that shape"""
    return node.operands[0] if node.operands[0].type == node.result.type else None


def reshape_reshaped(rewriter: Rewriter, node: Node) -> Value | None:
    """law: reshape(reshape(x)) == reshape(x)"""
    inner = producer_of(rewriter, node.operands[0], "reshape")
    return _reshaped(rewriter, inner.operands[0], node.result.type.shape) if inner else None


def transpose_nothing(rewriter: Rewriter, node: Node) -> Value | None:
    """law: transpose(x) == x where the order stays, and a reshape where only dimensions of 1 move"""
    (x,), permutation = node.operands, _ints(node, "permutation")
    if list(permutation) == sorted(permutation):
        return x
    moving = [d for d in permutation if x.type.shape[d] != 1]
    return _reshaped(rewriter, x, node.result.type.shape) if moving == sorted(moving) else None


def transpose_transposed(rewriter: Rewriter, node: Node) -> Value | None:
    """law: transpose(transpose(x, p), q) == transpose(x, [p[i] for i in q])"""
    inner = producer_of(rewriter, node.operands[0], "transpose")
    if inner is None:
        return None
    first = _ints(inner, "permutation")
    return rewriter("transpose", inner.operands[0], permutation=[first[d] for d in _ints(node, "permutation")])


def transpose_taken(rewriter: Rewriter, node: Node) -> Value | None:
    """law: transpose(take(t, i), p) == take(t, transpose(i, q)) where p moves dimensions of i alone, as q does"""
    inner = producer_of(rewriter, node.operands[0], "take")
    if inner is None:
        return None
    table, numbers = inner.operands
    axis, permutation = int(inner.attributes["axis"]), _ints(node, "permutation")  # pyright: ignore[reportArgumentType]
    moved = range(axis, axis + numbers.type.rank)
    if any(source != d for d, source in enumerate(permutation) if d not in moved):
        return None
    transposed = rewriter("transpose", numbers, permutation=[permutation[d] - axis for d in moved])
    return rewriter("take", table, transposed, axis=axis)


def transpose_broadcast(rewriter: Rewriter, node: Node) -> Value | None:
    """law: transpose(broadcast(x, d), p) == broadcast(x, [p.index(i) for i in d])"""
    inner = producer_of(rewriter, node.operands[0], "broadcast_in_dim")
    if inner is None:
        return None
    permutation = list(_ints(node, "permutation"))
    dimensions = [permutation.index(d) for d in _ints(inner, "dimensions")]
    return rewriter("broadcast_in_dim", inner.operands[0], shape=node.result.type.shape, dimensions=dimensions)


def dot_general_transposed(rewriter: Rewriter, node: Node) -> Value | None:
    """law: dot_general(transpose(x, p), y) == dot_general(x, y) with p[d] in the place of x's dimensions d, where its
    free dimensions keep their order; and so for y"""
    operands = list(node.operands)
    attributes: dict[str, Attribute] = dict(node.attributes)
    for i, side in enumerate(("lhs", "rhs")):
        inner = producer_of(rewriter, operands[i], "transpose")
        if inner is None:
            continue
        permutation = _ints(inner, "permutation")
        named = {f"{side}_{kind}": _ints(node, f"{side}_{kind}") for kind in ("batching", "contracting")}
        taken = {d for dims in named.values() for d in dims}
        free = [p for d, p in enumerate(permutation) if d not in taken]
        if free == sorted(free):
            operands[i] = inner.operands[0]
            attributes |= {name: tuple(permutation[d] for d in dims) for name, dims in named.items()}
    return None if operands == list(node.operands) else rewriter("dot_general", *operands, **attributes)


def reverse_nothing(rewriter: Rewriter, node: Node) -> Value | None:
    """law: reverse(x) == x along no dimension, or along dimensions of 1"""
    (x,) = node.operands
    return x if all(x.type.shape[d] == 1 for d in _ints(node, "dimensions")) else None


def reverse_reversed(rewriter: Rewriter, node: Node) -> Value | None:
    """law: reverse(reverse(x, d), e) == reverse(x, d xor e)"""
    inner = producer_of(rewriter, node.operands[0], "reverse")
    if inner is None:
        return None
    dimensions = sorted({*_ints(inner, "dimensions")} ^ {*_ints(node, "dimensions")})
    return rewriter("reverse", inner.operands[0], dimensions=dimensions)


def slice_nothing(rewriter: Rewriter, node: Node) -> Value | None:
    """law: slice(x) == x where it takes everything"""
    (x,) = node.operands
    whole = x.type == node.result.type and not any(_dims(node, "start"))
    return x if whole and all(k == 1 for k in _ints(node, "strides")) else None


def slice_sliced(rewriter: Rewriter, node: Node) -> Value | None:
    """law: slice(slice(x, s, k), t, m) == slice(x, s + t * k, k * m), in every dimension"""
    inner = producer_of(rewriter, node.operands[0], "slice")
    if inner is None:
        return None
    starts, limits, strides = [], [], []
    sizes = node.result.type.shape
    for s, k, t, m, size in zip(*_start_and_strides(inner), *_start_and_strides(node), sizes, strict=True):
        starts.append(t * k + s)
        strides.append(k * m)
        limits.append(starts[-1] + ((size - 1) * (k * m) + 1 if size != 0 else 0))
    return rewriter("slice", inner.operands[0], start=starts, limit=limits, strides=strides)


def slice_padded(rewriter: Rewriter, node: Node) -> Value | None:
    """law: slice(pad(x)) == slice(x), moved by the padding, where it takes nothing of the padding"""
    inner = producer_of(rewriter, node.operands[0], "pad")
    if inner is None or any(_ints(inner, "interior")):
        return None
    x, low = inner.operands[0], _dims(inner, "low")
    starts = [s - lo for s, lo in zip(_dims(node, "start"), low, strict=True)]
    limits = [e - lo for e, lo in zip(_dims(node, "limit"), low, strict=True)]
    inside = [at_least_zero(s) and at_least_zero(d - e) for s, d, e in zip(starts, x.type.shape, limits, strict=True)]
    return rewriter("slice", x, start=starts, limit=limits, strides=_ints(node, "strides")) if all(inside) else None


def slice_concatenated(rewriter: Rewriter, node: Node) -> Value | None:
    """law: slice(concatenate(x, y)) == slice(x) where it takes nothing of y, and so on"""
    inner = producer_of(rewriter, node.operands[0], "concatenate")
    if inner is None:
        return None
    dimension = int(inner.attributes["dimension"])  # pyright: ignore[reportArgumentType]
    start, limit = list(_dims(node, "start")), list(_dims(node, "limit"))
    offset: Dim = 0
    for x in inner.operands:
        first, last = start[dimension] - offset, limit[dimension] - offset
        if at_least_zero(first) and at_least_zero(x.type.shape[dimension] - last):
            start[dimension], limit[dimension] = first, last
            return rewriter("slice", x, start=start, limit=limit, strides=_ints(node, "strides"))
        offset = offset + x.type.shape[dimension]
    return None


def pad_nothing(rewriter: Rewriter, node: Node) -> Value | None:
    """law: pad(x) == x without padding"""
    return None if any(any(_dims(node, name)) for name in ("low", "high", "interior")) else node.operands[0]


def pad_that_cuts(rewriter: Rewriter, node: Node) -> Value | None:
    """law: a pad by nothing above 0 is a slice"""
    x, low, high = node.operands[0], _dims(node, "low"), _dims(node, "high")
    if any(_ints(node, "interior")) or not all(at_least_zero(-d) for d in (*low, *high)):
        return None
    limits = [d + hi for d, hi in zip(x.type.shape, high, strict=True)]
    if not all(at_least_zero(e + lo) for e, lo in zip(limits, low, strict=True)):
        return None
    return rewriter("slice", x, start=[-lo for lo in low], limit=limits, strides=(1,) * x.type.rank)


def pad_padded(rewriter: Rewriter, node: Node) -> Value | None:
    """law: pad(pad(x, a, v), b, v) == pad(x, a + b, v) for paddings from 0 up, the second one without interior"""
    inner = producer_of(rewriter, node.operands[0], "pad")
    if inner is None or any(_ints(node, "interior")) or not _same_number(rewriter, inner.operands[1], node.operands[1]):
        return None
    both = [(_dims(inner, name), _dims(node, name)) for name in ("low", "high")]
    if not all(at_least_zero(d) for pair in both for dims in pair for d in dims):
        return None
    low, high = ([a + b for a, b in zip(*pair, strict=True)] for pair in both)
    return rewriter("pad", inner.operands[0], node.operands[1], low=low, high=high, interior=_ints(inner, "interior"))


def pad_same_scalar(rewriter: Rewriter, node: Node) -> Value | None:
    """law: pad(broadcast(v), v) == broadcast(v)"""
    x, value = node.operands
    scalar = _broadcast_scalar(rewriter, x)
    if scalar is None or not _same_number(rewriter, scalar, value):
        return None
    return rewriter.broadcast(value, node.result.type.shape)


def concatenate_one(rewriter: Rewriter, node: Node) -> Value | None:
    """law: concatenate(x) == x"""
    return node.operands[0] if len(node.operands) == 1 else None


def concatenate_empty(rewriter: Rewriter, node: Node) -> Value | None:
    """law: concatenate(x, y) == concatenate(x) where y has no elements"""
    dimension = int(node.attributes["dimension"])  # pyright: ignore[reportArgumentType]
    full = [x for x in node.operands if x.type.shape[dimension] != 0] or [node.operands[0]]
    return rewriter("concatenate", *full, dimension=dimension) if len(full) < len(node.operands) else None


def concatenate_concatenated(rewriter: Rewriter, node: Node) -> Value | None:
    """law: concatenate(concatenate(x, y), z) == concatenate(x, y, z) along one dimension"""
    operands: list[Value] = []
    for x in node.operands:
        inner = producer_of(rewriter, x, "concatenate")
        same = inner is not None and inner.attributes["dimension"] == node.attributes["dimension"]
        operands.extend(inner.operands if inner is not None and same else (x,))
    return rewriter("concatenate", *operands, **node.attributes) if len(operands) > len(node.operands) else None


def add_padded(rewriter: Rewriter, node: Node) -> Value | None:
    """law: pad(x, 0) + pad(y, 0) == pad(concatenate(x, y), 0) where x ends as y begins

    As `x + 0 == x`, it keeps the sign of zeros. The gradient of several slices of one value is such a sum.
    """
    pads = [producer_of(rewriter, x, "pad") for x in node.operands]
    for before, after in (pads, pads[::-1]):
        if before is None or after is None:
            return None
        dimension = _follows(before, after)
        if dimension is not None and all(is_splat_of(rewriter, pad.operands[1], 0) for pad in (before, after)):
            joined = rewriter("concatenate", before.operands[0], after.operands[0], dimension=dimension)
            ends = {"low": before.attributes["low"], "high": after.attributes["high"]}
            return rewriter("pad", joined, before.operands[1], interior=before.attributes["interior"], **ends)
    return None


def _follows(before: Node, after: Node) -> int | None:
    """The only dimension that two nodes pad, where what the second one pads begins as the first one's ends."""
    ends = [_dims(pad, name) for pad in (before, after) for name in ("low", "high")]
    padded = [d for d, sizes in enumerate(zip(*ends, strict=True)) if any(sizes)]
    if len(padded) != 1 or any(_ints(before, "interior")) or any(_ints(after, "interior")):
        return None
    (d,) = padded
    return d if before.operands[0].type.shape[d] + _dims(before, "low")[d] == _dims(after, "low")[d] else None


def reduce_nothing(rewriter: Rewriter, node: Node) -> Value | None:
    """law: reduce(x) == x along no dimension; along dimensions of 1 it is a reshape (as `x + 0 == x`, it keeps the sign
    of zeros)
    """
    (x,), dimensions = node.operands, _ints(node, "dimensions")
    rest = [d for d in dimensions if x.type.shape[d] != 1]
    if dimensions and len(rest) == len(dimensions):
        return None
    reduced = rewriter("reduce", x, dimensions=rest, kind=node.attributes["kind"]) if rest else x
    return _reshaped(rewriter, reduced, node.result.type.shape)


def reduce_reduced(rewriter: Rewriter, node: Node) -> Value | None:
    """law: reduce(reduce(x, d), e) == reduce(x, d and e) of one kind (a sum adds in another order)"""
    inner = producer_of(rewriter, node.operands[0], "reduce")
    if inner is None or inner.attributes["kind"] != node.attributes["kind"]:
        return None
    (x,), first = inner.operands, _ints(inner, "dimensions")
    left = [d for d in range(x.type.rank) if d not in first]
    dimensions = sorted([*first, *(left[d] for d in _ints(node, "dimensions"))])
    return rewriter("reduce", x, dimensions=dimensions, kind=node.attributes["kind"])


def reduce_transposed(rewriter: Rewriter, node: Node) -> Value | None:
    """law: reduce(transpose(x, p), d) == reduce(x, [p[i] for i in d]) where the dimensions left keep their order (a sum
    adds in another order)
    """
    inner = producer_of(rewriter, node.operands[0], "transpose")
    if inner is None:
        return None
    permutation, reduced = _ints(inner, "permutation"), _ints(node, "dimensions")
    left = [d for i, d in enumerate(permutation) if i not in reduced]
    if left != sorted(left):
        return None
    dimensions = sorted(permutation[d] for d in reduced)
    return rewriter("reduce", inner.operands[0], dimensions=dimensions, kind=node.attributes["kind"])


def _ints(node: Node, name: str) -> Ints:
    return node.attributes[name]  # pyright: ignore[reportReturnType]


def _dims(node: Node, name: str) -> Shape:
    return node.attributes[name]  # pyright: ignore[reportReturnType]


def _start_and_strides(node: Node) -> tuple[Shape, Ints]:
    return _dims(node, "start"), _ints(node, "strides")


def _broadcast_scalar(rewriter: Rewriter, value: Value) -> Value | None:
    """The scalar that a value repeats."""
    if value.type.rank == 0:
        return value
    node = producer_of(rewriter, value, "broadcast_in_dim")
    return node.operands[0] if node is not None and node.operands[0].type.rank == 0 else None


def _same_number(rewriter: Rewriter, x: Value, y: Value) -> bool:
    a, b = constant_node(rewriter, x), constant_node(rewriter, y)
    return x == y or (a is not None and b is not None and repr(a.attributes["value"]) == repr(b.attributes["value"]))


def _reshaped(rewriter: Rewriter, x: Value, shape: Shape) -> Value:
    return x if x.type.shape == shape else rewriter("reshape", x, shape=shape)


def _dimensions_kept(narrow: Shape, wide: Shape) -> list[int] | None:
    """Where each dimension of `narrow` stands in `wide`, which has it with dimensions of 1 added."""
    kept: list[int] = []
    for position, dim in enumerate(wide):
        if len(kept) < len(narrow) and narrow[len(kept)] == dim:
            kept.append(position)
        elif dim != 1:
            return None
    return kept if len(kept) == len(narrow) else None


MOVEMENT_RULES: Mapping[str, Sequence[Rule]] = {
    "add": (add_padded,),
    "constant": (constant_of_one_number,),
    "broadcast_in_dim": (
        broadcast_nothing,
        broadcast_broadcast,
        broadcast_transposed,
        broadcast_reshaped,
    ),
    "reshape": (reshape_nothing, move_scalar, reshape_reshaped),
    "transpose": (transpose_nothing, move_scalar, transpose_transposed, transpose_broadcast, transpose_taken),
    "dot_general": (dot_general_transposed,),
    "reverse": (reverse_nothing, move_scalar, reverse_reversed),
    "slice": (slice_nothing, move_scalar, slice_sliced, slice_padded, slice_concatenated),
    "pad": (pad_nothing, pad_that_cuts, pad_padded, pad_same_scalar),
    "concatenate": (concatenate_one, concatenate_empty, concatenate_concatenated),
    "reduce": (reduce_nothing, reduce_reduced, reduce_transposed),
}
