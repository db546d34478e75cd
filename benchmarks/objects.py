"""Whether two checkouts compile everything to the same objects: the net below a refactoring.

`python -m benchmarks.objects --against ../before` compiles benchmark models, golden graphs and a small model for every
registered layer, loss, metric and optimizer in both checkouts, for every target, and names what differs. What is
compared is each object file of `prepare` and `main` with the names of symbols masked, and their manifests (arguments,
steps, buffers, errors) with names masked. Nothing is linked or run, so any machine compiles for all targets.

This file runs against older and newer checkouts as well: it imports the package, its tests and its benchmarks from the
checkout that it looks at, reaches graphs through the public methods of a model, and finds the few internal functions
that it needs by the line that defines them, in whatever module that is.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import re
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import llvmlite
import numpy as np

import lepton_jit as lpt

__all__ = ["Question", "compiled", "differences", "main", "masked_objects", "questions"]

CHECKOUT = Path(lpt.__file__).resolve().parent.parent
TARGETS = ("x86-64-v3", "x86-64-v4", "aarch64")
EXAMPLES = """\
examples:
  python -m benchmarks.objects --against ../before          both checkouts, side by side; 1 if something differs
  python -m benchmarks.objects --out before.json            one checkout, to be compared later
  python -m benchmarks.objects --compare before.json after.json
  python -m benchmarks.objects --against ../before --only 'lstm training' --texts build/texts
                                                            what to diff: every stage of what is called so
