"""The measuring stick: every case means the same to us and to a peer, and the protocol is what docs/measure.md says."""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks.case import Problem
from benchmarks.cases import CASES
from benchmarks.contender import OURS, PEERS
from benchmarks.contractions import CONTRACTIONS
from benchmarks.layers import fastest, rows_by_kernel
from benchmarks.network import channels_first_rows, is_trained
from benchmarks.recorder import Recorder, Shape
from benchmarks.report import best_peer, medians
from benchmarks.timing import Protocol, interleave
from benchmarks.worker import ANSWER_TOLERANCE
from lepton_jit.runtime.profile import Profile, StepTime

# The large networks take too long here; the command checks them before it measures.
QUICK = ("mlp", "mnist_cnn", "text_gap")
PROBLEMS = [problem for name in QUICK for problem in CASES[name].problems()]


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda problem: problem.label)
def test_ours_and_jax_give_the_same_answer(problem: Problem):
    ours, theirs = (PEERS[name].build(problem, 1).answer() for name in (OURS, "JAX"))

    assert ours.shape == theirs.shape
    assert np.abs(ours - theirs).max() <= ANSWER_TOLERANCE * np.abs(theirs).max()


def test_the_losses_that_are_compared_move():
    losses = PEERS[OURS].build(Problem(CASES["mlp"], "training", 64), 1).answer()
    assert np.unique(losses.round(2)).size == 3


def test_flops_are_those_of_the_contractions():
    recorder = Recorder()
    CASES["mlp"].network(recorder, Shape((784,)))

    layers = [2 * 784 * 512, 2 * 512 * 512, 2 * 512 * 10]
    assert recorder.inference_flops == sum(layers)
    assert recorder.training_flops == 3 * sum(layers) - layers[0]


def test_training_counts_no_gradient_of_the_data():
    recorder = Recorder()
    CASES["text_gap"].network(recorder, Shape((500,)))
    layers = [2 * 64 * 64, 2 * 64 * 20]
    # The embedding's table stands before the first dense layer.
    assert (recorder.inference_flops, recorder.training_flops) == (sum(layers), 3 * sum(layers))


def test_attention_and_recurrence_are_counted():
    attention, recurrence = Recorder(), Recorder()
    attention.self_attention(Shape((128, 384)), "attention", 12)
    recurrence.lstm(Shape((100, 64)), "lstm", 128)

    assert attention.inference_flops == 2 * (4 * 128 * 384 * 384 + 2 * 128 * 128 * 384)
    assert recurrence.inference_flops == 2 * 100 * (64 + 128) * 512


# torchvision's numbers of parameters.
@pytest.mark.parametrize(("name", "count"), [("resnet18", 11_689_512), ("mobilenetv2", 3_504_872)])
def test_networks_are_the_published_ones(name: str, count: int):
    arrays = CASES[name].problems()[0].weights.arrays
    assert sum(array.size for path, array in arrays.items() if is_trained(path)) == count


def test_steps_are_added_up_by_kind():
    steps = (StepTime("add", "a", 3e-6, 0, 8), StepTime("dot", "b", 4e-6, 2000, 16), StepTime("add", "c", 2e-6, 0, 8))
    slow = Profile("p", 1, 1, steps, peak=1e9)
    quick = replace(slow, steps=tuple(replace(s, seconds=s.seconds / 2) for s in steps[:1]) + steps[1:])

    assert [s.seconds for s in fastest([slow, quick]).steps] == [1.5e-6, 4e-6, 2e-6]
    rows = rows_by_kernel(slow)
    assert [(row.kernel, row.name, row.flops, row.bytes) for row in rows] == [
        ("add", "x 2", 0, 16),
        ("dot", "x 1", 2000, 16),
    ]
    assert [round(row.lost * 1e6, 9) for row in rows] == [5.0, 2.0]


def test_contractions_are_as_large_as_the_bound_asks_for():
    assert min(c.flops for c in CONTRACTIONS) >= 100e6
    assert min(c.summed for c in CONTRACTIONS) >= 128
    assert len({c.name for c in CONTRACTIONS}) == len(CONTRACTIONS)


def test_a_dense_kernel_follows_its_image_into_channels_first():
    image = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    kernel = np.random.default_rng(0).normal(size=(24, 5))

    expected = image.ravel() @ kernel
    np.testing.assert_allclose(image.transpose(2, 0, 1).ravel() @ channels_first_rows(kernel, (2, 3, 4)), expected)


def test_contenders_take_turns():
    order: list[str] = []

    def contender(name: str):
        return lambda: (order.append(name), time.sleep(0.002))

    calls = {name: contender(name) for name in "abc"}
    times = interleave(calls, Protocol(rounds=3, block=0.001, pause=0.0), lambda: order.append("|"))

    rounds = "".join(order).split("|")[1:]
    assert rounds == ["abc", "bca", "cab"]
    assert {name: len(found) for name, found in times.items()} == {"a": 3, "b": 3, "c": 3}
    assert min(min(found) for found in times.values()) >= 0.002


def test_the_best_peer_is_the_one_of_the_lowest_median():
    measurement = {"seconds": {OURS: [2.0, 2.0, 9.0], "A": [3.0, 3.0, 0.1], "B": [2.5, 9.0, 2.5]}}

    assert medians(measurement) == {OURS: 2.0, "B": 2.5, "A": 3.0}
    assert best_peer(measurement) == ("B", 2.5)


def test_the_command_writes_a_result(tmp_path, capsys):
    code = command.main(
        ["mlp", "--quick", "--mode", "inference", "--threads", "1", "--peers", "--output", str(tmp_path)]
    )

    assert code == 0
    (path,) = tmp_path.glob("*.json")
    result = json.loads(path.read_text())
    assert set(result["measurements"]) == {"mlp inference b1, 1 thread", "mlp inference b64, 1 thread"}
    assert result["machine"]["cpu"]
    assert all(len(m["seconds"][OURS]) == len(m["peaks"]) == 3 for m in result["measurements"].values())
    assert "FMA peak" in capsys.readouterr().out


def test_an_unknown_case_is_an_error():
    with pytest.raises(SystemExit, match="got 'nonsense'"):
        command.main(["nonsense", "--quick", "--output", "/tmp"])
