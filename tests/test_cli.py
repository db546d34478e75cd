"""The command line, as a user types it."""

from __future__ import annotations

import io
import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.cli import main
from lepton_jit.codegen.target import get_target
from lepton_jit.compiler.build import optimize_for_reading
from lepton_jit.compiler.from_text import Shell, read_graph
from lepton_jit.compiler.pipeline import AFTER_SPLIT, pipeline
from lepton_jit.passes.base import PASSES
from lepton_jit.passes.dce import EliminateDeadCode

Run = Callable[..., tuple[int, str, str]]
X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
GOOD = 'graph @f(%x: f32[N] input "x") {\n  %0 = negate(%x) : f32[N]\n  return %0 "y"\n}\n'
TEXTS = {
    "good.ir": GOOD,
    "bad.ir": GOOD.replace("negate", "neg"),
    "twice.ir": GOOD.replace('"y"', '"y", %x "y"'),
    "kernel.loops": "kernel @k(a0: f32[N]) parallel %t in 0 to 1 grain 1 {\n}\n",
    "conv.ir": str(lpt.Sequential([lpt.Conv2D(2, 3, input_shape=(4, 4, 2), name="c")]).trace()),
}


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command in this process: its exit code, and what it printed to standard output and standard error."""

    def command(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        try:
            code = main([str(a) for a in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return command


@pytest.fixture(scope="module")
def model() -> lpt.Model:
    lpt.set_random_seed(3)
    return lpt.Sequential([lpt.Dense(3, activation="relu", input_shape=(4,)), lpt.Dense(2, name="scores")])


@pytest.fixture(scope="module")
def folder(model: lpt.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with m.lepton, m.so and x.npy."""
    path = tmp_path_factory.mktemp("cli")
    model.save(path / "m.lepton")
    lpt.compile(model).export(path / "m.so")
    np.save(path / "x.npy", X)
    return path


