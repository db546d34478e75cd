"""Cancel transposes and reshapes across elementwise operations."""

from __future__ import annotations

from typing import Any

from lepton_jit.ir.graph import Node, Value
from lepton_jit.ir.op import Family, get_op
from lepton_jit.passes.rewriting.facts import Facts
from lepton_jit.passes.rewriting.rewrite import Rewriter

__all__ = ["pull_movement"]


def pull_movement(facts: Facts, rewriter: Rewriter, node: Node) -> Value | None:
    """law: move(f(x, y)) == f(move(x), move(y)) for elementwise f and a transpose or a reshape

    It is done where fewer movements are left: those of broadcasts vanish into them, those of movements join them (or
    cancel), and a reshape of an input costs nothing. Two elementwise chains with a reshape in between become one.
    Operations in the chain that others read as well stay where they are.
    """
    x = node.operands[0]
    if not _is_link(facts, rewriter, x) or _cost(facts, rewriter, node, x) > 0:
        return None
    return _moved(facts, rewriter, node, x, {})


def _is_link(facts: Facts, rewriter: Rewriter, value: Value) -> bool:
    node = rewriter.producer(value)
    return node is not None and value in facts.read_once and get_op(node.op).family is Family.ELEMENTWISE


def _cost(facts: Facts, rewriter: Rewriter, move: Node, value: Value) -> int:
    """The number of movements that are added if `move` goes above the elementwise chain that ends in `value`."""
    if _is_link(facts, rewriter, value):
        operands = dict.fromkeys(rewriter.producer(value).operands)  # pyright: ignore[reportOptionalMemberAccess]
        return sum(_cost(facts, rewriter, move, operand) for operand in operands)
    node = rewriter.producer(value)
    if node is None:
        return 0 if move.op == "reshape" and value in facts.inputs else 1
    if node.op == "broadcast_in_dim":
        return 0 if move.op == "transpose" or not node.operands[0].type.rank else 1
    if node.op == move.op:
        return -1 if value in facts.read_once and _cancels(node, move) else 0
    return 1


def _cancels(inner: Node, outer: Node) -> bool:
    if inner.op == "reshape":
        return inner.operands[0].type.shape == outer.result.type.shape
    first: Any = inner.attributes["permutation"]
    second: Any = outer.attributes["permutation"]
    return all(first[d] == i for i, d in enumerate(second))


def _moved(facts: Facts, rewriter: Rewriter, move: Node, value: Value, done: dict[Value, Value]) -> Value:
    """Compute `value` with the movement applied to what its elementwise chain starts from."""
    if value in done:
        return done[value]
    if _is_link(facts, rewriter, value):
        node = rewriter.producer(value)
        assert node is not None
        operands = [_moved(facts, rewriter, move, operand, done) for operand in node.operands]
        with rewriter.layer(node.layer, absolute=True):
            done[value] = rewriter(node.op, *operands, **node.attributes)
        return done[value]
    attributes: Any = move.attributes
    if move.op == "reshape":
        done[value] = rewriter("reshape", value, shape=move.result.type.shape)
    else:
        done[value] = rewriter("transpose", value, permutation=attributes["permutation"])
    return done[value]
