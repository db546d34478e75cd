"""The command line: `lepton-jit demo | compile | run | dump | opt | lower | bench`.

Each command imports what it needs when it is chosen: `run` starts without a compiler, `--version` without NumPy.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lepton_jit as lpt
from lepton_jit.common.writing import whole_file
from lepton_jit.environment import read_environment

if TYPE_CHECKING:
    import numpy as np

    from lepton_jit.compiler.from_text import Shell
    from lepton_jit.models import Model

__all__ = ["main"]

NPY_MAGIC = b"\x93NUMPY"
EXAMPLES = """\
examples:
  lepton-jit demo                                        train, compile and export a network for handwritten digits
  lepton-jit compile digits.lepton -o digits.so          a model that model.save wrote -> a library and its C header
  lepton-jit run digits.so images.npy -o answers.npy     run that library; no compiler is imported
  lepton-jit dump digits.lepton --stage optimized        what became of the model, at any stage of compilation
  lepton-jit opt graph.ir --passes canonicalize,cse      passes on the text of a graph
  lepton-jit lower graph.ir --stage asm                  the code of the text of a graph
  lepton-jit bench mnist_cnn                             side by side with PyTorch, ONNX Runtime and JAX
"""
OPT_HELP = """\
Run passes on the text of a graph and print the graph that comes out. Without --passes or --pipeline the text is read,
verified and printed as the compiler writes it.

Names of passes are those of docs/passes.md and of `dump --stage`; a wrong one lists them. The whole pipeline cuts a
graph in two, and it is `main` that is printed; with --prepare it is what depends on weights alone.
"""
OPT_EXAMPLES = """\
examples:
  lepton-jit dump digits.lepton --stage traced > digits.ir
  lepton-jit opt digits.ir --passes canonicalize,fold-constants,cse
  lepton-jit opt digits.ir --pipeline --target x86-64-v4 -o optimized.ir    as `dump --stage optimized`
  lepton-jit opt digits.ir --pipeline --verify --print-after-all 2> stages.ir
  lepton-jit opt - --passes fuse < graph.ir                                 from standard input
"""
LOWER_HELP = """\
Print the code of the text of a graph. The whole pipeline runs first, as `compile` would run it, and finds nothing left
to do on what it made itself; --no-passes takes the graph as it stands, which has to be an optimized one.
"""
LOWER_EXAMPLES = """\
examples:
  lepton-jit lower digits.ir --target x86-64-v4                             the loops, as `dump --stage loops`
  lepton-jit lower digits.ir --target aarch64 --stage asm -o digits.s       for another machine than this one
  lepton-jit opt digits.ir --pipeline | lepton-jit lower - --no-passes --stage plan
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit code: 0, or 2 after one line on standard error."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        code = command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader, `head` perhaps, has seen enough; without this, Python complains once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except KeyboardInterrupt:
        return 130
    except (lpt.LeptonError, OSError, MemoryError) as error:
        if _debug():
            raise
        return _fail(_in_one_line(error))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lepton-jit",
        description="Compile deep-learning models into native CPU code.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lepton-jit {lpt.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser("demo", help="train, compile, export and run a network for handwritten digits")
    demo.add_argument("-o", "--output", type=Path, metavar="DIR", help="keep the model, the library and its header")
    demo.add_argument("--epochs", type=int, metavar="N", help="how often to see every digit (default: 15 for 4,000)")
    demo.set_defaults(command=_demo)

    compile_ = commands.add_parser("compile", help="make a shared library and a C header of a saved model")
    compile_.add_argument("model", type=Path, metavar="MODEL.lepton", help="what model.save wrote")
    compile_.add_argument(
        "-o", "--output", type=Path, metavar="X.so", required=True, help="the library; X.h goes beside"
    )
    compile_.add_argument("--target", default="native", help="native (default), x86-64-v3 (AVX2), x86-64-v4 (AVX-512)")
    compile_.add_argument(
        "--typical-batch", type=int, metavar="N", help="how many samples most calls have, if that is known"
    )
    compile_.set_defaults(command=_compile)

    run = commands.add_parser("run", help="run an exported library on arrays")
    run.add_argument("library", type=Path, metavar="X.so", help="what compile wrote")
    run.add_argument("inputs", type=Path, nargs="+", metavar="IN.npy", help="an array for each input, in order")
    run.add_argument(
        "-o", "--output", type=Path, metavar="OUT.npy", required=True, help="the result; of several, an archive (.npz)"
    )
    run.add_argument("--threads", type=int, metavar="N", help="default: LEPTON_JIT_THREADS, else all processors")
    run.set_defaults(command=_run)

    dump = commands.add_parser("dump", help="print a stage of a model's compilation")
    dump.add_argument("model", type=Path, metavar="MODEL.lepton", help="what model.save wrote")
    dump.add_argument(
        "--stage",
        default="optimized",
        metavar="S",
        help="traced, optimized (default), loops, llvm, asm, the name of a pass, prepare (what is computed of weights"
        " alone), prepare-loops, prepare-llvm, prepare-asm, plan (the memory plan) or all",
    )
    dump.add_argument("--layer", metavar="L", help="only what comes from this layer")
    dump.set_defaults(command=_dump)

    _add_text_commands(commands)

    bench = commands.add_parser("bench", help="measure against other frameworks", add_help=False, prefix_chars="\0")
    bench.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="see `lepton-jit bench --help`")
    bench.set_defaults(command=_bench)
    return parser


