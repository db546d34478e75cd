"""How the arguments of everything that is registered are drawn: one table, an entry for every argument.

`draw_layer(choices, "Dense", Place((17,)))` is a `Call`, whose `repr` is Python for this library and for Keras alike.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import lepton_jit as lpt
from tests.random_draft import Choices, SeededChoices

# Where schedules, panels and vectors begin, end and leave something over, and what people use.
SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 15, 16, 17, 20, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129)
# How many percent of the optional arguments a call gives, and of those that change most.
GIVEN, OFTEN_GIVEN = 30, 60
OFTEN = frozenset({"activation", "recurrent_activation", "return_sequences", "padding", "mask_zero", "learning_rate"})
# The model gives these to its layers.
OF_THE_MODEL = ("name", "input_shape")
# Layers that hold layers: models of models are drawn in `random_models`.
NESTED = frozenset({"Model", "Sequential"})


class Text(str):
    """A Python expression, as it is."""

    def __repr__(self) -> str:
        return str(self)


@dataclass(frozen=True)
class Call:
    """The call of a constructor: `path` is where it is found, `layers.Dense`."""

    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        return self.path.rpartition(".")[2]

    def __repr__(self) -> str:
        return f"lpt.{self.path}({', '.join(f'{k}={v!r}' for k, v in self.arguments.items())})"


@dataclass(frozen=True)
class Place:
    """What arguments may depend on: the shape of the (first) input without the batch, and the bound of its integers."""

    shape: tuple[int, ...] = ()
    words: int = 0

    @property
    def channels(self) -> int:
        return self.shape[-1] if self.shape else 1

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


Draw = Callable[[Choices, Place], Any]
Arguments = Mapping[str, Draw]


@dataclass(frozen=True)
class Entry:
    """How a class is drawn: its arguments, those that a call must have, and what makes them fit each other."""

    arguments: Arguments = field(default_factory=dict)
    required: tuple[str, ...] = ()
    ranks: tuple[int, ...] = (1, 2, 3)  # of a layer's input, without the batch
    fit: Callable[[dict[str, Any], Place], None] = lambda arguments, place: None


# How one argument is drawn


def one_of(*options: Any) -> Draw:
    return lambda choices, _: choices.one_of(options)


def between(low: float, high: float) -> Draw:
    return lambda choices, _: round(low + (high - low) * choices.integer(0, 100) / 100, 4)


def integer(low: int, high: int) -> Draw:
    return lambda choices, _: choices.integer(low, high)


def size(high: int) -> Draw:
    """A size of at most `high`, and small enough for the input: a layer has some 10,000 weights at most."""

    def draw(choices: Choices, place: Place) -> int:
        limit = min(high, max(1, 10_000 // max(1, place.channels)))
        return choices.one_of([s for s in SIZES if s <= limit])

    return draw


def pair(draw: Draw) -> Draw:
    """One number for both dimensions, or two."""
    return lambda choices, place: (
        draw(choices, place) if choices.integer(0, 1) else (draw(choices, place), draw(choices, place))
    )


def activation(choices: Choices, place: Place) -> Any:
    """The name of a function, or the function with other options."""
    name = choices.one_of(sorted(ACTIVATIONS))
    options = _drawn(choices, ACTIVATIONS[name], place)
    if not options:
        return name
    return Text(f"lpt.activations.{name}.with_options({', '.join(f'{k}={v!r}' for k, v in options.items())})")


def initializer(rank: int) -> Draw:
    """An initializer for weights of a rank."""

    def draw(choices: Choices, place: Place) -> Call:
        kinds = [k for k in sorted(INITIALIZERS) if rank >= {"Orthogonal": 2, "Identity": 2}.get(k, 1)]
        kind = choices.one_of([k for k in kinds if k != "Identity" or rank == 2])
        return draw_object(choices, "initializers", kind, place)

    return draw


def variance_initializer(choices: Choices, place: Place) -> Call:
    kind = choices.one_of(["Ones", "Constant", "RandomUniform"])
    ranges = {"Constant": {"value": 0.7}, "RandomUniform": {"minval": 0.5, "maxval": 2.0}}
    return Call(f"initializers.{kind}", ranges.get(kind, {}))


def regularizer(choices: Choices, place: Place) -> Any:
    kind = choices.one_of(sorted(REGULARIZERS))
    return draw_object(choices, "regularizers", kind, place) if choices.integer(0, 3) else kind.lower()


def learning_rate(choices: Choices, place: Place) -> Any:
    if choices.integer(0, 2):
        return choices.one_of([0.001, 0.01, 0.05])
    return draw_object(choices, "optimizers.schedules", choices.one_of(sorted(SCHEDULES)), place)


def axis(choices: Choices, place: Place) -> int:
    """An axis behind the batch, counted from either side."""
    rank = len(place.shape)
    return choices.one_of([-1, -1, choices.integer(1, rank), choices.integer(-rank, -1)])


def axes(choices: Choices, place: Place) -> Any:
    if choices.integer(0, 1):
        return axis(choices, place)
    rank = len(place.shape)
    return [-a for a in range(1, choices.integer(1, rank) + 1)]


def divisor_of_channels(choices: Choices, place: Place) -> int:
    return choices.one_of([d for d in range(1, place.channels + 1) if place.channels % d == 0])


def other_shape(choices: Choices, place: Place) -> tuple[int, ...]:
    """Another shape of as many elements, one of its sizes perhaps -1."""
    left, shape = place.elements, []
    for _ in range(choices.integer(0, 2)):
        shape.append(choices.one_of([d for d in range(1, left + 1) if left % d == 0]))
        left //= shape[-1]
    shape.append(left)
    if choices.integer(0, 1):
        shape[choices.integer(0, len(shape) - 1)] = -1
    return tuple(shape)


def sides(choices: Choices, place: Place) -> Any:
    """How far an image is padded: alike, by dimension, or by side."""
    kind = choices.integer(0, 2)
    if kind == 0:
        return choices.integer(0, 3)
    one = integer(0, 3)
    dimension = one if kind == 1 else lambda c, p: (one(c, p), one(c, p))
    return dimension(choices, place), dimension(choices, place)


def embedding_rows(choices: Choices, place: Place) -> int:
    return place.words + choices.integer(0, 3)


def embedding_values(choices: Choices, place: Place) -> Text:
    return Text("table")  # `fit` knows its shape


# What makes arguments fit each other


def _both(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)


def fit_convolution(arguments: dict[str, Any], place: Place) -> None:
    if max(_both(arguments.get("strides", 1))) > 1:
        arguments.pop("dilation_rate", None)
    groups = arguments.get("groups", 1)
    if "filters" in arguments:
        arguments["filters"] = groups * max(1, arguments["filters"] // groups)
    dilation = _both(arguments.get("dilation_rate", 1))
    kernel = _both(arguments["kernel_size"])
    spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
    if any(span > s for span, s in zip(spans, place.shape, strict=False)):
        arguments["padding"] = "same"


def fit_pooling(arguments: dict[str, Any], place: Place) -> None:
    if any(k > s for k, s in zip(_both(arguments.get("pool_size", 2)), place.shape, strict=False)):
        arguments["padding"] = "same"


def fit_embedding(arguments: dict[str, Any], place: Place) -> None:
    if "weights" in arguments:
        rows, columns = arguments["input_dim"], arguments["output_dim"]
        arguments["weights"] = Text(f"[np.linspace(-1, 1, {rows * columns}).reshape({rows}, {columns})]")


def fit_recurrent(arguments: dict[str, Any], place: Place) -> None:
    if place.shape[0] > 5:
        arguments.pop("unroll", None)  # for Keras' sake, whose programs grow with the steps


def fit_schedule(arguments: dict[str, Any], place: Place) -> None:
    arguments["values"] = [0.02, 0.01, 0.03, 0.005][: len(arguments["boundaries"]) + 1]


def fit_clipping(arguments: dict[str, Any], place: Place) -> None:
    given = [name for name in ("clipnorm", "clipvalue", "global_clipnorm") if name in arguments]
    for name in given[1:]:
        del arguments[name]


# What a constructor tells of itself


def constructor_arguments(cls: type, without: Sequence[str] = ()) -> dict[str, Any]:
    """Every argument that a constructor takes and how it begins, with those that it hands to its base or to a loss."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        if "__init__" not in vars(base) or base is object:
            continue
        parameters = list(inspect.signature(base.__init__).parameters.values())[1:]
        plain = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        found = {**{p.name: p.default for p in plain}, **found}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    if hasattr(cls, "_loss_class"):
        found = {**constructor_arguments(cls._loss_class, ("name", "reduction")), **found}  # pyright: ignore[reportAttributeAccessIssue]
    # What is accepted at its default alone has nothing to draw.
    return {k: v for k, v in found.items() if k not in (*without, *getattr(cls, "accepts", ()))}