def in_new_process(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lepton_jit", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_the_version_and_the_help(run):
    assert run("--version") == (0, f"lepton-jit {lpt.__version__}\n", "")
    code, out, _ = run("--help")
    assert code == 0
    assert "lepton-jit run digits.so images.npy -o answers.npy" in out


def test_python_m_is_the_same_command():
    assert in_new_process("--version").stdout == f"lepton-jit {lpt.__version__}\n"


def test_the_version_comes_without_numpy():
    code = "import sys, lepton_jit.cli; print([m for m in ('numpy', 'llvmlite', 'rich') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_compile_writes_library_and_header(run, folder, tmp_path):
    code, out, err = run("compile", folder / "m.lepton", "-o", tmp_path / "small.so")

    assert (code, err) == (0, "")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small.h", "small.so"]
    assert out.startswith(f"{tmp_path / 'small.so'} (")


def test_run_gives_the_bits_of_the_compiled_model(run, model, folder, tmp_path):
    code, out, err = run("run", folder / "m.so", folder / "x.npy", "-o", tmp_path / "y.npy")

    assert (code, out, err) == (0, f"{tmp_path / 'y.npy'}: output float32[5, 2]\n", "")
    assert np.load(tmp_path / "y.npy").tobytes() == lpt.compile(model)(X).tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["y.npy"]


def test_run_imports_no_compiler(folder, tmp_path):
    arguments = ["run", str(folder / "m.so"), str(folder / "x.npy"), "-o", str(tmp_path / "y.npy")]
    code = (
        "import sys\n"
        "for name in ('llvmlite', 'networkx', 'lepton_jit.ir', 'lepton_jit.codegen'):\n"
        "    sys.modules[name] = None\n"
        "from lepton_jit.cli import main\n"
        f"sys.exit(main({arguments!r}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert np.load(tmp_path / "y.npy").shape == (5, 2)


def test_run_takes_several_inputs_and_writes_several_outputs_as_an_archive(run, tmp_path):
    a, b = lpt.Input((2,), name="a"), lpt.Input((2,), name="b")
    both = lpt.Model([a, b], [lpt.Add(name="sum")([a, b]), lpt.Activation("relu", name="positive")(b)])
    lpt.compile(both).export(tmp_path / "both.so")
    np.save(tmp_path / "a.npy", np.array([[1, 2]], np.float32))
    np.save(tmp_path / "b.npy", np.array([[-3, 4]], np.float32))

    code, _, err = run("run", tmp_path / "both.so", tmp_path / "a.npy", tmp_path / "b.npy", "-o", tmp_path / "y.npz")

    assert (code, err) == (0, "")
    with np.load(tmp_path / "y.npz") as results:
        assert {name: results[name].tolist() for name in results} == {"sum": [[-2, 6]], "positive": [[0, 4]]}


@pytest.mark.parametrize(
    ("stage", "part"),
    [
        ("traced", "dot_general"),
        ("cse", "dot_general"),
        ("optimized", "affine_contraction"),
        ("loops", "kernel"),
        ("llvm", 'define i32 @"main_run"'),
        ("asm", "main_run"),
        ("prepare", "= pack("),
        ("prepare-loops", "kernel"),
        ("plan", "arena"),
    ],
)
def test_dump_prints_a_stage(run, folder, stage, part):
    code, out, err = run("dump", folder / "m.lepton", "--stage", stage)

    assert (code, err) == (0, "")
    assert part in out


def test_dump_can_be_limited_to_a_layer(run, folder):
    _, out, _ = run("dump", folder / "m.lepton", "--stage", "traced", "--layer", "scores")

    assert '@"scores"' in out
    assert '@"dense' not in out


def test_dump_into_a_closed_pipe_is_no_error(folder):
    command = (
        f"{sys.executable} -m lepton_jit dump {folder / 'm.lepton'} --stage asm | head -1; echo ${{PIPESTATUS[0]}}"
    )
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)

    assert (done.stdout.splitlines()[-1], done.stderr) == ("0", "")


@pytest.fixture(scope="module")
def convolutional() -> lpt.Model:
    """Something for most passes to do, and for `prepare` as well."""
    layers = [lpt.Conv2D(4, 3, activation="relu", input_shape=(8, 8, 3)), lpt.BatchNormalization(), lpt.MaxPooling2D(2)]
    return lpt.Sequential([*layers, lpt.Flatten(), lpt.Dense(5, activation="softmax", name="scores")])


@pytest.fixture(scope="module")
def traced(convolutional: lpt.Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "traced.ir"
    path.write_text(str(convolutional.trace()))
    return path


def test_opt_without_passes_prints_the_text_as_the_compiler_writes_it(run, tmp_path):
    (tmp_path / "a.ir").write_text('graph @f(%x:f32[N] input "x"){ %0=negate(%x):f32[N] // minus\n return %0 "y"}')

    code, out, err = run("opt", tmp_path / "a.ir")

    assert (code, err) == (0, "")
    assert out == 'graph @f(%x: f32[N] input "x") {\n  %0 = negate(%x) : f32[N]\n  return %0 "y"\n}\n'


def test_opt_with_the_pipeline_gives_both_graphs_of_the_compiled_model(run, convolutional, traced):
    fast = lpt.compile(convolutional)

    assert run("opt", traced, "--pipeline", "--verify") == (0, fast.ir("optimized"), "")
    assert run("opt", traced, "--pipeline", "--prepare") == (0, fast.ir("prepare-fuse"), "")


def test_opt_prints_every_stage_of_the_pipeline_to_standard_error(run, convolutional, traced):
    stages, _, _ = optimize_for_reading(convolutional.trace(), get_target("x86-64-v4"), None)

    _, _, err = run("opt", traced, "--pipeline", "--print-after-all", "--target", "x86-64-v4")

    texts = dict(part.split("\n", 1) for part in reversed(err.split("// ---- ")[1:]))  # the first of each name
    unchanged = {name for name, text in texts.items() if text == "// unchanged\n\n"}
    assert {"traced", "expand-composites", "prepare", "prepare-fuse", "main", "fuse"} <= texts.keys() - unchanged
    assert {name: text for name, text in texts.items() if name not in unchanged} == {
        name: f"{stages[name]}\n" for name in texts if name not in unchanged
    }


def test_passes_one_by_one_through_text_are_the_pipeline(traced):
    shell = Shell("x86-64-v3")
    graph = read_graph(traced.read_bytes(), "traced")
    stages, _, _ = optimize_for_reading(graph, get_target("x86-64-v3"), None)
    runs: dict[str, int] = {}

    for name in [pass_.name for pass_ in pipeline(get_target("x86-64-v3"))]:
        runs[name] = runs.get(name, 0) + 1
        _, result = shell.optimize(graph, name)
        graph = read_graph(str(result).encode(), name)
        assert str(graph) == str(stages[name if runs[name] == 1 else f"{name}-{runs[name]}"])


def test_opt_runs_passes_in_the_order_in_which_they_are_named(run, traced):
    given = "expand-composites, fold-constants,cse"
    first = run("opt", traced, "--passes", "expand-composites")[1]
    _, expected = Shell().optimize(read_graph(first.encode(), "first"), "fold-constants,cse")

    assert run("opt", traced, "--passes", given) == (0, str(expected), "")


def test_every_pass_has_a_name_in_the_shell():
    assert {pass_.name for pass_ in (*pipeline(get_target("x86-64-v3")), *AFTER_SPLIT)} == {
        name for name, kind in PASSES.items() if kind.__module__.startswith("lepton_jit.")
    }


@pytest.mark.parametrize("stage", ["loops", "llvm", "asm", "plan"])
def test_lower_gives_what_dump_gives(run, convolutional, traced, tmp_path, stage):
    convolutional.save(tmp_path / "m.lepton")
    run("opt", traced, "--pipeline", "-o", tmp_path / "optimized.ir")
    code, out, err = run("dump", tmp_path / "m.lepton", "--stage", stage)
    expected = code, out.replace("plan of inference", "plan of main"), err  # the split renames the graph

    assert run("lower", traced, "--stage", stage) == expected
    assert run("lower", tmp_path / "optimized.ir", "--stage", stage, "--no-passes") == expected


def test_lower_gives_the_code_of_prepare(run, convolutional, traced):
    expected = lpt.compile(convolutional).ir("prepare-asm")
    assert run("lower", traced, "--prepare", "--stage", "asm")[1].rstrip("\n") == expected.rstrip("\n")


@pytest.mark.parametrize(("target", "register"), [("x86-64-v4", "%zmm"), ("x86-64-v3", "%ymm"), ("aarch64", "v0.4s")])
def test_lower_makes_code_for_another_machine(run, traced, target, register):
    assert register in run("lower", traced, "--stage", "asm", "--target", target)[1]
    assert "lower bound" in run("lower", traced, "--stage", "plan", "--target", target)[1]


def test_opt_reads_standard_input_and_writes_a_file(run, traced, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(traced.read_bytes())))

    assert run("opt", "-", "-o", tmp_path / "same.ir") == (0, "", "")
    assert (tmp_path / "same.ir").read_text() == traced.read_text()


def test_opt_with_verify_names_the_pass_that_broke_the_graph(run, traced, monkeypatch):
    monkeypatch.setattr(EliminateDeadCode, "apply", lambda self, graph: replace(graph, nodes=graph.nodes[1:]))

    code, _, err = run("opt", traced, "--passes", "cse,dce", "--verify")

    assert code == 2
    assert "pass dce: graph inference: %0 is read, but nothing before defines it" in err


@pytest.mark.parametrize("seed", range(20))
def test_damaged_text_gives_a_graph_or_one_line(run, traced, tmp_path, seed):
    generator = random.Random(seed)
    text = traced.read_text()
    for _ in range(5):
        at = generator.randrange(len(text))
        text = text[:at] + generator.choice(["", "0", "9", "-", "%0", "[", "f64", "\0"]) + text[at + 1 :]
    (tmp_path / "damaged.ir").write_text(text)

    for arguments in (["opt", "--pipeline"], ["opt", "--passes", "lower-contractions,fuse"], ["lower", "--no-passes"]):
        code, _, err = run(arguments[0], tmp_path / "damaged.ir", *arguments[1:])
        assert code == 0 or (code == 2 and err.count("\n") == 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dump", "missing.lepton"], "missing.lepton: No such file or directory"),
        (["dump", "x.npy"], "x.npy: expected a model or an exported program"),
        (["dump", "m.so"], "m.so: expected a model that model.save wrote, got an exported library"),
        (["dump", "m.lepton", "--stage", "nonsense"], "ir: expected a stage of traced, "),
        (["dump", "cut.lepton"], "cut.lepton: "),
        (["compile", "m.lepton", "-o", "m2.so", "--target", "pdp-11"], "pdp-11"),
        (["compile", "m.lepton", "-o", "nowhere/m.so"], "nowhere"),
        (["run", "m.so", "x.npy", "x.npy", "-o", "y.npy"], "m.so: expected 1 arrays, got 2"),
        (["run", "m.so", "m.lepton", "-o", "y.npy"], "m.lepton: offset 0: expected an array that numpy.save wrote"),
        (["run", "m.so", "wide.npy", "-o", "y.npy"], "input"),
        (["run", "m.so", "objects.npy", "-o", "y.npy"], "objects.npy: not a whole array of numbers"),
        (["run", "m.lepton", "x.npy", "-o", "y.npy"], "m.lepton: offset"),
        (["run", "m.so", "x.npy", "-o", "y.npy", "--threads", "0"], "threads"),
        (["demo", "--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["opt", "missing.ir"], "missing.ir: No such file or directory"),
        (["opt", "m.so"], ": expected the text of a graph, in UTF-8"),
        (["opt", "bad.ir"], "bad.ir: line 2, column 8: neg: op: expected one of abs, add"),
        (["opt", "twice.ir"], "twice.ir: graph f: outputs: expected different names, got 'y' twice"),
        (["opt", "kernel.loops"], "kernel.loops: expected a graph, got kernels"),
        (
            ["opt", "good.ir", "--passes", "canonicalise"],
            "fuse, got 'canonicalise'; did you mean 'canonicalize'?",
        ),
        (["opt", "good.ir", "--passes", "xyz"], "passes: expected autodiff, canonicalize, "),
        (["opt", "good.ir", "--passes", ""], "fuse, got ''"),
        (["opt", "good.ir", "--passes", "split-prepare"], "split-prepare makes two graphs of one, so it is no pass"),
        (["opt", "good.ir", "--prepare"], "opt: --prepare expects --pipeline"),
        (["opt", "good.ir", "--pipeline", "--typical-batch", "0"], "typical_batch: expected a positive integer, got 0"),
        (["opt", "good.ir", "-o", "nowhere/out.ir"], "nowhere: No such file or directory"),
        (["lower", "good.ir", "--stage", "nonsense"], "stage: expected one of 'loops', 'llvm', 'asm', 'plan'"),
        (["lower", "good.ir", "--target", "pdp-11"], "target: expected 'native' or one of"),
        (["lower", "good.ir", "--no-passes", "--verify"], "--no-passes leaves nothing to verify"),
        (
            ["lower", "conv.ir", "--no-passes"],
            "layer 'c': a convolution across channels is computed as a contraction; has",
        ),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(run, folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    (folder / "cut.lepton").write_bytes((folder / "m.lepton").read_bytes()[:200])
    np.save(folder / "wide.npy", np.zeros((5, 7), np.float32))
    np.save(folder / "objects.npy", np.array([{}], object), allow_pickle=True)
    for name, text in TEXTS.items():
        (folder / name).write_text(text)

    code, out, err = run(*arguments)

    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("lepton-jit: ")
    assert err.count("\n") == 1
    assert not (folder / "y.npy").exists()


def test_wrong_usage_exits_with_2(run):
    assert [run(*a)[0] for a in ([], ["fly"], ["run", "m.so"])] == [2, 2, 2]


def test_with_debugging_on_an_error_keeps_its_traceback(monkeypatch):
    monkeypatch.setenv("LEPTON_JIT_DEBUG", "1")
    with pytest.raises(FileNotFoundError):
        main(["dump", "missing.lepton"])


def test_bench_passes_its_arguments_on(tmp_path):
    done = in_new_process("bench", "--help")
    assert done.returncode == 0
    assert "--quick" in done.stdout