def _add_text_commands(commands: Any) -> None:
    raw = argparse.RawDescriptionHelpFormatter
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("graph", metavar="FILE.ir", help="the text of a graph (docs/graph_ir.md); - is standard input")
    shared.add_argument("--target", default="native", help="native (default), x86-64-v4, x86-64-v3, x86-64, aarch64")
    shared.add_argument(
        "--typical-batch", type=int, metavar="N", help="how many samples most calls have (default: not known)"
    )
    shared.add_argument("--verify", action="store_true", help="check structure and numbers after every pass")
    shared.add_argument("--print-after-all", action="store_true", help="print every stage on the way to standard error")
    shared.add_argument("--prepare", action="store_true", help="of the pipeline's two graphs that of weights alone")
    shared.add_argument("-o", "--output", type=Path, metavar="OUT", help="write it there instead of printing it")

    opt = commands.add_parser(
        "opt", parents=[shared], formatter_class=raw, help="run passes on the text of a graph", description=OPT_HELP,
        epilog=OPT_EXAMPLES,
    )  # fmt: skip
    which = opt.add_mutually_exclusive_group()
    which.add_argument("--passes", metavar="A,B", help="these passes in this order")
    which.add_argument("--pipeline", action="store_true", help="all passes, as `compile` runs them")
    opt.set_defaults(command=_opt)

    lower = commands.add_parser(
        "lower", parents=[shared], formatter_class=raw, help="print the code of the text of a graph",
        description=LOWER_HELP, epilog=LOWER_EXAMPLES,
    )  # fmt: skip
    lower.add_argument("--stage", default="loops", metavar="S", help="loops (default), llvm, asm or plan")
    lower.add_argument("--no-passes", action="store_true", help="the graph is optimized: generate code at once")
    lower.set_defaults(command=_lower)


def _demo(options: argparse.Namespace) -> int:
    from lepton_jit.demo import run_demo

    if options.epochs is not None and options.epochs < 1:
        return _fail(f"--epochs: expected at least 1, got {options.epochs}")
    return run_demo(options.output, options.epochs)


def _compile(options: argparse.Namespace) -> int:
    model = _load_model(options.model)
    start = time.perf_counter()
    fast = lpt.compile(model, typical_batch=options.typical_batch)
    library, header = fast.export(options.output, target=options.target)
    seconds = time.perf_counter() - start
    print(f"{library} ({library.stat().st_size:,} bytes) and {header}, in {seconds:.2f} s")
    return 0