def drawn_from(
    defaults: Mapping[str, Any], known: Arguments, fit: Callable[[dict[str, Any], Place], None] = lambda a, p: None
) -> Entry:
    """Arguments that are drawn as `known` says; others, as numbers and flags, around their defaults."""
    names = [*(name for name in known if name in defaults), *(name for name in defaults if name not in known)]
    return Entry({name: known.get(name) or around(name, defaults[name]) for name in names}, fit=fit)


def around(name: str, default: Any) -> Draw:
    if isinstance(default, bool):
        return one_of(True, False)
    if isinstance(default, float):
        return between(default / 2, 3 * default / 2) if default else between(0.0, 1.0)
    raise TypeError(f"{name}={default!r}: expected a number or a flag, or a line in tests/model_arguments.py")


# The table

EVERY_LAYER: Arguments = {
    "trainable": one_of(True, True, True, False),
    "dtype": one_of(*["float32"] * 12, "float64"),
}
KERNEL: Arguments = {"kernel_initializer": initializer(2), "kernel_regularizer": regularizer}
BIAS: Arguments = {"use_bias": one_of(True, False), "bias_initializer": initializer(1), "bias_regularizer": regularizer}
CONVOLUTION: Arguments = {
    "kernel_size": pair(one_of(1, 2, 3, 3, 4, 5, 7)),
    "strides": pair(integer(1, 3)),
    "padding": one_of("valid", "same"),
    "dilation_rate": pair(integer(1, 3)),
    "activation": activation,
    **BIAS,
}
POOLING: Arguments = {
    "pool_size": pair(one_of(1, 2, 2, 3, 5)),
    "strides": pair(integer(1, 4)),
    "padding": one_of("valid", "same"),
}
SCALE_AND_CENTER: Arguments = {
    "epsilon": one_of(0.001, 0.01, 0.1),
    "center": one_of(True, False),
    "scale": one_of(True, False),
    "beta_initializer": initializer(1),
    "gamma_initializer": initializer(1),
    "beta_regularizer": regularizer,
    "gamma_regularizer": regularizer,
}
RECURRENT: Arguments = {
    "units": size(33),
    "activation": activation,
    **KERNEL,
    **BIAS,
    "recurrent_initializer": initializer(2),
    "recurrent_regularizer": regularizer,
    "dropout": one_of(0.0, 0.3),
    "recurrent_dropout": one_of(0.0, 0.3),
    "seed": integer(0, 9),
    "return_sequences": one_of(True, False),
    "return_state": one_of(False, False, True),
    "go_backwards": one_of(True, False),
    "unroll": one_of(True, False),
    "zero_output_for_mask": one_of(True, False),
}


