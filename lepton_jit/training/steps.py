"""Trace a model to the graphs that run: inference, one training step, one test step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from lepton_jit.errors import ArgumentError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Graph, Value
from lepton_jit.ir.types import DTYPES, Dim, Poly, TensorType, dtype_of
from lepton_jit.layers.base.trainable import Trainable
from lepton_jit.layers.functional import Functional
from lepton_jit.losses.targets import LabelSpec
from lepton_jit.optimizers.optimizer import Optimizer, UpdateContext
from lepton_jit.tracing import Tracer, Weight
from lepton_jit.training import step_names
from lepton_jit.training.objective import Objective

__all__ = ["sample_weight_dtype", "trace_forward", "trace_inference", "trace_test_step", "trace_training_step"]

_SCALAR = ()


def trace_inference(model: Functional) -> Graph:
    """Inputs, weights as parameters, outputs."""
    b = Builder("inference")
    inputs = _declare_inputs(b, model)
    t = Tracer(b, weights=_declare_weights(b, model))
    _declare_outputs(b, model, model.trace_network(t, inputs))
    return _finished(b)


def trace_forward(model: Functional) -> Graph:
    """The forward pass of training by itself: dropout drops, moving statistics move."""
    b = Builder("forward")
    inputs = _declare_inputs(b, model)
    weights = _declare_weights(b, model)
    step = b.input(step_names.STEP, TensorType(DTYPES["i64"], _SCALAR))
    t = _training_tracer(b, weights, step)
    _declare_outputs(b, model, model.trace_network(t, inputs))
    b.output(t("add", step, 1), step_names.STEP, donates=step_names.STEP)
    _write_back(t, model)
    return _finished(b)


def trace_training_step(
    model: Functional,
    optimizer: Optimizer,
    objective: Objective,
    targets: Sequence[LabelSpec],
    *,
    weighted: bool,
    trainable: Trainable | None = None,
) -> Graph:
    """Forward, loss, gradient, the optimizer's update of every weight that is trained, and the metrics' sums.

    Inputs: the model's, `/target/<output>`, `/sample_weight` if weighted, `/learning_rate`. State: the weights that
    change, the optimizer's slots, `/step`, `/seed` if something is random, the metrics' sums. Result: `loss`.
    """
    trainable = trainable or Trainable(model)
    b = Builder("training_step")
    inputs = _declare_inputs(b, model)
    labels = _declare_targets(b, targets, inputs)
    sample_weight = _declare_sample_weight(b, model, inputs) if weighted else None
    learning_rate = b.input(step_names.LEARNING_RATE, TensorType(DTYPES["f32"], _SCALAR))
    weights = _declare_weights(b, model)
    step = b.input(step_names.STEP, TensorType(DTYPES["i64"], _SCALAR))
    t = _training_tracer(b, weights, step, trainable)
    outputs = model.trace_network(t, inputs)
    trained = trainable.weight_paths
    loss = _trace_loss(t, model, trained, objective, labels, outputs, sample_weight)
    _trace_updates(t, trained, optimizer, loss, UpdateContext(t, learning_rate, step))
    _trace_metrics(t, objective, labels, outputs, sample_weight, loss)
    b.output(t("add", step, 1), step_names.STEP, donates=step_names.STEP)
    _write_back(t, model)
    b.output(loss, "loss")
    return _finished(b)


def trace_test_step(
    model: Functional,
    objective: Objective,
    targets: Sequence[LabelSpec],
    *,
    weighted: bool,
    trainable: Trainable | None = None,
) -> Graph:
    """The inference pass with loss and metrics; the weights are parameters."""
    trainable = trainable or Trainable(model)
    b = Builder("test_step")
    inputs = _declare_inputs(b, model)
    labels = _declare_targets(b, targets, inputs)
    sample_weight = _declare_sample_weight(b, model, inputs) if weighted else None
    t = Tracer(b, weights=_declare_weights(b, model), trainable=trainable)
    outputs = model.trace_network(t, inputs)
    loss = _trace_loss(t, model, trainable.weight_paths, objective, labels, outputs, sample_weight)
    _trace_metrics(t, objective, labels, outputs, sample_weight, loss)
    b.output(loss, "loss")
    return _finished(b)


def _declare_inputs(b: Builder, model: Functional) -> list[Value]:
    fixed = model.network.batch_size
    batch: Dim = Poly.symbol("N") if fixed is None else fixed
    values = []
    for name, x in zip(model.input_names, model.inputs, strict=True):
        values.append(b.input(name, TensorType(dtype_of(x.dtype), (batch, *_known(x.shape[1:])))))
    return values


def _known(shape: Sequence[int | None]) -> tuple[int, ...]:
    return tuple(d for d in shape if d is not None)


def _declare_outputs(b: Builder, model: Functional, outputs: Sequence[Value]) -> None:
    for name, value in zip(model.output_names, outputs, strict=True):
        b.output(value, name)


def _declare_weights(b: Builder, model: Functional) -> dict[Weight, Value]:
    return {weight: b.input(path, weight.type, "parameter") for path, weight in model.weight_paths().items()}


def _declare_targets(b: Builder, targets: Sequence[LabelSpec], inputs: Sequence[Value]) -> dict[str, Value]:
    batch = inputs[0].type.shape[0]
    return {
        t.output: b.input(step_names.target(t.output), TensorType(dtype_of(t.dtype), (batch, *t.shape)))
        for t in targets
    }


def sample_weight_dtype(model: Functional) -> str:
    """The element type of sample weights: float64 if an output is."""
    return "float64" if any(x.dtype == "float64" for x in model.outputs) else "float32"


def _declare_sample_weight(b: Builder, model: Functional, inputs: Sequence[Value]) -> Value:
    dtype = dtype_of(sample_weight_dtype(model))
    return b.input(step_names.SAMPLE_WEIGHT, TensorType(dtype, inputs[0].type.shape[:1]))


def _training_tracer(
    b: Builder, weights: dict[Weight, Value], step: Value, trainable: Trainable | None = None
) -> Tracer:
    seed: list[Value] = []

    def randomness() -> tuple[Value, Value]:
        if not seed:
            seed.append(b.input(step_names.SEED, TensorType(DTYPES["u64"], _SCALAR), "state"))
        return seed[0], step

    return Tracer(b, training=True, weights=weights, randomness=randomness, trainable=trainable)


def _trace_loss(
    t: Tracer,
    model: Functional,
    trained: Mapping[str, Weight],
    objective: Objective,
    labels: Mapping[str, Value],
    outputs: Sequence[Value],
    sample_weight: Value | None,
) -> Value:
    """The sum of the outputs' weighted losses, of penalties on weights and of losses that layers added."""
    terms: list[Value] = []
    for output, y_pred in zip(objective.outputs, outputs, strict=True):
        if output.loss is None:
            continue
        with t.b.layer(output.tensor.name):
            loss = output.loss.trace(t, labels[output.name], y_pred, sample_weight)
            if output.name in objective.parts:
                _accumulate_mean(t, f"{output.name}_loss", loss, y_pred)
            terms.append(loss if output.weight == 1 else t("multiply", loss, output.weight))
    terms += [*t.losses, *_penalties(t, trained)]
    if not terms:
        raise ArgumentError(f"{model.label}: expected a loss for some output; give one to compile")
    total = terms[0]
    for term in terms[1:]:
        total = t("add", total, t.convert(term, total.type.dtype))
    return total


