"""Random models, from the user's layers to native code, in training and out of it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest

from tests.model_arguments import Call
from tests.model_reference import Difference, Expected
from tests.model_search import Failure, check_seed, coverage, minimized, print_coverage
from tests.model_text import RandomModel
from tests.random_models import random_model

SEEDS = 12
# One test of a long run checks a part, so that two workers share the time.
PARTS = 2
# At least so many models in a long run; one takes as long as so many graphs.
SOAKED, GRAPHS = 150, 20
# So many models have every registered name in them, whatever their seeds.
COVERING = 400
# The same for these seeds.
COVERING_FROM_0 = 150


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Each program is compiled once, and not taken from an earlier run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "LEPTON_JIT_CACHE", str(tmp_path_factory.mktemp("objects")))
        yield


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_random_model_is_right_in_inference_training_and_files(seed: int) -> None:
    check_seed(seed, most_steps=3)


@pytest.mark.soak
@pytest.mark.fuzz
@pytest.mark.parametrize("part", range(PARTS))
def test_many_random_models_are_right(part: int, fuzz_seeds: range) -> None:
    first, count = fuzz_seeds.start + SEEDS, max(SOAKED, len(fuzz_seeds) // GRAPHS)
    seeds = range(first + part, first + count, PARTS)
    print(f"seeds {seeds}")
    counts = coverage([check_seed(seed) for seed in seeds])
    print(print_coverage(counts))
    if len(seeds) >= COVERING:
        assert [name for name, count in counts.items() if not count] == []


def test_random_models_have_everything_registered_in_them() -> None:
    counts = coverage([random_model(seed) for seed in range(COVERING_FROM_0)])
    print(print_coverage(counts))
    assert [name for name, count in counts.items() if not count] == []


def test_a_program_is_drawn_again_from_its_seed_and_runs_as_it_is_printed() -> None:
    model = random_model(4, most_steps=1)
    assert str(random_model(4, most_steps=1)) == str(model)
    scope: dict[str, Any] = {}
    exec(str(model), scope)
    assert scope["model"].optimizer.iterations == 3


def test_what_fails_is_cut_down_to_the_layer_that_it_is_about() -> None:
    """As if a product of at least 4 channels were wrong: what is left is one Dense layer that has them."""

    def fails(model: RandomModel) -> Failure | None:
        scope: dict[str, Any] = {}
        try:
            exec(str(model).split("for n in")[0], scope)
        except Exception:  # a smaller model need not be one
            return None
        wide = [w for w in scope["model"].get_weights() if w.ndim == 2 and len(w) >= 4]
        return Failure(model, "outputs", "wrong") if wide else None

    model = next(m for m in map(random_model, range(100)) if len(m.steps) > 4 and fails(m))
    found = minimized(Failure(model, "outputs", "wrong"), fails).model

    assert len(found.steps) == 1
    assert isinstance(found.steps[0].layer, Call)
    assert found.optimizer == Call("optimizers.SGD")
    assert found.rows == (1, 1, 1)
    assert len(str(found).splitlines()) < 25


def test_an_error_that_rounding_does_not_explain_is_a_difference() -> None:
    exact = {"y": np.array([1.0, 2.0])}
    expected = Expected(exact, ({"y": np.array([1.0, 2.0 + 1e-6])}, {"y": np.array([1.0, 2.0 - 1e-6])}))
    expected.compare("outputs", {"y": np.array([1.0, 2.0 + 2e-6], "float32")})
    for wrong in ([1.0, 2.0 + 4e-5], [1.0, np.nan], [1.0]):
        with pytest.raises(Difference, match=r"^outputs: y: "):
            expected.compare("outputs", {"y": np.array(wrong, "float32")})
