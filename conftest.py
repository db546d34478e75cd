"""What every test shares: the peer's back end, the host's level, the Hypothesis profile, the length of searches."""

from __future__ import annotations

import gc
import os
import secrets

import pytest
from hypothesis import settings

from lepton_jit.codegen import target

os.environ.setdefault("KERAS_BACKEND", "jax")
# The peer runs each of its programs a few times: with little effort, they are compiled in half the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

DEFAULT_FUZZ_EXAMPLES = 100


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
        choices=[*target.TARGETS, "lower"],
        help="run as if this machine had no level above that one, or not its best; processes that tests start see all",
    )


def pytest_configure(config: pytest.Config) -> None:
    name = config.getoption("--target")
    if name is not None:
        pretend(name)
    given = config.getoption("--fuzz-examples")
    settings.register_profile("suite", deadline=None, derandomize=True, database=None)
    settings.register_profile("fuzz", deadline=None, derandomize=False, print_blob=True)
    settings.load_profile("suite" if given is None else "fuzz")


def pytest_collection_finish() -> None:
    """What has been imported stays: to look for cycles in Keras and JAX takes 0.3 s each time."""
    gc.collect()
    gc.freeze()


def pretend(name: str) -> None:
    """Make that level the machine's best, before any test module asks for it."""
    best = target.native_target()
    levels = [t for t in target.TARGETS.values() if t.triple == best.triple]
    levels = [t for t in levels if target.host_features().issuperset(t.required)]
    level = levels[-1 if len(levels) == 1 else 1] if name == "lower" else target.TARGETS[name]
    if level not in levels:
        raise pytest.UsageError(f"--target {name}: this machine is {best.name}")
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
