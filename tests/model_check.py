"""What is asked of a random model: the right numbers from every way to run it, and the same bits where promised."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lepton_jit as lpt
from lepton_jit.codegen.target import Target
from lepton_jit.compiler.build import build
from lepton_jit.ir.graph import Graph
from lepton_jit.passes.gradient.autodiff import Autodiff
from lepton_jit.training import step_names
from lepton_jit.training.steps import sample_weight_dtype
from tests.keras_peer import Peer, freeze_attention
from tests.model_arguments import Call
from tests.model_reference import (
    Arrays,
    Difference,
    Expected,
    ExpectedTraining,
    expected_outputs,
    metrics_of,
)
from tests.random_models import RandomModel

# One model


@dataclass
class Session:
    """A model that was built, with its data."""

    model: Any
    batch: Any
    text: RandomModel

    @staticmethod
    def of(text: RandomModel, library: Any = lpt) -> Session:
        lpt.set_random_seed(text.seed)
        scope: dict[str, Any] = {"lpt": library, "np": np}
        exec(f"{text.model_text()}\n{text.data_text()}", scope)
        return Session(scope["model"], scope["batch"], text)

    def compile(self, library: Any = lpt) -> None:
        exec(self.text.compile_text(), {"lpt": library, "np": np, "model": self.model})

    @property
    def weights(self) -> Arrays:
        return {path: weight.array for path, weight in self.model.weight_paths().items()}

    @property
    def slots(self) -> Arrays:
        return {step_names.slot(name): array for name, array in self.model.optimizer.slots.items()}


@dataclass(frozen=True)
class Extent:
    """What is asked of a model beside the rest, for a price: Keras, a lower level, a library, an evaluation."""

    peer: bool = False
    level: Target | None = None
    export: bool = False
    evaluate: bool = False


def check(text: RandomModel, extent: Extent = Extent()) -> None:
    """Everything that is asked of a model; Difference where it does not hold, Rejected if it says nothing."""
    with quiet(), tempfile.TemporaryDirectory() as directory:
        session = Session.of(text)
        batches = [session.batch(n) for n in text.rows]
        x = batches[0]["x"]
        expected = check_inference(session, x, extent.level)
        if extent.export:
            check_export(session, x, Path(directory))
        peer = peer_of(session) if extent.peer else None
        if peer is not None:
            check_peer_inference(session, peer, x, expected)
        steps = check_training(session, batches, extent.level, Path(directory))
        if peer is not None:
            check_peer_training(session, peer, batches, steps)
        if extent.evaluate:
            check_evaluation(session, peer, batches[-1])


@contextmanager
def quiet() -> Iterator[None]:
    """A mask that ends at a layer is drawn on purpose, and dead rows of zero weights divide by 0 in the interpreter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not support masking", UserWarning)
        warnings.filterwarnings("ignore", ".*passed a mask_keras_mask.*", UserWarning)
        warnings.filterwarnings("ignore", ".*destroy the mask", UserWarning)
        warnings.filterwarnings("ignore", "(?s).*using a softmax over axis", UserWarning)
        yield


def _named(names: list[str], found: Any) -> Arrays:
    return dict(zip(names, found if isinstance(found, (list, tuple)) else [found], strict=True))


def _columns(model: Any, x: Any) -> Arrays:
    return {
        name: np.asarray(a, s.dtype)
        for name, a, s in zip(model.input_names, x if isinstance(x, list) else [x], model.inputs, strict=True)
    }


