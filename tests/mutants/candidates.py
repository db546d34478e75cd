"""Every mutant of a file: one small change of its text that a test should notice."""

from __future__ import annotations

import ast
import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Mutant", "mutants_of"]

# Of a comparison: the one that differs where both sides are equal, and the opposite.
COMPARISONS: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.BitAnd: ast.BitOr,
    ast.BitOr: ast.BitAnd,
}
FUNCTIONS = {"any": "all", "all": "any", "min": "max", "max": "min", "reversed": "iter", "sorted": "list"}
NATIVE = (
    (r"icmp slt", ("icmp sle", "icmp sge")),
    (r"icmp sle", ("icmp slt", "icmp sgt")),
    (r"icmp sgt", ("icmp sge", "icmp sle")),
    (r"icmp sge", ("icmp sgt", "icmp slt")),
    (r"icmp eq", ("icmp ne",)),
    (r"icmp ne", ("icmp eq",)),
    (r"= add(?= )", ("= sub",)),
    (r"= sub(?= )", ("= add",)),
    (r"= and i1(?= )", ("= or i1",)),
    (r"= or i1(?= )", ("= and i1",)),
    (r"smax", ("smin",)),
    (r"smin", ("smax",)),
    (r"(?<=, )(-?\d+)(?=$|\s)", (1, -1)),
)


@dataclass(frozen=True)
class Mutant:
    """`file` with the bytes from `start` to `end` replaced; `key` stays the same when other functions change."""

    file: str
    key: str
    line: int
    start: int
    end: int
    new: str

    def text(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]

    def rank(self, seed: int) -> str:
        """The mutants with the lowest ranks are drawn: no change of the code draws all of them anew."""
        return hashlib.sha256(f"{seed} {self.key}".encode()).hexdigest()


def mutants_of(root: Path, file: str) -> list[Mutant]:
    """The mutants of a file, Python or LLVM IR text, in the order of its lines."""
    source = (root / file).read_bytes()
    found = _Python(source).changes() if file.endswith(".py") else _native(source.decode())
    seen: Counter[str] = Counter()
    mutants = []
    for place, line, start, end, new in found:
        old = " ".join(source[start:end].decode().split())
        key = f"{file}:{place}: {old[:60]} -> {new[:60]}"
        seen[key] += 1
        key += f" #{seen[key]}" if seen[key] > 1 else ""
        mutants.append(Mutant(file, key, line, start, end, new))
    return mutants


Change = tuple[str, int, int, int, str]  # function, line, first byte, behind the last byte, new text


def _native(text: str) -> Iterator[Change]:
    start, function = 0, "constants"
    for number, line in enumerate(text.splitlines(keepends=True), 1):
        code = line.partition(";")[0].rstrip()
        if found := re.match(r"define .*@(\w+)\(", code):
            function = found[1]
        elif not re.search(r"getelementptr|phi |store ", code):
            for pattern, others in NATIVE:
                for found in re.finditer(pattern, code):
                    for new in others:
                        text_of = new if isinstance(new, str) else str(int(found[0]) + new)
                        yield function, number, start + found.start(), start + found.end(), text_of
        start += len(line.encode())


class _Python:
    """What would be no mutant, or one that no test can see, is left out: annotations, assertions, texts, `strict`."""

    def __init__(self, source: bytes) -> None:
        self.tree = ast.parse(source)
        self.starts = [0]
        for line in source.splitlines(keepends=True):
            self.starts.append(self.starts[-1] + len(line))

    def changes(self) -> Iterator[Change]:
        yield from self._walk(self.tree, "")

    def _walk(self, node: ast.AST, place: str) -> Iterator[Change]:
        if isinstance(node, (ast.Import, ast.ImportFrom, ast.Assert, ast.JoinedStr, ast.Raise)):
            return
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == "__all__":
            return
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            place = f"{place}.{node.name}" if place else node.name
        for old, new in self._replacements(node):
            start = self.starts[old.lineno - 1] + old.col_offset
            end = self.starts[(old.end_lineno or 0) - 1] + (old.end_col_offset or 0)
            yield place or "module", old.lineno, start, end, new
        for name, child in ast.iter_fields(node):
            if name in ("annotation", "returns", "decorator_list", "bases", "type_params", "format_spec"):
                continue
            for inner in child if isinstance(child, list) else [child]:
                if isinstance(inner, ast.AST) and not (isinstance(inner, ast.keyword) and inner.arg == "strict"):
                    yield from self._walk(inner, place)

    def _replacements(self, node: ast.AST) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
        match node:
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                for other in COMPARISONS[type(op)]:
                    yield node, _text(ast.Compare(left, [other()], [right]))
            case ast.BoolOp(op=op, values=values):
                yield node, _text(ast.BoolOp(ast.Or() if isinstance(op, ast.And) else ast.And(), values))
                for i in range(len(values)):
                    rest = [v for j, v in enumerate(values) if j != i]
                    yield node, _text(rest[0] if len(rest) == 1 else ast.BoolOp(op, rest))
            case ast.UnaryOp(op=ast.Not() | ast.USub(), operand=operand):
                yield node, _text(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in ARITHMETIC:
                yield node, _text(ast.BinOp(left, ARITHMETIC[type(op)](), right))
            case ast.Constant(value=bool(value)):
                yield node, str(not value)
            case ast.Constant(value=int(value)):
                yield node, f"({value + 1})"
                yield node, f"({value - 1})"
            case ast.If(test=test) | ast.IfExp(test=test):
                yield test, "True"
                yield test, "False"
            case ast.comprehension(ifs=tests):
                yield from ((test, "True") for test in tests)
            case ast.Return(value=ast.expr() as value) if not (isinstance(value, ast.Constant) and value.value is None):
                yield node, "return None"
            case ast.Call(func=ast.Name(id=name) as function) if name in FUNCTIONS:
                yield function, FUNCTIONS[name]
            case ast.Call(args=[ast.expr() as first, ast.expr() as second, *rest]) if not isinstance(
                first, ast.Starred
            ) and not isinstance(second, ast.Starred):
                yield node, _text(ast.Call(node.func, [second, first, *rest], node.keywords))
            case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Continue() | ast.Break():
                yield node, "pass"
            case _:
                pass


def _text(node: ast.AST) -> str:
    return f"({ast.unparse(ast.fix_missing_locations(node))})"
