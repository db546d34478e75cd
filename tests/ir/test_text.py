"""Printer and parser: what is printed is read back, and any other text is an error with its place."""

from __future__ import annotations

import math
import pickle
import random

import pytest

from lepton_jit.errors import GraphError, LeptonError, ParseError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Node, print_graph, print_node
from lepton_jit.ir.parser import parse_graph
from lepton_jit.ir.types import DTYPES, Poly, TensorType
from tests.ir.cases import Case, cases
from tests.ir.graphs import fused, training_step

N, M = Poly.symbol("N"), Poly.symbol("M")

TRAINING_STEP = """\
graph @train(%input: f32[N,3] input "input", %labels: i32[N] input "labels", \
%learning_rate: f32[] input "learning_rate", \
%dense_kernel: f32[3,4] state "dense/kernel", %seed: u64[] parameter "seed", %step: i64[] state "step") {
  %0 = dropout(%input, %seed, %step) {rate = 0.25, stream = 1} : f32[N,3] @"model/dropout"
  %1 = dot_general(%0, %dense_kernel) {lhs_batching = [], lhs_contracting = [1], rhs_batching = [], \
rhs_contracting = [0]} : f32[N,4] @"model/dense"
  %2 = sparse_softmax_cross_entropy(%1, %labels) : f32[N]
  %3 = dimension_value() {dtype = f32, value = N} : f32[]
  %4 = reduce(%2) {dimensions = [0], kind = "add"} : f32[]
  %5 = divide(%4, %3) : f32[]
  %6 = gradient(%5, %dense_kernel) : f32[3,4]
  %7 = broadcast_in_dim(%learning_rate) {dimensions = [], shape = [3, 4]} : f32[3,4] @"optimizer"
  %8 = multiply(%6, %7) : f32[3,4] @"optimizer"
  %9 = subtract(%dense_kernel, %8) : f32[3,4] @"optimizer"
  %10 = constant() {dtype = i64, shape = [], value = 1} : i64[]
  %11 = add(%step, %10) : i64[]
  return %9 "dense/kernel" donates "dense/kernel", %11 "step" donates "step", %5 "loss"
}
"""

FUSED = """\
graph @"a \\"quoted\\" name"(%x: f32[N,3] input "x") {
  %0, %1 = fusion(%x) {kind = "map"} : f32[N,3], f32[N,3] @"größe/ü" region @body(%c: f32[N,3] input "c") {
    %0 = fusion(%c) {kind = "map"} : f32[N,3] @"dense" region(%a: f32[N,3] input "a") {
      %0 = tanh(%a) : f32[N,3]
      return %0 "0"
    }
    %1 = constant() {dtype = f32, shape = [], value = nan} : f32[] @"dense"
    %2 = broadcast_in_dim(%1) {dimensions = [], shape = [N, 3]} : f32[N,3] @"dense"
    %3 = multiply(%0, %2) : f32[N,3] @"dense"
    return %3 "0", %0 "1"
  }
  return %0 "y", %1 "z"
}
"""


@pytest.mark.parametrize(("graph", "text"), [(training_step(), TRAINING_STEP), (fused(), FUSED)])
def test_a_graph_and_its_text(graph: Graph, text: str) -> None:
    assert str(graph) == text
    assert parse_graph(text) == graph


def constant(value: object, dtype: str, *shape: int) -> Graph:
    b = Builder()
    b.output(b("constant", value=value, dtype=DTYPES[dtype], shape=shape), "y")
    return b.build()


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (0.1, "f32", "0.1"),
        (-1.5e-07, "f64", "-1.5e-07"),
        (1e22, "f64", "1e+22"),
        (5e-324, "f64", "5e-324"),
        (-0.0, "f32", "-0.0"),
        (math.inf, "f32", "inf"),
        (-math.inf, "f32", "-inf"),
        (math.nan, "f32", "nan"),
        (3, "f32", "3"),
        (-(2**63), "i64", str(-(2**63))),
        (2**64 - 1, "u64", str(2**64 - 1)),
        (False, "bool", "false"),
    ],
)
def test_numbers(value: float, dtype: str, text: str) -> None:
    graph = constant(value, dtype)
    assert f"value = {text}}}" in str(graph)
    parsed = parse_graph(str(graph))
    assert parsed == graph
    assert repr(parsed.nodes[0].attributes["value"]) == repr(value)


