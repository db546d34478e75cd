"""compile(): its options, its stages, its cache, and answers that agree wherever they come from."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.codegen.program.lower import lower
from lepton_jit.codegen.program.step_printer import print_steps
from lepton_jit.codegen.target import Target, get_target
from lepton_jit.compiler.build import build
from lepton_jit.compiler.pipeline import optimize
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import Poly, typical, typical_batch, typical_rows
from lepton_jit.passes.manager import Observer
from lepton_jit.passes.winograd import Winograd
from lepton_jit.training.objective import Objective
from lepton_jit.training.steps import trace_training_step
from tests.levels import at_every_level

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.random((64, 12, 12, 3), np.float32)


@pytest.fixture(scope="module")
def model() -> lpt.Sequential:
    lpt.set_random_seed(3)
    return lpt.Sequential(
        [
            lpt.Conv2D(8, 3, activation="relu", padding="same", input_shape=(12, 12, 3), name="stem"),
            lpt.BatchNormalization(),
            lpt.MaxPooling2D(),
            lpt.Conv2D(16, 3, strides=2, activation="gelu"),
            lpt.Flatten(),
            lpt.Dense(10, activation="softmax", name="head"),
        ]
    )


@pytest.fixture(scope="module")
def fast(model: lpt.Sequential) -> lpt.compiled.CompiledModel:
    return lpt.compile(model, threads=1)


def relative_error(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def test_it_agrees_with_the_interpreter(model: lpt.Sequential, fast: lpt.compiled.CompiledModel) -> None:
    (expected,) = run_graph(model.trace(), {"input": IMAGES} | model.weights_by_name()).values()
    assert relative_error(fast(IMAGES), expected) < 1e-5


def test_threads_change_no_bit(model: lpt.Sequential, fast: lpt.compiled.CompiledModel) -> None:
    for threads in (2, 3):
        assert np.array_equal(lpt.compile(model, threads=threads)(IMAGES), fast(IMAGES))


@pytest.mark.parametrize("batch", [1, 2, 7, 8, 33])
def test_a_sample_has_the_same_bits_in_any_batch(fast: lpt.compiled.CompiledModel, batch: int) -> None:
    assert np.array_equal(fast(IMAGES[:batch]), fast(IMAGES)[:batch])


def test_the_exported_module_has_the_same_bits(fast: lpt.compiled.CompiledModel, tmp_path: Path) -> None:
    _, header = fast.export(tmp_path / "net.so")
    np.save(tmp_path / "in.npy", IMAGES)
    code = (
        "import sys, numpy as np, lepton_jit as lpt\n"
        "np.save('out.npy', lpt.load('net.so')(np.load('in.npy')))\n"
        "assert 'llvmlite' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert np.array_equal(np.load(tmp_path / "out.npy"), fast(IMAGES))
    assert header.read_text().count("int net(") == 1


@at_every_level
def test_levels_agree_within_rounding(model: lpt.Sequential, fast: lpt.compiled.CompiledModel, target: Target) -> None:
    executable = build(model.trace(), target=target)
    executable.bind(model.weights_by_name())
    assert relative_error(executable.run(IMAGES)[0], fast(IMAGES)) < 1e-5


def test_choices_are_made_for_a_typical_batch(tmp_path: Path) -> None:
    """With one image the transformed kernel's way from memory costs more than its products gain."""
    layers = [lpt.Conv2D(64, 3, input_shape=(13, 13, 32)), lpt.Flatten(), lpt.Dense(600)]
    model, x = lpt.Sequential(layers), RANDOM.random((5, 13, 13, 32), np.float32)
    one, several = lpt.compile(model), lpt.compile(model, typical_batch=8)
    assert ["winograd" in fast.ir("lower-contractions") for fast in (one, several)] == [False, True]
    assert relative_error(several(x), one(x)) < 1e-5
    assert np.array_equal(several(x[:1]), several(x)[:1])
    several.export(tmp_path / "net.so")
    assert np.array_equal(lpt.load(tmp_path / "net.so")(x), several(x))
    with pytest.raises(lpt.ArgumentError, match="compile: typical_batch: expected a positive integer, got 0"):
        lpt.compile(model, typical_batch=0)


def test_one_typical_batch_reaches_passes_schedules_and_the_order_of_updates() -> None:
    seen: list[tuple[int, int, int | None]] = []

    class Watch(Observer):
        def after(self, pass_: Any, before: Graph, after: Graph, seconds: float) -> None:
            if isinstance(pass_, Winograd):
                seen.append((typical(Poly.symbol("N")), typical_rows(), pass_.batch))

    model, target = residual_model(), get_target("x86-64-v3")
    texts = []
    for rows in (None, 1, 8, 1000):
        with typical_batch(rows):
            _, main = optimize(model.trace(), target, Watch(), rows)
            texts.append(print_steps(lower(main, target).steps))

    assert seen == [(64, 64, 1), (1, 1, 1), (8, 8, 8), (1000, 1000, 1000)]
    assert texts[1] not in (texts[0], texts[3])
    assert typical_rows() == 64


