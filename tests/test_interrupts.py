"""An exception from a signal handler, between any two lines: what follows is right, and whole."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

import lepton_jit as lpt
from lepton_jit.training.interrupts import DeferredInterrupt
from tests.interrupting import at_every_boundary, under_alarms
from tests.runtime.programs import affine

# A file is opened, and the exception comes before its block: the last reference closes it.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")

SMALL, LARGE = 1, 500
# Where there are hundreds of boundaries: some of them in every run, all in long ones.
SOME_AND_ALL = pytest.mark.parametrize("step", [23, pytest.param(1, marks=pytest.mark.soak)])


def inputs(rows: int) -> np.ndarray:
    return np.random.default_rng(rows).random((rows, 6), dtype=np.float32)


def network(seed: int = 0) -> lpt.Sequential:
    lpt.set_random_seed(seed)
    model = lpt.Sequential(
        [lpt.Dense(16, activation="relu", input_shape=(6,), name="a"), lpt.Dense(3, activation="softmax", name="b")]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    return model


def answers(call: Callable[[np.ndarray], np.ndarray]) -> tuple[bytes, ...]:
    """Small and large batches by turns: a context that took one for the other would overrun its arena."""
    return tuple(call(inputs(rows)).tobytes() for rows in (SMALL, LARGE, SMALL, LARGE))


# Calls


def test_a_call_that_is_interrupted_anywhere_leaves_right_answers() -> None:
    fast = lpt.compile(network())
    expected = answers(fast)

    def by_turns() -> None:
        for rows in (SMALL, LARGE, SMALL):
            fast(inputs(rows))

    def check() -> None:
        assert answers(fast) == expected

    assert at_every_boundary(by_turns, check) > 50


def test_a_first_call_that_is_interrupted_anywhere_leaves_right_answers() -> None:
    shift = [np.array([3.0], np.float32)]
    program = affine(1)

    def first_call() -> None:
        nonlocal program
        program = affine(1)
        program([1.0], parameters=program.bind(shift))

    def check() -> None:
        bound = program.bind(shift)
        results = [program(np.full(n, n, np.float32), parameters=bound)[0].tolist() for n in (1, 1000, 1)]
        assert results == [[2.0 * n + 3.0] * n for n in (1, 1000, 1)]

    assert at_every_boundary(first_call, check) > 50


def test_calls_with_two_sets_of_parameters_are_never_mixed_up() -> None:
    program = affine(1)
    bound = [program.bind([np.array([shift], np.float32)]) for shift in (3.0, 5.0)]

    def by_turns() -> None:
        for parameters in bound:
            program([1.0], parameters=parameters)

    def check() -> None:
        assert [program([1.0], parameters=p)[0].tolist() for p in bound] == [[5.0], [7.0]]

    assert at_every_boundary(by_turns, check) > 50


def test_contexts_of_interrupted_calls_are_freed() -> None:
    """Each has an arena of 40 MB; 30 of them would be 1.2 GB, which the process may not have."""
    code = (
        "import resource, numpy as np\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 29, 2 << 29))\n"
        "from tests.interrupting import at_every_boundary\n"
        "from tests.runtime.programs import affine\n"
        "program = affine(1)\n"
        "bound = program.bind([np.array([3.0], np.float32)])\n"
        "x, y = np.zeros(10_000_000, np.float32), np.empty(10_000_000, np.float32)\n"
        "run = lambda: program.run((10_000_000,), bound, (x,), (y,))\n"
        "print(at_every_boundary(run, lambda: None) > 20)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("True", "")


def attack(seconds: float) -> int:
    """Batches of 1 and 5,000 by turns under a timer of 1 to 2 ms."""
    fast = lpt.compile(network())
    small, large = inputs(1), inputs(5000)
    expected = fast(small).tobytes()
    fast(large)

    def by_turns() -> None:
        fast(large)
        assert fast(small).tobytes() == expected

    return under_alarms(by_turns, seconds)


def test_calls_under_a_raising_timer_stay_right() -> None:
    assert attack(1.0) > 10


@pytest.mark.soak
def test_calls_under_a_raising_timer_stay_right_for_long() -> None:
    assert attack(60.0) > 1000


def test_new_weights_are_taken_whole_or_not_at_all() -> None:
    first, second = network(1), network(2)
    fast = lpt.compile(first)
    expected = {answers(lpt.compile(m)) for m in (first, second)}
    assert len(expected) == 2

    def update() -> None:
        fast.update_weights(second)
        fast.update_weights(first)

    def check() -> None:
        assert answers(fast) in expected

    assert at_every_boundary(update, check) > 50


# Training


def states_after_steps(model: lpt.Sequential, x: np.ndarray, y: np.ndarray) -> list[dict[str, bytes]]:
    """All that training changes, and what the model answers, after 0, 1 and 2 steps."""
    found = [snapshot(model)]
    for start in range(0, len(x), 4):
        model.train_on_batch(x[start : start + 4], y[start : start + 4])
        found.append(snapshot(model))
    return found


def snapshot(model: lpt.Sequential) -> dict[str, bytes]:
    trained = {path: array.tobytes() for path, array in model.weights_by_name().items()}
    slots = {f"optimizer/{name}": array.tobytes() for name, array in model.optimizer.slots.items()}
    predicted = answers(model.predict_on_batch)
    return {**trained, **slots, "steps": model.optimizer.iterations.tobytes(), "answers": b"".join(predicted)}


@SOME_AND_ALL
@pytest.mark.parametrize("way", ["fit", "train_on_batch"])
def test_training_that_is_interrupted_anywhere_has_made_whole_steps(way: str, step: int) -> None:
    x, y = inputs(8), np.arange(8) % 3
    model = network()
    model.train_on_batch(x[:4], y[:4])
    weights, slots = model.get_weights(), {n: a.copy() for n, a in model.optimizer.slots.items()}
    expected = states_after_steps(model, x, y)
    assert len({s["answers"] for s in expected}) == 3

    def reset() -> None:
        model.set_weights(weights)
        for name, array in slots.items():
            model.optimizer.slots[name][...] = array
        model.optimizer.iterations[...] = 1

    def train() -> None:
        if way == "fit":
            model.fit(x, y, batch_size=4, shuffle=False, verbose=0)
        else:
            model.train_on_batch(x[:4], y[:4])

    def check() -> None:
        assert snapshot(model) == expected[int(model.optimizer.iterations) - 1]
        reset()

    reset()
    assert at_every_boundary(train, check, step=step) > 50


def test_a_compile_that_is_interrupted_leaves_the_old_choice_or_none() -> None:
    x, y = inputs(4), np.arange(4) % 3
    model, sgd, adam = network(), lpt.optimizers.SGD(), lpt.optimizers.Adam()
    found = set()

    def compile_anew() -> None:
        model.compile(optimizer=sgd, loss="mse")

    def compile_as_before() -> None:
        model.compile(optimizer=adam, loss="sparse_categorical_crossentropy")

    def check() -> None:
        if model.compiled:
            steps = int(model.optimizer.iterations)
            results = model.train_on_batch(x, y if model.optimizer is adam else np.eye(4, 3), return_dict=True)
            found.add((model.optimizer.name, int(model.optimizer.iterations) - steps, *results))
        if not model.compiled or model.optimizer is not adam:
            compile_as_before()

    compile_as_before()
    assert at_every_boundary(compile_anew, check) > 20
    assert found == {("adam", 1, "loss"), ("sgd", 1, "loss")}


def test_a_build_that_is_interrupted_begins_again() -> None:
    layer = lpt.Dense(3)
    x = lpt.Input((2,))

    def build() -> None:
        nonlocal layer
        layer = lpt.Dense(3)
        layer(x)

    def check() -> None:
        layer(x)
        assert [w.name for w in layer.weights] == ["kernel", "bias"]

    assert at_every_boundary(build, check) > 50


def test_ctrl_c_is_heard_after_an_exception_before_or_behind_a_deferring_block() -> None:
    def deferred() -> None:
        with DeferredInterrupt():
            pass

    def check() -> None:
        gc.collect()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    try:
        assert at_every_boundary(deferred, check) > 5
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


# Files


def test_a_save_that_is_interrupted_anywhere_leaves_the_old_file_or_the_new(tmp_path: Path) -> None:
    first, second = network(1), network(2)
    path = tmp_path / "model.lepton"
    second.save(path)
    new = safetensors.numpy.load_file(path)
    first.save(path)
    old = safetensors.numpy.load_file(path)

    def check() -> None:
        found = safetensors.numpy.load_file(path)
        assert found.keys() == old.keys()
        assert any(all((found[n] == array).all() for n, array in whole.items()) for whole in (old, new))

    assert at_every_boundary(lambda: second.save(path), check) > 50


@SOME_AND_ALL
def test_a_load_that_is_interrupted_anywhere_changes_nothing(tmp_path: Path, step: int) -> None:
    path = tmp_path / "model.lepton"
    model = network(1)
    model.save(path)
    expected = model.get_weights()

    def check() -> None:
        layer = lpt.Dense(8)
        layer(lpt.Input((4,)))
        assert layer.get_weights()[0].any()

    assert at_every_boundary(lambda: lpt.load(path), check, step=step) > 50
    assert all((a == b).all() for a, b in zip(lpt.load(path).get_weights(), expected, strict=True))


def test_weights_that_are_loaded_are_all_new_or_all_old(tmp_path: Path) -> None:
    first, second = network(1), network(2)
    first.save_weights(tmp_path / "first")
    second.save_weights(tmp_path / "second")
    whole = {snapshot(m)["answers"] for m in (first, second)}
    model = network(1)

    def check() -> None:
        assert snapshot(model)["answers"] in whole
        model.load_weights(tmp_path / "first")

    assert at_every_boundary(lambda: model.load_weights(tmp_path / "second"), check) > 50