"""

Record = dict[str, Any]
Graph = Any


# Where things are in a checkout


def definition(start: str) -> Any:
    """The function whose definition begins like this, in whichever module of the package it stands."""
    package = CHECKOUT / "lepton_jit"
    pattern = re.compile(rf"^def {re.escape(start)}", re.MULTILINE)
    found = [path for path in sorted(package.rglob("*.py")) if pattern.search(path.read_text(encoding="utf-8"))]
    if len(found) != 1:
        sys.exit(f"objects: expected one 'def {start}' in {package}, got {[str(path) for path in found]}")
    module = ".".join(found[0].relative_to(CHECKOUT).with_suffix("").parts).removesuffix(".__init__")
    return getattr(importlib.import_module(module), start.partition("(")[0])


@dataclass(frozen=True)
class Program:
    """`prepare` or `main`: its objects, its manifest as JSON, and its LLVM IR."""

    objects: tuple[bytes, ...]
    manifest: str
    text: str


def compile_graph(graph: Graph, target_name: str, typical_batch: int | None) -> tuple[dict[str, Program], Mapping]:
    """Both programs of a graph, and the graphs of all stages by name."""
    target = definition("get_target(")(target_name)
    describe = definition("describe(lowered")
    stages, *made = definition("optimize_for_reading(")(graph, target, typical_batch)
    programs = {
        name: Program(tuple(g.objects()), describe(g.lowered, target).to_json(), g.llvm)
        for name, g in zip(("prepare", "main"), made, strict=True)
    }
    return programs, stages.graphs


class _CaughtError(Exception):
    """The package is about to compile this graph."""

    def __init__(self, graph: Graph, typical_batch: int | None) -> None:
        super().__init__("caught")
        self.graph = graph
        self.typical_batch = typical_batch


def caught(call: Callable[[], Any]) -> tuple[Graph, int | None]:
    """The graph that a call would compile, and its typical batch."""
    build = definition("build(")

    def catch(graph: Graph, *, typical_batch: int | None = None, **_: Any) -> None:
        raise _CaughtError(graph, typical_batch)

    # Wherever the function has been imported to.
    modules = [m for name, m in list(sys.modules.items()) if name.startswith("lepton_jit")]
    homes = [m for m in modules if vars(m).get("build") is build]
    for module in homes:
        module.build = catch  # type: ignore[attr-defined]
    try:
        call()
    except _CaughtError as found:
        return found.graph, found.typical_batch
    finally:
        for module in homes:
            module.build = build  # type: ignore[attr-defined]
    raise AssertionError("the call compiled nothing")


# What is compiled


@dataclass(frozen=True)
class Question:
    """A graph to compile, by a name that stays.

    `large` ones are left out of a quick run, and so are `further` ones of a kind, which are compiled for one target.
    """

    key: str
    make: Callable[[], tuple[Graph, int | None]]
    large: bool = False
    further: bool = False

    def targets(self, *, quick: bool) -> tuple[str, ...]:
        """For which it is compiled: all; one of them by turns if it is a further one, or in a quick run."""
        if quick and (self.large or self.further):
            return ()
        return (TARGETS[zlib.crc32(self.key.encode()) % len(TARGETS)],) if quick or self.further else TARGETS


def questions() -> Iterator[Question]:
    """Everything that is compiled, in an order that does not matter."""
    yield from _benchmark_models()
    yield from _golden_graphs()
    yield from _layers()
    yield from _objectives()
    yield from _random_models()


LARGE = frozenset({"resnet18", "resnet50", "mobilenetv2", "encoder", "resnet18_small"})


def _benchmark_models() -> Iterator[Question]:
    from benchmarks.cases import CASES

    for name, case in CASES.items():
        yield Question(f"{name} inference", _case(case, "inference"), name in LARGE)
        yield Question(f"{name} training", _case(case, "training"), name in LARGE, further=not case.training)
        if name not in LARGE:
            yield Question(f"{name} inference of 7", _case(case, "inference", fixed=True))
            yield Question(f"{name} training of 7", _case(case, "training", fixed=True))
    # Other kernels of Winograd's, and other strips of rows.
    yield Question("resnet18 inference, typical batch 8", _case(CASES["resnet18"], "inference", typical=8), large=True)
    yield Question("mnist_cnn inference, typical batch 1", _case(CASES["mnist_cnn"], "inference", typical=1))


def _case(case: Any, mode: str, *, fixed: bool = False, typical: int | None = None) -> Callable[[], Any]:
    def make() -> tuple[Graph, int | None]:
        from benchmarks.case import Problem
        from benchmarks.peers.lepton import build_model

        problem = Problem(case, mode, 7, fixed)
        model = build_model(problem)
        if mode == "inference":
            return caught(lambda: lpt.compile(model, typical_batch=typical))
        model.compile(optimizer=lpt.optimizers.Adam(1e-3, epsilon=1e-10), loss="sparse_categorical_crossentropy")
        return caught(lambda: model.train_on_batch(problem.x, problem.labels))

    return make


def _golden_graphs() -> Iterator[Question]:
    """The graphs of all golden files, through the whole compiler, whatever pass they are about."""
    for path in sorted((CHECKOUT / "tests").rglob("golden/*")):
        for case in path.read_text(encoding="utf-8").split("// ==== ")[1:]:
            name, text = case.split("\n", 1)
            graph = text.partition("// ----\n")[0]
            yield Question(f"golden {path.stem}: {name}", partial(_parsed, graph))


def _parsed(text: str) -> tuple[Graph, int | None]:
    return lpt.parse(text), None


SHAPES = {1: (17,), 2: (6, 20), 3: (9, 10, 5)}
WORDS = 20
MODES = ("inference", "training")


def _layers() -> Iterator[Question]:
    """Every layer on inputs of every rank that it takes, with arguments drawn twice; every activation."""
    from tests.model_arguments import ACTIVATIONS, LAYERS, Call, Place, draw_layer
    from tests.random_draft import SeededChoices

    for kind, entry in LAYERS.items():
        for shape in [SHAPES[rank] for rank in entry.ranks] or [(7,)]:
            for seed in range(2):
                call = draw_layer(SeededChoices(seed), kind, Place(shape, WORDS))
                build = partial(_one_layer, call, shape)
                yield from _of_model(f"{kind} {shape} {seed}", build, MODES, further=seed > 0)
    for name in ACTIVATIONS:
        build = partial(_one_layer, Call("layers.Activation", {"activation": name}), SHAPES[1])
        yield from _of_model(f"activation {name}", build, MODES)
    yield from _of_model("model in a model", lambda: _dense(lpt.Sequential([lpt.Dense(3, input_shape=(17,))])), MODES)


def _one_layer(call: Any, shape: tuple[int, ...]) -> Any:
    x = lpt.Input(shape, dtype="int32" if call.kind == "Embedding" else "float32")
    if call.kind == "InputLayer":
        x = lpt.Input(**call.arguments)
        return lpt.Model(x, lpt.Dense(3)(x))
    layer = _evaluated(call)
    if call.kind == "MultiHeadAttention":
        return lpt.Model(x, layer(x, x))
    if call.kind in ("Add", "Average", "Concatenate", "Maximum", "Minimum", "Multiply", "Subtract"):
        other = lpt.Input(shape)
        return lpt.Model([x, other], layer([x, other]))
    return lpt.Model(x, layer(x))


def _evaluated(call: Any) -> Any:
    return eval(repr(call), {"lpt": lpt, "np": np})


def _dense(*layers: Any, activation: str | None = None) -> Any:
    return lpt.Sequential([lpt.Input((17,)), *layers, lpt.Dense(5, activation=activation)])


def _of_model(
    key: str, build: Callable[[], Any], modes: Sequence[str], *, further: bool = False, **compile_with: Any
) -> Iterator[Question]:
    """Programs of a small model, trained on zeros by the mean squared error unless something else is given."""
    wanted = {"optimizer": "sgd", "loss": "mse", **compile_with}
    classes = -1 if "sparse" in repr(wanted["loss"]).lower() else None

    def make(mode: str) -> tuple[Graph, int | None]:
        model = build()
        model.compile(**{k: v if isinstance(v, str) else _evaluated(v) for k, v in wanted.items()})
        rows = model.inputs[0].shape[0] or 2
        x = _single([np.zeros((rows, *i.shape[1:]), i.dtype) for i in model.inputs])
        y = _single([np.zeros((rows, *o.shape[1:classes])) for o in model.outputs])
        calls = {
            "inference": lambda: lpt.compile(model),
            "forward": lambda: model(x, training=True),
            "training": lambda: model.train_on_batch(x, y),
            "weighted training": lambda: model.train_on_batch(x, y, sample_weight=np.ones(rows)),
            "test": lambda: model.test_on_batch(x, y),
        }
        return caught(calls[mode])

    for mode in modes:
        yield Question(f"{key} {mode}", partial(make, mode), further=further)


def _single(values: list[np.ndarray]) -> Any:
    return values if len(values) > 1 else values[0]


def _objectives() -> Iterator[Question]:
    """Every loss, metric, optimizer and regularizer, with arguments drawn a few times."""
    from tests.model_arguments import LOSSES, METRICS, OPTIMIZERS, REGULARIZERS, Call, draw_object
    from tests.random_draft import SeededChoices

    def drawn(where: str, table: Mapping[str, Any], count: int) -> Iterator[tuple[str, Any, bool]]:
        for kind in table:
            for seed in range(count):
                yield f"{where} {kind} {seed}", draw_object(SeededChoices(seed), where, kind), seed > 0

    for key, call, further in drawn("losses", LOSSES, 3):
        head = "linear" if call.arguments.get("from_logits") else "softmax"
        modes = ("training", "weighted training", "test")
        yield from _of_model(key, partial(_dense, activation=head), modes, further=further, loss=call)
    for key, call, further in drawn("metrics", METRICS, 2):
        loss = "sparse_categorical_crossentropy" if call.kind.startswith("Sparse") else "mse"
        modes = ("weighted training", "test")
        build = partial(_dense, activation="softmax")
        yield from _of_model(key, build, modes, further=further, loss=loss, weighted_metrics=[call])
    for key, call, further in drawn("optimizers", OPTIMIZERS, 4):
        yield from _of_model(key, _dense, ("training",), further=further, optimizer=call)
    for key, call, _ in drawn("regularizers", REGULARIZERS, 1):
        build = partial(_one_layer, Call("layers.Dense", {"units": 3, "kernel_regularizer": call}), SHAPES[1])
        yield from _of_model(key, build, ("training",))
    yield from _of_model("dropout", lambda: _dense(lpt.Dropout(0.3)), ("forward",))


def _random_models() -> Iterator[Question]:
    """Whole models as users write them: branches, masks, shared layers, several inputs and outputs."""
    from tests.random_models import random_model

    def make(seed: int) -> tuple[Graph, int | None]:
        drawn, scope = random_model(seed), {"lpt": lpt, "np": np}
        definition("reset_names(")()  # what was drawn and not taken has used some
        exec("\n".join((drawn.model_text(), drawn.data_text(), drawn.compile_text())), scope)
        return caught(lambda: scope["model"].train_on_batch(**scope["batch"](drawn.rows[0])))

    for seed in range(12):
        yield Question(f"random model {seed}", partial(make, seed), further=True)


# What is kept of a program


_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMBOL_TABLE, _STRINGS, _NO_BITS = 2, 3, 8


@dataclass(frozen=True)
class _Section:
    name: str
    header: tuple[int, ...]
    content: bytes


def _sections(code: bytes) -> list[_Section]:
    """The sections of an ELF object of 64 bits."""
    header = _HEADER.unpack_from(code)
    assert header[0][:6] == b"\x7fELF\x02\x01", "objects: expected ELF objects of 64 bits, little-endian"
    start, count, names = header[6], header[12], header[13]
    raw = [_SECTION.unpack_from(code, start + i * _SECTION.size) for i in range(count)]
    contents = [b"" if h[1] == _NO_BITS else code[h[4] : h[4] + h[5]] for h in raw]
    return [_Section(_name(contents[names], h[0]), h, c) for h, c in zip(raw, contents, strict=True)]


def _name(strings: bytes, start: int) -> str:
    return strings[start : strings.index(b"\0", start)].decode()


def _symbols(sections: Sequence[_Section]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The name of each symbol, and the rest of its entry: kind, visibility, section, value, size."""
    for section in sections:
        if section.header[1] == _SYMBOL_TABLE:
            strings = sections[section.header[6]].content
            for name, *rest in _SYMBOL.iter_unpack(section.content):
                yield _name(strings, name), tuple(rest)


