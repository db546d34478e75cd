"""Random loops: a graph with a scan whose region mixes carries, slices and captured values; and the same unrolled."""

from __future__ import annotations

from collections.abc import Sequence

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.inline import inline
from lepton_jit.ir.loops import ScanLoop, scan
from lepton_jit.ir.types import Dim, TensorType, dim_value
from tests.ir.loops import MATMUL
from tests.random_draft import Choices, extent

# Of a row: wider ones are more than a tile or two, and slow in the interpreter.
MOST_COLUMNS = 65


def random_loop(
    choices: Choices, *, width: int | None = None, dtype: str = "f32", symbolic: bool = False, gradient: bool = False
) -> Graph:
    """Inputs x, h, w and bias; one or two loops over up to 4 steps, the second over what the first stacked."""
    width = max(1, extent(choices, MOST_COLUMNS)) if width is None else width
    length: Dim = TensorType.of("f32", "T").shape[0] if symbolic else choices.integer(0, 4)
    row = TensorType.of(dtype, "N", width)
    b = Builder("random_loop")
    x = b.input("x", row.with_shape((length, *row.shape)))
    h = b.input("h", row)
    w = b.input("w", row.with_shape((width, width)), "parameter")
    bias = b.input("bias", row.with_shape((width,)), "parameter")
    results: list[Value] = []
    arrays = [x]
    for number in range(choices.integer(1, 2)):
        with b.layer(f"loop{number}"):
            carried = [h, *(value for value in results if value.type == row)][: choices.integer(0, 2)]
            region = Region(choices)
            finals, stacks = scan(
                b, region.body, carried, arrays, [w, bias], length=length, reverse=bool(choices.integer(0, 1))
            )
        results += [*finals, *(stack for stack in stacks if stack.type.rank < 3)]
        arrays = [*(stack for stack in stacks if stack.type == x.type), x][: choices.integer(1, 2)]
        results += [stack for stack in stacks if stack.type.rank == 3]
    if gradient:
        results += b.emit("gradient", _loss(b, results), x, h, w, bias)
    for i, value in enumerate(results):
        b.output(value, f"y{i}")
    return b.build()


def _loss(b: Builder, values: Sequence[Value]) -> Value:
    """The sum of all elements' sines: every one matters, and in its own way."""
    total = b.constant(0.0, values[0].type.dtype if values else TensorType.of("f32").dtype)
    for value in values:
        total = b("add", total, b("reduce", b("sine", value), dimensions=tuple(range(value.type.rank)), kind="add"))
    return total


class Region:
    """Draws operations on values of one type, then what the region returns."""

    def __init__(self, choices: Choices) -> None:
        self.choices = choices

    def body(
        self, b: Builder, carries: Sequence[Value], slices: Sequence[Value], captured: Sequence[Value]
    ) -> tuple[list[Value], list[Value]]:
        w, bias = captured
        known = [*carries, *slices]
        for _ in range(self.choices.integer(0, 8)):
            known.append(self._operation(b, known, w, bias))
        new = [self._pick(known) for _ in carries]
        return new, [self._stacked(b, known) for _ in range(self.choices.integer(0, 2))]

    def _pick(self, known: Sequence[Value]) -> Value:
        return known[self.choices.integer(0, len(known) - 1)]

    def _operation(self, b: Builder, known: Sequence[Value], w: Value, bias: Value) -> Value:
        x, y = self._pick(known), self._pick(known)
        rows, width = x.type.shape
        match self.choices.integer(0, 11):
            case 0 | 1:
                return b("dot_general", x, w, **MATMUL)
            case 2:
                return b("dot_general", x, w, **{**MATMUL, "rhs_contracting": (1,)})
            case 3:
                return b("add", x, b.broadcast(bias, x.type.shape))
            case 4:
                return b("tanh", b("add", x, y))
            case 5:
                return b("multiply", b("logistic", x), y)
            case 6:
                return b("softmax", x, axis=-1)
            case 7:
                return b.broadcast(b("reduce", x, dimensions=(1,), kind="add"), x.type.shape, (0,))
            case 8:
                part = b("slice", x, start=(0, 1), limit=(rows, width), strides=(1, 1))
                return b("concatenate", part, b("slice", y, start=(0, 0), limit=(rows, 1), strides=(1, 1)), dimension=1)
            case 9:
                predicate = b("compare", x, y, direction="GT")
                return b("select", predicate, x, b("multiply", y, 0.5))
            case 10:
                return b("tanh", b("dot_general", b("relu", x), b("tanh", w), **MATMUL))
            case _:
                return self._nested(b, x, y, w)

    def _nested(self, b: Builder, x: Value, y: Value, w: Value) -> Value:
        def body(
            b: Builder, carries: Sequence[Value], slices: Sequence[Value], captured: Sequence[Value]
        ) -> tuple[list[Value], list[Value]]:
            (c,), (v, w) = carries, captured
            return [b("tanh", b("dot_general", b("add", c, v), w, **MATMUL))], []

        return scan(b, body, [x], [], [y, w], length=2)[0][0]

    def _stacked(self, b: Builder, known: Sequence[Value]) -> Value:
        x = self._pick(known)
        return x if self.choices.integer(0, 2) else b("reduce", x, dimensions=(1,), kind="maximum")


def unrolled(graph: Graph, **symbols: int) -> Graph:
    """The same without loops: the rounds one after the other, for lengths that the symbols make known."""
    b = Builder(graph.name)
    known = {entry.value: b.input(entry.name, entry.value.type, entry.role) for entry in graph.inputs}
    for node in graph.nodes:
        operands = [known[value] for value in node.operands]
        if node.op == "scan":
            known.update(zip(node.results, _rounds(b, node, operands, symbols), strict=True))
        else:
            found = b.emit(node.op, *operands, regions=node.regions, **node.attributes)
            known.update(zip(node.results, found, strict=True))
    for output in graph.outputs:
        b.output(known[output.value], output.name)
    return b.build()


def _rounds(b: Builder, node: Node, operands: Sequence[Value], symbols: dict[str, int]) -> list[Value]:
    loop = ScanLoop.of(node)
    length = dim_value(loop.length, symbols)
    carries, arrays = len(loop.carries), len(loop.carries) + len(loop.scanned)
    carried, scanned, captured = list(operands[:carries]), operands[carries:arrays], operands[arrays:]
    steps: list[list[Value]] = [[] for _ in range(length)]
    region = unrolled(node.regions[0], **symbols)
    for t in reversed(range(length)) if loop.reverse else range(length):
        results = inline(b, region, [*carried, *(_slice(b, array, t) for array in scanned), *captured])
        carried, steps[t] = results[:carries], results[carries:]
    return [*carried, *(_stack(b, [step[i] for step in steps], s.stack) for i, s in enumerate(loop.stacked))]


def _slice(b: Builder, array: Value, t: int) -> Value:
    shape = array.type.shape
    start, limit = (t, *(0 for _ in shape[1:])), (t + 1, *shape[1:])
    return b("reshape", b("slice", array, start=start, limit=limit, strides=(1,) * len(shape)), shape=shape[1:])


def _stack(b: Builder, steps: Sequence[Value], stack: Value) -> Value:
    if not steps:
        return b.full(0, stack.type)
    return b("concatenate", *(b("reshape", s, shape=(1, *s.type.shape)) for s in steps), dimension=0)
