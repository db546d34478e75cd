"""Limits and refusals of lowering."""

from __future__ import annotations

import pytest

from lepton_jit.codegen.program.lower import RANGES, SLICE_BYTES, lower
from lepton_jit.codegen.program.lowered import Lowered, Step
from lepton_jit.codegen.program.schedule import replaces
from lepton_jit.codegen.target import Target, get_target
from lepton_jit.compiler.pipeline import optimize
from lepton_jit.errors import UnsupportedError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Value
from lepton_jit.ir.parser import parse_graph
from lepton_jit.ir.types import TensorType
from tests.codegen.programs import everywhere, lowered, lowered_unfused, step_ops
from tests.codegen.test_chains import convolved, has_chains
from tests.levels import for_every_target

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


def test_a_check_says_which_input_it_reads() -> None:
    graph = parse_graph("""
graph @main(%x: f32[6] input "numbers", %y: i32[6] input "other") {
  %0 = convert(%x) {dtype = i32} : i32[6]
  %1 = reshape(%0) {shape = [2, 3]} : i32[2,3]
  %2 = check_indices(%1) {high = 5, low = 0} : i32[2,3]
  %3 = add(%y, %y) : i32[6]
  %4 = check_indices(%3) {high = 5, low = 0} : i32[6]
  return %2 "a", %4 "b"
}
""")
    steps = [step for step in lower(graph, TARGET).steps if isinstance(step, Step) and step.op == "check_indices"]
    assert [step.checked for step in steps] == ["numbers", ""]


@pytest.mark.parametrize(("between", "copies"), [(0, 1), (5, 1), (6, 2)])
def test_the_copy_of_a_left_side_is_kept_for_readers_so_many_steps_away(between: int, copies: int) -> None:
    """8: the product with its copy, what lies between, and the packing of the other right side."""
    b, length, columns = Builder("copies"), 400, 400
    x = b.input("x", TensorType.of("f32", 64, length))
    sums = {"lhs_contracting": (1,), "rhs_contracting": (0,), "lhs_batching": (), "rhs_batching": ()}
    for name in ("v", "w"):
        b.output(b("dot_general", x, b.input(name, TensorType.of("f32", length, columns)), **sums), f"{name}x")
        for i in range(between if name == "v" else 0):
            b.output(b("tanh", b.input(f"z{i}", TensorType.of("f32", 3))), f"y{i}")
    products = [step for step in lowered_unfused(b.build(), TARGET).steps if step.op == "affine_contraction"]
    assert sum(not step.launches[0].kernel.flops for step in products if isinstance(step, Step)) == copies


@pytest.mark.parametrize(("channels", "chained"), [(62, False), (63, True)])
def test_kernels_are_chained_where_what_lies_between_is_larger_than_caches_keep(channels: int, chained: bool) -> None:
    """3 << 18 bytes of one sample: 56 x 56 x 62 numbers are less."""
    b = Builder("chain")
    x = b.input("x", TensorType.of("f32", "N", 56, 56, 1))
    y = convolved(b, x, "expand", 1, channels)
    b.output(convolved(b, y, "depthwise", 3, channels, groups=channels), "y")
    assert everywhere(b.build(), has_chains) == chained


def depthwise(b: Builder, x: Value, name: str) -> Value:
    return b("relu", convolved(b, x, name, 3, 64, groups=64))


def launches_of_steps(program: Lowered) -> list[int]:
    return [len(step.launches) for step in program.steps]


def test_what_overwrites_a_state_is_not_chained_to_what_reads_its_rows() -> None:
    """Another thread still reads the lines at the boundary."""
    b = Builder("overwritten")
    x = b.input("x", TensorType.of("f32", "N", 56, 56, 64), "state")
    b.output(depthwise(b, depthwise(b, x, "first"), "second"), "x", donates="x")
    assert everywhere(b.build(), launches_of_steps) == [1, 1]


def test_a_kernel_that_adds_what_the_chain_has_passed_already_ends_it() -> None:
    """The third reads lines of the second's result, and of the first's what a window of lines no longer holds."""
    b = Builder("residual")
    first = depthwise(b, b.input("x", TensorType.of("f32", "N", 56, 56, 64)), "first")
    b.output(b("add", depthwise(b, depthwise(b, first, "second"), "third"), first), "y")
    assert everywhere(b.build(), launches_of_steps) == [2, 1]