def masked_objects(objects: Sequence[bytes]) -> list[str]:
    """A fingerprint of each object file of a program, that its symbols' names have no part in.

    A symbol is its place in the table of symbols; one that another file of the program defines is that file's and its
    place there. Names of what the runtime or libc define stay.
    """
    files = [_sections(code) for code in objects]
    places = {
        name: f"{file}.{place}"
        for file, sections in enumerate(files)
        for place, (name, (kind, _, section, *_)) in enumerate(_symbols(sections))
        if section and kind >> 4  # defined, and not local
    }
    found = []
    for code, sections in zip(objects, files, strict=True):
        machine = _HEADER.unpack_from(code)[1:8]
        digest = hashlib.sha256(repr((machine[:3], machine[-1])).encode())
        for section in sections:
            _, kind, flags, address, _, size, link, info, align, entry = section.header
            if kind == _STRINGS:
                continue
            digest.update(repr((section.name, kind, flags, address, size, link, info, align, entry)).encode())
            digest.update(b"" if kind == _SYMBOL_TABLE else section.content)
        for name, rest in _symbols(sections):
            defined = rest[2] != 0
            digest.update(repr(("" if defined else places.get(name, name), rest)).encode())
        found.append(digest.hexdigest())
    return found


# Fields of a manifest that are names, of symbols, layers, arguments and buffers.
NAMES = frozenset({"name", "prefix", "layer", "checked"})


