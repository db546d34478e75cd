"""How a random graph gets its next node: from the samples of an operation's record, or by a recipe of richer shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from lepton_jit.ir.graph import Role, Value
from lepton_jit.ir.loops import scan
from lepton_jit.ir.op import OPS, Family, Sample
from lepton_jit.ir.types import DTYPES, Dim, DType, Poly, TensorType, element_count, symbols_of
from tests.random_draft import LATE, Draft, Rejected, extent
from tests.random_loops import Region

F32 = DTYPES["f32"]
N = Poly.symbol("N")
ROLES: list[Role] = ["parameter", "state", "input"]
MOVEMENTS = ["reshape", "transpose", "slice", "reverse", "broadcast_in_dim", "pad", "concatenate", "reduce"]
# Drawn more often than the rest: they reject more, and most programs consist of them.
OFTEN = ["convolution", "dot_general", "max_pool", "average_pool", "reduce", "batch_norm_training"] * 3 + [
    "bitcast_convert", "scan", "scan", "scan",
]  # fmt: skip


def first_inputs(draft: Draft) -> None:
    """An image or a matrix with a symbolic batch, from which most of the rest grows."""
    some = partial(extent, draft.choices)
    if draft.chance(60):
        height, width = some(17), some(9)
        draft.input(TensorType(F32, (N, height, width, some(max(1, 500 // max(1, height * width))))))
    draft.input(TensorType(F32, (N, some(129))))


def add_random_operation(draft: Draft) -> None:
    """One more operation, and what its operands need to fit; raises Rejected where that did not work out."""
    draft.focus = None
    if draft.nodes and draft.chance(3):
        repeat_a_node(draft)
    elif draft.nodes and draft.chance(15):
        follow_the_last_node(draft)
    elif draft.chance(8):
        with_a_number(draft)
    else:
        drawn = [name for name in sorted(OPS) if name not in LATE and (OPS[name].samples or name in RECIPES)]
        add_operation(draft, draft.choices.one_of(drawn + OFTEN))


def add_operation(draft: Draft, name: str) -> None:
    if name in RECIPES and (draft.chance(75) or not OPS[name].samples):
        RECIPES[name](draft, name)
    else:
        from_sample(draft, name)


def repeat_a_node(draft: Draft) -> None:
    node = draft.choices.one_of(draft.nodes)
    draft.emit(node.op, *node.operands, **node.attributes)


def follow_the_last_node(draft: Draft) -> None:
    """The same operation again on its result, or a movement of it: what rewrites look for."""
    last = draft.nodes[-1]
    draft.focus = last.results[0]
    add_operation(draft, last.op if draft.chance(50) else draft.choices.one_of(MOVEMENTS))


def with_a_number(draft: Draft) -> None:
    """An operation on a value and one of the numbers that rewrites know."""
    x = some_value(draft, floats=draft.chance(80))
    if x.type.dtype.kind == "bool":
        draft.emit(draft.choices.one_of(["and", "or", "xor"]), x, draft.chance(50))
        return
    floats = ["add", "subtract", "multiply", "divide", "maximum", "minimum"] + ["power"] * (x.type.dtype.is_float)
    number = draft.choices.one_of([0, 1, 2] if x.type.dtype.kind == "unsigned" else [0, 1, -1, 2])
    operands = (x, number) if draft.chance(60) else (number, x)
    draft.emit(draft.choices.one_of(floats), *operands)


def from_sample(draft: Draft, name: str) -> None:
    """The operation as one of its samples has it; an elementwise one takes the shape of any value."""
    samples = OPS[name].samples
    floats = [s for s in samples if s.operands and all(t.dtype.is_float for t in s.operands)]
    sample = draft.choices.one_of(floats if floats and draft.chance(60) else samples)
    types = [_single(t) if _may_be_single(sample) and draft.chance(70) else t for t in sample.operands]
    elementwise = len({t.shape for t in types}) == 1 and OPS[name].family in (Family.ELEMENTWISE, Family.COMPOSITE)
    if elementwise and draft.chance(80):
        shape = later(draft, [v for v in draft.pool if v.type.elements != 0]).type.shape
        types = [t.with_shape(shape) for t in types]
    low, high = (sample.low, sample.high) if sample.low > -2.0 else (-8.0, 8.0)
    operands: list[Value] = []
    for type in types:
        operands.append(fetch(draft, type, low, high, avoid=operands if draft.chance(85) else ()))
    draft.emit(name, *operands, **sample.attributes)


def _may_be_single(sample: Sample) -> bool:
    """Whether float32 may stand for float64: an attribute does not ask for a dtype."""
    return not any(isinstance(a, DType) for a in sample.attributes.values())


def _single(type: TensorType) -> TensorType:
    return type.with_dtype(F32) if type.dtype.is_float else type


def fetch(
    draft: Draft, type: TensorType, low: float = -8.0, high: float = 8.0, *, avoid: Sequence[Value] = ()
) -> Value:
    """A value of this type, its numbers between `low` and `high`: one that is there, one made to fit, or an input."""
    fitting = [v for v in draft.pool if v.type == type and v not in avoid]
    if fitting and draft.chance(85):
        return in_range(draft, later(draft, fitting), low, high)
    related = [v for v in draft.pool if v.type != type and can_be_given_shape(v.type, type)]
    if related and draft.chance(60):
        return in_range(draft, with_shape(draft, later(draft, related), type), low, high)
    role: Role = "input"
    if type.dtype.is_float and not symbols_of(type.shape):
        role = draft.choices.one_of(ROLES)
    return draft.input(type, max(low, -2.0), min(high, 2.0), role)


def in_range(draft: Draft, value: Value, low: float, high: float) -> Value:
    """The value, scaled and moved where its numbers are not between `low` and `high`."""
    array = draft.exact[value]
    if not value.type.dtype.is_float or not array.size or (array.min() >= low and array.max() <= high):
        return value
    spread = float(array.max() - array.min())
    factor = round(min(1.0, 0.8 * (high - low) / spread), 3) if spread else 1.0
    scaled = draft.one("multiply", value, factor) if factor != 1.0 else value
    return draft.one("add", scaled, round(0.5 * (low + high) - factor * 0.5 * float(array.max() + array.min()), 3))


def can_be_given_shape(type: TensorType, wanted: TensorType) -> bool:
    """Whether `with_shape` knows a way."""
    if type.dtype != wanted.dtype or type.elements == 0 or type.dtype.kind == "bool":
        return False
    surplus = type.rank - wanted.rank
    rest = type.shape[surplus:] if surplus >= 0 else ()
    fits = surplus >= 0 and all(map(_can_be_cut_or_padded, rest, wanted.shape))
    return type.elements == wanted.elements or fits


def _can_be_cut_or_padded(dim: Dim, wanted: Dim) -> bool:
    return dim == wanted or (isinstance(dim, int) and isinstance(wanted, int))


def with_shape(draft: Draft, value: Value, type: TensorType) -> Value:
    """The value reshaped; or summed up over its first dimensions, cut and padded."""
    if value.type.elements == type.elements:
        return draft.one("reshape", value, shape=type.shape)
    surplus = value.type.rank - type.rank
    if surplus:
        kind = draft.choices.one_of(["add", "maximum"])
        value = draft.one("reduce", value, dimensions=tuple(range(surplus)), kind=kind)
    if value.type == type:
        return value
    zero = draft.one("constant", value=0.0 if type.dtype.is_float else 0, dtype=type.dtype, shape=())
    none = (0,) * type.rank
    high = [wanted - dim for dim, wanted in zip(value.type.shape, type.shape, strict=True)]
    return draft.one("pad", value, zero, low=none, high=high, interior=none)


def later(draft: Draft, values: Sequence[Value]) -> Value:
    """One of the values, the last few more often: graphs grow deep, not only wide."""
    if not values:
        raise Rejected("no such value")
    if draft.focus is not None and draft.focus in values:
        return draft.focus
    return draft.choices.one_of(values[-3:] if draft.chance(65) else values)


# Recipes: operations with shapes of their own


def some_value(draft: Draft, *, rank: int = 0, floats: bool = False, exact_rank: bool = False) -> Value:
    """A value of at least this rank, later ones more often."""
    options = [
        v for v in draft.pool
        if v.type.rank >= rank and (not floats or v.type.dtype.is_float) and (not exact_rank or v.type.rank == rank)
        and v.type.elements != 0
    ]  # fmt: skip
    return later(draft, options)


def some_dimensions(draft: Draft, rank: int) -> tuple[int, ...]:
    return tuple(d for d in range(rank) if draft.chance(50))


def shuffled(draft: Draft, count: int) -> tuple[int, ...]:
    left = list(range(count))
    return tuple(left.pop(draft.choices.integer(0, len(left) - 1)) for _ in range(count))


def reduce(draft: Draft, name: str) -> None:
    x = some_value(draft, rank=1)
    bits, numbers = ("and", "or"), ("add", "maximum", "minimum", "multiply")
    kind = draft.choices.one_of(bits if x.type.dtype.kind == "bool" else numbers)
    draft.emit(name, x, dimensions=some_dimensions(draft, x.type.rank), kind=kind)


def transpose(draft: Draft, name: str) -> None:
    x = some_value(draft, rank=2)
    draft.emit(name, x, permutation=shuffled(draft, x.type.rank))


def reverse(draft: Draft, name: str) -> None:
    x = some_value(draft, rank=1)
    draft.emit(name, x, dimensions=some_dimensions(draft, x.type.rank))


def broadcast(draft: Draft, name: str) -> None:
    """One or two new dimensions anywhere, and dimensions of 1 repeated."""
    x = some_value(draft)
    shape = [extent(draft.choices, 17) if d == 1 else d for d in x.type.shape]
    dimensions = list(range(x.type.rank))
    for _ in range(draft.choices.integer(1, 2)):
        at = draft.choices.integer(0, len(shape))
        shape.insert(at, draft.choices.one_of([N, 1, 2, 3, extent(draft.choices, 33)]))
        dimensions = [d + (d >= at) for d in dimensions]
    draft.emit(name, x, shape=tuple(shape), dimensions=tuple(dimensions))


def reshape(draft: Draft, name: str) -> None:
    """Two neighbours joined, a dimension split, or one of 1 added."""
    x = some_value(draft, rank=1)
    shape = list(x.type.shape)
    at = draft.choices.integer(0, len(shape) - 1)
    how = draft.choices.integer(0, 2)
    dim = shape[at]
    if how == 0 and at + 1 < len(shape):
        shape[at : at + 2] = [shape[at + 1] * dim]
    elif how == 1 and isinstance(dim, int) and dim > 3:
        part = draft.choices.one_of([d for d in range(1, dim + 1) if dim % d == 0])
        shape[at : at + 1] = [part, dim // part]
    else:
        shape.insert(at, 1)
    draft.emit(name, x, shape=tuple(shape))


def slice_(draft: Draft, name: str) -> None:
    x = some_value(draft, rank=1)
    start, limit, strides = [0] * x.type.rank, list(x.type.shape), [1] * x.type.rank
    for d, dim in enumerate(x.type.shape):
        if isinstance(dim, int) and dim > 1 and draft.chance(60):
            start[d] = draft.choices.integer(0, dim - 1)
            limit[d] = draft.choices.integer(start[d] + (not draft.chance(3)), dim)
            strides[d] = draft.choices.integer(1, 3)
    draft.emit(name, x, start=start, limit=limit, strides=strides)


def pad(draft: Draft, name: str) -> None:
    x = some_value(draft, rank=1, floats=True)
    amounts: list[tuple[int, int, int]] = []
    for dim in x.type.shape:
        if draft.chance(50):
            amounts.append((0, 0, 0))
            continue
        lowest = -1 if isinstance(dim, int) and dim > 2 else 0
        interior = draft.choices.integer(0, 2) if isinstance(dim, int) else 0
        amounts.append((draft.choices.integer(lowest, 2), draft.choices.integer(lowest, 2), interior))
    low, high, interior = (tuple(a[i] for a in amounts) for i in range(3))
    draft.emit(name, x, fetch(draft, x.type.with_shape(())), low=low, high=high, interior=interior)


def concatenate(draft: Draft, name: str) -> None:
    x = some_value(draft, rank=1)
    at = draft.choices.integer(0, x.type.rank - 1)
    operands = [x]
    for _ in range(draft.choices.integer(0, 2)):
        size = x.type.shape[at] if draft.chance(50) else extent(draft.choices, 17)
        operands.append(fetch(draft, x.type.with_shape((*x.type.shape[:at], size, *x.type.shape[at + 1 :]))))
    draft.emit(name, *operands, dimension=at)


def dot_general(draft: Draft, name: str) -> None:
    """x by a weight, over its last dimension or any other; or, batched over the first, by another value."""
    x = some_value(draft, rank=2, floats=True)
    contracted = x.type.rank - 1 if draft.chance(70) else draft.choices.integer(0, x.type.rank - 1)
    depth, columns = x.type.shape[contracted], extent(draft.choices, 129)
    batching = (0,) if contracted and draft.chance(30) else ()
    head = x.type.shape[:1] if batching else ()
    order = draft.chance(50)
    other = fetch(draft, x.type.with_shape((*head, *((depth, columns) if order else (columns, depth)))), -1.0, 1.0)
    draft.emit(
        name,
        x,
        other,
        lhs_batching=batching,
        rhs_batching=batching,
        lhs_contracting=(contracted,),
        rhs_contracting=(len(head) + (0 if order else 1),),
    )


def batched_products(draft: Draft, name: str) -> None:
    """Two products one behind the other, batched over leading dimensions that a reshape changes in between."""
    x = some_value(draft, rank=3, floats=True)
    *leading, rows, _ = x.type.shape
    y = product(draft, x)
    count, shapes = element_count(leading), [leading]
    if isinstance(rows, int):
        shapes.append([*leading, rows])
    if isinstance(count, int):
        shapes += [[d, count // d] for d in range(1, count + 1) if count % d == 0]
    else:
        shapes += [[count], [*leading, 1]]
    leading = draft.choices.one_of(shapes)
    rest = y.type.shape[-2:] if element_count(leading) == count else y.type.shape[-1:]
    product(draft, draft.one("reshape", y, shape=(*leading, *([1] * (2 - len(rest))), *rest)))


def product(draft: Draft, x: Value) -> Value:
    """x[..., i, k] w[..., k, j] for each index of the leading dimensions."""
    *leading, _, depth = x.type.shape
    other = fetch(draft, x.type.with_shape((*leading, depth, extent(draft.choices, 33))), -1.0, 1.0)
    numbers, last = tuple(range(len(leading))), len(leading)
    sums = {"lhs_contracting": (last + 1,), "rhs_contracting": (last,)}
    return draft.one("dot_general", x, other, lhs_batching=numbers, rhs_batching=numbers, **sums)


def convolution(draft: Draft, name: str) -> None:
    """Channels-last, with strides, padding, dilations and groups."""
    x = some_value(draft, rank=4, floats=True, exact_rank=True)
    draw = draft.choices.integer
    channels = x.type.shape[3]
    if not isinstance(channels, int):
        raise Rejected("symbolic channels")
    groups = draft.choices.one_of([1, 1, 1, max(1, channels)])
    window, features = (draw(1, 3), draw(1, 3)), draw(1, 3) if groups > 1 else extent(draft.choices, 65)
    kernel = fetch(draft, x.type.with_shape((*window, channels // groups, groups * features)), -1.0, 1.0)
    draft.emit(
        name,
        x,
        kernel,
        lhs_spec=(0, 3, 1, 2),
        rhs_spec=(3, 2, 0, 1),
        out_spec=(0, 3, 1, 2),
        strides=(draw(1, 2), draw(1, 2)),
        padding=((draw(0, 1), draw(0, 1)), (draw(0, 1), draw(0, 1))),
        lhs_dilation=(draft.choices.one_of([1, 1, 2]), draft.choices.one_of([1, 1, 2])),
        rhs_dilation=(draft.choices.one_of([1, 1, 2]), 1),
        window_reversal=(draft.chance(20), draft.chance(20)),
        feature_group_count=groups,
        batch_group_count=1,
    )


def pool(draft: Draft, name: str) -> None:
    x = some_value(draft, rank=4, floats=True, exact_rank=True)
    draw = draft.choices.integer
    padding = ((draw(0, 1), draw(0, 1)), (draw(0, 1), draw(0, 1)))
    draft.emit(name, x, window=(draw(1, 3), draw(1, 3)), strides=(draw(1, 2), draw(1, 2)), padding=padding)


def reduce_window(draft: Draft, name: str) -> None:
    x = some_value(draft, rank=1, floats=True)
    window = [draft.choices.integer(1, 3) if isinstance(d, int) else 1 for d in x.type.shape]
    strides = [draft.choices.integer(1, 2) if isinstance(d, int) else 1 for d in x.type.shape]
    padding = [(0, draft.choices.integer(0, 1)) if w > 1 else (0, 0) for w in window]
    kind = draft.choices.one_of(["add", "maximum", "minimum"])
    draft.emit(name, x, kind=kind, window=window, strides=strides, padding=padding, dilation=(1,) * x.type.rank)


def take(draft: Draft, name: str) -> None:
    """Rows of a dimension of known size, by numbers of any shape."""
    table = some_value(draft, rank=1, floats=True)
    some = extent(draft.choices, 33)
    shape = draft.choices.one_of([(), (some,), (N,), (N, 2), (1, N, 3), (N, some)])
    numbers = fetch(draft, TensorType(DTYPES[draft.choices.one_of(["i32", "i64", "u8"])], shape))
    draft.emit(name, table, numbers, axis=draft.choices.integer(0, table.type.rank - 1))


def scatter_add(draft: Draft, name: str) -> None:
    updates = some_value(draft, rank=1, floats=True)
    axis = draft.choices.integer(0, updates.type.rank - 1)
    end = draft.choices.integer(axis, updates.type.rank)
    numbers = fetch(draft, TensorType(DTYPES[draft.choices.one_of(["i32", "i64"])], updates.type.shape[axis:end]))
    draft.emit(name, updates, numbers, axis=axis, size=draft.choices.integer(1, 17))


def along_axis(draft: Draft, name: str) -> None:
    x = some_value(draft, rank=1, floats=True)
    draft.emit(name, x, axis=draft.choices.integer(-1, x.type.rank - 1))


def batch_norm(draft: Draft, name: str) -> None:
    x = some_value(draft, rank=2, floats=True)
    vector = x.type.with_shape(x.type.shape[-1:])
    count = 4 if name == "batch_norm_inference" else 2
    draft.emit(name, x, *(fetch(draft, vector, 0.25, 2.0) for _ in range(count)), epsilon=0.0625, axis=-1)


def moments(draft: Draft, name: str) -> None:
    draft.emit(name, some_value(draft, rank=2, floats=True))


def loop(draft: Draft, name: str) -> None:
    """Over arrays or only so many times; carries and slices have one type, a matrix and a vector are captured."""
    x = some_value(draft, rank=2, floats=True)
    rows, width = x.type.shape[-2:]
    if width == 0 or not isinstance(width, int):
        raise Rejected("a region takes vectors apart")
    row, length = x.type.with_shape((rows, width)), draft.choices.one_of([0, 1, 2, 3, 8, N])
    if x.type.rank == 3 and draft.chance(50):
        length = x.type.shape[0]
    carries = [fetch(draft, row) for _ in range(draft.choices.integer(0, 2))]
    arrays = [fetch(draft, row.with_shape((length, *row.shape))) for _ in range(draft.choices.integer(not carries, 2))]
    captured = [fetch(draft, row.with_shape(shape), -1.0, 1.0) for shape in ((width, width), (width,))]
    body, reverse = Region(draft.choices).body, draft.chance(50)

    def emit() -> tuple[Value, ...]:
        finals, stacks = scan(draft.builder, body, carries, arrays, captured, length=length, reverse=reverse)
        if not finals and not stacks:
            raise Rejected("a loop without results")
        return (*finals, *stacks)

    draft.keep(emit)


RECIPES: Mapping[str, Callable[[Draft, str], Any]] = {
    "reduce": reduce,
    "moments": moments,
    "transpose": transpose,
    "reverse": reverse,
    "broadcast_in_dim": broadcast,
    "reshape": reshape,
    "slice": slice_,
    "pad": pad,
    "concatenate": concatenate,
    "dot_general": lambda draft, name: (batched_products if draft.chance(25) else dot_general)(draft, name),
    "convolution": convolution,
    "max_pool": pool,
    "average_pool": pool,
    "reduce_window": reduce_window,
    "take": take,
    "scatter_add": scatter_add,
    "softmax": along_axis,
    "log_softmax": along_axis,
    "argmax": along_axis,
    "batch_norm_training": batch_norm,
    "batch_norm_inference": batch_norm,
    "scan": loop,
}
