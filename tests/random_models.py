"""Random models: layers, losses, metrics, optimizers, drawn from the table of arguments, put together like a user."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

import lepton_jit as lpt
from tests.model_arguments import LAYERS, LOSSES, METRICS, OPTIMIZERS, SIZES, Call, Place, Text, draw_layer, draw_object
from tests.model_text import MERGING, ModelInput, ModelOutput, RandomModel, Step
from tests.random_draft import Choices, SeededChoices

__all__ = ["RandomModel", "random_model"]

BATCHES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33)
# Names that the compiler and the steps have a use for themselves.
ODD_NAMES = ("loss", "output", "step_", "seed_", "N", "main", "prepare", "x.1", "a b", "größe", "0", "fusion", "%v1")
RECURRENT = ("GRU", "LSTM", "SimpleRNN")
LARGEST = 2_000  # elements of a value, per sample
WORK = 2_000_000  # multiplications of a layer, per sample


@dataclass
class _Draft:
    """A model while it grows; every step is executed, so that shapes are known."""

    choices: Choices
    scope: dict[str, Any]
    inputs: list[ModelInput] = field(default_factory=list)
    steps: list[Step] = field(default_factory=list)
    pool: list[str] = field(default_factory=list)  # values
    words: dict[str, int] = field(default_factory=dict)  # integers, with their bound
    names: set[str] = field(default_factory=set)

    def chance(self, percent: int) -> bool:
        return self.choices.integer(0, 99) >= 100 - percent

    def shape(self, value: str) -> tuple[int, ...]:
        return eval(value, self.scope).shape[1:]

    def place(self, value: str) -> Place:
        return Place(self.shape(value), self.words.get(value, 0))

    # Inputs

    def input(self) -> str:
        """A new input of features, a sequence, an image or words."""
        name = f"x{len(self.inputs)}"
        kind = self.choices.one_of(["features", "sequence", "image", "words"])
        if kind == "words":
            return self._word_input(name)
        shape = self._input_shape({"features": 1, "sequence": 2, "image": 3}[kind])
        dtype = "float64" if self.chance(5) else "float32"
        data = f'rng.uniform(-2, 2, (n, *shape)).astype("{dtype}")'
        if kind == "sequence" and self.chance(40):
            # The last steps are nothing but a number that a Masking may look for.
            steps = "np.arange(shape[0])[:, None] < rng.integers(1, shape[0] + 1, (n, 1, 1))"
            filler = self.choices.one_of([0.0, 0.5, -1.0])
            data = f"np.where({steps}, {data}, np.{dtype}({filler}))"
        return self._declare(name, {"shape": shape, "dtype": dtype}, data)

    def _input_shape(self, rank: int) -> tuple[int, ...]:
        while True:
            sizes = [s for s in SIZES if s <= {1: 129, 2: 33, 3: 17}[rank]]
            shape = tuple(self.choices.one_of(sizes) for _ in range(rank))
            if np.prod(shape) <= LARGEST // 2:
                return shape

    def _word_input(self, name: str) -> str:
        bound = self.choices.one_of([2, 3, 9, 17, 100])
        shape = tuple(self.choices.one_of([1, 2, 3, 7, 8, 9]) for _ in range(self.choices.integer(1, 2)))
        dtype = self.choices.one_of(["int32", "int32", "int64", "uint8", "float32"])
        data = f"rng.integers(1, {bound}, (n, *shape))"
        if self.chance(60):
            ones = ", ".join("1" * len(shape))
            data += f" * (np.arange(shape[-1]) < rng.integers(1, shape[-1] + 1, (n, {ones})))"
        self.words[name] = bound
        return self._declare(name, {"shape": shape, "dtype": dtype}, f'({data}).astype("{dtype}")')

    def _declare(self, name: str, arguments: dict[str, Any], data: str) -> str:
        if not self.inputs and self.chance(5):
            arguments = {**arguments, "batch_size": self.choices.one_of(BATCHES)}
        made = ModelInput(name, Call("layers.InputLayer", {**arguments, "name": name}), data)
        exec(f"{name} = {made}", self.scope)
        self.inputs.append(made)
        self.names.add(name)
        self.pool.append(name)
        return name

    # Steps

    def named(self, call: Call) -> Call:
        """The call with a name that no other layer has."""
        odd = [n for n in ODD_NAMES if n not in self.names]
        name = self.choices.one_of(odd) if odd and self.chance(8) else f"{call.kind.lower()}_{len(self.names)}"
        self.names.add(name)
        return replace(call, arguments={**call.arguments, "name": name})

    def apply(self, call: Call | int, *inputs: str, **options: Any) -> str:
        """Append a step; the value that it makes, the first one if there are several."""
        step = Step(self.named(call) if isinstance(call, Call) else call, inputs, options)
        number = len(self.steps)
        if isinstance(step.layer, Call):
            self.scope[f"layer{number}"] = eval(repr(step.layer), self.scope)
        maker = number if isinstance(step.layer, Call) else step.layer
        exec(f"v{number} = layer{maker}({step.operands()})", self.scope)
        self.steps.append(step)
        made = self.scope[f"v{number}"]
        values = [f"v{number}[{i}]" for i in range(len(made))] if isinstance(made, list) else [f"v{number}"]
        self.pool += values
        return values[0]

    def layer(self, kind: str, value: str, **fixed: Any) -> Call:
        return draw_layer(self.choices, kind, self.place(value), **fixed)

    def grow(self) -> None:
        """One more step, on the newest value mostly."""
        value = self.pool[-1] if self.chance(70) else self.choices.one_of(self.pool)
        if value in self.words:
            self._grow_words(value)
            return
        rank, kind = len(self.shape(value)), self.choices.integer(0, 99)
        if rank not in (1, 2, 3):
            self.apply(self.layer("Flatten", value), value)
        elif kind < 20:
            self._merge(value)
        elif kind < 26:
            self._share(value)
        elif kind < 34:
            self._nest(value)
        elif kind < 40 and rank == 2:
            self._attend(value)
        else:
            others = [k for k, e in LAYERS.items() if rank in e.ranks and k not in (*MERGING, "MultiHeadAttention")]
            # Layers of this rank alone twice as often as those of any.
            fitting = others + [k for k in others if len(LAYERS[k].ranks) == 1]
            chosen = self.choices.one_of(fitting)
            fixed, options = self._initial_state(chosen) if chosen in RECURRENT else ({}, {})
            call = self.layer(chosen, value, **fixed)
            if _work(call, self.shape(value)) <= WORK:
                self.apply(call, value, **options)

    def _initial_state(self, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Arguments of a recurrent layer and of its call, by which it begins with what the model computed."""
        vectors = [v for v in self.pool if v not in self.words and len(self.shape(v)) == 1 and self.shape(v)[0] <= 33]
        if not vectors or not self.chance(30):
            return {}, {}
        first = self.choices.one_of(vectors)
        alike = [v for v in vectors if self.shape(v) == self.shape(first)]
        states = [first, self.choices.one_of(alike)] if kind == "LSTM" else [first]
        text = f"[{', '.join(states)}]"
        return {"units": self.shape(first)[0]}, {"initial_state": Text(text if kind == "LSTM" else first)}

    def _grow_words(self, value: str) -> None:
        kind = self.choices.integer(0, 9)
        if kind < 8:
            self.apply(self.layer("Embedding", value), value)
            return
        moved = self.apply(self.layer("Flatten" if kind == 8 else "Reshape", value), value)
        self.words[moved] = self.words[value]

    def _merge(self, value: str) -> None:
        """A merging layer of the value and others that fit, made if there are none."""
        kind = self.choices.one_of(MERGING)
        call = self.layer(kind, value)
        axis = call.arguments.get("axis", -1) if kind == "Concatenate" else None
        partners = [p for p in self.pool if p not in self.words and _fit(self.shape(value), self.shape(p), axis)]
        others = [self.choices.one_of(partners) if self.chance(60) else self._branch(value)]
        if kind != "Subtract" and self.chance(40):
            others.append(self._branch(value))
        self.apply(call, value, *others)

    def _branch(self, value: str) -> str:
        """Another value of the same shape."""
        kind = self.choices.one_of(["Dense", "Activation", "LayerNormalization", "BatchNormalization", "Dropout"])
        fixed = {"units": self.shape(value)[-1]} if kind == "Dense" else {}
        return self.apply(self.layer(kind, value, **fixed), value)

    def _share(self, value: str) -> None:
        """An earlier layer once more, on another value of the same shape."""
        single = [(i, s) for i, s in enumerate(self.steps) if isinstance(s.layer, Call) and len(s.inputs) == 1]
        fitting = [
            i
            for i, s in single
            if self.shape(s.inputs[0]) == self.shape(value) and (s.inputs[0] in self.words) == (value in self.words)
        ]
        if fitting:
            self.apply(self.choices.one_of(fitting), value)

    def _nest(self, value: str) -> None:
        """A model as a layer: a chain, or one with a skip connection."""
        shape, number = self.shape(value), len(self.names)
        inner = self.named(self.layer("Dense", value, units=self.choices.one_of([1, 2, 5, 8, 17])))
        if self.chance(50):
            second = self.named(draw_layer(self.choices, "Activation", Place((*shape[:-1], inner.arguments["units"]))))
            self.apply(Call("Sequential", {"layers": [inner, second]}), value)
            return
        inner = replace(inner, arguments={**inner.arguments, "units": shape[-1]})
        start, total = f"i{number}", f"lpt.layers.Add(name='sum{number}')([i{number}, {inner!r}(i{number})])"
        inputs = Text(f"({start} := lpt.Input({shape}, name='{start}'))")
        self.apply(Call("Model", {"inputs": inputs, "outputs": Text(total)}), value)

    def _attend(self, value: str) -> None:
        options: dict[str, Any] = {"use_causal_mask": True} if self.chance(30) else {}
        if self.chance(15):
            options["return_attention_scores"] = True
        others = [p for p in self.pool if p not in self.words and len(self.shape(p)) == 2]
        other = self.choices.one_of(others) if self.chance(40) else value
        if self.chance(20):
            options["key"] = Text(other)
        self.apply(self.layer("MultiHeadAttention", value), value, other, **options)

    # Outputs

    def output(self, value: str) -> ModelOutput:
        """A loss for a value, a head that suits it, metrics and labels."""
        loss = draw_object(self.choices, "losses", self.choices.one_of(sorted(LOSSES)))
        logits = loss.arguments.get("from_logits", False)
        units = self.choices.one_of([2, 3, 5, 10])
        if loss.kind == "BinaryCrossentropy":
            value = self._head(value, self.choices.one_of([1, 3]), "linear" if logits else "sigmoid")
        elif loss.kind in ("CategoricalCrossentropy", "SparseCategoricalCrossentropy"):
            value = self._head(value, units, "linear" if logits else "softmax")
        elif self.chance(50):
            value = self._head(value, units, "linear")
        labels, metrics = self._labels(loss)
        drawn = [self._metric(self.choices.one_of(metrics), logits) for _ in range(self.choices.integer(0, 2))]
        drawn = list({getattr(m, "kind", m): m for m in drawn}.values())
        split = self.choices.integer(0, len(drawn))
        weight = self.choices.one_of([1.0, 0.5, 2.0])
        return ModelOutput(value, loss, weight, tuple(drawn[:split]), tuple(drawn[split:]), labels)

    def _head(self, value: str, units: int, activation: str) -> str:
        if self.chance(50):
            return self.apply(self.layer("Dense", value, units=units, activation=activation), value)
        linear = self.apply(self.layer("Dense", value, units=units, activation="linear"), value)
        return self.apply(self.layer("Activation", linear, activation=activation), linear)

    def _labels(self, loss: Call) -> tuple[str, list[str]]:
        """Labels, and the metrics that understand them."""
        classes = "rng.integers(0, shape[-1], (n, *shape[:-1]))"
        if loss.kind == "SparseCategoricalCrossentropy":
            return classes, ["SparseCategoricalAccuracy", "SparseCategoricalCrossentropy", "accuracy"]
        if loss.kind == "CategoricalCrossentropy":
            if self.chance(30):
                return "rng.dirichlet(np.ones(shape[-1]), (n, *shape[:-1]))", [
                    "CategoricalAccuracy",
                    "MeanSquaredError",
                ]
            return f"np.eye(shape[-1])[{classes}]", ["CategoricalAccuracy", "CategoricalCrossentropy", "accuracy"]
        if loss.kind == "BinaryCrossentropy":
            return "rng.integers(0, 2, (n, *shape))", ["BinaryAccuracy", "BinaryCrossentropy", "accuracy"]
        return "rng.normal(0, 1, (n, *shape))", ["MeanSquaredError", "MeanAbsoluteError"]

    def _metric(self, kind: str, logits: bool) -> Any:
        if kind == "accuracy":
            return kind
        fixed = {"from_logits": True} if logits and "from_logits" in METRICS[kind].arguments else {}
        made = draw_object(self.choices, "metrics", kind)
        arguments = {k: v for k, v in made.arguments.items() if k not in ("from_logits", "name")}
        return replace(made, arguments={**arguments, **fixed})


