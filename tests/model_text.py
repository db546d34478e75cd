"""Random models as text: what is printed when one fails is what ran.

A `RandomModel` is data that reads as Python source, executed for this library and, with another library behind the name
`lpt`, for Keras.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.model_arguments import Call, Text

__all__ = ["MERGING", "VALUE", "ModelInput", "ModelOutput", "RandomModel", "Step"]

# The name of a value: an input, what a step made, or one of several that it made.
VALUE = re.compile(r"\b(?:x\d+|v\d+(?:\[\d+\])?)")
MERGING = ("Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract")


@dataclass(frozen=True)
class ModelInput:
    """An input: how it is declared, and the expression of its data for `n` rows, of which `shape` is the shape."""

    name: str
    call: Call
    data: str

    def __str__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.call.arguments.items())
        return f"lpt.Input({arguments})"


@dataclass(frozen=True)
class Step:
    """A layer called on values; `layer` is its constructor's call, or the number of an earlier step that made it."""

    layer: Call | int
    inputs: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)

    def reads(self) -> list[str]:
        """The values that it is called on, as inputs or in options."""
        return [v for text in (*self.inputs, *map(repr, self.options.values())) for v in VALUE.findall(text)]

    def operands(self) -> str:
        merges = isinstance(self.layer, Call) and self.layer.kind in MERGING
        tensors = f"[{', '.join(self.inputs)}]" if merges else ", ".join(self.inputs)
        return ", ".join([tensors, *(f"{k}={v!r}" for k, v in self.options.items())])


@dataclass(frozen=True)
class ModelOutput:
    """A value that the model returns, what is wanted of it, and the expression of labels for `n` rows, likewise."""

    value: str
    loss: Call
    weight: float
    metrics: tuple[Any, ...]
    weighted_metrics: tuple[Any, ...]
    labels: str


@dataclass(frozen=True)
class RandomModel:
    """A model, its data and what `compile` gets; `str` is a program that builds it and trains it for three steps."""

    seed: int
    inputs: tuple[ModelInput, ...]
    steps: tuple[Step, ...]
    outputs: tuple[ModelOutput, ...]
    optimizer: Call
    rows: tuple[int, ...]  # of each training step; only the last one may have fewer
    weighted: bool = False  # steps have sample weights
    chain: bool = False  # written as Sequential

    def __str__(self) -> str:
        loop = "for n in {}:\n    print(model.train_on_batch(**batch(n)))"
        return "\n".join(
            [
                "import numpy as np",
                "import lepton_jit as lpt",
                "",
                f"lpt.set_random_seed({self.seed})",
                self.model_text(),
                "",
                self.data_text(),
                "",
                self.compile_text(),
                loop.format(self.rows),
            ]
        )

    def model_text(self) -> str:
        if self.chain:
            layers = [str(self.inputs[0]), *(repr(step.layer) for step in self.steps)]
            return "model = lpt.Sequential([\n" + "".join(f"    {layer},\n" for layer in layers) + "])"
        shared = {step.layer for step in self.steps if isinstance(step.layer, int)}
        lines = [f"{x.name} = {x}" for x in self.inputs]
        for i, step in enumerate(self.steps):
            made = repr(step.layer) if isinstance(step.layer, Call) else f"layer{step.layer}"
            if i in shared:
                lines.append(f"layer{i} = {made}")
                made = f"layer{i}"
            lines.append(f"v{i} = {made}({step.operands()})")
        inputs, outputs = (x.name for x in self.inputs), (o.value for o in self.outputs)
        return "\n".join([*lines, f"model = lpt.Model([{', '.join(inputs)}], [{', '.join(outputs)}])"])

    def data_text(self) -> str:
        x = [x.data.replace("shape", f"model.inputs[{i}].shape[1:]") for i, x in enumerate(self.inputs)]
        y = [o.labels.replace("shape", f"model.outputs[{i}].shape[1:]") for i, o in enumerate(self.outputs)]
        weights = ', "sample_weight": rng.uniform(0.2, 2, n)' if self.weighted else ""
        return "\n".join(
            [
                f"rng = np.random.default_rng({self.seed})",
                "model.set_weights([w + rng.uniform(-0.2, 0.2, w.shape) for w in model.get_weights()])",
                "",
                "def batch(n):",
                f'    return {{"x": {_single(x)}, "y": {_single(y)}{weights}}}',
            ]
        )

    def compile_text(self) -> str:
        several = len(self.outputs) > 1

        def each(values: list[Any]) -> Any:
            return values if several else values[0]

        arguments: dict[str, Any] = {
            "optimizer": self.optimizer,
            "loss": each([o.loss for o in self.outputs]),
            "loss_weights": [o.weight for o in self.outputs] if several else None,
            "metrics": each([list(o.metrics) for o in self.outputs]),
            "weighted_metrics": each([list(o.weighted_metrics) for o in self.outputs]),
        }
        given = {k: v for k, v in arguments.items() if v and v != [[]] * len(self.outputs)}
        return "model.compile(\n" + "".join(f"    {k}={v!r},\n" for k, v in given.items()) + ")"

    def calls(self) -> Iterator[Call]:
        """Every constructor's call in it."""
        roots: list[Any] = [*(x.call for x in self.inputs), *(s.layer for s in self.steps), self.optimizer]
        roots += [part for o in self.outputs for part in (o.loss, *o.metrics, *o.weighted_metrics)]
        while roots:
            item = roots.pop()
            if isinstance(item, Call):
                yield item
                roots.extend(item.arguments.values())
            elif isinstance(item, (list, tuple)):
                roots.extend(item)

    def registered(self) -> set[str]:
        """The registered names in it, as `layers.Dense`; activations by their own, as `activations.relu`."""
        names = {call.path for call in self.calls()}
        for call in self.calls():
            for name, value in call.arguments.items():
                if name.endswith("activation") and isinstance(value, str):
                    names.add(f"activations.{value.split('.')[2] if isinstance(value, Text) else value}")
                if name.endswith("regularizer") and isinstance(value, str):
                    names.add(f"regularizers.{value.upper()}")
        return names


def _single(values: list[str]) -> str:
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"
