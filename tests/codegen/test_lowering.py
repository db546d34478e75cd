"""Limits and refusals of lowering."""

from __future__ import annotations

import pytest

from lepton_jit.codegen.lower import RANGES, lower
from lepton_jit.codegen.target import get_target
from lepton_jit.errors import UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.parser import parse_graph
from lepton_jit.ir.types import TensorType

TARGET = get_target("x86-64-v3")


@pytest.mark.parametrize("more", [0, 2])
def test_so_many_ranges_of_checked_integers_have_a_message_of_their_own(more: int) -> None:
    b = Builder("checks")
    for high in range(RANGES + more):
        b.output(b("check_indices", b.input(f"x{high}", TensorType.of("i32", 3)), low=0, high=high), f"y{high}")
    own = [f"expected integers from 0 to {high}" for high in range(RANGES)]
    shared = ["expected an integer in the range that the layer allows"] if more else []
    assert [text for _, text in lower(b.build(), TARGET).errors] == own + shared


def test_a_kernel_does_not_reduce_two_shapes() -> None:
    graph = parse_graph("""
graph @main(%x: f32[4,6] input "x") {
  %0, %1 = fusion(%x) {kind = "reduce"} : f32[6], f32[4] @"sums" region @fusion(%x: f32[4,6] input "x") {
    %0 = reduce(%x) {dimensions = [0], kind = "add"} : f32[6]
    %1 = reduce(%x) {dimensions = [1], kind = "add"} : f32[4]
    return %0 "0", %1 "1"
  }
  return %0 "a", %1 "b"
}
""")
    with pytest.raises(UnsupportedError, match="layer 'sums': a kernel reduces one shape, over the same dimensions"):
        lower(graph, TARGET)