def check_inference(session: Session, x: Any, level: Target | None) -> Expected:
    """The compiled model's numbers, and its bits: on two threads, in `predict`, row by row."""
    model, graph = session.model, session.model.trace()
    columns = _columns(model, x)
    expected = expected_outputs(graph, {**session.weights, **columns})
    fast = lpt.compile(model, threads=1)
    found = _named(model.output_names, fast(*columns.values()))
    expected.compare("outputs", found)
    _same_outputs("outputs on two threads", model, lpt.compile(model, threads=2)(*columns.values()), found)
    rows = session.text.rows[0]
    _same_outputs("outputs of predict", model, model.predict(x, verbose=0, batch_size=rows), found)
    if model.network.batch_size is None and rows > 1:
        for part in (slice(rows // 2, rows // 2 + 1), slice(0, rows - 1)):
            some = {name: array[part] for name, array in found.items()}
            _same_outputs("outputs of some rows", model, fast(*(a[part] for a in columns.values())), some)
    if level is not None:
        older = build(graph, target=level, threads=1)
        older.bind(session.weights)
        expected.compare(f"outputs on {level.name}", _named(model.output_names, older.run(*columns.values())))
    return expected


def check_export(session: Session, x: Any, directory: Path) -> None:
    model, columns = session.model, _columns(session.model, x).values()
    fast, path = lpt.compile(model), directory / f"model{session.text.seed}.so"
    fast.export(path)
    _same_outputs("outputs of the library", model, lpt.load(path)(*columns), _named(model.output_names, fast(*columns)))


def _same_outputs(stage: str, model: Any, actual: Any, expected: Arrays) -> None:
    for name, array in _named(model.output_names, actual).items():
        if array.tobytes() != expected[name].tobytes():
            raise Difference(stage, f"{name}: other bits, by {np.abs(array - expected[name]).max():.2g}")


def check_training(session: Session, batches: list[Any], level: Target | None, directory: Path) -> list[Expected]:
    """Three steps, and the same bits from loaded models, on two threads, in `fit`; what each step is to compute."""
    model = session.model
    session.compile()
    lpt.set_threads(1)
    try:
        training, steps = _expected_training(session, batches[0]), []
        initial = dict(training.states[0])
        model.save(directory / "before.lepton")
        for number, batch in enumerate(batches, 1):
            inputs = _step_inputs(session, batch, training.graph)
            training.reset_metrics()
            steps.append(training.step(inputs))
            if level is not None and number == 1:
                check_older_step(session, level, {**initial, **inputs}, steps[0])
            reported = model.train_on_batch(**batch, return_dict=True)
            check_step(f"step {number}", session, steps[-1], reported, {**session.weights, **session.slots})
        model.save(directory / "after.lepton")
        lpt.set_threads(2)
        again = lpt.load(directory / "before.lepton")
        again.fit(**_joined(batches), batch_size=session.text.rows[0], shuffle=False, verbose=0)
        _same_model("fit on two threads after load", again, model)
        again = lpt.load(directory / "after.lepton")
        _same_model("load", again, model)
        for one in (again, model):
            one.train_on_batch(**batches[0])
        _same_model("a step after load", again, model)
        return steps
    finally:
        lpt.set_threads(None)


def check_step(stage: str, session: Session, expected: Expected, reported: dict[str, float], found: Arrays) -> None:
    """Loss and metrics of a step, the weights after it, and what the optimizer keeps, which tells gradients."""
    metrics_of(expected).compare(f"{stage}, metrics", {k: np.asarray(v) for k, v in reported.items()})
    expected.only(set(found)).compare(f"{stage}, weights", found)


def check_older_step(session: Session, level: Target, arrays: Arrays, expected: Expected) -> None:
    """A step compiled for a lower level of the processor."""
    (program,) = (p for key, p in session.model._trainer._programs.items() if key[0] == "train")
    graph = program._executable.graph
    held = {i.name: np.array(arrays[i.name], i.value.type.dtype.numpy) for i in graph.inputs}
    older = build(graph, target=level, threads=1)
    older.bind({i.name: held[i.name] for i in graph.inputs if i.role != "input"})
    older.run({i.name: held[i.name] for i in graph.inputs_of("input")})
    expected.only({*session.weights, *session.slots}).compare(f"step on {level.name}, weights", held)


def check_evaluation(session: Session, peer: Session | None, batch: Any) -> None:
    """Loss and metrics without training, after it."""
    model = session.model
    program = model._trainer._test_program(_data(session, batch))
    graph, state = program._executable.graph, {k: np.zeros_like(a) for k, a in model._trainer.objective.state().items()}
    arrays = {**session.weights, **state, **_step_inputs(session, batch, graph)}
    expected = metrics_of(expected_outputs(graph, arrays))
    reported = model.test_on_batch(**batch, return_dict=True)
    expected.compare("evaluation", {k: np.asarray(v) for k, v in reported.items()})
    if peer is not None and peer.model.compiled and _alike_in_training(session):
        peer.model.set_weights(model.get_weights())
        if _clips_probabilities(peer, batch["x"]):
            return
        reported = peer.model.test_on_batch(**batch, return_dict=True)
        expected = expected.for_chains(_terms(session, batch))
        expected.compare("evaluation of Keras", {k: np.asarray(v) for k, v in reported.items()})


def _joined(batches: list[Any]) -> Any:
    """The batches one after the other, as one."""

    def join(arrays: list[Any]) -> Any:
        if isinstance(arrays[0], list):
            return [np.concatenate(column) for column in zip(*arrays, strict=True)]
        return np.concatenate(arrays)

    return {name: join([batch[name] for batch in batches]) for name in batches[0]}


def _same_model(stage: str, found: Any, expected: Any) -> None:
    for path, weight in expected.weight_paths().items():
        if found.weight_paths()[path].array.tobytes() != weight.array.tobytes():
            raise Difference(stage, f"{path}: other bits")
    for slot, array in expected.optimizer.slots.items():
        if found.optimizer.slots[slot].tobytes() != array.tobytes():
            raise Difference(stage, f"optimizer slot {slot}: other bits")


def _data(session: Session, batch: Any) -> Any:
    return session.model._trainer._checked_data("train_on_batch", batch["x"], batch["y"], batch.get("sample_weight"))


def _expected_training(session: Session, batch: Any) -> ExpectedTraining:
    program = session.model._trainer._training_program(_data(session, batch))
    state = {name: array.copy() for name, array in program._arrays.items()}
    return ExpectedTraining(Autodiff().apply(program._executable.graph), [dict(state) for _ in range(3)])


def _step_inputs(session: Session, batch: Any, graph: Graph) -> Arrays:
    model, data = session.model, _data(session, batch)
    arrays = _columns(model, batch["x"])
    arrays |= {
        step_names.target(t.output): np.asarray(a, t.dtype) for t, a in zip(data.targets, data.labels, strict=True)
    }
    if data.sample_weight is not None:
        arrays[step_names.SAMPLE_WEIGHT] = np.asarray(data.sample_weight, sample_weight_dtype(model))
    arrays[step_names.LEARNING_RATE] = np.asarray(model.optimizer.learning_rate, np.float32)
    return {i.name: arrays[i.name] for i in graph.inputs if i.name in arrays}


# Keras


def peer_of(session: Session) -> Session | None:
    """The same model in Keras with the same weights, if Keras on JAX has it."""
    if any(_beyond_keras(call) for call in session.text.calls()):
        return None
    peer = Session.of(session.text, Peer())
    freeze_attention(peer.model)
    peer.model.set_weights(session.model.get_weights())
    return peer


def _beyond_keras(call: Call) -> bool:
    """JAX has float32 alone, and Keras' attention on it no values of another width than that of the keys."""
    arguments = call.arguments
    if call.kind == "MultiHeadAttention":
        return arguments.get("value_dim", arguments["key_dim"]) != arguments["key_dim"]
    return arguments.get("dtype") == "float64"


def check_peer_inference(session: Session, peer: Session, x: Any, expected: Expected) -> None:
    expected.compare("outputs of Keras", _named(session.model.output_names, peer.model.predict_on_batch(x)))


def check_peer_training(session: Session, peer: Session, batches: list[Any], steps: list[Expected]) -> None:
    """Keras' losses, metrics and weights against the interpreter's, where both are to do the same."""
    if not _alike_in_training(session):
        return
    peer.compile(Peer())
    masked = any("mask_zero" in call.arguments or call.kind == "Masking" for call in session.text.calls())
    for number, (batch, expected) in enumerate(zip(batches, steps, strict=True), 1):
        if _clips_probabilities(peer, batch["x"]):
            return
        reported = peer.model.train_on_batch(**batch, return_dict=True)
        if masked:  # Keras' metrics of a step do not see masks: docs/layers.md.
            reported |= {k: float(v) for k, v in metrics_of(expected).exact.items() if k != "loss"}
        found = dict(zip(session.weights, peer.model.get_weights(), strict=True))
        if not all(np.isfinite(array).all() for array in found.values()):
            return  # XLA without optimizations, which `keras_peer` asks for, makes NaN of some gradients of one row
        check_step(f"step {number} of Keras", session, expected.for_chains(_terms(session, batch)), reported, found)


def _clips_probabilities(peer: Session, x: Any) -> bool:
    """Whether Keras' losses bring a probability to 1e-7 or 1 - 1e-7; here they are computed from what it came from."""
    found = peer.model.predict_on_batch(x)
    outputs = [np.asarray(y) for y in (found if isinstance(found, list) else [found])]
    return any(y.min() >= 0 and y.max() <= 1 and (y.min() < 1e-6 or y.max() > 1 - 1e-6) for y in outputs if y.size)


def _terms(session: Session, batch: Any) -> int:
    """The most numbers that a loss is the mean of."""
    x = batch["x"][0] if isinstance(batch["x"], list) else batch["x"]
    return len(x) * max(int(np.prod(output.shape[1:])) for output in session.model.outputs)


def _alike_in_training(session: Session) -> bool:
    """Whether Keras draws no random numbers of its own, and knows what weights of samples are for every output."""
    drops = any(
        v for c in session.text.calls() for k, v in c.arguments.items() if k in ("dropout", "recurrent_dropout", "rate")
    )
    return not drops and not (session.text.weighted and any(len(x.shape) > 2 for x in session.model.outputs))