def random_model(seed: int, most_steps: int = 6) -> RandomModel:
    """The model of a seed."""
    choices = SeededChoices(seed)
    lpt.set_random_seed(seed)
    draft = _Draft(choices, {"lpt": lpt, "np": np})
    for _ in range(2 if draft.chance(25) else 1):
        draft.input()
    wanted = choices.integer(1, most_steps)
    for _ in range(4 * wanted):
        if len(draft.steps) >= wanted:
            break
        before = len(draft.steps), len(draft.pool)
        draft.grow()
        if any(np.prod(draft.shape(v)) > LARGEST for v in draft.pool[before[1] :]):
            del draft.steps[before[0] :], draft.pool[before[1] :]
    for value in [v for v in draft.pool if v in draft.words]:
        if not any(value in step.inputs for step in draft.steps):
            draft.apply(draft.layer("Embedding", value), value)
    ends = _ends(draft)
    outputs = tuple(draft.output(value) for value in ends)
    chain = len(draft.inputs) == len(outputs) == 1 and _is_chain(draft.steps, outputs[0].value) and draft.chance(70)
    fixed = draft.inputs[0].call.arguments.get("batch_size")
    most = fixed or choices.one_of(BATCHES)
    rows = (most, most, fixed or choices.one_of([n for n in BATCHES if n <= most]))
    optimizer = draw_object(choices, "optimizers", choices.one_of(sorted(OPTIMIZERS)))
    inputs, steps = tuple(draft.inputs), tuple(draft.steps)
    return RandomModel(seed, inputs, steps, outputs, optimizer, rows, draft.chance(25), chain)


