"""Updates follow their gradients, donated states keep their rule, and less memory is needed."""

from __future__ import annotations

import pytest

from lepton_jit.ir.graph import Graph
from lepton_jit.ir.verifier import verify
from lepton_jit.passes.gradient.autodiff import Autodiff
from lepton_jit.passes.liveness import Liveness
from lepton_jit.passes.schedule_updates import ScheduleUpdates
from tests.passes.programs import simplified, training_step
from tests.random_graphs import random_graph


def late_reads(graph: Graph) -> list[str]:
    """The states of which a node reads the old value after the new one has been written in its place."""
    position = {value: i for i, node in enumerate(graph.nodes) for value in node.results}
    states = {entry.name: entry.value for entry in graph.inputs}
    found = []
    for output in graph.outputs:
        if output.donates is None or output.value not in position:
            continue
        written, old = position[output.value], states[output.donates]
        if old.type.rank and any(old in node.operands for node in graph.nodes[written + 1 :]):
            found.append(output.donates)
    return found


SIZES = [64, *[256] * 6, 10]


@pytest.fixture(scope="module", params=[False, True], ids=["slots", "slots-without-denormals"])
def step(request: pytest.FixtureRequest) -> Graph:
    return simplified(training_step(SIZES, without_denormals=request.param))


def test_only_the_order_changes(step: Graph) -> None:
    found = ScheduleUpdates().apply(step)
    verify(found)
    assert sorted(n.results[0].name for n in found.nodes) == sorted(n.results[0].name for n in step.nodes)
    assert (found.inputs, found.outputs) == (step.inputs, step.outputs)


def test_it_is_stable(step: Graph) -> None:
    once = ScheduleUpdates().apply(step)
    assert ScheduleUpdates().apply(once) is once


@pytest.mark.parametrize(("without_denormals", "inside"), [(False, 2), (True, 3)])
def test_one_gradient_is_alive_at_a_time(without_denormals: bool, inside: int) -> None:
    step = simplified(training_step(SIZES, without_denormals=without_denormals))
    found = ScheduleUpdates(batch=1).apply(step)
    before, after = (Liveness(step, 1).peak(g.nodes) for g in (step, found))
    kernel = 4 * 256 * 256
    assert before > 5 * kernel
    # The gradient, and some values inside its update, which fusion will not store.
    assert after < (1.1 + inside) * kernel


def test_an_update_stands_before_the_gradients_of_the_layer_below(step: Graph) -> None:
    found = ScheduleUpdates().apply(step)
    position = {value: i for i, node in enumerate(found.nodes) for value in node.results}
    written = {o.name: position[o.value] for o in found.outputs}
    order = [written[f"dense_{i}/kernel"] for i in reversed(range(7))]
    assert order == sorted(order)
    gradients = [i for i, n in enumerate(found.nodes) if n.op == "dot_general" and n.result.type.shape == (256, 256)]
    assert len(gradients) == 5
    # dense_6 has no such gradient; that of dense_5 comes first, and dense_5 is written before the next one.
    assert written["dense_6/kernel"] < gradients[1]
    assert all(written[f"dense_{5 - k}/kernel"] < later for k, later in enumerate(gradients[1:]))


def test_no_node_reads_a_state_after_it_was_written(step: Graph) -> None:
    assert late_reads(ScheduleUpdates().apply(step)) == []


def test_the_same_holds_for_random_graphs() -> None:
    checked = 0
    for seed in range(60):
        graph = Autodiff().apply(random_graph(seed).graph)
        found = ScheduleUpdates().apply(graph)
        verify(found)
        if found is not graph and any(o.donates for o in graph.outputs):
            assert late_reads(found) == []
            checked += 1
    assert checked >= 3


def test_what_is_alive_is_counted_without_constants_broadcasts_and_states(step: Graph) -> None:
    liveness = Liveness(step, batch=3)
    sizes = {node.op: liveness.size[node.results[0].name] for node in step.nodes}
    assert (sizes["constant"], sizes["broadcast_in_dim"], sizes["iota"]) == (0, 0, 0)
    assert liveness.bytes_of(step.input_named("x").value) == 4 * 3 * 64
    assert {liveness.size[liveness.buffer[o.value.name]] for o in step.outputs} == {0}
