"""An exported recurrent network: any batch, any number of threads, the bits of the program that it came from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import lepton_jit as lpt


@pytest.fixture(scope="module")
def fast() -> lpt.CompiledModel:
    lpt.set_random_seed(1)
    return lpt.compile(lpt.Sequential([lpt.Embedding(50, 6, input_shape=(7,)), lpt.LSTM(20), lpt.Dense(2)]))


def test_a_library_with_a_loop_gives_the_same_bits(fast: lpt.CompiledModel, tmp_path: Path) -> None:
    library, _ = fast.export(tmp_path / "words.so")
    loaded = lpt.load(library)
    words = np.random.default_rng(0).integers(0, 50, (40, 7)).astype(np.int32)
    for batch in (1, 16, 17, 40):
        expected = fast(words[:batch])
        assert isinstance(expected, np.ndarray)
        assert np.asarray(loaded(words[:batch])).tobytes() == expected.tobytes(), batch


def test_a_loop_passes_every_check_of_the_compiler() -> None:
    model = lpt.Sequential([lpt.LSTM(3, return_sequences=True, input_shape=(5, 4)), lpt.LSTM(2)])
    checked = lpt.compile(model, verify="passes")
    x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    assert np.allclose(checked(x), model.predict(x, verbose=0), atol=1e-6)
