"""What every test shares: the peer's back end, the Hypothesis profile and the length of random searches."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

os.environ.setdefault("KERAS_BACKEND", "jax")

DEFAULT_FUZZ_EXAMPLES = 500


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-examples",
        type=int,
        default=None,
        metavar="N",
        help=f"examples per test marked fuzz (default {DEFAULT_FUZZ_EXAMPLES}, always the same; N draws anew)",
    )


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("--fuzz-examples")
    settings.register_profile("suite", deadline=None, derandomize=True, database=None)
    settings.register_profile("fuzz", deadline=None, derandomize=False, print_blob=True)
    settings.load_profile("suite" if given is None else "fuzz")


@pytest.fixture(scope="session")
def fuzz_examples(pytestconfig: pytest.Config) -> int:
    """How many examples a random search draws: `settings(max_examples=fuzz_examples)` inside the test."""
    given = pytestconfig.getoption("--fuzz-examples")
    return DEFAULT_FUZZ_EXAMPLES if given is None else given