@pytest.mark.parametrize("dim", [N, 128 * N, 128 * N + 4, N - 1, -1 * N, N * N - 2 * M * N + 3, -2 * N * M - 7, M + N])
def test_polynomials(dim: Poly) -> None:
    b = Builder()
    b.output(b("dimension_value", value=dim, dtype=DTYPES["i64"]), "y")
    graph = b.build()
    assert f"value = {dim!r}}}" in str(graph)
    assert parse_graph(str(graph)) == graph


def test_polynomials_in_types_have_no_blanks() -> None:
    b = Builder()
    b.output(b.input("x", TensorType.of("f32", 2 * N + 1)), "y")
    assert "%x: f32[2*N+1]" in str(b.build())
    assert parse_graph(str(b.build())) == b.build()


@pytest.mark.parametrize("name", ["x", "größe", "a b", 'quo"te', "back\\slash", "a\nb", "\u2028", "", "日本", "0"])
def test_any_name_is_read_back(name: str) -> None:
    b = Builder(name or "main")
    x = b.input(name, TensorType.of("f32"))
    with b.layer(name):
        b.output(b("negate", x), name)
    assert parse_graph(str(b.build())) == b.build()


def test_comments_and_blanks_do_not_matter() -> None:
    graph = parse_graph(TRAINING_STEP)
    assert parse_graph("// lepton_jit graph 1\n" + TRAINING_STEP.replace(" ", "  ").replace("\n", " // c\n\n")) == graph


def test_a_layer_is_printed_alone_with_what_is_inside_it() -> None:
    text = print_graph(training_step(), layer="model")
    assert [line.split(" = ")[0].strip() for line in text.splitlines()[1:-2]] == ["%0", "%1"]


def test_a_node_is_printed_alone() -> None:
    assert print_node(training_step().nodes[2]) == "%2 = sparse_softmax_cross_entropy(%1, %labels) : f32[N]"


