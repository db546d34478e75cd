"""Environment variables: typed, and named when they are wrong."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lepton_jit.environment import Environment, read_environment
from lepton_jit.errors import ArgumentError


def test_nothing_set_gives_the_defaults() -> None:
    expected = Environment(cache=Path.home() / ".cache" / "lepton_jit")
    assert read_environment({}) == expected
    assert read_environment({"LEPTON_JIT_THREADS": " ", "LEPTON_JIT_CACHE": ""}) == expected


def test_every_variable_is_read() -> None:
    variables = {
        "LEPTON_JIT_THREADS": "3",
        "LEPTON_JIT_CACHE": "/c",
        "LEPTON_JIT_DATA": "/d",
        "LEPTON_JIT_DUMP": "/e",
        "LEPTON_JIT_VERIFY": "passes",
        "LEPTON_JIT_DEBUG": "2",
    }
    assert read_environment(variables) == Environment(3, Path("/c"), Path("/d"), Path("/e"), "passes", 2)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LEPTON_JIT_CACHE": "off"}, None),
        ({"XDG_CACHE_HOME": "/x"}, Path("/x/lepton_jit")),
        ({"XDG_CACHE_HOME": "relative"}, Path.home() / ".cache" / "lepton_jit"),
        ({"XDG_CACHE_HOME": "/x", "LEPTON_JIT_CACHE": "~/c"}, Path.home() / "c"),
    ],
)
def test_where_the_cache_is(variables: dict[str, str], expected: Path | None) -> None:
    assert read_environment(variables).cache == expected


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("LEPTON_JIT_THREADS", "0", "an integer of 1 to 999999999"),
        ("LEPTON_JIT_THREADS", "many", "an integer of 1 to 999999999"),
        ("LEPTON_JIT_THREADS", "-2", "an integer of 1 to 999999999"),
        ("LEPTON_JIT_THREADS", "99999999999", "an integer of 1 to 999999999"),
        ("LEPTON_JIT_DEBUG", "1.5", "an integer of 0 to 999999999"),
        ("LEPTON_JIT_VERIFY", "everything", "'passes'"),
    ],
)
def test_a_bad_value_names_its_variable(name: str, value: str, expected: str) -> None:
    with pytest.raises(ArgumentError, match=f"environment variable {name}: expected {expected}, got '{value}'"):
        read_environment({name: value})


NO_HOME = """
import os
os.environ.pop("HOME", None)
os.environ.pop("XDG_CACHE_HOME", None)
os.environ.pop("LEPTON_JIT_CACHE", None)
import pwd
def unknown(_):
    raise KeyError("no such user")
pwd.getpwuid = unknown
import lepton_jit as lpt
from lepton_jit.datasets import digits
from lepton_jit.environment import read_environment
print(read_environment().cache, digits._download_once())
try:
    read_environment({"LEPTON_JIT_DATA": "~/digits"})
except lpt.ArgumentError as error:
    print(error)
"""


def test_without_a_home_directory_nothing_is_cached_and_a_path_in_it_is_refused() -> None:
    done = subprocess.run([sys.executable, "-c", NO_HOME], capture_output=True, text=True, check=True)

    assert done.stdout.startswith("None could not determine the home directory")
    assert "environment variable LEPTON_JIT_DATA: expected a path, got '~/digits'" in done.stdout
