"""From a traced graph to a program that runs: the stages in order, on one page."""

from __future__ import annotations

import gc
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Protocol

import numpy as np

from lepton_jit._version import __version__
from lepton_jit.codegen.generate import Generated, generate
from lepton_jit.codegen.llvm.machine_code import compile_object
from lepton_jit.codegen.program.step_printer import print_steps
from lepton_jit.codegen.target import Target, get_target
from lepton_jit.common import arguments
from lepton_jit.compiler.compile_thread import HelperThread, check_wanted, run_apart
from lepton_jit.compiler.compiled import PLANNED_BATCH, CompiledModel
from lepton_jit.compiler.describe import describe
from lepton_jit.compiler.executable import Executable, Parts
from lepton_jit.environment import Environment, read_environment
from lepton_jit.errors import ArgumentError
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.types import typical_batch as making_for
from lepton_jit.passes.base import Pass
from lepton_jit.passes.check_numerics import CheckNumerics
from lepton_jit.passes.cse import EliminateCommonSubexpressions
from lepton_jit.passes.dce import EliminateDeadCode
from lepton_jit.passes.expand_composites import ExpandComposites
from lepton_jit.passes.fold_constants import FoldConstants
from lepton_jit.passes.fuse import Fuse
from lepton_jit.passes.gradient.autodiff import Autodiff
from lepton_jit.passes.lower_contractions import LowerContractions
from lepton_jit.passes.manager import Observer, Observers, run_pipeline
from lepton_jit.passes.observers import Dump, Stages, VerifyStructure
from lepton_jit.passes.phases import SplitStridedGradients
from lepton_jit.passes.recompute import Recompute
from lepton_jit.passes.rewriting.algebra import Algebra
from lepton_jit.passes.rewriting.canonicalize import Canonicalize
from lepton_jit.passes.scans.simplify_loops import SimplifyLoops
from lepton_jit.passes.schedule_updates import ScheduleUpdates
from lepton_jit.passes.split_prepare import split_prepare
from lepton_jit.passes.winograd import Winograd
from lepton_jit.runtime import forks
from lepton_jit.runtime.cache import open_cache
from lepton_jit.runtime.linker import link
from lepton_jit.runtime.manifest import Manifest
from lepton_jit.runtime.memory import require_memory
from lepton_jit.runtime.program import Program
from lepton_jit.runtime.support_text import support_text

__all__ = ["AFTER_SPLIT", "Traceable", "build", "compile", "optimize", "pipeline", "set_winograd", "support_object"]


# A thread's turn with the interpreter while LLVM is at work on another one.
TURN_SECONDS = 0.0003


class Traceable(Protocol):
    """What can be compiled: a model, or anything else that gives a graph and the arrays of its parameters."""

    def trace(self) -> Graph: ...

    def weights_by_name(self) -> dict[str, np.ndarray]: ...


_winograd = True


def set_winograd(enabled: bool) -> None:
    """Whether programs that are compiled from now on may use Winograd's algorithm for 3 x 3 convolutions.

    It takes fewer products and rounds differently: errors up to 3e-5 of a layer's largest result instead of 1e-6.
    An infinity or a NaN in an image spoils all results of the tiles that read it, up to 8 x 8 pixels.

    >>> set_winograd(False)
    >>> set_winograd(True)
    """
    global _winograd
    _winograd = arguments.boolean("set_winograd", "enabled", enabled)


def compile(
    model: Traceable, *, threads: int | None = None, verify: str | None = None, typical_batch: int | None = None
) -> CompiledModel:
    """Compile a model for inference; native code is linked when this returns.

    The weights are a snapshot, refreshed by `update_weights`. `threads` beats `lepton_jit.set_threads`, which beats
    `LEPTON_JIT_THREADS`. `verify="passes"` runs the interpreter before and after every pass, and raises GraphError with
    the name of the pass that changed the answer.

    Where the batch may be any number, choices that depend on it are made for a `typical_batch`: ResNet-18 compiled for
    8 images takes a fifth less time for 8, and more for one. All others are computed as well. Where none is given they
    are made for 64 rows, but for Winograd's transformed kernels, which are for one.

    >>> import lepton_jit as lpt
    >>> fast = compile(lpt.Sequential([lpt.Dense(3, activation="relu", input_shape=(4,))]))
    >>> fast(np.zeros((2, 4))).shape
    (2, 3)
    """
    arguments.model("compile", model, ("trace", "weights_by_name"))
    batch = None if typical_batch is None else arguments.integer("compile", "typical_batch", typical_batch)
    executable = build(model.trace(), threads=threads, verify=verify, typical_batch=batch)
    executable.bind(model.weights_by_name())
    return CompiledModel(executable, model.weights_by_name)


def build(
    graph: Graph,
    *,
    threads: int | None = None,
    verify: str | None = None,
    target: Target | None = None,
    typical_batch: int | None = None,
) -> Executable:
    """The program of a graph, from the cache if it has been compiled before."""
    environment = read_environment()
    verify = verify or environment.verify
    if verify not in (None, "passes"):
        raise ArgumentError(f"verify: expected None or 'passes', got {verify!r}")
    make = partial(_build, graph, environment, verify, target or get_target("native"), typical_batch, threads)
    return run_apart(make)


