"""What is asked of a random model: the right numbers from every way to run it, and the same bits where promised.

The right numbers are the graph interpreter's in float64. Two more runs of it, with a relative disturbance after every
operation that rounds, tell how far rounding may carry a result: what float32 gives, here or in Keras, may differ by a
small multiple of that and no more.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import lepton_jit as lpt
from lepton_jit.codegen.target import get_target, native_target
from lepton_jit.compiler import build
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.interpreter import bind_symbols
from lepton_jit.passes.autodiff import Autodiff
from tests.keras_peer import Peer
from tests.model_arguments import Call
from tests.random_draft import NOISE, evaluate, widened
from tests.random_models import RandomModel

Arrays = dict[str, np.ndarray]

# What rounding to float32 may do without being an amplified disturbance, and how many disturbances an error may be.
FLOOR, MULTIPLE = 4e-6, 3.0
# Beyond this sensitivity an output or a loss says nothing.
TOLERATED = 1e-3
SMALLEST = 1e-3


class Rejected(Exception):  # noqa: N818  not an error: another model is drawn
    """A model whose numbers say nothing: not finite, or too sensitive."""


class Difference(AssertionError):  # noqa: N818  what it is, not an error of the program
    """Where two ways to compute the same do not agree."""

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"{stage}: {message}")
        self.stage = stage


@dataclass(frozen=True)
class Expected:
    """Arrays by name, exact, and the same from disturbed runs."""

    exact: Arrays
    disturbed: tuple[Arrays, ...]

    def sensitivity(self, name: str) -> float:
        return max(distance(run[name], self.exact[name]) for run in self.disturbed)

    def compare(self, stage: str, found: Mapping[str, np.ndarray]) -> None:
        """Difference if one array is farther from the exact one than rounding explains."""
        for name, exact in self.exact.items():
            if name not in found:
                raise Difference(stage, f"no {name!r} in {sorted(found)}")
            array = np.asarray(found[name])
            if array.shape != exact.shape:
                raise Difference(stage, f"{name}: expected shape {exact.shape}, got {array.shape}")
            error, allowed = distance(array, exact), max(FLOOR, MULTIPLE * self.sensitivity(name))
            if not error <= allowed:
                raise Difference(stage, f"{name}: error {error:.2g}, expected at most {allowed:.2g}")

    def only(self, names: set[str]) -> Expected:
        return Expected(
            {k: v for k, v in self.exact.items() if k in names},
            tuple({k: v for k, v in run.items() if k in names} for run in self.disturbed),
        )


def distance(found: np.ndarray, exact: np.ndarray) -> float:
    """The largest error relative to the largest number; infinite where one of them is not finite."""
    if not exact.size:
        return 0.0
    if not np.isfinite(exact).all() or not np.isfinite(found).all():
        return np.inf
    return float(np.abs(found - exact).max() / max(np.abs(exact).max(), SMALLEST))


# The reference


def run_exactly(graph: Graph, arrays: Arrays, noise: float) -> Arrays:
    """The outputs of a graph in float64, disturbed by `noise`."""
    known = {i.value: widened(np.asarray(arrays[i.name])) for i in graph.inputs}
    sizes = bind_symbols(graph, {i.name: np.asarray(arrays[i.name], i.value.type.dtype.numpy) for i in graph.inputs})
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            known.update(zip(node.results, evaluate(node, known, sizes, noise), strict=True))
    return {o.name: known[o.value] for o in graph.outputs}


def expected_outputs(graph: Graph, arrays: Arrays) -> Expected:
    exact, *disturbed = (run_exactly(graph, arrays, noise) for noise in (0.0, NOISE, -NOISE))
    result = Expected(exact, tuple(disturbed))
    if any(not result.sensitivity(name) <= TOLERATED for name in exact):
        raise Rejected("outputs are not finite, or too sensitive")
    return result


@dataclass
class ExpectedTraining:
    """A training step's graph, run again and again on its own state: exactly, and disturbed."""

    graph: Graph
    states: list[Arrays]
    noises: tuple[float, ...] = (0.0, NOISE, -NOISE)

    def step(self, inputs: Arrays) -> Expected:
        """What the state and the loss are after one more step."""
        runs = []
        for i, noise in enumerate(self.noises):
            found = run_exactly(self.graph, {**self.states[i], **inputs}, noise)
            self.states[i] = {**self.states[i], **{k: v for k, v in found.items() if k != "loss"}}
            runs.append(found)
        exact, *disturbed = runs
        result = Expected(exact, tuple(disturbed))
        if not result.sensitivity("loss") <= TOLERATED:
            raise Rejected("the loss is not finite, or too sensitive")
        return result

    def reset_metrics(self) -> None:
        for state in self.states:
            state.update({name: np.zeros(()) for name in state if name.startswith("metrics/")})


