"""The demo tells its story on a handful of digits; `make demo` tells it on all."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import lepton_jit as lpt
from lepton_jit import demo


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and text of a demo that has 128 digits, each blank but for a stroke that tells its class."""
    labels = np.arange(128, dtype=np.uint8) % 10
    images = np.zeros((128, 28, 28, 1), np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[2 * label + 3 : 2 * label + 5] = 255
    part = {"images": images, "labels": labels}
    data = {f"{name}_{key}": value for name in ("train", "test") for key, value in part.items()}
    monkeypatch.setattr(demo, "mnist", lambda: data)
    monkeypatch.setattr(demo, "_median", lambda call: (call(), 0.001)[1])
    code = demo.run_demo(tmp_path / "out", epochs=25)
    return code, capsys.readouterr().out


def test_the_demo_shows_everything(output, tmp_path):
    code, text = output

    assert code == 0
    (accuracy,) = re.findall(r"^test accuracy: ([01]\.\d{4})$", text, re.MULTILINE)
    assert float(accuracy) > 0.9
    for part in (
        "%input: f32[N,28,28,1]",
        "memory plan of inference at N = 64",
        "gap",
        "the same answers, bit for bit",
        "compile for inference, cold",
        "compile for inference, from the cache",
        "inference, batch 1",
        "inference, batch 64",
        "training step, batch 64",
    ):
        assert part in text
    assert max(map(len, text.splitlines())) <= demo.PLAIN_WIDTH
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["digits.h", "digits.lepton", "digits.so"]


def test_the_digits_seen_do_not_depend_on_their_number(monkeypatch):
    seen = {}
    monkeypatch.setattr(lpt.Model, "fit", lambda self, x, y, *, epochs, batch_size: seen.update({len(x): epochs}))
    monkeypatch.setattr(lpt.Model, "save", lambda self, path: None)
    for count in (4_000, 60_000):
        demo._Demo(Path(), keeps=False).train(np.zeros((count, 1)), np.zeros(count), None)
    assert seen == {4_000: 15, 60_000: 1}
