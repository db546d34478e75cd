"""The one file that reads environment variables."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lepton_jit.errors import ArgumentError

__all__ = ["Environment", "expanded_path", "read_environment"]


@dataclass(frozen=True)
class Environment:
    """The settings from outside the program, with the default where a variable is unset or empty.

    - `threads` (`LEPTON_JIT_THREADS`): the default number of threads, at least 1.
    - `cache` (`LEPTON_JIT_CACHE`): the directory of the object cache, by default `$XDG_CACHE_HOME/lepton_jit` or
      `~/.cache/lepton_jit`; `None` if the variable is `off`, or there is no home directory.
    - `data` (`LEPTON_JIT_DATA`): the directory with data sets.
    - `dump` (`LEPTON_JIT_DUMP`): a directory into which each compilation writes its stages.
    - `verify` (`LEPTON_JIT_VERIFY`): what to check while compiling, `passes` for every pass.
    - `debug` (`LEPTON_JIT_DEBUG`): a level from 0 (silent) up.
    """

    threads: int | None = None
    cache: Path | None = None
    data: Path | None = None
    dump: Path | None = None
    verify: str | None = None
    debug: int = 0


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """The settings in `variables`, by default those of the process; ArgumentError names a variable with a bad value.

    >>> read_environment({"LEPTON_JIT_THREADS": "4", "LEPTON_JIT_CACHE": "off"})
    Environment(threads=4, cache=None, data=None, dump=None, verify=None, debug=0)
    """
    variables = os.environ if variables is None else variables
    return Environment(
        threads=_integer(variables, "LEPTON_JIT_THREADS", least=1),
        cache=_cache_directory(variables),
        data=_path(variables, "LEPTON_JIT_DATA"),
        dump=_path(variables, "LEPTON_JIT_DUMP"),
        verify=_choice(variables, "LEPTON_JIT_VERIFY", ("passes",)),
        debug=_integer(variables, "LEPTON_JIT_DEBUG", least=0) or 0,
    )


def _cache_directory(variables: Mapping[str, str]) -> Path | None:
    text = variables.get("LEPTON_JIT_CACHE", "").strip()
    if text:
        return None if text == "off" else _path(variables, "LEPTON_JIT_CACHE")
    # The specification of XDG directories: a relative path is invalid and must be ignored.
    base = variables.get("XDG_CACHE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "lepton_jit"
    home = os.path.expanduser("~")  # itself where HOME is unset and the user has no entry, as in some containers
    return None if home == "~" else Path(home) / ".cache" / "lepton_jit"


def _integer(variables: Mapping[str, str], name: str, *, least: int) -> int | None:
    text = variables.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > 9 or int(text) < least:
        raise ArgumentError(f"environment variable {name}: expected an integer of {least} to 999999999, got {text!r}")
    return int(text)


def _path(variables: Mapping[str, str], name: str) -> Path | None:
    text = variables.get(name, "").strip()
    return expanded_path(f"environment variable {name}", text) if text else None


def expanded_path(owner: str, path: str | os.PathLike[str]) -> Path:
    """A path whose `~` or `~user` is replaced by a home directory; ArgumentError if there is none."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ArgumentError(f"{owner}: expected a path, got {os.fspath(path)!r}: {error}") from None


def _choice(variables: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str | None:
    text = variables.get(name, "").strip()
    if text and text not in choices:
        raise ArgumentError(f"environment variable {name}: expected {' or '.join(map(repr, choices))}, got {text!r}")
    return text or None