@pytest.mark.parametrize(
    ("batch", "rows", "steps"),
    [
        (0, 9, ["slice", "reverse"]),
        (1, 9, ["slice | reverse"]),
        (1, SLICE_BYTES // 32, ["slice | reverse"]),
        (1, SLICE_BYTES // 32 + 1, ["slice", "reverse"]),
    ],
)
def test_kernels_go_slice_by_slice_where_a_cache_holds_what_one_reads_of_the_same_slice(
    batch: int, rows: int, steps: list[str]
) -> None:
    """The reversed batch is read from its end, where slices are not there yet; 8 numbers of each row are 32 bytes."""
    b = Builder("slices")
    x = b.input("x", TensorType.of("f32", "N", rows, 9))
    y = b("slice", x, start=(0, 0, 1), limit=(*x.type.shape[:2], 9), strides=(1, 1, 1))
    b.output(y, "y")
    b.output(b("reverse", y, dimensions=(batch,)), "z")
    assert everywhere(b.build(), step_ops, lowered_unfused) == steps


@for_every_target
def test_a_copy_of_half_of_the_rows_is_not_taken_for_one_of_all(target: Target) -> None:
    """Both copies begin at the first row: tile by tile they are the same."""
    b, rows, channels = Builder("copies"), 4 * target.tile_rows, 400
    x = b.input("x", TensorType.of("f32", 1, rows, channels))
    options = {"lhs_spec": (0, 2, 1), "rhs_spec": (2, 1, 0), "out_spec": (0, 2, 1), "strides": (1,)}
    options |= {"lhs_dilation": (1,), "rhs_dilation": (1,), "window_reversal": (False,)}
    options |= {"feature_group_count": 1, "batch_group_count": 1}
    for name, cut in (("half", -rows // 2), ("all", 0)):
        kernel = b.input(name, TensorType.of("f32", 1, channels, channels))
        b.output(b("convolution", x, kernel, **options, padding=((0, cut),)), f"of_{name}")
    launches = [launch for step in lowered(b.build(), target).steps for launch in step.launches]
    copies = [launch.kernel for launch in launches if launch.scratch and not launch.kernel.flops]
    assert [kernel.extent for kernel in copies] == [2, 4]
    assert len({kernel.body for kernel in copies}) == 1


@pytest.mark.parametrize(("lines", "parts"), [(32, 2), (33, 1)])
def test_an_iteration_has_few_channels_of_images_that_a_cache_holds(lines: int, parts: int) -> None:
    """1 << 18 bytes: 32 x 32 x 64 numbers, which are 2 parts of 4 vectors of 8."""
    b = Builder("pooling")
    image = TensorType.of("f32", "N", lines, 32, 64)
    window, padding = (1, 2, 2, 1), ((0, 0),) * 4
    x = b.input("x", image)
    options = {"strides": (1,) * 4, "padding": padding, "dilation": (1,) * 4}
    b.output(b("reduce_window", x, kind="maximum", window=window, **options), "y")
    (step,) = lower(b.build(), TARGET).steps
    assert isinstance(step, Step)
    progress = step.launches[0].kernel.progress
    assert progress is not None
    assert progress.each == parts


def test_products_of_a_batch_are_told_what_their_right_sides_were_packed_from() -> None:
    """They ask memory for the next ones, where these lie."""
    b = Builder("products")
    x, w = (b.input(name, TensorType.of("f32", "N", 40, 40)) for name in "xw")
    where = {"lhs_batching": (0,), "rhs_batching": (0,), "lhs_contracting": (2,), "rhs_contracting": (1,)}
    b.output(b("dot_general", x, w, **where), "y")

    def third_operand(program: Lowered) -> str:
        launch = program.steps[-1].launches[-1]
        buffers = {b.name: number for b, number in zip(launch.kernel.buffers, launch.buffers, strict=True)}
        return program.buffers[buffers["a2"]].name

    assert everywhere(b.build(), third_operand) == "w"


@pytest.mark.parametrize(("length", "kernels"), [(5000, 2), (500, 1)])
def test_a_sum_that_is_too_long_for_few_iterations_is_cut_into_parts(length: int, kernels: int) -> None:
    """The parts are added by a second kernel."""
    b = Builder("gradient")
    x, d = (b.input(name, TensorType.of("f32", length, width)) for name, width in (("x", 64), ("d", 32)))
    sums = {"lhs_contracting": (0,), "rhs_contracting": (0,), "lhs_batching": (), "rhs_batching": ()}
    b.output(b("dot_general", x, d, **sums), "y")
    steps = [step for step in lowered(b.build(), TARGET).steps if step.op == "affine_contraction"]
    assert len(steps) == kernels


def test_a_residual_is_replaced_whatever_is_computed_of_the_product() -> None:
    b = Builder("residual")
    residual = b.input("r", TensorType.of("f32", 192, 192))
    x, w = b.input("x", TensorType.of("f32", 192, 16)), b.input("w", TensorType.of("f32", 16, 192))
    sums = {"lhs_contracting": (1,), "rhs_contracting": (0,), "lhs_batching": (), "rhs_batching": ()}
    b.output(b("add", b("tanh", b("dot_general", x, w, **sums)), residual), "y")
    _, main = optimize(b.build(), TARGET)
    assert replaces(main.nodes[-1], residual, TARGET)
    assert not replaces(main.nodes[-1], x, TARGET)
