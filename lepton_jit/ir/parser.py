"""Read the text of a graph: a tokenizer and recursive descent. Any text gives a graph or an error of ours."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from lepton_jit.errors import LeptonError
from lepton_jit.ir.graph import Attribute, Attributes, Graph, Input, Node, Output, Role, Value
from lepton_jit.ir.op import get_op
from lepton_jit.ir.tokens import Reader, Token
from lepton_jit.ir.types import DTYPES, Dim, Poly, TensorType
from lepton_jit.ir.verifier import verify

__all__ = ["parse_graph"]

# Far above what any graph needs, far below what Python's stack bears.
MAX_DEPTH = 40
MAX_RANK = 32
MAX_FACTORS = 16
MAX_TERMS = 64


def parse_graph(text: str) -> Graph:
    """The graph that a text stands for; `parse_graph(str(graph)) == graph`.

    Raises ParseError, with line and column, for text that does not follow the grammar, an unknown operation or value,
    a type that is not the one of the operation's rule; GraphError for what the verifier finds.

    >>> graph = parse_graph('graph @main(%x: f32[N] input "x") { %0 = negate(%x) : f32[N] return %0 "y" }')
    >>> graph.nodes[0].result
    %0: f32[N]
    """
    reader = Reader(text)
    reader.expect("graph")
    graph = _graph(reader, _symbol(reader), depth=0)
    reader.expect_end()
    verify(graph)
    return graph


_ROLES: dict[str, Role] = {role: role for role in get_args(Role)}


@dataclass
class _Scope:
    """The values of one graph by name; a region does not see those of the graph around it."""

    values: dict[str, Value] = field(default_factory=dict)

    def define(self, reader: Reader, token: Token, type: TensorType) -> Value:
        name = token.text[1:]
        if name in self.values:
            raise reader.error(f"%{name} is defined twice", token)
        self.values[name] = Value(name, type)
        return self.values[name]

    def read(self, reader: Reader) -> Value:
        token = reader.next("value")
        name = token.text[1:]
        if name not in self.values:
            raise reader.error(f"%{name} is read, but nothing before defines it", token)
        return self.values[name]


def _symbol(reader: Reader) -> str:
    reader.expect("@")
    if reader.at("string"):
        return reader.string()
    return reader.next("word", "number").text


def _graph(reader: Reader, name: str, depth: int) -> Graph:
    if depth > MAX_DEPTH:
        raise reader.error(f"regions nested more than {MAX_DEPTH} deep")
    scope = _Scope()
    inputs = tuple(reader.separated("(", ")", lambda: _input(reader, scope)))
    nodes: list[Node] = []
    outputs: list[Output] = []
    reader.expect("{")
    while not reader.accept("}"):
        if reader.accept("return"):
            outputs.append(_output(reader, scope))
            while reader.accept(","):
                outputs.append(_output(reader, scope))
            reader.expect("}")
            break
        nodes.append(_node(reader, scope, depth))
    return Graph(name, inputs, tuple(nodes), tuple(outputs))


def _input(reader: Reader, scope: _Scope) -> Input:
    token = reader.next("value")
    reader.expect(":")
    value = scope.define(reader, token, _type(reader))
    role_token = reader.next("word")
    if role_token.text not in _ROLES:
        raise reader.error(f"expected one of {', '.join(_ROLES)}, got {role_token.text!r}", role_token)
    return Input(value, reader.string(), _ROLES[role_token.text])


def _output(reader: Reader, scope: _Scope) -> Output:
    value, name = scope.read(reader), reader.string()
    return Output(value, name, reader.string() if reader.accept("donates") else None)


def _node(reader: Reader, scope: _Scope, depth: int) -> Node:
    start = reader.token
    names: list[Token] = []
    if reader.at("value"):
        names.append(reader.next("value"))
        while reader.accept(","):
            names.append(reader.next("value"))
        reader.expect("=")
    op = reader.next("word")
    operands = tuple(reader.separated("(", ")", lambda: scope.read(reader)))
    attributes = _attributes(reader) if reader.at("{") else {}
    types_at, types = op, []
    if names:
        reader.expect(":")
        types_at = reader.token
        types.append(_type(reader))
        while reader.accept(","):
            types.append(_type(reader))
    layer = _symbol(reader) if reader.at("@") else ""
    regions = []
    while reader.accept("region"):
        regions.append(_graph(reader, _symbol(reader) if reader.at("@") else "region", depth + 1))
    expected = _result_types(reader, op, operands, attributes, tuple(regions))
    if expected != types:
        raise reader.error(f"{op.text}: expected the types {expected}, got {types}", types_at)
    if len(names) != len(types):
        raise reader.error(f"expected {len(types)} results, got {len(names)} names", start)
    results = tuple(scope.define(reader, name, type) for name, type in zip(names, types, strict=True))
    return Node(op.text, operands, results, attributes, layer, tuple(regions))


def _result_types(
    reader: Reader, op: Token, operands: tuple[Value, ...], attributes: dict[str, Attribute], regions: tuple[Graph, ...]
) -> list[TensorType]:
    given: Attributes = {**attributes, "_regions": regions} if regions else attributes
    try:
        return list(get_op(op.text).infer([v.type for v in operands], given))
    except LeptonError as error:
        raise reader.error(f"{op.text}: {error}", op) from error


def _type(reader: Reader) -> TensorType:
    token = reader.next("word")
    if token.text not in DTYPES:
        raise reader.error(f"expected a dtype ({', '.join(DTYPES)}), got {token.text!r}", token)
    shape = reader.separated("[", "]", lambda: _dimension(reader))
    if any(isinstance(d, int) and d < 0 for d in shape):
        raise reader.error(f"expected dimensions from 0 up, got {shape}", token)
    if len(shape) > MAX_RANK:
        raise reader.error(f"expected a rank of at most {MAX_RANK}, got {len(shape)}", token)
    return TensorType(DTYPES[token.text], tuple(shape))


def _dimension(reader: Reader) -> Dim:
    """`128*N + 4`: signed terms, each of factors that are numbers or symbols."""
    start = reader.token
    total: Dim = -_term(reader) if reader.accept("-") else _term(reader)
    for _ in range(MAX_TERMS):
        if reader.accept("+"):
            total = _term(reader) + total
        elif reader.accept("-"):
            total = -_term(reader) + total
        else:
            return total
    raise reader.error(f"a dimension of more than {MAX_TERMS} terms", start)


def _term(reader: Reader) -> Dim:
    start = reader.token
    product = _factor(reader)
    for _ in range(MAX_FACTORS):
        if not reader.accept("*"):
            return product
        product = _factor(reader) * product
    raise reader.error(f"a term of more than {MAX_FACTORS} factors", start)


def _factor(reader: Reader) -> Dim:
    if reader.at("number"):
        return reader.integer()
    token = reader.next("word")
    try:
        return Poly.symbol(token.text)
    except LeptonError as error:
        raise reader.error(str(error), token) from error


def _attributes(reader: Reader) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}

    def entry() -> None:
        name = reader.next("word")
        if name.text in found:
            raise reader.error(f"attribute {name.text} is given twice", name)
        reader.expect("=")
        found[name.text] = _attribute(reader, 0)

    reader.separated("{", "}", entry)
    return found


_WORDS: dict[str, Attribute] = {"none": None, "true": True, "false": False, **DTYPES}


def _attribute(reader: Reader, depth: int) -> Attribute:
    if depth > MAX_DEPTH:
        raise reader.error(f"lists nested more than {MAX_DEPTH} deep")
    if reader.at("["):
        return tuple(reader.separated("[", "]", lambda: _attribute(reader, depth + 1)))
    if reader.at("string"):
        return reader.string()
    if reader.token.text in _WORDS:
        return _WORDS[reader.next("word").text]
    number = reader.float()
    return _dimension(reader) if number is None else number