def metrics_of(expected: Expected) -> Expected:
    """Means from their sums, by the names that a step reports."""

    def means(run: Arrays) -> Arrays:
        names = [n.removeprefix("metrics/").removesuffix("/total") for n in run if n.endswith("/total")]
        return {n: run[f"metrics/{n}/total"] / run[f"metrics/{n}/count"] for n in names}

    return Expected(means(expected.exact), tuple(means(run) for run in expected.disturbed))


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


def check(text: RandomModel, *, peer: bool = True, export: bool = False, older: bool = True) -> None:
    """Everything that is asked of a model; Difference where it does not hold, Rejected if it says nothing."""
    with quiet(), tempfile.TemporaryDirectory() as directory:
        session = Session.of(text)
        batches = [session.batch(n) for n in text.rows]
        fixed = text.inputs[0].call.arguments.get("batch_size")
        expected = check_inference(session, batches[0]["x"], bool(fixed), older, Path(directory) if export else None)
        other = peer_of(session) if peer else None
        if other is not None:
            check_peer_inference(session, other, batches[0]["x"], expected)
        steps = check_training(session, batches, Path(directory))
        if other is not None:
            check_peer_training(session, other, batches, steps)


@contextmanager
def quiet() -> Iterator[None]:
    """A mask that ends at a layer is drawn on purpose, and dead rows of zero weights divide by 0 in the interpreter."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*does not support masking", UserWarning)
        warnings.filterwarnings("ignore", ".*passed a mask_keras_mask.*", UserWarning)
        warnings.filterwarnings("ignore", ".*destroy the mask", UserWarning)
        yield


def _named(names: list[str], found: Any) -> Arrays:
    return dict(zip(names, found if isinstance(found, (list, tuple)) else [found], strict=True))


def _columns(model: Any, x: Any) -> Arrays:
    return {
        name: np.asarray(a, s.dtype)
        for name, a, s in zip(model.input_names, x if isinstance(x, list) else [x], model.inputs, strict=True)
    }


def check_inference(session: Session, x: Any, fixed: bool, older: bool, directory: Path | None) -> Expected:
    """The compiled model's numbers, and its bits: on two threads, in `predict`, row by row, exported."""
    model, graph = session.model, session.model.trace()
    columns = _columns(model, x)
    expected = expected_outputs(graph, {**session.weights, **columns})
    fast = lpt.compile(model, threads=1)
    found = _named(model.output_names, fast(*columns.values()))
    expected.compare("outputs", found)

    def same(stage: str, actual: Any, rows: slice = slice(None)) -> None:
        for name, array in _named(model.output_names, actual).items():
            if array.tobytes() != found[name][rows].tobytes():
                raise Difference(stage, f"{name}: other bits, by {np.abs(array - found[name][rows]).max():.2g}")

    same("outputs on two threads", lpt.compile(model, threads=2)(*columns.values()))
    same("outputs of predict", model.predict(x, verbose=0, batch_size=len(next(iter(columns.values())))))
    rows = len(next(iter(columns.values())))
    if not fixed and rows > 1:
        for part in (slice(rows // 2, rows // 2 + 1), slice(0, rows - 1)):
            same("outputs of some of the rows", fast(*(a[part] for a in columns.values())), part)
    if older and native_target().name == "x86-64-v4":
        narrow = build(graph, target=get_target("x86-64-v3"), threads=1)
        narrow.bind(session.weights)
        expected.compare("outputs on AVX2", _named(model.output_names, narrow.run(*columns.values())))
    if directory is not None:
        fast.export(directory / f"model{session.text.seed}.so")
        same("outputs of the library", lpt.load(directory / f"model{session.text.seed}.so")(*columns.values()))
    return expected


def check_training(session: Session, batches: list[Any], directory: Path) -> list[Expected]:
    """Steps against the interpreter and Keras; the same bits from a loaded model on two threads, before and after."""
    model = session.model
    session.compile()
    lpt.set_threads(1)
    try:
        training, steps = _expected_training(session, batches[0]), []
        model.save(directory / "before.lepton")
        for number, batch in enumerate(batches, 1):
            stage = f"step {number}"
            training.reset_metrics()
            steps.append(expected := training.step(_step_inputs(session, batch, training.graph)))
            reported = model.train_on_batch(**batch, return_dict=True)
            metrics = metrics_of(expected)
            metrics.compare(f"{stage}, metrics", {k: np.asarray(v) for k, v in reported.items()})
            changed = set(session.weights) & set(expected.exact)
            expected.only(changed).compare(f"{stage}, weights", session.weights)
        model.save(directory / "after.lepton")
        lpt.set_threads(2)
        again = lpt.load(directory / "before.lepton")
        for batch in batches:
            again.train_on_batch(**batch)
        _same_model("training on two threads after load", again, model)
        again = lpt.load(directory / "after.lepton")
        _same_model("load", again, model)
        for one in (again, model):
            one.train_on_batch(**batches[0])
        _same_model("a step after load", again, model)
        return steps
    finally:
        lpt.set_threads(None)


def _same_model(stage: str, found: Any, expected: Any) -> None:
    for path, weight in expected.weight_paths().items():
        if found.weight_paths()[path].array.tobytes() != weight.array.tobytes():
            raise Difference(stage, f"{path}: other bits")
    for slot, array in expected.optimizer.slots.items():
        if found.optimizer.slots[slot].tobytes() != array.tobytes():
            raise Difference(stage, f"optimizer slot {slot}: other bits")


def _expected_training(session: Session, batch: Any) -> ExpectedTraining:
    data = session.model._checked_data("train_on_batch", batch["x"], batch["y"], batch.get("sample_weight"))
    program = session.model._training_program(data)
    state = {name: array.copy() for name, array in program._arrays.items()}
    return ExpectedTraining(Autodiff().apply(program._executable.graph), [dict(state) for _ in range(3)])


def _step_inputs(session: Session, batch: Any, graph: Graph) -> Arrays:
    model = session.model
    data = model._checked_data("train_on_batch", batch["x"], batch["y"], batch.get("sample_weight"))
    arrays = _columns(model, batch["x"])
    arrays |= {f"target/{t.output}": np.asarray(a, t.dtype) for t, a in zip(data.targets, data.labels, strict=True)}
    if data.sample_weight is not None:
        arrays["sample_weight"] = np.asarray(data.sample_weight, model.sample_weight_dtype)
    arrays["learning_rate"] = np.asarray(model.optimizer.learning_rate, np.float32)
    return {i.name: arrays[i.name] for i in graph.inputs if i.name in arrays}


# Keras


def peer_of(session: Session) -> Session | None:
    """The same model in Keras with the same weights, if Keras on JAX has it."""
    if any(_beyond_keras(call) for call in session.text.calls()):
        return None
    peer = Session.of(session.text, Peer())
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
        reported = peer.model.train_on_batch(**batch, return_dict=True)
        # Keras' metrics of a step do not see masks: docs/layers.md.
        metrics = metrics_of(expected).only({"loss"}) if masked else metrics_of(expected)
        metrics.compare(f"step {number} of Keras, metrics", {k: np.asarray(v) for k, v in reported.items()})
        found = dict(zip(session.weights, peer.model.get_weights(), strict=True))
        changed = set(found) & set(expected.exact)
        expected.only(changed).compare(f"step {number} of Keras, weights", found)


def _alike_in_training(session: Session) -> bool:
    """Whether Keras draws no random numbers of its own, and knows what weights of samples are for every output."""
    drops = any(
        v for c in session.text.calls() for k, v in c.arguments.items() if k in ("dropout", "recurrent_dropout", "rate")
    )
    return not drops and not (session.text.weighted and any(len(x.shape) > 2 for x in session.model.outputs))