def _recurrent(**more: Draw) -> Entry:
    return Entry({**RECURRENT, **more}, ("units",), (2,), fit_recurrent)


LAYERS: dict[str, Entry] = {
    "InputLayer": Entry(
        {
            "shape": lambda choices, place: place.shape,
            "batch_size": integer(1, 9),
            "dtype": one_of("float32", "float64"),
        },
        ("shape",),
        (),
    ),
    "Dense": Entry({"units": size(129), "activation": activation, **KERNEL, **BIAS}, ("units",)),
    "Activation": Entry({"activation": activation}, ("activation",)),
    "Dropout": Entry({"rate": one_of(0.0, 0.1, 0.5, 0.9, 1.0), "seed": integer(0, 9)}, ("rate",)),
    "Conv2D": Entry(
        {
            "filters": size(33),
            **CONVOLUTION,
            "groups": divisor_of_channels,
            "kernel_initializer": initializer(4),
            "kernel_regularizer": regularizer,
        },
        ("filters", "kernel_size"),
        (3,),
        fit_convolution,
    ),
    "DepthwiseConv2D": Entry(
        {
            **CONVOLUTION,
            "depth_multiplier": integer(1, 3),
            "depthwise_initializer": initializer(4),
            "depthwise_regularizer": regularizer,
        },
        ("kernel_size",),
        (3,),
        fit_convolution,
    ),
    "MaxPooling2D": Entry(POOLING, (), (3,), fit_pooling),
    "AveragePooling2D": Entry(POOLING, ("pool_size",), (3,), fit_pooling),  # Keras has no default
    "GlobalAveragePooling1D": Entry({"keepdims": one_of(True, False)}, (), (2,)),
    "GlobalAveragePooling2D": Entry({"keepdims": one_of(True, False)}, (), (3,)),
    "GlobalMaxPooling1D": Entry({"keepdims": one_of(True, False)}, (), (2,)),
    "GlobalMaxPooling2D": Entry({"keepdims": one_of(True, False)}, (), (3,)),
    "Flatten": Entry(),
    "Reshape": Entry({"target_shape": other_shape}, ("target_shape",)),
    "ZeroPadding2D": Entry({"padding": sides}, (), (3,)),
    "Add": Entry(),
    "Subtract": Entry(),
    "Multiply": Entry(),
    "Average": Entry(),
    "Maximum": Entry(),
    "Minimum": Entry(),
    "Concatenate": Entry({"axis": axis}),
    "Masking": Entry({"mask_value": one_of(0.0, 0.5, -1.0)}, (), (2,)),
    "Embedding": Entry(
        {
            "input_dim": embedding_rows,
            "output_dim": size(33),
            "embeddings_initializer": initializer(2),
            "embeddings_regularizer": regularizer,
            "mask_zero": one_of(True, False),
            "weights": embedding_values,
        },
        ("input_dim", "output_dim"),
        (),
        fit_embedding,
    ),
    "BatchNormalization": Entry(
        {
            "axis": axis,
            "momentum": between(0.5, 0.99),
            **SCALE_AND_CENTER,
            "moving_mean_initializer": initializer(1),
            "moving_variance_initializer": variance_initializer,
        }
    ),
    "LayerNormalization": Entry({"axis": axes, **SCALE_AND_CENTER}),
    "LSTM": _recurrent(recurrent_activation=activation, unit_forget_bias=one_of(True, False)),
    "GRU": _recurrent(recurrent_activation=activation, reset_after=one_of(True, False)),
    "SimpleRNN": _recurrent(),
    "MultiHeadAttention": Entry(
        {
            "num_heads": integer(1, 4),
            "key_dim": size(17),
            "value_dim": size(17),
            "dropout": one_of(0.0, 0.3),
            "output_shape": size(33),
            "sliding_window": integer(1, 5),
            "kernel_initializer": initializer(3),
            "kernel_regularizer": regularizer,
            **BIAS,
            "use_gate": one_of(True, False),
            "seed": integer(0, 9),
        },
        ("num_heads", "key_dim"),
        (2,),
    ),
}

