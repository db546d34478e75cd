"""Build an executable from a traced graph: cache, passes, LLVM on another thread, and what reads a compilation."""

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

from lepton_jit._version import __version__
from lepton_jit.codegen.generate import Generated, generate
from lepton_jit.codegen.llvm.machine_code import compile_object
from lepton_jit.codegen.program.step_printer import print_steps
from lepton_jit.codegen.target import Target, get_target
from lepton_jit.compiler.compile_thread import HelperThread, run_apart
from lepton_jit.compiler.describe import describe
from lepton_jit.compiler.executable import PLANNED_BATCH, Code, Executable
from lepton_jit.compiler.pipeline import AFTER_SPLIT, WhileWanted, observer, optimize, pipeline, run_passes
from lepton_jit.environment import Environment, read_environment
from lepton_jit.errors import ArgumentError
from lepton_jit.ir.graph import Graph
from lepton_jit.ir.types import typical_batch as making_for
from lepton_jit.passes.base import Pass
from lepton_jit.passes.manager import Observers
from lepton_jit.passes.observers import Stages
from lepton_jit.runtime import forks
from lepton_jit.runtime.cache import open_cache
from lepton_jit.runtime.linker import link_support
from lepton_jit.runtime.manifest import Manifest
from lepton_jit.runtime.memory import require_memory
from lepton_jit.runtime.plan import MemoryPlan, plan_memory
from lepton_jit.runtime.support_text import support_text
from lepton_jit.runtime.threads import current_threads

__all__ = ["build", "memory_plan", "support_object"]


# The names of the two programs of a graph in the cache.
PROGRAMS = ("prepare", "main")
# A thread's turn with the interpreter while LLVM is at work on another one.
TURN_SECONDS = 0.0003


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
    code = _unpack(stored) if stored else None
    require_memory("linking a program", address_space=40 * 2**20, data=24 * 2**20)
    if code is None:
        with forks.compiling, _undisturbed(), making_for(typical_batch):
            code = _compiled(graph, target, passes, verify, environment.dump)
        if objects:
            objects.put(key, _pack(code))
    return Executable(
        graph, target, typical_batch, *code, support_object(target), threads=threads, recompile=optimize_for_reading
    )


def _compiled(
    graph: Graph, target: Target, passes: Sequence[Pass], verify: str | None, dump: Path | None
) -> tuple[Code, Code]:
    # Measured: 36 MB in all for two dense layers, 60 for a network whose parts have 2 MB of text. Each thread of two
    # reserves 72 MB of addresses if it can.
    require_memory("compiling", address_space=128 * 2**20, data=48 * 2**20)
    # LLVM makes what is small beside it, on another processor, while Python goes on.
    with HelperThread("lepton-jit-llvm") as beside:
        beside.submit(support_object, target)
        prepare, main = run_passes(graph, passes, observer(verify, dump))
        # The larger one first, so that LLVM has work soon.
        generated = generate(main, target, executor=beside)
        prepared = generate(prepare, target, once=True, executor=beside)
        gc.collect(0)  # what was made meanwhile; LLVM is still busy
        prepare_code = Code(describe(prepared.lowered, target), prepared.objects())
        manifest = replace(describe(generated.lowered, target), name=graph.name)  # what messages call the program
        main_code = Code(manifest, generated.objects())
    if dump is not None:
        dump_code(dump, [prepared, generated])
    return prepare_code, main_code


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Switch off collections, and shorten turns of threads, for the one compilation that is under way.

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


def dump_code(directory: Path, programs: Sequence[Generated]) -> None:
    """Write what comes after the graphs: loops, LLVM IR and assembly of each program, and the plan of its memory."""
    plans = []
    for made in programs:
        name = made.lowered.name
        (directory / f"{name}.loops").write_text(print_steps(made.lowered.steps))
        (directory / f"{name}.ll").write_text(made.llvm)
        (directory / f"{name}.s").write_text(made.assembly())
        plans.append(str(memory_plan(made)))
    (directory / "memory.txt").write_text("\n\n".join(plans) + "\n")


def memory_plan(made: Generated) -> MemoryPlan:
    """The plan of a program that need not run on this machine, for the batch that plans state."""
    manifest = describe(made.lowered, made.target)
    planner = link_support(support_object(get_target("native"))).plan
    return plan_memory(manifest, planner, dict.fromkeys(manifest.symbols, PLANNED_BATCH), current_threads())


def optimize_for_reading(
    graph: Graph, target: Target, typical_batch: int | None
) -> tuple[Stages, Generated, Generated]:
    """Make every stage of a compilation again, for a person to read: the cache may have had its objects."""
    return run_apart(partial(_optimize_for_reading, graph, target, typical_batch))


def _optimize_for_reading(
    graph: Graph, target: Target, typical_batch: int | None
) -> tuple[Stages, Generated, Generated]:
    stages = Stages()
    with making_for(typical_batch):
        prepare, main = optimize(graph, target, Observers(stages, WhileWanted()), typical_batch)
        return stages, generate(prepare, target, once=True), generate(main, target)


def cache_key(graph: Graph, target: Target, passes: Sequence[Pass]) -> str:
    """A hash of what a program depends on: graph without weights, target, versions, the compiler's own files."""
    import llvmlite

    versions = (__version__, llvmlite.__version__)
    parts = (str(graph), repr(target), repr((*passes, *AFTER_SPLIT)), *versions, _compiler_files())
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@cache
def _compiler_files() -> str:
    """Names, sizes and times of the files that make programs: in a checkout they change without a new version."""
    root = Path(__file__).parent.parent
    files = sorted(
        path for package in ("ir", "passes", "codegen", "compiler") for path in (root / package).rglob("*.py")
    )
    stats = [(path.relative_to(root).as_posix(), path.stat()) for path in files]
    return repr([(name, s.st_size, s.st_mtime_ns) for name, s in stats])


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


def _pack(programs: tuple[Code, Code]) -> dict[str, bytes]:
    """The files that the cache keeps of `prepare` and `main`."""
    return {
        f"{name}{end}": blob
        for name, code in zip(PROGRAMS, programs, strict=True)
        for end, blob in (
            (".json", code.manifest.to_json().encode()),
            *((f".{i}.o", text) for i, text in enumerate(code.objects)),
        )
    }


def _unpack(blobs: Mapping[str, bytes]) -> tuple[Code, Code] | None:
    """The same read back, or None where something is missing or is not what it should be."""
    try:
        prepare, main = (_code_named(name, blobs) for name in PROGRAMS)
    except (KeyError, ValueError):
        return None
    return (prepare, main) if prepare.objects and main.objects else None


def _code_named(name: str, blobs: Mapping[str, bytes]) -> Code:
    manifest = Manifest.from_json(blobs[f"{name}.json"].decode())
    return Code(manifest, tuple(b for part, b in blobs.items() if part.startswith(f"{name}.") and part.endswith(".o")))
