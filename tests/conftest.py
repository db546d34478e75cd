"""Options of the tests under this directory."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the expectations in the golden files")


@pytest.fixture
def update_golden(pytestconfig: pytest.Config) -> bool:
    """Whether golden files are to be rewritten with what the code gives now; the diff is reviewed."""
    return pytestconfig.getoption("--update-golden")