def one(line: str) -> str:
    return f'graph @main(%x: f32[N,3] input "x") {{\n  {line}\n  return %x "y"\n}}\n'


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("", 1, 1, "expected 'graph', got the end of the text"),
        ("grph @main() {}", 1, 1, "expected 'graph', got 'grph'"),
        ("graph @main() {} graph", 1, 18, "expected the end of the text"),
        ("graph @main() {", 1, 16, "expected a word, got the end of the text"),
        ("graph @main(%x: f16[]) {}", 1, 17, "expected a dtype"),
        ('graph @main(%x: f32[] output "x") {}', 1, 23, "expected one of input, parameter, state"),
        ('graph @main(%x: f32[], "x") {}', 1, 22, "expected a word"),
        ('graph @main(%x: f32[] input "\\q") {}', 1, 29, "a string with a wrong escape"),
        ('graph @main(%x: f32[] input "\\ud800") {}', 1, 29, "a string with a wrong escape"),
        ('graph @main(%x: f32[] input "x', 1, 29, "expected a token"),
        ("graph @main(%x: f32[1.5]) {}", 1, 21, "expected an integer, got '1.5'"),
        ("graph @main(%x: f32[true]) {}", 1, 21, "a number or an identifier, got 'true'"),
        (f"graph @main(%x: f32[{'9' * 41}]) {{}}", 1, 21, "at most 40 digits"),
        (f"graph @main(%x: f32[{'N*' * 99}N]) {{}}", 1, 21, "more than 16 factors"),
        (f"graph @main(%x: f32[{'N+' * 99}N]) {{}}", 1, 21, "more than 64 terms"),
        (f"graph @main(%x: f32[{'1,' * 99}N]) {{}}", 1, 17, "rank of at most 32"),
        ('graph @main(%x: f32[] input "x", %x: f32[] input "y") {}', 1, 34, "%x is defined twice"),
        ("graph @main(%x: f32[3,-1]) {}", 1, 17, "dimensions from 0 up, got [3, -1]"),
        (one("%0 = nonsense(%x) : f32[N,3]"), 2, 8, "got 'nonsense'"),
        (one("%0 = negate(%z) : f32[N,3]"), 2, 15, "%z is read, but nothing before defines it"),
        (one("%0 = negate(%0) : f32[N,3]"), 2, 15, "%0 is read, but nothing before defines it"),
        (one("%0 = negate(%x) : f32[N,4]"), 2, 21, "expected the types [f32[N,3]], got [f32[N,4]]"),
        (one("%0, %1 = negate(%x) : f32[N,3]"), 2, 3, "expected 1 results, got 2 names"),
        (one("negate(%x)"), 2, 3, "expected the types [f32[N,3]], got []"),
        (one("%x = negate(%x) : f32[N,3]"), 2, 3, "%x is defined twice"),
        (one("%0 = negate(%x, %x) : f32[N,3]"), 2, 8, "expected the operands (x), got 2"),
        (one("%0 = negate(%x) {a = 1} : f32[N,3]"), 2, 8, "got {a} as well"),
        (one("%0 = reshape(%x) : f32[N,3]"), 2, 8, "got none called shape"),
        (one('%0 = reshape(%x) {shape = "N"} : f32[N,3]'), 2, 8, "shape: expected a list of dimensions"),
        (one("%0 = reshape(%x) {shape = [N, 4]} : f32[N,4]"), 2, 8, "3*N elements"),
        (one("%0 = reshape(%x) {shape = [3*N], shape = [3*N]} : f32[3*N]"), 2, 36, "given twice"),
        (one("%0 = reshape(%x) {shape = " + "[" * 99), 2, 70, "lists nested more than 40 deep"),
        (one("%0 = reshape(%x) {shape = [N 3]} : f32[N,3]"), 2, 32, "expected ']', got '3'"),
        (one('%0 = fusion(%x) {kind = "map"} : f32[N,3]'), 2, 8, "got none called _regions"),
        (one("%0 = negate(%x) : f32[N,3] $"), 2, 30, "expected a token, got '$"),
    ],
)
def test_a_wrong_text_is_an_error_with_its_place(text: str, line: int, column: int, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_graph(text)
    assert message in str(caught.value)
    assert (caught.value.line, caught.value.column) == (line, column)


def test_what_the_verifier_finds_is_an_error_too() -> None:
    with pytest.raises(GraphError, match="expected different names, got 'y' twice"):
        parse_graph('graph @main(%x: f32[] input "x") { return %x "y", %x "y" }')


@pytest.mark.parametrize(
    "hostile", ["[", "(", "{", "-", "%", "@", '"', "//", "N*", "region(", "\\", "\x00", "9", "\ud800"]
)
def test_long_hostile_texts_end_soon(hostile: str) -> None:
    for text in (hostile * 20_000, one(f"%0 = reshape(%x) {{shape = {hostile * 20_000}")):
        with pytest.raises(LeptonError):
            parse_graph(text)


def test_regions_within_regions_end_soon() -> None:
    region = 'fusion() {kind = "map"} region() {'
    with pytest.raises(ParseError, match="regions nested more than 40 deep"):
        parse_graph("graph @main() {" + region * 5000)


def _texts() -> list[str]:
    samples: dict[str, Case] = {p.values[0].op.name: p.values[0] for p in cases()}
    return [TRAINING_STEP, FUSED, *(str(case.graph()) for case in samples.values())]


@pytest.mark.fuzz
def test_mutated_texts_are_errors_of_ours_or_graphs(fuzz_examples: int) -> None:
    chooser, texts, count = random.Random(fuzz_examples), _texts(), 25 * fuzz_examples
    words = sorted({word for text in texts for word in text.replace("(", " ( ").replace("[", " [ ").split()})
    alphabet = '()[]{},:=@%"-+*/.0123456789NMaef \n\\ü'
    parsed = 0
    for _ in range(count):
        text = chooser.choice(texts)
        for _ in range(chooser.randint(1, 3)):
            at, length = chooser.randrange(len(text) + 1), chooser.choice([0, 1, 1, 2, 5, 30])
            new = chooser.choice(["", chooser.choice(alphabet), chooser.choice(words), text[at : at + length] * 2])
            text = text[:at] + new + text[at + length :]
        try:
            graph = parse_graph(text)
        except LeptonError:
            continue
        parsed += 1
        assert parse_graph(str(graph)) == graph
    assert 0 < parsed < count


def test_nodes_without_results_are_printed_without_types() -> None:
    assert print_node(Node("check", training_step().nodes[0].operands[:1], ())) == "check(%input)"


def test_an_error_of_a_text_goes_from_one_process_to_another() -> None:
    error = ParseError("expected ')'", line=3, column=7)
    again = pickle.loads(pickle.dumps(error))
    assert (str(error), error.line, error.column) == (str(again), again.line, again.column)