@pytest.mark.parametrize(
    "rows", [1, pytest.param(8, marks=pytest.mark.soak), pytest.param(500, marks=pytest.mark.soak)]
)
def test_what_is_compiled_for_a_typical_batch_is_right_for_every_other(rows: int) -> None:
    model, images = residual_model(), RANDOM.random((70, 16, 16, 3), np.float32)
    fast = lpt.compile(model, typical_batch=rows)
    whole = fast(images)

    assert relative_error(whole, model(images)) < 1e-5
    for n in (1, 3, 8):
        assert np.array_equal(fast(images[:n]), whole[:n])


def test_every_pass_can_be_verified(model: lpt.Sequential) -> None:
    assert lpt.compile(model, verify="passes")(IMAGES).shape == (64, 10)
    with pytest.raises(lpt.ArgumentError, match="verify: expected None or 'passes', got 'all'"):
        lpt.compile(model, verify="all")


@pytest.mark.parametrize("dtype", ["int32", "float32"])
def test_passes_are_verified_with_numbers_that_an_embedding_takes(dtype: str) -> None:
    words = lpt.Embedding(5, 3)
    model = lpt.Sequential([lpt.Input((4,), dtype=dtype), words, lpt.GlobalAveragePooling1D(), lpt.Dense(2)])
    assert lpt.compile(model, verify="passes")(np.full((6, 4), 4)).shape == (6, 2)


def test_every_stage_prints_and_the_first_two_levels_read_back(fast: lpt.compiled.CompiledModel) -> None:
    stages = fast.stages()
    code = ["loops", "llvm", "asm"]
    assert [stages[0], *stages[-7:]] == ["traced", "optimized", *code, *(f"prepare-{name}" for name in code)]
    for stage in stages[:-6]:
        assert str(lpt.parse(fast.ir(stage))) == fast.ir(stage)
    for name, prefix in (("main", ""), ("prepare", "prepare-")):
        assert len(lpt.parse(fast.ir(f"{prefix}loops"))) == fast.ir(f"{prefix}loops").count("kernel @")
        assert f'define i32 @"{name}_run"' in fast.ir(f"{prefix}llvm")
        assert f"{name}_run:" in fast.ir(f"{prefix}asm")
    assert '@"head"' in fast.ir("optimized", layer="head")
    assert '@"stem"' not in fast.ir("optimized", layer="head")
    with pytest.raises(lpt.ArgumentError, match=r"expected a stage of traced, .*, got 'nonsense'"):
        fast.ir("nonsense")


def test_weights_are_a_snapshot_until_they_are_updated(model: lpt.Sequential) -> None:
    fast = lpt.compile(model)
    before = fast(IMAGES)
    weights = model.get_weights()
    model.set_weights([w * 1.5 for w in weights])
    assert np.array_equal(fast(IMAGES), before)
    fast.update_weights(model)
    assert not np.array_equal(fast(IMAGES), before)
    model.set_weights(weights)
    fast.update_weights(model)
    assert np.array_equal(fast(IMAGES), before)


def test_the_plan_meets_its_lower_bound(fast: lpt.compiled.CompiledModel) -> None:
    plan = fast.plan
    assert plan.arena - plan.lower_bound == plan.gap
    assert plan.gap <= 0.02 * plan.lower_bound
    assert {b.layer.split("/")[0] for b in plan.buffers} >= {"stem", "head"}


def test_a_cached_program_gives_the_same_bits(
    model: lpt.Sequential, fast: lpt.compiled.CompiledModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEPTON_JIT_CACHE", str(tmp_path))
    cold = lpt.compile(model)(IMAGES)
    entries = sorted(tmp_path.rglob("*.entry"))
    assert entries != []
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[:-7])
    assert np.array_equal(lpt.compile(model)(IMAGES), cold)
    assert np.array_equal(lpt.compile(model)(IMAGES), fast(IMAGES))