def _ends(draft: _Draft) -> list[str]:
    """What nothing reads, all of it: a step that no output needs would not be in the model."""
    read = {v for step in draft.steps for v in step.reads()}
    return [v for v in draft.pool if v not in read and v not in draft.words]


def _is_chain(steps: list[Step], end: str) -> bool:
    """Whether each step reads what the one before it returned, and nothing else."""
    return end == f"v{len(steps) - 1}" and all(
        isinstance(step.layer, Call) and not step.options and step.inputs == (f"v{i - 1}" if i else "x0",)
        for i, step in enumerate(steps)
    )


def _fit(one: tuple[int, ...], other: tuple[int, ...], axis: int | None) -> bool:
    """Whether a merging layer takes these shapes, Concatenate along `axis` or another by repetition."""
    if axis is None:
        rank = max(len(one), len(other))
        pairs = zip((*[1] * (rank - len(one)), *one), (*[1] * (rank - len(other)), *other), strict=True)
        return all(a == b or 1 in (a, b) for a, b in pairs)
    if len(one) != len(other):
        return False
    behind = (axis - 1) if axis > 0 else axis % len(one)
    return all(a == b for d, (a, b) in enumerate(zip(one, other, strict=True)) if d != behind)


def _work(call: Call, shape: tuple[int, ...]) -> int:
    """About how many multiplications a layer makes of a sample."""
    elements = int(np.prod(shape))
    kernel = call.arguments.get("kernel_size", 1)
    taps = int(np.prod(kernel)) * (1 if isinstance(kernel, tuple) else kernel)
    outputs = call.arguments.get("filters", call.arguments.get("units", call.arguments.get("depth_multiplier", 1)))
    return elements * taps * outputs
