"""What every test shares: the peer's back end, the host's level, the Hypothesis profile, the length of searches."""

from __future__ import annotations

import os
import secrets

import pytest
from hypothesis import settings

from lepton_jit.codegen import target

os.environ.setdefault("KERAS_BACKEND", "jax")

DEFAULT_FUZZ_EXAMPLES = 200


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--fuzz-examples",
        type=int,
        default=None,
        metavar="N",
        help=f"examples per test marked fuzz (default {DEFAULT_FUZZ_EXAMPLES}, always the same; N draws anew)",
    )
    parser.addoption("--fuzz-from", type=int, metavar="SEED", help="the seed of the first example, to go on from there")
    parser.addoption(
        "--target",
        choices=[name for name in target.TARGETS if name.startswith("x86-64")],
        help="run the tests as if this machine had no level above that one; processes that tests start see it as it is",
    )


def pytest_configure(config: pytest.Config) -> None:
    pretended = config.getoption("--target")
    if pretended is not None:
        pretend(target.TARGETS[pretended])
    given = config.getoption("--fuzz-examples")
    settings.register_profile("suite", deadline=None, derandomize=True, database=None)
    settings.register_profile("fuzz", deadline=None, derandomize=False, print_blob=True)
    settings.load_profile("suite" if given is None else "fuzz")


def pretend(level: target.Target) -> None:
    """Make `level` the host's best: before any test module asks for it."""
    if not target.host_features().issuperset(level.required):
        raise pytest.UsageError(f"--target {level.name}: this machine is {target.native_target().name}")
    features = frozenset(level.required)
    target.host_features = lambda: features
    target.native_target.cache_clear()


@pytest.fixture(scope="session")
def fuzz_examples(pytestconfig: pytest.Config) -> int:
    """How many examples a random search draws."""
    given = pytestconfig.getoption("--fuzz-examples")
    return DEFAULT_FUZZ_EXAMPLES if given is None else given


@pytest.fixture(scope="session")
def fuzz_seeds(pytestconfig: pytest.Config, fuzz_examples: int) -> range:
    """Their seeds, of which a failure names one."""
    first = pytestconfig.getoption("--fuzz-from")
    if first is None:
        first = 0 if pytestconfig.getoption("--fuzz-examples") is None else secrets.randbelow(10**12)
    return range(first, first + fuzz_examples)
