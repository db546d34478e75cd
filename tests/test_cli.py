"""The command line, as a user types it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.cli import main

Run = Callable[..., tuple[int, str, str]]
X = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)


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
    ],
)
def test_an_error_is_one_line_and_exit_code_2(run, folder, monkeypatch, arguments, message):
    monkeypatch.chdir(folder)
    (folder / "cut.lepton").write_bytes((folder / "m.lepton").read_bytes()[:200])
    np.save(folder / "wide.npy", np.zeros((5, 7), np.float32))
    np.save(folder / "objects.npy", np.array([{}], object), allow_pickle=True)

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