SEED: Arguments = {"seed": integer(0, 9)}
SPREAD: Arguments = {"mean": between(-0.3, 0.3), "stddev": between(0.05, 0.5), **SEED}
INITIALIZERS: dict[str, Entry] = {
    "Zeros": Entry(),
    "Ones": Entry(),
    "Constant": Entry({"value": between(-0.5, 0.5)}),
    "Identity": Entry({"gain": between(0.5, 1.5)}),
    "RandomNormal": Entry(SPREAD),
    "TruncatedNormal": Entry(SPREAD),
    "RandomUniform": Entry({"minval": between(-0.5, 0.0), "maxval": between(0.1, 0.5), **SEED}),
    "Orthogonal": Entry({"gain": between(0.5, 1.5), **SEED}),
    "VarianceScaling": Entry(
        {
            "scale": between(0.5, 2),
            "mode": one_of("fan_in", "fan_out", "fan_avg"),
            "distribution": one_of("truncated_normal", "untruncated_normal", "uniform"),
            **SEED,
        }
    ),
    **{
        name: Entry(SEED)
        for name in ("GlorotUniform", "GlorotNormal", "HeUniform", "HeNormal", "LecunUniform", "LecunNormal")
    },
}

REGULARIZERS: dict[str, Entry] = {
    "L1": Entry({"l1": between(0.001, 0.02)}),
    "L2": Entry({"l2": between(0.001, 0.05)}),
    "L1L2": Entry({"l1": between(0.001, 0.02), "l2": between(0.001, 0.05)}),
}

