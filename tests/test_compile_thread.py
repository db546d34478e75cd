"""Compilations on threads of their own: interrupts, forks, several at once."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit.compiler import build as compiler
from lepton_jit.compiler.compile_thread import HelperThread, UnwantedError, check_wanted, run_apart
from lepton_jit.runtime import forks


def network(units: int = 8) -> lpt.Sequential:
    return lpt.Sequential([lpt.Dense(units, activation="relu", input_shape=(4,)), lpt.Dense(3)])


def settings() -> tuple[bool, float]:
    """What a compilation changes for the whole process while it runs."""
    return gc.isenabled(), sys.getswitchinterval()


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_JIT_CACHE", "off")


def compile_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("lepton-jit")]


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    assert condition()


def interrupt_when(event: threading.Event) -> threading.Thread:
    """Ctrl-C, once the event is set."""
    main = threading.main_thread().ident
    assert main is not None

    def send() -> None:
        event.wait(30)
        signal.pthread_kill(main, signal.SIGINT)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


# Results and errors


def test_work_apart_returns_its_result_or_raises_its_error() -> None:
    def fail() -> None:
        raise lpt.ShapeError("a shape")

    assert run_apart(lambda: threading.current_thread().name) == "lepton-jit-compile"
    with pytest.raises(lpt.ShapeError, match="a shape"):
        run_apart(fail)


def test_work_inside_of_such_work_runs_on_the_same_thread() -> None:
    outer, inner = run_apart(lambda: (threading.get_ident(), run_apart(threading.get_ident)))
    assert outer == inner != threading.get_ident()


def test_work_apart_sees_the_callers_context() -> None:
    with np.errstate(divide="raise"):
        assert run_apart(np.geterr)["divide"] == "raise"


# Interrupts


@pytest.mark.usefixtures("no_cache")
def test_ctrl_c_ends_a_compilation_and_leaves_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    before, began, run_passes = settings(), threading.Event(), compiler.run_passes

    def endless(*arguments: object) -> object:
        began.set()
        while True:
            time.sleep(0.001)
            check_wanted()

    monkeypatch.setattr(compiler, "run_passes", endless)
    sender = interrupt_when(began)
    with pytest.raises(KeyboardInterrupt):
        lpt.compile(network())
    sender.join()
    wait_for(lambda: not compile_threads())
    assert settings() == before

    monkeypatch.setattr(compiler, "run_passes", run_passes)
    assert lpt.compile(network())(np.zeros((2, 4), np.float32)).shape == (2, 3)


def test_what_waits_for_llvm_is_left_out_when_nobody_wants_it() -> None:
    began, go_on, made = threading.Event(), threading.Event(), []

    def work() -> None:
        with HelperThread("lepton-jit-test") as helper:
            helper.submit(go_on.wait, 30)
            for i in range(3):
                helper.submit(made.append, i)
            began.set()
            while True:
                time.sleep(0.001)
                check_wanted()

    sender = interrupt_when(began)
    with pytest.raises(KeyboardInterrupt):
        run_apart(work)
    go_on.set()
    sender.join()
    wait_for(lambda: not compile_threads())
    assert made == []


def test_a_check_outside_of_a_compilation_passes() -> None:
    check_wanted()
    assert issubclass(UnwantedError, Exception)


# Forks

FORKS = """
import faulthandler, os, sys, threading, time
import numpy as np
import lepton_jit as lpt

def network(units):
    return lpt.Sequential([lpt.Dense(units, activation="relu", input_shape=(4,)), lpt.Dense(3)])

def compile_for_ever():
    units = 8
    while True:
        lpt.compile(network(units))
        units += 1

lpt.compile(network(4))  # so that nothing is being imported
threading.Thread(target=compile_for_ever, daemon=True).start()
children = []
for i in range(10):
    time.sleep(0.013 * i)
    pid = os.fork()
    if pid == 0:
        faulthandler.dump_traceback_later(40, exit=True)  # says where it hangs
        model = network(5)
        weights = [np.asarray(w) for w in model.get_weights()]
        x = np.ones((2, 4), np.float32)
        y = lpt.compile(model)(x)
        expected = np.maximum(x @ weights[0] + weights[1], 0) @ weights[2] + weights[3]
        os._exit(0 if np.allclose(y, expected, atol=1e-5) and sys.getswitchinterval() > 0.001 else 1)
    children.append(pid)
