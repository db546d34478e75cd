"""The laws of rewrite rules hold bit for bit at the edges of every type: NaN, infinities, both zeros, denormals.

Every form that an elementwise rule may look for is a small expression; all of them are written, with every edge of the
type as constant and as argument, and computed before and after the rules. The other rules run on their golden cases.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Node, Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.op import OPS, Family
from lepton_jit.ir.parser import parse_graph
from lepton_jit.ir.types import DTYPES, DType, TensorType, dim_value
from lepton_jit.passes.fold_constants import FoldConstants
from lepton_jit.passes.rewriting.canonicalize import CANONICAL_RULES, Canonicalize
from lepton_jit.passes.rewriting.rewrite import Rewriter, Rule, rewrite
from lepton_jit.passes.rewriting.rules_elementwise import ELEMENTWISE_RULES
from tests.ir.special import edges, same_bits
from tests.passes import golden

# The laws that say so leave the sign of a zero open: -0.0 + 0.0, and which of two zeros is the larger one.
ZEROS_OF_EITHER_SIGN = ("add", "maximum", "minimum")

Expressions = Iterator[tuple[str, Value]]


def accepts(op: str, dtype: DType) -> bool:
    return any(t.dtype.kind == dtype.kind for sample in OPS[op].samples for t in sample.operands[-1:])


def unary_forms(b: Builder, op: str, x: Value) -> Expressions:
    inner = [g for g in ("abs", "ceil", "floor", "negate", "not", "round_nearest_even", "sign", op) if g in OPS]
    yield f"{op}(x)", b(op, x)
    for g in inner:
        if accepts(g, x.type.dtype):
            yield f"{op}({g}(x))", b(op, b(g, x))


def binary_forms(b: Builder, op: str, x: Value, y: Value, **attributes: str) -> Expressions:
    f = functools.partial(b, op, **attributes)
    name = " ".join((op, *attributes.values()))
    yield f"{name}(x, x)", f(x, x)
    yield f"{name}(x, y)", f(x, y)
    if accepts("negate", x.type.dtype):
        yield f"{name}(-x, y)", f(b("negate", x), y)
        yield f"{name}(x, -y)", f(x, b("negate", y))
        yield f"{name}(-x, -y)", f(b("negate", x), b("negate", y))
    for c in edges(x.type.dtype).tolist():
        yield f"{name}(x, {c!r})", f(x, c)
        yield f"{name}({c!r}, x)", f(c, x)


def compare_forms(b: Builder, op: str, x: Value, y: Value) -> Expressions:
    for direction in ("EQ", "NE", "LT", "LE", "GT", "GE"):
        for name, value in binary_forms(b, op, x, y, direction=direction):
            yield name, value
            yield f"not {name}", b("not", value)


def select_forms(b: Builder, op: str, x: Value, y: Value) -> Expressions:
    p = b("compare", x, y, direction="LT")
    yield "select(p, x, y)", b(op, p, x, y)
    yield "select(p, x, x)", b(op, p, x, x)
    yield "select(not p, x, y)", b(op, b("not", p), x, y)
    for constant in (True, False):
        yield f"select({constant}, x, y)", b(op, b.full(constant, p.type), x, y)
    for c, d in itertools.product(edges(x.type.dtype)[-2:].tolist(), repeat=2):
        yield f"select(p, {c!r}, {d!r})", b(op, p, b.full(c, x.type), b.full(d, x.type))


def conversion_forms(b: Builder, op: str, x: Value) -> Expressions:
    source = x.type.dtype
    for middle in DTYPES.values():
        if op == "bitcast_convert" and (middle.bytes != source.bytes or "bool" in (source.kind, middle.kind)):
            continue
        inner = b(op, x, dtype=middle)
        yield f"{op}({middle})", inner
        for c in (0, 1):
            yield f"{op}({middle}) == {c}", b("compare", inner, c, direction="EQ")
            yield f"{op}({middle}) != {c}", b("compare", inner, c, direction="NE")
        for outer in DTYPES.values():
            if op == "convert" or (outer.bytes == source.bytes and outer.kind != "bool"):
                yield f"{op}({op}({middle}), {outer})", b(op, inner, dtype=outer)


def forms(b: Builder, op: str, x: Value, y: Value) -> Expressions:
    """Every expression around `op` that a rule may tell from others."""
    if op in ("convert", "bitcast_convert"):
        return conversion_forms(b, op, x)
    if op == "compare":
        return compare_forms(b, op, x, y)
    if op == "select":
        return select_forms(b, op, x, y)
    return unary_forms(b, op, x) if len(OPS[op].operands) == 1 else binary_forms(b, op, x, y)


def graph_of(op: str, dtype: DType, write: Callable[[Builder, str, Value, Value], Expressions] = forms) -> Graph:
    b = Builder()
    x, y = (b.input(name, TensorType.of(dtype.name, "N")) for name in "xy")
    for name, value in write(b, op, x, y):
        b.output(value, name)
    return b.build()


def changed(before: Graph, after: Graph, arrays: dict[str, np.ndarray], *, sign_of_zero: bool = True) -> list[str]:
    with np.errstate(all="ignore"):
        expected, found = run_graph(before, arrays), run_graph(after, arrays)
    return [name for name in expected if not same_bits(found[name], expected[name], sign_of_zero=sign_of_zero)]


def pairs(dtype: DType) -> dict[str, np.ndarray]:
    """Every edge with every edge."""
    x, y = np.meshgrid(edges(dtype), edges(dtype))
    return {"x": x.ravel(), "y": y.ravel()}


def operations_and_types() -> list[tuple[str, DType]]:
    return [(op, dtype) for op in ELEMENTWISE_RULES for dtype in DTYPES.values() if accepts(op, dtype)]


@pytest.mark.parametrize("op, dtype", operations_and_types(), ids=str)
def test_elementwise_laws_hold_bit_for_bit_at_the_edges_of_a_type(op: str, dtype: DType) -> None:
    graph = graph_of(op, dtype)
    found = changed(graph, Canonicalize().apply(graph), pairs(dtype), sign_of_zero=op not in ZEROS_OF_EITHER_SIGN)
    assert found == []


@pytest.mark.parametrize("dtype", [DTYPES["f32"], DTYPES["f64"]], ids=str)
def test_a_quotient_by_any_power_of_two_keeps_its_bits(dtype: DType) -> None:
    limits = np.finfo(dtype.numpy)

    def with_powers(b: Builder, op: str, x: Value, _: Value) -> Expressions:
        for k in range(limits.minexp - limits.nmant, limits.maxexp):
            yield f"{op}(x, 2^{k})", b(op, x, 2.0**k)
            yield f"{op}(x, -2^{k})", b(op, x, -(2.0**k))

    graph = graph_of("divide", dtype, with_powers)
    x = edges(dtype)
    assert changed(graph, Canonicalize().apply(graph), {"x": x, "y": x}) == []


def test_a_quotient_by_a_denormal_power_of_two_is_not_a_product_with_infinity() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("f32", "N"))
    b.output(b("divide", x, 2.0**-140), "y")
    graph = Canonicalize().apply(b.build())
    assert run_graph(graph, {"x": np.float32([0, 2.0**-140, 2.0**-145])})["y"].tolist() == [0.0, 1.0, 0.03125]


def test_integers_that_saturated_on_their_way_through_a_float_do_not_wrap_instead() -> None:
    b = Builder()
    x = b.input("x", TensorType.of("i16", "N"))
    b.output(b("convert", b("convert", x, dtype=DTYPES["f32"]), dtype=DTYPES["i8"]), "y")
    graph = Canonicalize().apply(b.build())
    assert run_graph(graph, {"x": np.int16([300, -300, 5])})["y"].tolist() == [127, -128, 5]


@pytest.mark.parametrize("op", sorted(name for name, op in OPS.items() if op.family is Family.ELEMENTWISE))
def test_folded_constants_are_what_the_interpreter_computes(op: str) -> None:
    """At the edges of every type, elementwise and on scalars alone."""
    b = Builder()
    for i, sample in enumerate(OPS[op].samples):
        random = np.random.default_rng(i)
        arrays = [random.permutation(np.resize(edges(t.dtype), 29)) for t in sample.operands]
        whole = [b.constant(a, t.dtype) for a, t in zip(arrays, sample.operands, strict=True)]
        b.output(b(op, *whole, **sample.attributes), f"{i}")
        for j, numbers in enumerate(zip(*arrays, strict=True)):
            scalars = [b.constant(n, t.dtype) for n, t in zip(numbers, sample.operands, strict=True)]
            b.output(b(op, *scalars, **sample.attributes), f"{i}, {j}: {numbers}")
    graph = b.build()
    folded = FoldConstants().apply(graph)
    assert {node.op for node in folded.nodes} <= {"constant", "broadcast_in_dim"}
    assert changed(graph, folded, {}) == []


def golden_cases() -> list[golden.Golden]:
    """Those of passes that keep every bit, but for the laws that say otherwise."""
    exact = ("canonicalize", "algebra", "fold-constants", "cse", "dce", "expand-composites", "schedule-updates")
    return [case for case in golden.all_cases() if case.pipeline.split("{")[0] in exact]


def edge_arrays(graph: Graph, seed: int) -> dict[str, np.ndarray]:
    """Inputs drawn from the edges of their types; symbolic dimensions are 3."""
    random = np.random.default_rng(seed)
    return {
        entry.name: random.choice(
            edges(entry.value.type.dtype), [dim_value(d, dict.fromkeys("NMT", 3)) for d in entry.value.type.shape]
        )
        for entry in graph.inputs
    }


# What the laws of these cases leave open: the sign of a zero, or (they hold for real numbers) the rounding.
OTHER_ZEROS = {
    "x + 0 == x",
    "0 + x == x, with a constant tensor of zeros",
    "rules compose: ((x * 1 + 0) / 2)^1 == x * 0.5",
    "reduce along no dimension",
    "reduce along dimensions of 1 is a reshape",
    "reduce_window with windows of one",
    "a sum of what stands side by side in zeros is a concatenation",
}
OTHER_ROUNDING = {
    "batch norm into the convolution and bias before it",
    "batch norm into a convolution without bias",
    "batch norm into a dot_general",
    "batch norm behind anything else is a scale and a shift",
    "log(softmax(x))",
    "reduce(reduce(x)) of one kind",
}


def test_golden_cases_keep_their_bits_unless_their_law_says_otherwise() -> None:
    rounding, zeros = set(), set()
    for case in golden_cases():
        if case.after == "// unchanged\n":
            continue
        before, after = parse_graph(case.before), parse_graph(case.after)
        arrays = [edge_arrays(before, seed) for seed in range(8)]
        if any(changed(before, after, drawn, sign_of_zero=False) for drawn in arrays):
            rounding.add(case.name)
        elif any(changed(before, after, drawn) for drawn in arrays):
            zeros.add(case.name)
    assert (rounding, zeros) == (OTHER_ROUNDING, OTHER_ZEROS)


def test_every_rule_applies_to_one_of_these_graphs() -> None:
    applied: set[str] = set()

    def recorded(rule: Rule) -> Rule:
        def apply(rewriter: Rewriter, node: Node) -> object:
            found = rule(rewriter, node)
            if found is not None:
                applied.add(rule.__name__)
            return found

        return apply

    rules = {op: tuple(map(recorded, known)) for op, known in CANONICAL_RULES.items()}
    graphs = [parse_graph(case.before) for case in golden_cases() if case.pipeline == "canonicalize"]
    for graph in [*graphs, *(graph_of(op, dtype) for op, dtype in operations_and_types())]:
        rewrite(graph, rules)
    assert {rule.__name__ for known in CANONICAL_RULES.values() for rule in known} - applied == set()