ACTIVATION_OPTIONS: Arguments = {
    "negative_slope": between(0.01, 0.5),
    "alpha": between(0.5, 2),
    "axis": one_of(-1),  # at the last axis: what depends on other samples of the batch is drawn for none
}
ACTIVATIONS: dict[str, Entry] = {
    name: drawn_from(function.options, ACTIVATION_OPTIONS)
    for name, function in lpt.activations.registry.entries.items()
}

LOSS: Arguments = {
    "name": one_of("how_wrong"),
    "from_logits": one_of(True, False),
    "label_smoothing": between(0, 0.3),
    "reduction": one_of("sum_over_batch_size", "mean", "sum", "mean_with_sample_weight"),
}
# What Keras has arguments for, and this package one value.
ONLY_DEFAULT = ("axis", "ignore_class")
LOSSES: dict[str, Entry] = {
    name: drawn_from(constructor_arguments(cls, without=ONLY_DEFAULT), LOSS)
    for name, cls in lpt.losses.registry.entries.items()
}

METRIC: Arguments = {
    "from_logits": one_of(True, False),
    "name": one_of("measured"),
    "label_smoothing": between(0, 0.3),
    "threshold": between(0.2, 0.8),
}
# A mean of plain numbers, which no model gives.
NO_METRIC_OF_MODELS = frozenset({"Mean"})
METRICS: dict[str, Entry] = {
    name: drawn_from(constructor_arguments(cls, without=ONLY_DEFAULT), METRIC)
    for name, cls in lpt.metrics.registry.entries.items()
    if name not in NO_METRIC_OF_MODELS
}

OPTIMIZER: Arguments = {
    "learning_rate": learning_rate,
    "weight_decay": one_of(0.01, 0.1),
    "clipnorm": between(0.05, 2),
    "clipvalue": between(0.01, 1),
    "global_clipnorm": between(0.05, 2),
    "name": one_of("teacher"),
    "beta_1": between(0.5, 0.95),
    "beta_2": between(0.8, 0.999),
    "rho": between(0.5, 0.95),
    "momentum": between(0, 0.9),
    "epsilon": one_of(1e-7, 1e-5, 1e-3),
}
OPTIMIZERS: dict[str, Entry] = {
    name: drawn_from(constructor_arguments(cls), {**OPTIMIZER, **more}, fit_clipping)
    for name, cls in lpt.optimizers.registry.entries.items()
    for more in [{"momentum": between(0, 0.95)} if name == "SGD" else {}]
}

