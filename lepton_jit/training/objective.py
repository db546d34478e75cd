"""Hold what `compile` asks for: a loss and metrics for each output, and the names under which they are reported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lepton_jit import metrics
from lepton_jit.common import arguments
from lepton_jit.common.naming import numbered
from lepton_jit.errors import ArgumentError
from lepton_jit.layers.base.symbolic import SymbolicTensor
from lepton_jit.losses import losses
from lepton_jit.losses.targets import LabelSpec
from lepton_jit.training import step_names

__all__ = ["Objective", "OutputObjective"]

_ACCURACY = ("accuracy", "acc")


@dataclass
class OutputObjective:
    """Loss and metrics of one output; `"accuracy"` stays a word until the labels' form is known."""

    name: str
    tensor: SymbolicTensor
    loss: losses.Loss | None
    weight: float
    wanted: list[tuple[Any, bool]]  # metric, and whether sample weights apply to it
    metrics: list[tuple[metrics.Metric, bool]] = field(default_factory=list)
    target: LabelSpec | None = None
    _made: dict[LabelSpec, list[tuple[metrics.Metric, bool]]] = field(default_factory=dict)

    def resolve(self, y: Any) -> LabelSpec:
        """The form of these labels, which decides what `"accuracy"` means."""
        shape = np.shape(y)
        if self.loss is not None:
            target = self.loss.target(self.name, shape, self.tensor.shape, self.tensor.dtype)
        else:
            target = LabelSpec.dense(self.name, self.tensor.shape, self.tensor.dtype)
            if losses.is_sparse(shape, self.tensor.shape) and self.tensor.shape[-1] != 1:
                target = LabelSpec.classes(self.name, self.tensor.shape)
        self.target = target
        if target not in self._made:
            self._made[target] = [(self._metric(w), weighted) for w, weighted in self.wanted]
        self.metrics = self._made[target]
        return target

    def _metric(self, wanted: Any) -> metrics.Metric:
        assert self.target is not None
        if isinstance(wanted, str) and wanted.lower() in _ACCURACY:
            return metrics.accuracy_for(self.target, self.tensor.shape, wanted)
        return metrics.get(wanted)


