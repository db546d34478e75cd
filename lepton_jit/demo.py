"""`lepton-jit demo`: the main job from end to end, on real handwritten digits."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

import lepton_jit as lpt
from lepton_jit.compiler.compiled import CompiledModel
from lepton_jit.datasets import mnist
from lepton_jit.models import Model
from lepton_jit.runtime.threads import current_threads

__all__ = ["build_model", "run_demo"]

BATCH = 64
# So many digits are seen in all, however many there are: 15 epochs of 4,000, one of 60,000. The learning rate falls
# along half a cosine. With 4,000 digits and six seeds, this gave 97.5 to 98.0 % on the test digits; ten epochs at a
# constant rate of 0.001 gave 96.5 to 97.4 % with eight.
DIGITS_SEEN = 60_000
LEARNING_RATE = 0.003
SEED = 1
# Texts stay readable when the output is no terminal.
PLAIN_WIDTH = 132

COMPILE_IN_NEW_PROCESS = """\
import json, sys, time
import numpy as np
import lepton_jit as lpt
import lepton_jit.compiler.build, llvmlite.binding
model, image = lpt.load(sys.argv[1]), np.zeros((1, 28, 28, 1), np.float32)
start = time.perf_counter()
lpt.compile(model)(image)
print(json.dumps(time.perf_counter() - start))
"""
RUN_IN_NEW_PROCESS = """\
import sys
import numpy as np
import lepton_jit as lpt
answers = lpt.load(sys.argv[1])(np.load(sys.argv[2]))
assert "llvmlite" not in sys.modules
np.save(sys.argv[3], answers)
"""


def build_model() -> Model:
    """Two convolutions and two dense layers, 225,034 weights."""
    return lpt.Sequential(
        [
            lpt.Conv2D(32, (3, 3), activation="relu", input_shape=(28, 28, 1)),
            lpt.MaxPooling2D((2, 2)),
            lpt.Conv2D(64, (3, 3), activation="relu"),
            lpt.MaxPooling2D((2, 2)),
            lpt.Flatten(),
            lpt.Dense(128, activation="relu"),
            lpt.Dropout(0.25),
            lpt.Dense(10, activation="softmax"),
        ]
    )


def run_demo(output: Path | None = None, epochs: int | None = None) -> int:
    """Train, show, export and compare; the files stay in `output`, if it is given. Returns an exit code."""
    with _directory(output) as directory:
        return _Demo(directory, keeps=output is not None).run(epochs)


@contextmanager
def _directory(output: Path | None) -> Iterator[Path]:
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        yield output
        return
    with tempfile.TemporaryDirectory(prefix="lepton-jit-demo-") as folder:
        yield Path(folder)


class _Demo:
    def __init__(self, directory: Path, *, keeps: bool) -> None:
        console = Console(highlight=False)
        self.console = console if console.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)
        self.directory = directory
        self.keeps = keeps
        self.timings: list[tuple[str, float, int]] = []

    def run(self, epochs: int | None) -> int:
        started = time.perf_counter()
        self.say(f"lepton-jit {lpt.__version__} on {cpu_name()}, {current_threads()} threads")
        data = mnist()
        images = {part: data[f"{part}_images"].astype(np.float32) / 255 for part in ("train", "test")}
        labels = {part: data[f"{part}_labels"] for part in ("train", "test")}
        model = self.train(images["train"], labels["train"], epochs)
        _, accuracy = model.evaluate(images["test"], labels["test"], verbose=0)
        print(f"test accuracy: {accuracy:.4f}", flush=True)
        fast = lpt.compile(model)
        self.show(fast)
        agrees = self.export(fast, images["test"])
        self.measure(fast, model, images["train"], labels["train"])
        self.say(f"\n{time.perf_counter() - started:.0f} seconds in all.")
        if self.keeps:
            self.say(f"Yours to try, in {self.directory}: digits.lepton, digits.so, digits.h.")
        return 0 if agrees else 1

    def train(self, x: np.ndarray, y: np.ndarray, epochs: int | None) -> Model:
        epochs = epochs or max(1, DIGITS_SEEN // len(x))
        self.title(f"Training: {len(x):,} digits, {epochs} epochs, batches of {BATCH}")
        lpt.set_random_seed(SEED)
        model = build_model()
        steps = epochs * math.ceil(len(x) / BATCH)
        adam = lpt.optimizers.Adam(lpt.optimizers.schedules.CosineDecay(LEARNING_RATE, steps))
        model.compile(optimizer=adam, loss="categorical_crossentropy", metrics=["accuracy"])
        model.summary()
        start = time.perf_counter()
        model.fit(x, y, epochs=epochs, batch_size=BATCH)
        self.say(f"{epochs * len(x) / (time.perf_counter() - start):,.0f} samples/s, compiling the step included")
        model.save(self.directory / "digits.lepton")
        return model

    def show(self, fast: CompiledModel) -> None:
        self.title("The optimized graph: print(fast.ir('optimized'))")
        self.say_cut(fast.ir("optimized"))
        self.title("The memory plan: print(fast.plan)")
        self.say_cut(str(fast.plan))

    def export(self, fast: CompiledModel, x: np.ndarray) -> bool:
        """Export, and tell whether a second process, without a compiler, gets the same bits."""
        self.title("Ahead of time: fast.export('digits.so')")
        start = time.perf_counter()
        library, header = fast.export(self.directory / "digits.so")
        self.timings.append(("export: link the library", time.perf_counter() - start, 0))
        self.say(f"{library.name}: {library.stat().st_size:,} bytes, weights included. {header.name} declares:")
        self.say("".join(f"  {line}\n" for line in header.read_text().splitlines() if line.endswith(");")).rstrip())
        arrays, answers = self.directory / "images.npy", self.directory / "answers.npy"
        np.save(arrays, x)
        _python(RUN_IN_NEW_PROCESS, library, arrays, answers)
        same = np.load(answers).tobytes() == np.asarray(fast(x)).tobytes()
        count = f"{len(x):,} digits in a second process, which imports no compiler"
        self.say(f"{count}: {'the same answers, bit for bit' if same else 'DIFFERENT ANSWERS'}")
        for path in (arrays, answers):
            path.unlink()
        return same

    def measure(self, fast: CompiledModel, model: Model, x: np.ndarray, y: np.ndarray) -> None:
        self.title("Timings (medians)")
        self.timings += self.compile_times()
        for batch in (1, BATCH):
            images = x[:batch].copy()
            self.timings.append((f"inference, batch {batch}", _median(lambda i=images: fast(i)), batch))
        images, labels = x[:BATCH].copy(), y[:BATCH].copy()
        step = _median(lambda: model.train_on_batch(images, labels))
        self.timings.append((f"training step, batch {BATCH}", step, BATCH))
        table = Table("what", "time", "samples/s", box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for what, seconds, samples in self.timings:
            table.add_row(what, f"{seconds * 1e3:,.3f} ms", f"{samples / seconds:,.0f}" if samples else "")
        self.console.print(table)

    def compile_times(self) -> Iterator[tuple[str, float, int]]:
        """Measure from `lepton_jit.compile` to the first answer in a new process, without imports."""
        with tempfile.TemporaryDirectory(prefix="lepton-jit-cache-") as cache:
            for what in ("cold", "from the cache"):
                text = _python(COMPILE_IN_NEW_PROCESS, self.directory / "digits.lepton", LEPTON_JIT_CACHE=cache)
                yield f"compile for inference, {what}", float(json.loads(text)), 0

    def title(self, text: str) -> None:
        self.console.print()
        self.console.rule(text, align="left", style="dim")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def say_cut(self, text: str) -> None:
        """Lines cut at the width of the terminal: the graph's attributes go far beyond it."""
        lines = text.rstrip("\n").splitlines()
        width = self.console.width
        cut = [line if len(line) <= width else f"{line[: width - 4]} ..." for line in lines]
        self.console.print("\n".join(cut), markup=False, no_wrap=True, overflow="ignore", crop=False)
        if cut != lines:
            self.say("(Long lines are cut; `lepton-jit dump MODEL.lepton` prints them whole.)")


def _python(program: str, *arguments: Path, **environment: str) -> str:
    """Run a Python program in a new process; returns what it prints."""
    command = [sys.executable, "-c", program, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise lpt.LeptonError(f"the second process failed: {done.stderr.strip()}")
    return done.stdout


def _median(call: Callable[[], object], seconds: float = 1.0) -> float:
    """The median time of a call, over at least 7 calls and about `seconds`."""
    times: list[float] = []
    end = time.perf_counter() + seconds
    call()
    while len(times) < 7 or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def cpu_name() -> str:
    """The processor's name, as the system states it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
