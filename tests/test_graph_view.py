"""Graphs in networkx: what their nodes know, the critical path, and where memory is full."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import replace

import networkx
import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.codegen.program.lower import lower
from lepton_jit.codegen.target import get_target
from lepton_jit.compiler.graph_view import critical_path, widest_cut
from lepton_jit.compiler.pipeline import optimize
from lepton_jit.errors import ArgumentError
from lepton_jit.ir.flops import flops_of
from lepton_jit.ir.types import Dim, dtype_of
from lepton_jit.runtime.profile import Profile, StepTime

# One branch with 2 * 8 * 64 FLOPs a row and 2 * 64 * 8, the other with 2 * 8 * 8; sizes are multiples of 64 bytes.
DOT = "{lhs_batching = [], lhs_contracting = [1], rhs_batching = [], rhs_contracting = [0]}"
DIAMOND = f"""
graph @diamond(
  %x: f32[N,8] input "x", %w: f32[8,64] parameter "w", %v: f32[64,8] parameter "v", %u: f32[8,8] parameter "u"
) {{
  %start = tanh(%x) : f32[N,8] @"start"
  %wide = dot_general(%start, %w) {DOT} : f32[N,64] @"wide"
  %back = dot_general(%wide, %v) {DOT} : f32[N,8] @"back"
  %short = dot_general(%start, %u) {DOT} : f32[N,8] @"short"
  %square = multiply(%back, %back) : f32[N,8]
  %sum = add(%square, %short) : f32[N,8]
  return %sum "y"
}}
"""


def convolutional() -> lpt.Model:
    x = lpt.Input((12, 12, 16))
    a = lpt.Conv2D(16, 3, padding="same", activation="relu", name="first")(x)
    b = lpt.DepthwiseConv2D(3, padding="same", name="depthwise")(a)
    y = lpt.MaxPooling2D(2)(lpt.Add()([a, b]))
    return lpt.Model(x, lpt.Dense(5, activation="softmax", name="scores")(lpt.Flatten()(y)))


def recurrent() -> lpt.Model:
    return lpt.Sequential([lpt.Embedding(20, 16), lpt.LSTM(16, return_sequences=True), lpt.LSTM(16), lpt.Dense(3)])


def attending() -> lpt.Model:
    x = lpt.Input((6, 16))
    return lpt.Model(x, lpt.MultiHeadAttention(2, 8, name="attention")(x, x))


def concatenating() -> lpt.Model:
    x = lpt.Input((16,))
    return lpt.Model(x, lpt.Activation("tanh")(lpt.Concatenate()([lpt.Dense(16)(x), lpt.Dense(32)(x), x])))


MODELS = {
    "convolutional": convolutional,
    "recurrent": recurrent,
    "attending": attending,
    "concatenating": concatenating,
}


@pytest.fixture(scope="module", params=MODELS)
def fast(request: pytest.FixtureRequest):
    model = MODELS[request.param]()
    if request.param == "recurrent":
        model.build((None, 5))
    return lpt.compile(model)


def test_nodes_and_reads_of_a_graph():
    view = lpt.to_networkx(lpt.parse(DIAMOND), batch=4)

    assert list(view) == ["x", "w", "v", "u", "start", "wide", "back", "short", "square", "sum"]
    assert [edge for edge in view.edges(data=True) if edge[1] == "square"] == [
        ("back", "square", {"operand": 0, "value": "back"}),
        ("back", "square", {"operand": 1, "value": "back"}),
    ]
    assert view.nodes["w"] == {
        "op": "parameter", "name": "w", "layer": "", "type": "f32[8,64]", "bytes": 2048, "flops": 0, "live": 0,
        "output": "", "kernel": "", "step": -1, "last_step": -1,
    }  # fmt: skip
    assert view.nodes["wide"] == {
        "op": "dot_general", "name": "", "layer": "wide", "type": "f32[N,64]", "bytes": 4 * 64 * 4,
        "flops": 2 * 4 * 8 * 64, "live": 4 * (8 + 64) * 4, "output": "", "kernel": "", "step": -1, "last_step": -1,
    }  # fmt: skip
    assert view.nodes["sum"]["output"] == "y"


def test_an_operation_with_several_results_is_one_node():
    text = """graph @main(%x: f32[N,4] input "x") {
      %0, %1 = moments(%x) : f32[4], f32[4]
      %2 = add(%0, %1) : f32[4]
      return %2 "y"
    }"""
    view = lpt.to_networkx(lpt.parse(text))

    assert view.nodes["0"]["type"] == "f32[4], f32[4]"
    assert view.nodes["0"]["bytes"] == 32
    assert [data["value"] for _, _, data in view.edges("0", data=True)] == ["0", "1"]


def test_a_view_is_written_as_graphml():
    view = lpt.to_networkx(lpt.parse(DIAMOND))
    file = io.BytesIO()
    networkx.write_graphml(view, file)
    file.seek(0)

    assert dict(networkx.read_graphml(file, force_multigraph=True).nodes(data=True)) == dict(view.nodes(data=True))


@pytest.mark.parametrize("target", ["x86-64-v4", "x86-64-v3"])
@pytest.mark.parametrize("name", MODELS)
def test_nodes_count_the_flops_that_steps_count(name, target):
    model = MODELS[name]()
    if name == "recurrent":
        model.build((None, 5))
    for graph in optimize(model.trace(), get_target(target)):
        nodes: Dim = 0
        steps: Dim = 0
        for node in graph.nodes:
            nodes = flops_of(node) + nodes
        for step in lower(graph, get_target(target)).steps:
            steps = step.flops + steps
        assert nodes == steps
        assert nodes != 0 or graph.name == "prepare"


def test_flops_before_and_after_the_passes_are_the_same_where_no_pass_saves_any():
    lpt.set_winograd(False)
    try:
        fast = lpt.compile(convolutional())
        counts = [sum(f for _, f in fast.to_networkx(stage).nodes(data="flops")) for stage in ("traced", "optimized")]
    finally:
        lpt.set_winograd(True)
    assert counts[0] == counts[1] > 0


def test_every_step_is_the_kernel_of_a_node(fast):
    nodes = [data for _, data in fast.to_networkx().nodes(data=True) if data["kernel"]]
    ran = fast.executable.program.manifest.steps

    assert {n for data in nodes for n in range(data["step"], data["last_step"] + 1)} == set(range(len(ran)))
    assert all(data["kernel"].split(" ", 1)[1] == ran[data["last_step"]].kernel for data in nodes)


def test_nodes_before_fusion_know_the_kernel_that_they_ended_up_in(fast):
    before, after = fast.to_networkx("main"), fast.to_networkx("fuse")
    optimized = lpt.parse(fast.ir("optimized"))

    for node in optimized.nodes:
        if node.op != "fusion":
            continue
        kernel = after.nodes[node.results[0].name]["kernel"]
        assert kernel
        assert {before.nodes[n.results[0].name]["kernel"] for n in node.regions[0].nodes if n.op != "constant"} >= {
            kernel
        }


def test_stages_before_the_split_have_no_kernels(fast):
    assert {kernel for _, kernel in fast.to_networkx("traced").nodes(data="kernel")} == {""}
    assert any(kernel for _, kernel in fast.to_networkx("prepare").nodes(data="kernel"))


@pytest.mark.parametrize("batch", [1, 64])
def test_the_widest_cut_is_the_lower_bound_of_the_memory_plan(fast, batch):
    cut = widest_cut(fast.to_networkx(batch=batch))

    assert cut.memory == "plan"
    assert cut.bytes == fast.plan_at(batch).lower_bound
    assert set(cut.alive) <= set(fast.to_networkx())


def test_the_estimate_is_the_plan_where_no_kernel_has_memory_of_its_own():
    layers = [lpt.Dense(32, activation="relu", input_shape=(16,)), lpt.Dense(64, activation="relu"), lpt.Dense(16)]
    fast = lpt.compile(lpt.Sequential(layers))
    estimate = widest_cut(lpt.to_networkx(lpt.parse(fast.ir("optimized")), batch=64))

    assert estimate == replace(widest_cut(fast.to_networkx()), memory="estimate")
    assert estimate.bytes == fast.plan.lower_bound == 64 * (32 + 64) * 4
    assert len(estimate.alive) == 2


def test_the_widest_cut_of_a_graph_by_estimate():
    cut = widest_cut(lpt.to_networkx(lpt.parse(DIAMOND), batch=1))

    assert (cut.node, cut.bytes, cut.memory) == ("back", (8 + 64 + 8) * 4, "estimate")
    assert cut.alive == ("start", "wide", "back")


def test_the_critical_path_by_flops_takes_the_dear_branch():
    path = critical_path(lpt.to_networkx(lpt.parse(DIAMOND), batch=1))

    assert path.nodes == ("wide", "back")  # what costs nothing before and behind is left out
    assert (path.cost, path.total) == (2 * 2 * 8 * 64, 2 * 2 * 8 * 64 + 2 * 8 * 8)
    assert str(path) == "2,048 of 2,176 FLOPs (94 %): wide -> back"


def test_the_critical_path_by_measured_time_is_another_one():
    view = lpt.to_networkx(lpt.parse(DIAMOND), batch=1)
    for step, name in enumerate(["start", "wide", "back", "short"]):
        view.nodes[name].update(step=step, last_step=step, kernel=f"{step} k")
    view.nodes["square"].update(step=2, last_step=2, kernel="2 k")  # shares the time of that step
    steps = tuple(StepTime("k", "", seconds, 0, 0) for seconds in (1.0, 2.0, 2.0, 7.0))

    path = critical_path(view, Profile("diamond", 1, 1, steps))

    assert path.nodes == ("start", "short")
    assert (path.cost, path.total, path.unit) == (8.0, 12.0, "seconds")


def test_a_profile_fits_the_view_of_its_own_program_alone(fast):
    shapes = {t.name: (t.dtype, [3 if isinstance(d, str) else d for d in t.shape]) for t in fast.inputs}
    profile = fast.profile(
        {name: np.zeros(shape, dtype_of(dtype).numpy) for name, (dtype, shape) in shapes.items()}, calls=1
    )

    assert critical_path(fast.to_networkx(), profile).total == pytest.approx(profile.seconds)
    with pytest.raises(ArgumentError, match="expected the view of the program that was measured"):
        critical_path(fast.to_networkx("traced"), profile)


def test_what_is_no_graph_no_stage_or_no_batch_is_an_error(fast):
    with pytest.raises(ArgumentError, match=r"expected a graph, as lepton_jit.parse gives it, got str"):
        lpt.to_networkx(DIAMOND)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ArgumentError, match=r"expected a graph's stage of traced, .*, got 'loops'"):
        fast.to_networkx("loops")
    with pytest.raises(ArgumentError, match="batch"):
        fast.to_networkx(batch=-1)
    with pytest.raises(ArgumentError, match="widest_cut: expected a graph with nodes"):
        widest_cut(lpt.to_networkx(lpt.parse("graph @empty() {}")))


def test_why_not_fused_asks_of_the_stage_before_fusion():
    fast = lpt.compile(lpt.Sequential([lpt.Dense(4, activation="softmax", input_shape=(4,))]))
    before = lpt.parse(fast.ir("main"))
    product = next(n.result.name for n in before.nodes if n.op == "affine_contraction")
    add = next(n.result.name for n in before.nodes if n.op == "add")

    assert "only elementwise work" in fast.why_not_fused(product, add)


def test_networkx_is_imported_where_it_is_asked_for_alone():
    code = (
        "import sys, lepton_jit as lpt\n"
        "fast = lpt.compile(lpt.Sequential([lpt.Dense(2, input_shape=(2,))]))\n"
        "fast.ir(), fast.plan, lpt.to_networkx\n"
        "assert 'networkx' not in sys.modules\n"
        "fast.to_networkx()\n"
        "assert 'networkx' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