def _run(options: argparse.Namespace) -> int:
    from lepton_jit.runtime.module import load_module

    module = load_module(options.library, threads=options.threads)
    expected = len(module.manifest.inputs)
    if len(options.inputs) != expected:
        return _fail(f"{options.library}: expected {expected} arrays, got {len(options.inputs)}")
    results = module.program(*(_read_array(path) for path in options.inputs), parameters=module.parameters)
    _write_arrays(options.output, {t.name: a for t, a in zip(module.manifest.outputs, results, strict=True)})
    for tensor, array in zip(module.manifest.outputs, results, strict=True):
        print(f"{options.output}: {tensor.name} {array.dtype}{list(array.shape)}")
    return 0


def _dump(options: argparse.Namespace) -> int:
    fast = lpt.compile(_load_model(options.model))
    if options.stage == "plan":
        return _write_text(None, str(fast.plan))
    return _write_text(None, fast.ir(None if options.stage == "all" else options.stage, layer=options.layer))


def _opt(options: argparse.Namespace) -> int:
    from lepton_jit.compiler.from_text import read_graph

    if options.prepare and not options.pipeline:
        return _fail("opt: --prepare expects --pipeline, which alone cuts a graph in two")
    graph = read_graph(*_source(options.graph))
    if options.pipeline or options.passes is not None:
        prepare, main = _shell(options).optimize(graph, options.passes)
        graph = prepare if options.prepare else main
    return _write_text(options.output, str(graph))


def _lower(options: argparse.Namespace) -> int:
    from lepton_jit.compiler.from_text import read_graph

    if options.no_passes and (options.prepare or options.verify or options.print_after_all):
        return _fail("lower: --no-passes leaves nothing to verify, print or cut in two")
    graph = read_graph(*_source(options.graph))
    shell = _shell(options)
    if not options.no_passes:
        prepare, main = shell.optimize(graph, None)
        graph = prepare if options.prepare else main
    return _write_text(options.output, shell.code(graph, options.stage, once=options.prepare))


def _shell(options: argparse.Namespace) -> Shell:
    from lepton_jit.compiler.from_text import Shell

    printed = sys.stderr if options.print_after_all else None
    return Shell(options.target, options.typical_batch, options.verify, printed)


def _source(name: str) -> tuple[bytes, str]:
    """Read what a file holds; returns it, and its name in messages."""
    return (sys.stdin.buffer.read(), "standard input") if name == "-" else (Path(name).read_bytes(), name)


def _write_text(path: Path | None, text: str) -> int:
    if path is None:
        print(text.rstrip("\n"))
    else:
        with whole_file(path) as file:
            file.write(text.encode())
    return 0


def _bench(options: argparse.Namespace) -> int:
    root = Path(lpt.__file__).resolve().parent.parent
    if not (root / "benchmarks" / "__main__.py").is_file():
        return _fail("bench: the benchmarks are part of the source, not of the installed package; run it in a checkout")
    return subprocess.run([sys.executable, "-m", "benchmarks", *options.arguments], cwd=root, check=False).returncode


def _load_model(path: Path) -> Model:
    loaded: Any = lpt.load(path)
    if not hasattr(loaded, "trace"):
        raise lpt.FileFormatError(f"{path}: expected a model that model.save wrote, got an exported library")
    return loaded


def _read_array(path: Path) -> np.ndarray:
    import numpy as np

    with path.open("rb") as file:
        if file.read(len(NPY_MAGIC)) != NPY_MAGIC:
            raise lpt.FileFormatError(f"{path}: offset 0: expected an array that numpy.save wrote (.npy)")
        file.seek(0)
        try:
            return np.load(file, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise lpt.FileFormatError(f"{path}: not a whole array of numbers: {error}") from error


def _write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """One array as .npy, several as .npz under their names; the file appears when it is whole."""
    import numpy as np

    with whole_file(path) as file:
        if len(arrays) == 1:
            np.save(file, next(iter(arrays.values())))
        else:
            np.savez(file, **arrays)  # pyright: ignore[reportArgumentType] (its stub forgets other keywords)


def _debug() -> int:
    try:
        return read_environment().debug
    except lpt.LeptonError:
        return 0


def _fail(message: str) -> int:
    print(f"lepton-jit: {message}", file=sys.stderr)
    return 2


def _in_one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