DECAY: Arguments = {
    "initial_learning_rate": between(0.001, 0.05),
    "decay_steps": integer(1, 5),
    "decay_rate": between(0.3, 1),
    "staircase": one_of(True, False),
}
SCHEDULES: dict[str, Entry] = {
    "ExponentialDecay": Entry(DECAY, ("initial_learning_rate", "decay_steps", "decay_rate")),
    "InverseTimeDecay": Entry(DECAY, ("initial_learning_rate", "decay_steps", "decay_rate")),
    "PiecewiseConstantDecay": Entry(
        {"boundaries": one_of([0], [1], [0, 1], [1, 3]), "values": one_of(())},
        ("boundaries", "values"),
        (),
        fit_schedule,
    ),
    "PolynomialDecay": Entry(
        {
            "initial_learning_rate": between(0.001, 0.05),
            "decay_steps": integer(1, 5),
            "end_learning_rate": between(0.0001, 0.01),
            "power": between(0.5, 2),
            "cycle": one_of(True, False),
        },
        ("initial_learning_rate", "decay_steps"),
    ),
    "CosineDecay": Entry(
        {
            "initial_learning_rate": between(0.001, 0.05),
            "decay_steps": integer(1, 5),
            "alpha": between(0, 0.5),
            "warmup_target": between(0.01, 0.05),
            "warmup_steps": integer(0, 2),
        },
        ("initial_learning_rate", "decay_steps"),
    ),
}

TABLES: dict[str, dict[str, Entry]] = {
    "layers": {
        kind: Entry({**EVERY_LAYER, **entry.arguments}, entry.required, entry.ranks, entry.fit)
        for kind, entry in LAYERS.items()
    },
    "initializers": INITIALIZERS,
    "regularizers": REGULARIZERS,
    "losses": LOSSES,
    "metrics": METRICS,
    "optimizers": OPTIMIZERS,
    "optimizers.schedules": SCHEDULES,
}


def registry_of(where: str) -> Any:
    """The registry of a family: `registry_of("optimizers.schedules")`."""
    return attrgetter(where)(lpt).registry


def draw_layer(choices: Choices, kind: str, place: Place, **fixed: Any) -> Call:
    """A layer for an input, with these arguments and others that fit."""
    return draw_object(choices, "layers", kind, place, **fixed)


def draw_object(choices: Choices, where: str, kind: str, place: Place | None = None, **fixed: Any) -> Call:
    """An object of a registered class, with these arguments and others that fit."""
    place = place or Place()
    entry = TABLES[where][kind]
    arguments = {**_drawn(choices, entry, place), **fixed}
    entry.fit(arguments, place)
    return Call(f"{where}.{kind}", arguments)


def an_option_each(where: str, kind: str, place: Place | None = None, without: Sequence[str] = ()) -> list[Call]:
    """One object for each argument that it need not have, with another value than the default."""
    place, entry, choices = place or Place(), TABLES[where][kind], SeededChoices(3)
    defaults = constructor_arguments(registry_of(where).entries[kind])
    needed = {name: entry.arguments[name](choices, place) for name in entry.required}
    calls = []
    for name in [n for n in entry.arguments if n not in (*needed, *without)]:
        values = (entry.arguments[name](choices, place) for _ in range(20))
        arguments = {**needed, name: next((v for v in values if v != defaults[name]), defaults[name])}
        entry.fit(arguments, place)
        calls.append(Call(f"{where}.{kind}", arguments))
    return calls


def all_options(where: str, kind: str, place: Place | None = None, without: Sequence[str] = ()) -> list[Call]:
    """One object with no more than it must have, and one with all options that go together."""
    place, entry = place or Place(), TABLES[where][kind]
    needed = {name: entry.arguments[name](SeededChoices(3), place) for name in entry.required}
    together = dict(needed)
    for call in an_option_each(where, kind, place, without):
        together |= call.arguments
    calls = [needed, together] if together != needed else [needed]
    for arguments in calls:
        entry.fit(arguments, place)
    return [Call(f"{where}.{kind}", arguments) for arguments in calls]


def _drawn(choices: Choices, entry: Entry, place: Place) -> dict[str, Any]:
    def chosen(name: str) -> bool:
        percent = OFTEN_GIVEN if name in OFTEN else GIVEN
        return name in entry.required or choices.integer(0, 99) >= 100 - percent

    given: Sequence[str] = [name for name in entry.arguments if chosen(name)]
    return {name: entry.arguments[name](choices, place) for name in given}