def test_stages_are_dumped(model: lpt.Sequential, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_JIT_DUMP", str(tmp_path))
    lpt.compile(model)
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names[0] == "00-traced.ir"
    stages = [name.removesuffix(".ir").partition("-")[2] for name in names if name.endswith(".ir")]
    assert stages[-4:] == ["prepare", "prepare-fuse", "main", "fuse"]
    assert {"main.loops", "main.ll", "main.s", "prepare.loops", "memory.txt"} <= set(names)


def test_what_is_computed_of_the_weights_once_can_be_read(fast: lpt.compiled.CompiledModel) -> None:
    prepare, main = lpt.parse(fast.ir("prepare")), lpt.parse(fast.ir("main"))
    assert {node.op for node in prepare.nodes} >= {"pack", "rsqrt"}
    assert not {node.op for node in main.nodes} & {"pack", "rsqrt"}
    assert {i.name for i in main.inputs if i.name.startswith("prepared/")} == {o.name for o in prepare.outputs}
    assert "fusion" in fast.ir("prepare-fuse")
    assert '@"head"' not in fast.ir("prepare", layer="stem")


def test_a_profile_names_every_layer(fast: lpt.compiled.CompiledModel) -> None:
    profile = fast.profile(IMAGES)
    assert {"stem", "head"} <= {step.layer for step in profile.steps}
    assert profile.peak is not None
    assert "of peak" in str(profile)


def residual_model() -> lpt.Model:
    """Two blocks of convolutions whose widths and resolutions differ, each with a sum or a concatenation."""
    x = image = lpt.Input((16, 16, 3), name="image")
    for filters in (8, 12):
        skip = lpt.Conv2D(filters, 1, strides=2)(x)
        inner = lpt.Conv2D(4, 1, activation="relu")(x)
        inner = lpt.BatchNormalization()(lpt.Conv2D(filters, 3, strides=2, padding="same")(inner))
        x = lpt.Activation("relu")(lpt.Add()([skip, inner]))
        x = lpt.Concatenate()([x, lpt.Conv2D(5, 3, padding="same")(x)])
    return lpt.Model(image, lpt.Dense(10)(lpt.Flatten()(x)))


@pytest.mark.parametrize("training", [False, True])
def test_plans_are_within_two_per_cent_of_the_largest_live_set(training: bool) -> None:
    model = residual_model()
    graph = model.trace()
    if training:
        optimizer, objective = lpt.optimizers.Adam(), Objective([("y", model.outputs[0])], loss="mse")
        targets = objective.resolve([np.zeros((2, 10), np.float32)])
        optimizer.build(model.weight_paths())
        graph = trace_training_step(model, optimizer, objective, targets, weighted=False)
    program = build(graph).program
    gaps = {n: (plan.gap, plan.lower_bound) for n in (1, 7, 64) for plan in [program.plan(N=n)]}
    assert {n: gap for n, (gap, bound) in gaps.items() if gap > 0.02 * bound} == {}


def test_compilations_side_by_side_leave_the_interpreter_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each ends while the other is at work, whichever began first."""
    monkeypatch.setenv("LEPTON_JIT_CACHE", "off")
    before = sys.getswitchinterval()
    with ThreadPoolExecutor(3) as beside:
        shapes = [(4, 3), (40, 30), (7, 5), (16, 90)]
        models = [lpt.Sequential([lpt.Dense(units, input_shape=(size,))]) for size, units in shapes]
        programs = list(beside.map(lpt.compile, models))
    found = [np.shape(fast(np.ones((1, n)))) for fast, (n, _) in zip(programs, shapes, strict=True)]
    assert found == [(1, units) for _, units in shapes]
    assert sys.getswitchinterval() == before


@pytest.mark.parametrize("wrong", [None, 3, [1, 2], lpt.Sequential, lpt.Dense(2)], ids=repr)
def test_what_is_no_model_is_neither_compiled_nor_taken_weights_from(wrong: Any) -> None:
    fast = lpt.compile(lpt.Sequential([lpt.Dense(3, input_shape=(4,))]))
    with pytest.raises(lpt.ArgumentError, match="compile: expected a model, got "):
        lpt.compile(wrong)
    with pytest.raises(lpt.ArgumentError, match="update_weights: expected a model, got "):
        fast.update_weights(wrong)


def test_numbers_of_rows_and_calls_are_integers() -> None:
    fast = lpt.compile(lpt.Sequential([lpt.Dense(3, input_shape=(4,))]))
    for wrong in ("a", None, 1.5, -1):
        with pytest.raises(lpt.ArgumentError, match="plan_at: batch: expected an integer of at least 0"):
            fast.plan_at(wrong)  # pyright: ignore[reportArgumentType]
        with pytest.raises(lpt.ArgumentError, match="profile: calls: expected a positive integer"):
            fast.profile(np.ones((2, 4)), calls=wrong)  # pyright: ignore[reportArgumentType]


def test_switches_are_booleans_and_numbers_of_threads_are_not() -> None:
    with pytest.raises(lpt.ArgumentError, match="set_winograd: enabled: expected True or False, got 3"):
        lpt.set_winograd(3)  # pyright: ignore[reportArgumentType]
    with pytest.raises(lpt.ArgumentError, match="threads: expected an integer, got True"):
        lpt.set_threads(True)


def test_native_code_is_neither_copied_nor_pickled(tmp_path: Path) -> None:
    fast = lpt.compile(lpt.Sequential([lpt.Dense(3, input_shape=(4,))]))
    library, _ = fast.export(tmp_path / "m.so")
    for native in (fast, lpt.load(library)):
        for make in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(lpt.UnsupportedError, match="holds native code of this process"):
                make(native)


def test_the_text_of_a_layer_that_is_not_there_is_an_error_that_lists_those_that_are() -> None:
    block = lpt.Sequential([lpt.Input((4,)), lpt.Dense(3, name="inner")], name="block")
    fast = lpt.compile(lpt.Sequential([lpt.Input((4,)), block, lpt.Dense(2, name="last")]))
    assert all(fast.ir("traced", layer=name) for name in ("block", "block/inner", "last"))
    for wrong in ("inner", "lost", "", "las"):
        with pytest.raises(lpt.ArgumentError, match=f"ir: expected a layer .* of block/inner, last, got '{wrong}'"):
            fast.ir("traced", layer=wrong)