faulthandler.dump_traceback_later(50, exit=True)
print([os.waitpid(pid, 0)[1] for pid in children])
os._exit(0)
"""


def test_children_forked_while_another_thread_compiles_compile_too() -> None:
    environment = {**os.environ, "LEPTON_JIT_CACHE": "off"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS],
        capture_output=True, text=True, check=False, timeout=60, env=environment,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == (str([0] * 10), "")


LLVM_AT_WORK = """
import faulthandler, os, threading
import lepton_jit as lpt
from lepton_jit.codegen import generate

began, compile_object = threading.Event(), generate.compile_object

def slow(*arguments):
    if os.getpid() == parent:
        began.set()
        threading.Event().wait()
    return compile_object(*arguments)

parent, generate.compile_object = os.getpid(), slow
threading.Thread(target=lambda: lpt.compile(lpt.Sequential([lpt.Dense(3, input_shape=(2,))])), daemon=True).start()
began.wait()
pid = os.fork()
if pid == 0:
    faulthandler.dump_traceback_later(10, exit=True)
    elsewhere = [threading.Thread(target=threading.Event().wait, daemon=True) for _ in range(4)]
    for thread in elsewhere:  # which take the identities of the parent's threads
        thread.start()
    lpt.compile(lpt.Sequential([lpt.Dense(4, input_shape=(2,))]))
    os._exit(7)
faulthandler.dump_traceback_later(20, exit=True)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
os._exit(0)
"""


def test_a_child_forked_while_another_thread_waits_for_objects_compiles_too() -> None:
    environment = {**os.environ, "LEPTON_JIT_CACHE": "off"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", LLVM_AT_WORK],
        capture_output=True, text=True, check=False, timeout=60, env=environment,
    )  # fmt: skip
    assert (done.stdout.strip(), done.stderr) == ("7", "")


def test_a_compilation_may_fork() -> None:
    def fork() -> int:
        with forks.compiling:
            pid = os.fork()
            if pid == 0:
                os._exit(7)
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert run_apart(fork) == 7


# Threads


@pytest.mark.usefixtures("no_cache")
def test_threads_that_build_compile_and_load_at_once_do_it_right(tmp_path: Path) -> None:
    before, x = settings(), np.random.default_rng(0).random((5, 4), dtype=np.float32)
    saved = network()
    saved.save(tmp_path / "m.lepton")
    expected = lpt.compile(saved)(x)

    def build_and_compile(units: int) -> float:
        model = network(units)
        a, b, c, d = model.get_weights()
        return float(np.abs(lpt.compile(model)(x) - (np.maximum(x @ a + b, 0) @ c + d)).max())

    def load_and_compile(_: int) -> float:
        return float(np.abs(lpt.compile(lpt.load(tmp_path / "m.lepton"))(x) - expected).max())

    with ThreadPoolExecutor(4) as threads:
        errors = [threads.submit(work, 5 + i) for i in range(2) for work in (build_and_compile, load_and_compile)]
    assert max(e.result() for e in errors) < 1e-5
    assert settings() == before


def test_processes_that_compile_the_same_share_a_cache(tmp_path: Path) -> None:
    code = (
        "import numpy as np, lepton_jit as lpt\n"
        "model = lpt.Sequential([lpt.Dense(8, input_shape=(4,), kernel_initializer='ones')])\n"
        "print(lpt.compile(model)(np.ones((1, 4))).tolist())\n"
    )
    environment = {**os.environ, "LEPTON_JIT_CACHE": str(tmp_path)}
    started = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    assert [p.communicate(timeout=120)[0].strip() for p in started] == [str([[4.0] * 8])] * 2
    assert list(tmp_path.rglob("*.tmp")) == []