def masked_manifest(text: str) -> str:
    """A fingerprint of a manifest in which each name is the number of its first appearance."""
    numbers: dict[str, int] = {}

    def masked(value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {k: masked(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [masked(v) for v in value]
        return numbers.setdefault(value, len(numbers)) if key in NAMES else value

    return _sha(json.dumps(masked(json.loads(text)), sort_keys=True))


_LLVM_NAME = re.compile(r'[@%]"(?!llvm\.|lpt_)[^"]*"|^; ModuleID.*', re.MULTILINE)


def masked_text(text: str) -> str:
    """A fingerprint of LLVM IR, likewise."""
    numbers: dict[str, str] = {}
    return _sha(_LLVM_NAME.sub(lambda m: numbers.setdefault(m[0], f"{m[0][0]}{len(numbers)}"), text))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def record(programs: Mapping[str, Program]) -> Record:
    """What is compared of a graph's programs. The text says no more than the objects, and may tell why they differ."""
    found: Record = {}
    for name, program in programs.items():
        found[f"{name} objects"] = masked_objects(program.objects)
        found[f"{name} manifest"] = masked_manifest(program.manifest)
        found[f"{name} text"] = masked_text(program.text)
    return found


def compiled(*, quick: bool = False, only: str = "", texts: Path | None = None) -> dict[str, Record]:
    """The record of every program. A quick run compiles each small graph for one target, by turns."""
    records: dict[str, Record] = {}
    support = definition("support_object(")
    for target in TARGETS:
        code = support(definition("get_target(")(target))
        records[f"runtime | {target}"] = {"objects": masked_objects([code])}
    for question in questions():
        keys = {f"{question.key} | {target}": target for target in question.targets(quick=quick)}
        keys = {key: target for key, target in keys.items() if only in key}
        if not keys:
            continue
        definition("reset_names(")()
        lpt.set_random_seed(0)
        graph, typical_batch = question.make()
        for key, target in keys.items():
            programs, stages = compile_graph(graph, target, typical_batch)
            records[key] = record(programs)
            if texts is not None:
                _write_texts(texts / re.sub(r"\W+", "-", key), programs, stages)
    return records


def _write_texts(directory: Path, programs: Mapping[str, Program], stages: Mapping[str, Graph]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, (name, graph) in enumerate(stages.items()):
        (directory / f"{number:02d}-{name}.ir").write_text(str(graph), encoding="utf-8")
    for name, program in programs.items():
        (directory / f"{name}.ll").write_text(program.text, encoding="utf-8")
        manifest = json.dumps(json.loads(program.manifest), indent=1)
        (directory / f"{name}.json").write_text(manifest + "\n", encoding="utf-8")


# Comparing


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """What must not be, a line each, and what is worth a note."""
    if before["llvm"] != after["llvm"]:
        return [f"expected the same LLVM, got llvmlite {before['llvm']} and {after['llvm']}"], []
    old, new = before["programs"], after["programs"]
    wrong = [f"lost     {key}" for key in old if key not in new]
    notes = [f"new      {key}" for key in new if key not in old]
    for key in (key for key in old if key in new):
        changed = [name for name in {**old[key], **new[key]} if old[key].get(name) != new[key].get(name)]
        if all(name.endswith("text") for name in changed):
            notes += [f"text     {key}: {name}, and the same objects" for name in changed]
        else:
            wrong.append(f"changed  {key}: {', '.join(changed)}")
    return wrong, notes


def _report(before: Mapping[str, Any], after: Mapping[str, Any]) -> int:
    wrong, notes = differences(before, after)
    print("\n".join([*notes, *wrong]), end="\n" if notes or wrong else "")
    print(f"{len(before['programs'])} programs, {len(wrong)} that differ or are lost, {len(notes)} notes")
    return 1 if wrong else 0


def _read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _start(checkout: Path, out: Path, options: argparse.Namespace) -> subprocess.Popen[bytes]:
    """This file at work on a checkout, in a process of its own."""
    command = [sys.executable, "-P", __file__, "--out", str(out), "--only", options.only]
    command += ["--quick"] * options.quick
    if options.texts:
        command += ["--texts", str(options.texts.resolve() / out.stem)]
    return subprocess.Popen(command, cwd=checkout, env=os.environ | {"PYTHONPATH": str(checkout)})


def _against(other: Path, options: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory(prefix="lepton-objects-") as directory:
        before, after = (Path(directory) / f"{name}.json" for name in ("other", "this"))
        started = [_start(other.resolve(), before, options), _start(CHECKOUT, after, options)]
        codes = [process.wait() for process in started]
        if any(codes):
            return 2
        return _report(_read(before), _read(after))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.objects",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE", help="write what this checkout compiles")
    what.add_argument("--compare", type=Path, nargs=2, metavar=("BEFORE", "AFTER"), help="two such files")
    what.add_argument("--against", type=Path, metavar="CHECKOUT", help="compile here and there, and compare")
    parser.add_argument("--quick", action="store_true", help="small graphs, each for one of the targets")
    parser.add_argument("--only", default="", metavar="TEXT", help="what has this in its name")
    parser.add_argument("--texts", type=Path, metavar="DIR", help="write the text of every stage as well")
    options = parser.parse_args(arguments)
    if options.compare:
        return _report(*map(_read, options.compare))
    if options.against:
        return _against(options.against, options)
    os.environ["LEPTON_JIT_CACHE"] = "off"
    start = time.process_time()
    programs = compiled(quick=options.quick, only=options.only, texts=options.texts)
    content = {"llvm": llvmlite.__version__, "programs": programs}
    options.out.write_text(json.dumps(content, indent=0) + "\n", encoding="utf-8")
    seconds = time.process_time() - start
    print(f"{CHECKOUT}: {len(programs)} programs in {seconds:.0f} s of processor time", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