class Objective:
    """Losses and metrics of all outputs, and the running means that an epoch reports."""

    def __init__(
        self,
        outputs: Sequence[tuple[str, SymbolicTensor]],
        loss: Any,
        loss_weights: Any = None,
        metrics: Any = None,
        weighted_metrics: Any = None,
    ) -> None:
        names = [name for name, _ in outputs]
        chosen = [None if x is None else losses.get(x) for x in _spread("loss", loss, names)]
        for one in chosen:
            if one is not None and one.reduction == "none":
                raise ArgumentError(f"compile: loss {one.name}: expected a reduction to one number, got 'none'")
        factors = _spread("loss_weights", loss_weights, names)
        weights = [1.0 if w is None else arguments.number("compile", "loss_weights", w) for w in factors]
        plain = _spread_metrics("metrics", metrics, names)
        weighted = _spread_metrics("weighted_metrics", weighted_metrics, names)
        self.outputs = [
            OutputObjective(
                name, tensor, chosen[i], weights[i], [(m, False) for m in plain[i]] + [(m, True) for m in weighted[i]]
            )
            for i, (name, tensor) in enumerate(outputs)
        ]
        used: list[Any] = []
        for output in self.outputs:
            output.wanted = [(_with_sums_of_its_own(wanted, used), weighted) for wanted, weighted in output.wanted]
        self.total = _mean("loss")
        lossy = [o.name for o in self.outputs if o.loss is not None]
        self.parts = {name: _mean(f"{name}_loss") for name in lossy} if len(lossy) > 1 else {}

    @property
    def _several(self) -> bool:
        return len(self.outputs) > 1

    @property
    def judged(self) -> list[OutputObjective]:
        """The outputs that have a loss or a metric, which labels are needed for."""
        return [o for o in self.outputs if o.loss is not None or o.wanted]

    def resolve(self, ys: Sequence[Any]) -> tuple[LabelSpec, ...]:
        """The forms of the labels of each judged output."""
        return tuple(output.resolve(y) for output, y in zip(self.judged, ys, strict=True))

    def trackers(self) -> Iterator[tuple[str, metrics.Metric]]:
        """List every running mean under the name that history has for it, in the order in which Keras lists them."""
        yield "loss", self.total
        for part in self.parts.values():
            yield part.name, part
        named = self._named_metrics()
        yield from sorted(named, key=lambda entry: entry[0]) if self._several else named

    def _named_metrics(self) -> list[tuple[str, metrics.Metric]]:
        """The metrics under their names, behind their outputs' if there are several.

        A weighted one whose name is taken begins with `weighted_`; what is still taken is numbered.
        """
        named: dict[str, metrics.Metric] = {}
        losses = {"loss", *(part.name for part in self.parts.values())}
        for weighted in (False, True):
            for output in self.outputs:
                prefix = f"{output.name}_" if self._several else ""
                for metric in [m for m, own in output.metrics if own is weighted]:
                    name, taken = f"{prefix}{metric.name}", {*losses, *named}
                    if weighted and name in taken:
                        name = f"{prefix}weighted_{metric.name}"
                    named[numbered(name, taken) if name in taken else name] = metric
        return list(named.items())

    def results(self) -> dict[str, float]:
        """The running means, in the order of `evaluate`."""
        return {name: tracker.result() for name, tracker in self.trackers()}

    def reset(self) -> None:
        """Begin an epoch."""
        for _, tracker in self.trackers():
            tracker.reset_state()

    def state(self) -> dict[str, np.ndarray]:
        """The sums, under the names that they have in a step's graph."""
        arrays = {}
        for name, tracker in self.trackers():
            arrays[step_names.metric_sum(name, "total")] = tracker.total
            arrays[step_names.metric_sum(name, "count")] = tracker.count
        return arrays

    def get_config(self) -> dict[str, Any]:
        """The arguments of `compile`, as JSON values."""

        def plain(x: Any) -> Any:
            return x if x is None or isinstance(x, str) else {"class_name": type(x).__name__, "config": x.get_config()}

        return {
            "loss": [plain(o.loss) for o in self.outputs],
            "loss_weights": [o.weight for o in self.outputs],
            "metrics": [[plain(_instance(m)) for m, w in o.wanted if not w] for o in self.outputs],
            "weighted_metrics": [[plain(_instance(m)) for m, w in o.wanted if w] for o in self.outputs],
        }


def _mean(name: str) -> metrics.Metric:
    return metrics.Mean(name)


def _instance(wanted: Any) -> Any:
    return wanted if isinstance(wanted, str) else metrics.get(wanted)


def _with_sums_of_its_own(wanted: Any, used: list[Any]) -> Any:
    """A checked metric; an instance that some output has already is copied, since each place has its own sums."""
    if isinstance(wanted, str) and wanted.lower() in _ACCURACY:
        return wanted
    metric = metrics.get(wanted)
    if metric is not wanted:
        return wanted
    if any(metric is other for other in used):
        return type(metric).from_config(metric.get_config())
    used.append(metric)
    return metric


def _spread(what: str, value: Any, names: Sequence[str]) -> list[Any]:
    """One value for every output, from one for all, a list, or a dict by output."""
    if isinstance(value, Mapping) and "class_name" not in value:
        unknown = set(value) - set(names)
        if unknown:
            raise ArgumentError(f"compile: {what}: expected outputs of {list(names)}, got {sorted(map(str, unknown))}")
        return [value.get(name) for name in names]
    if isinstance(value, (list, tuple)):
        if len(value) != len(names):
            raise ArgumentError(f"compile: {what}: expected one for each of {list(names)}, got {len(value)}")
        return list(value)
    return [value] * len(names)


def _spread_metrics(what: str, value: Any, names: Sequence[str]) -> list[list[Any]]:
    """A list of metrics for every output."""
    if value is None:
        return [[] for _ in names]
    if isinstance(value, (list, tuple)) and (len(names) == 1 or not any(isinstance(v, (list, tuple)) for v in value)):
        if len(names) == 1:
            flat = [m for v in value for m in (v if isinstance(v, (list, tuple)) else [v])]
            return [flat]
        if len(value) != len(names):
            raise ArgumentError(f"compile: {what}: expected one entry for each of {list(names)}, got {len(value)}")
    per_output = _spread(what, value, names)
    return [list(m) if isinstance(m, (list, tuple)) else [] if m is None else [m] for m in per_output]