def _build(
    graph: Graph,
    environment: Environment,
    verify: str | None,
    target: Target,
    typical_batch: int | None,
    threads: int | None,
) -> Executable:
    objects = open_cache(environment)
    passes = pipeline(target, typical_batch)  # once: another thread may call `set_winograd` meanwhile
    key = cache_key(graph, target, passes)
    watched = verify is not None or environment.dump is not None
    stored = objects.get(key) if objects and not watched else None
    parts = _unpack(stored) if stored else None
    require_memory("linking a program", address_space=40 * 2**20, data=24 * 2**20)
    if parts is None:
        with forks.compiling, _undisturbed(), making_for(typical_batch):
            parts = _compiled(graph, target, passes, verify, environment.dump)
        if objects:
            objects.put(key, _pack(parts))
    return Executable(
        graph, target, typical_batch, parts, support_object(target), threads=threads, recompile=optimize_for_reading
    )


def _compiled(graph: Graph, target: Target, passes: Sequence[Pass], verify: str | None, dump: Path | None) -> Parts:
    # Measured: 36 MB in all for two dense layers, 60 for a network whose parts have 2 MB of text. Each thread of two
    # reserves 72 MB of addresses if it can.
    require_memory("compiling", address_space=128 * 2**20, data=48 * 2**20)
    # LLVM makes what is small beside it, on another processor, while Python goes on.
    with HelperThread("lepton-jit-llvm") as beside:
        beside.submit(support_object, target)
        prepare, main = run_passes(graph, passes, _observer(verify, dump))
        # The larger one first, so that LLVM has work soon.
        generated = generate(main, target, executor=beside)
        prepared = generate(prepare, target, once=True, executor=beside)
        gc.collect(0)  # what was made meanwhile; LLVM is still busy
        parts = _parts(graph.name, prepared, generated)
    if dump is not None:
        dump_code(dump, [prepared, generated], support_object(target))
    return parts


@contextmanager
def _undisturbed() -> Iterator[None]:
    """No collections, and short turns of threads, for the one compilation that is under way.

    Python looks for cycles each time that so many objects were made; a compilation makes many, and drops few: 0.2 s of
    ResNet-50's 1.9. LLVM's thread takes the interpreter's lock between its calls, each time after the others' turn of 5
    ms: 0.2 s of 1.5.
    """
    _settings.append((gc.isenabled(), sys.getswitchinterval()))
    gc.disable()
    sys.setswitchinterval(TURN_SECONDS)
    try:
        yield
    finally:
        _set_back()


_settings: list[tuple[bool, float]] = []  # collections and turns, as they were before the compilation under way


def _set_back() -> None:
    while _settings:
        enabled, seconds = _settings.pop()
        sys.setswitchinterval(seconds)
        if enabled:
            gc.enable()


os.register_at_fork(after_in_child=_set_back)  # the thread that would do it is the parent's


def dump_code(directory: Path, programs: Sequence[Generated], support: bytes) -> None:
    """Write what comes after the graphs: loops, LLVM IR and assembly of each program, and the plan of its memory."""
    plans = []
    for made in programs:
        name = made.lowered.name
        (directory / f"{name}.loops").write_text(print_steps(made.lowered.steps))
        (directory / f"{name}.ll").write_text(made.llvm)
        (directory / f"{name}.s").write_text(made.assembly())
        manifest = describe(made.lowered, made.target)
        program = Program(manifest, link(made.objects(), support, manifest.prefix))
        plans.append(str(program.plan(**dict.fromkeys(manifest.symbols, PLANNED_BATCH))))
    (directory / "memory.txt").write_text("\n\n".join(plans) + "\n")


def pipeline(target: Target, typical_batch: int | None = None) -> tuple[Pass, ...]:
    """Every pass before the split in order, with the reason for its place."""
    return (
        # Gradients are taken of composites, which have stabler ones than their decompositions.
        Autodiff(),
        # Before anything looks for patterns.
        Canonicalize(),
        FoldConstants(),
        EliminateCommonSubexpressions(),
        # Folds batch normalization into weights: needs composites, and the canonical order of operands.
        Algebra(),
        ExpandComposites(),
        # Before products become contractions, which are not looked into; it brings constants and transposes.
        SimplifyLoops(),
        # Decompositions bring constants, identities and repetitions of their own.
        Canonicalize(),
        FoldConstants(),
        EliminateCommonSubexpressions(),
        EliminateDeadCode(),
        # While the input gradient of a strided convolution can still be told from other convolutions.
        SplitStridedGradients(),
        # While convolutions are still told from dot products.
        *((Winograd(typical_batch or 1),) if _winograd else ()),
        LowerContractions(target.vector_bytes * target.tile_vectors, target.tile_rows),
        Canonicalize(),
        # Packed panels that two contractions share.
        EliminateCommonSubexpressions(),
        EliminateDeadCode(),
        # Panels of what a loop captures are packed before it.
        SimplifyLoops(),
        # Updates next to their gradients, before fusion fixes what runs together.
        ScheduleUpdates(typical_batch),
        # Where the order is settled and each copy can stand before its reader.
        Recompute(),
    )