def _penalties(t: Tracer, trained: Mapping[str, Weight]) -> list[Value]:
    values = []
    for path, weight in trained.items():
        if weight.regularizer is not None:
            with t.b.layer(path.rpartition("/")[0]):
                values.append(weight.regularizer.trace(t, t.weight(weight)))
    return values


def _trace_updates(
    t: Tracer, trained: Mapping[str, Weight], optimizer: Optimizer, loss: Value, step: UpdateContext
) -> None:
    named = {path: weight for path, weight in trained.items() if weight.size}
    if not named:
        return
    gradients = t.b.emit("gradient", loss, *(t.weight(w) for w in named.values()))
    clipped = optimizer.trace_clipping(t, gradients)
    for (path, weight), gradient in zip(named.items(), clipped, strict=True):
        with t.b.layer(path.rpartition("/")[0]):
            slots = {
                slot: t.b.input(step_names.slot(f"{path}/{slot}"), weight.type, "state")
                for slot in optimizer.slot_names
            }
            value, new_slots = optimizer.trace_update(t, path, t.weight(weight), gradient, slots, step)
        t.assign(weight, value)
        for slot, new in new_slots.items():
            name = step_names.slot(f"{path}/{slot}")
            t.b.output(new, name, donates=name)


def _trace_metrics(
    t: Tracer,
    objective: Objective,
    labels: Mapping[str, Value],
    outputs: Sequence[Value],
    sample_weight: Value | None,
    loss: Value,
) -> None:
    _accumulate_mean(t, "loss", loss, outputs[0])
    names = {id(metric): name for name, metric in objective.trackers()}
    for output, y_pred in zip(objective.outputs, outputs, strict=True):
        for metric, weighted in output.metrics:
            weights = sample_weight if weighted else None
            with t.b.layer(output.tensor.name):
                total, count = metric.trace_sums(t, labels[output.name], y_pred, weights)
            _accumulate(t, names[id(metric)], total, count)


def _accumulate_mean(t: Tracer, name: str, value: Value, batch_like: Value) -> None:
    """Add the mean of a batch to a running mean, weighted by the batch's size."""
    size = t.size(batch_like.type.shape[0], DTYPES["f64"])
    _accumulate(t, name, t("multiply", t.convert(value, DTYPES["f64"]), size), size)


def _accumulate(t: Tracer, name: str, total: Value, count: Value) -> None:
    for kind, value in (("total", total), ("count", count)):
        path = step_names.metric_sum(name, kind)
        old = t.b.input(path, TensorType(DTYPES["f64"], _SCALAR), "state")
        t.b.output(t("add", old, value), path, donates=path)


def _write_back(t: Tracer, model: Functional) -> None:
    for path, weight in model.weight_paths().items():
        if weight in t.updates:
            t.b.output(t.updates[weight], path, donates=path)


def _finished(b: Builder) -> Graph:
    """The graph, with every input that an output overwrites in the role of state."""
    graph = b.build()
    written = {o.donates for o in graph.outputs}
    return replace(graph, inputs=tuple(replace(i, role="state") if i.name in written else i for i in graph.inputs))
