"""Run checks over random models; what fails is cut down to the few lines that matter.

`python -m tests.model_search --count 1000 --start 0 --jobs 2 --log models.log` goes on where the log ends.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.levels import RUNNABLE
from tests.model_arguments import ACTIVATIONS, NESTED, TABLES, Call, Text
from tests.model_check import Extent, Session, check, quiet
from tests.model_reference import Difference, Rejected
from tests.model_text import VALUE, ModelOutput, RandomModel, Step
from tests.random_models import random_model

# Another model of a seed whose first one says nothing.
ATTEMPT = 1_000_000
ATTEMPTS = 8


@dataclass(frozen=True)
class Failure:
    """A model that failed, where and how."""

    model: RandomModel
    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}\n\n{self.model}"


def extent_of(seed: int) -> Extent:
    """What is asked of a seed's model beside the rest: what costs much is asked of some."""
    lower = RUNNABLE[1:]
    return Extent(
        peer=seed % 5 == 0,
        level=lower[seed // 3 % len(lower)] if lower and seed % 3 == 1 else None,
        export=seed % 10 == 3,
        evaluate=seed % 4 == 0,
    )


def check_seed(seed: int, most_steps: int = 6) -> RandomModel:
    """Draw the seed's model and check it; AssertionError with the smallest program found that fails alike."""
    extent = extent_of(seed)
    for attempt in range(ATTEMPTS):
        model = random_model(seed + attempt * ATTEMPT, most_steps)
        try:
            failure = failure_of(model, extent)
        except Rejected:
            continue
        if failure is not None:
            raise AssertionError(str(minimized(failure, lambda smaller: failure_of(smaller, extent))))
        return model
    raise AssertionError(f"seed {seed}: no model of {ATTEMPTS} has numbers that say something")


def failure_of(model: RandomModel, extent: Extent) -> Failure | None:
    """What is wrong with a model, if anything is; Rejected if it says nothing."""
    try:
        with quiet():
            Session.of(model)
    except Exception as error:
        return Failure(model, f"building: {type(error).__name__}", str(error))
    try:
        check(model, extent)
    except Rejected:
        raise
    except Difference as error:
        return Failure(model, error.stage, str(error))
    except Exception as error:
        return Failure(model, f"running: {type(error).__name__}", str(error))
    return None


# Shrinking


def minimized(failure: Failure, fails: Callable[[RandomModel], Failure | None], seconds: float = 90) -> Failure:
    """The smallest model found, in so many seconds, that fails at the same place."""
    end = time.monotonic() + seconds
    while True:
        for model in _smaller(failure.model):
            if time.monotonic() > end:
                return failure
            try:
                found = fails(model)
            except Rejected:
                continue
            if found is not None and found.where == failure.where:
                failure = found
                break
        else:
            return failure


def _smaller(model: RandomModel) -> Iterator[RandomModel]:
    """Models with something less, what takes most away first."""
    for output in model.outputs if len(model.outputs) > 1 else ():
        yield _trimmed(replace(model, outputs=(output,)))
    for i in reversed(range(len(model.steps))):
        yield from _without_step(model, i)
    if not model.chain:
        yield from (_trimmed(replace(model, outputs=(ModelOutput(s.inputs[0], *_PLAIN),))) for s in model.steps)
    yield from _with_plain_training(model)
    for i, step in enumerate(model.steps):
        if isinstance(step.layer, Call):
            for layer in _simpler(step.layer):
                yield _with_step(model, i, replace(step, layer=layer))
        for name in step.options:
            yield _with_step(model, i, replace(step, options={k: v for k, v in step.options.items() if k != name}))
    for i, x in enumerate(model.inputs):
        for call in _simpler(x.call):
            yield replace(model, inputs=(*model.inputs[:i], replace(x, call=call), *model.inputs[i + 1 :]))


_PLAIN = (Call("losses.MeanSquaredError"), 1.0, (), (), "rng.normal(0, 1, (n, *shape))")


def _with_step(model: RandomModel, i: int, step: Step) -> RandomModel:
    return replace(model, steps=(*model.steps[:i], step, *model.steps[i + 1 :]))


def _without_step(model: RandomModel, i: int) -> Iterator[RandomModel]:
    """The model with one of the step's operands in place of its result."""
    for operand in dict.fromkeys(model.steps[i].inputs):
        steps = tuple(_renamed(s, i, operand) for j, s in enumerate(model.steps) if j != i)
        outputs = tuple(replace(o, value=_reference(o.value, i, operand)) for o in model.outputs)
        shared = any(s.layer == i for s in model.steps)
        if steps and not shared:
            yield _trimmed(replace(model, steps=steps, outputs=outputs))


def _renamed(step: Step, i: int, operand: str) -> Step:
    layer = step.layer - 1 if isinstance(step.layer, int) and step.layer > i else step.layer
    inputs = tuple(_reference(v, i, operand) for v in step.inputs)
    options = {k: Text(_reference(v, i, operand)) if isinstance(v, Text) else v for k, v in step.options.items()}
    return Step(layer, inputs, options)


def _reference(text: str, i: int, operand: str) -> str:
    """The names of values where step i is gone, and `operand` stands for what it made."""

    def renamed(found: re.Match[str]) -> str:
        value = found[0]
        if value.startswith("x"):
            return value
        number, _, rest = value[1:].partition("[")
        if int(number) == i:
            return operand
        return f"v{int(number) - (int(number) > i)}" + (f"[{rest}" if rest else "")

    return VALUE.sub(renamed, text)


def _trimmed(model: RandomModel) -> RandomModel:
    """The model without steps and inputs that no output needs."""
    if model.chain:
        return model
    needed = {o.value.partition("[")[0] for o in model.outputs}
    for i in reversed(range(len(model.steps))):
        step = model.steps[i]
        if f"v{i}" in needed or any(s.layer == i and f"v{j}" in needed for j, s in enumerate(model.steps)):
            needed |= {v.partition("[")[0] for v in step.reads()} | {f"v{i}"}
    unused = next((i for i in range(len(model.steps)) if f"v{i}" not in needed), None)
    if unused is not None and len(model.steps) > 1:
        steps = tuple(_renamed(s, unused, "") for j, s in enumerate(model.steps) if j != unused)
        outputs = tuple(replace(o, value=_reference(o.value, unused, "")) for o in model.outputs)
        return _trimmed(replace(model, steps=steps, outputs=outputs))
    inputs = tuple(x for x in model.inputs if x.name in needed)
    return replace(model, inputs=inputs or model.inputs)


def _with_plain_training(model: RandomModel) -> Iterator[RandomModel]:
    if model.weighted:
        yield replace(model, weighted=False)
    for optimizer in (Call("optimizers.SGD"), *_simpler(model.optimizer)):
        if optimizer != model.optimizer:
            yield replace(model, optimizer=optimizer)
    for i, output in enumerate(model.outputs):
        plain = replace(output, metrics=(), weighted_metrics=(), weight=1.0)
        for simpler in (ModelOutput(output.value, *_PLAIN), plain):
            if simpler != output:
                yield replace(model, outputs=(*model.outputs[:i], simpler, *model.outputs[i + 1 :]))
    for rows in ((1, 1, 1), tuple(min(n, 2) for n in model.rows), tuple(-(-n // 2) for n in model.rows)):
        if sum(rows) < sum(model.rows):
            yield replace(model, rows=rows)


def _simpler(call: Call) -> Iterator[Call]:
    """The call with an argument less, or a smaller size in one; a Sequential's layers alone."""
    if call.kind == "Sequential":
        yield from (layer for layer in call.arguments["layers"])
    for name, value in call.arguments.items():
        yield Call(call.path, {k: v for k, v in call.arguments.items() if k != name})
        for smaller in _smaller_values(value):
            yield Call(call.path, {**call.arguments, name: smaller})


def _smaller_values(value: Any) -> list[Any]:
    if isinstance(value, int) and not isinstance(value, bool):
        return sorted({1, 2, value // 2, value - 1} - {0} & set(range(1, value))) if value > 1 else []
    if isinstance(value, tuple):
        return [(*value[:i], s, *value[i + 1 :]) for i, v in enumerate(value) for s in _smaller_values(v)]
    return []


# Long runs


def coverage(models: list[RandomModel]) -> dict[str, int]:
    """How many of the models have each registered name in them."""
    names = {f"{where}.{kind}" for where, table in TABLES.items() for kind in table}
    counts = Counter(name for model in models for name in model.registered())
    return {name: counts[name] for name in sorted(names | NESTED | {f"activations.{name}" for name in ACTIVATIONS})}


def print_coverage(counts: dict[str, int]) -> str:
    return " ".join(f"{name.rpartition('.')[2]}:{count}" for name, count in counts.items())


def _run(seed: int) -> tuple[int, str, str]:
    """A seed's line in the log, and what is to be told beside it."""
    try:
        model = check_seed(seed)
    except AssertionError as error:
        text = str(error)
        return seed, f"{seed} DIFFERS {text.splitlines()[0]}", text
    return seed, f"{seed} right as {model.seed}", ""


def _start_worker() -> None:
    os.environ["LEPTON_JIT_CACHE"] = tempfile.mkdtemp(prefix="lepton-models-")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--log", type=Path, required=True)
    given = parser.parse_args()
    done = given.log.read_text().splitlines() if given.log.exists() else []
    lines = {int(line.split()[0]): line for line in done if line.split()[:1] and line.split()[0].isdigit()}
    wanted = range(given.start, given.start + given.count)
    left = [seed for seed in wanted if seed not in lines]
    pool = multiprocessing.get_context("spawn").Pool(given.jobs, _start_worker, maxtasksperchild=50)
    with pool, given.log.open("a", buffering=1) as log:
        for seed, line, text in pool.imap_unordered(_run, left):
            lines[seed] = line
            log.write(line + "\n")
            if text:
                print(text, flush=True)
                log.writelines(f"    {part}\n" for part in text.splitlines())
    mine = [lines[seed] for seed in wanted]
    different = [line for line in mine if " right " not in line]
    models = [random_model(int(line.split()[-1])) for line in mine if " right " in line]
    print(print_coverage(counts := coverage(models)))
    missing = [name for name, count in counts.items() if not count]
    print(f"{len(mine)} models, {len(different)} differ: {[line.split()[0] for line in different]}; never: {missing}")


if __name__ == "__main__":
    main()