# What `prepare` and `main` get, each by itself: no kernel has a part in both.
AFTER_SPLIT: tuple[Pass, ...] = (Fuse(),)


def optimize(
    graph: Graph, target: Target, observer: Observer | None = None, typical_batch: int | None = None
) -> tuple[Graph, Graph]:
    """The optimized graphs (prepare, main); what depends on parameters alone is in `prepare`."""
    return run_passes(graph, pipeline(target, typical_batch), observer or Observer())


def run_passes(graph: Graph, passes: Sequence[Pass], observer: Observer) -> tuple[Graph, Graph]:
    """The same by these passes before the split."""
    whole = run_pipeline(graph, passes, observer)
    prepare, main = split_prepare(whole)
    main = replace(main, name="main")
    of_prepare, of_main = observer.split(whole, prepare, main)
    return run_pipeline(prepare, AFTER_SPLIT, of_prepare), run_pipeline(main, AFTER_SPLIT, of_main)


def optimize_for_reading(
    graph: Graph, target: Target, typical_batch: int | None
) -> tuple[Stages, Generated, Generated]:
    """Every stage of a compilation that may have come from the cache, made again for a person to read."""
    return run_apart(partial(_optimize_for_reading, graph, target, typical_batch))


def _optimize_for_reading(
    graph: Graph, target: Target, typical_batch: int | None
) -> tuple[Stages, Generated, Generated]:
    stages = Stages()
    with making_for(typical_batch):
        prepare, main = optimize(graph, target, Observers(stages, _WhileWanted()), typical_batch)
        return stages, generate(prepare, target, once=True), generate(main, target)


def cache_key(graph: Graph, target: Target, passes: Sequence[Pass]) -> str:
    """What a program depends on: the graph without weights, the target, the versions and the compiler's own files."""
    import llvmlite

    versions = (__version__, llvmlite.__version__)
    parts = (str(graph), repr(target), repr((*passes, *AFTER_SPLIT)), *versions, _compiler_files())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _compiler_files() -> str:
    """Names, sizes and times of the files that make programs: in a checkout they change without a new version."""
    root = Path(__file__).parent.parent
    files = sorted(path for package in ("ir", "passes", "codegen") for path in (root / package).rglob("*.py"))
    stats = [(path.relative_to(root).as_posix(), path.stat()) for path in (*files, Path(__file__))]
    return repr([(name, s.st_size, s.st_mtime_ns) for name, s in stats])


class _WhileWanted(Observer):
    """Ends a pipeline between two passes."""

    def after(self, pass_: Pass, before: Graph, after: Graph, seconds: float) -> None:
        check_wanted()


def _observer(verify: str | None, dump: Path | None) -> Observer:
    chosen: list[Observer] = [_WhileWanted()]
    if verify == "passes":
        chosen += [VerifyStructure(), CheckNumerics()]
    if dump is not None:
        chosen.append(Dump(str(dump)))
    return Observers(*chosen)


@cache
def support_object(target: Target) -> bytes:
    """The runtime's native half: the same for all programs of a target, and kept on disk like them."""
    text = support_text(target.triple.split("-")[0])
    objects = open_cache()
    key = hashlib.sha256(f"{text}\n{target!r}".encode()).hexdigest()
    stored = objects.get(key) if objects else None
    if stored and "object" in stored:
        return stored["object"]
    code = compile_object(text, target)
    if objects:
        objects.put(key, {"object": code})
    return code


def _parts(name: str, prepare: Generated, main: Generated) -> Parts:
    described = [describe(made.lowered, made.target) for made in (prepare, main)]
    manifest = replace(described[1], name=name)  # what messages call the program
    return Parts(described[0], prepare.objects(), manifest, main.objects())


def _pack(parts: Parts) -> dict[str, bytes]:
    manifests = {"prepare": parts.prepare_manifest, "main": parts.main_manifest}
    objects = {"prepare": parts.prepare_objects, "main": parts.main_objects}
    return {f"{name}.json": manifest.to_json().encode() for name, manifest in manifests.items()} | {
        f"{name}.{i}.o": code for name, codes in objects.items() for i, code in enumerate(codes)
    }


def _unpack(blobs: Mapping[str, bytes]) -> Parts | None:
    try:
        prepare, main = (Manifest.from_json(blobs[f"{name}.json"].decode()) for name in ("prepare", "main"))
    except (KeyError, ValueError):
        return None
    objects = {
        name: tuple(code for part, code in blobs.items() if part.startswith(f"{name}.") and part.endswith(".o"))
        for name in ("prepare", "main")
    }
    return Parts(prepare, objects["prepare"], main, objects["main"]) if all(objects.values()) else None
