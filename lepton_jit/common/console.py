"""Print for a person to read. Printing never ends the work that it tells of: there may be nobody to print to."""

from __future__ import annotations

import sys

__all__ = ["FAILURES", "can_show", "is_terminal", "say"]

# The errors of a stream that is closed, whose reader has gone, whose encoding lacks a character, or that has only
# `write`.
FAILURES = (AttributeError, OSError, UnicodeError, ValueError)


def is_terminal() -> bool:
    """Tell whether standard output is a terminal; pythonw has none at all."""
    try:
        return sys.stdout is not None and bool(sys.stdout.isatty())
    except FAILURES:
        return False


def can_show(text: str) -> bool:
    """Tell whether the encoding of standard output has these characters."""
    return text == _encodable(text)


def say(text: str) -> None:
    """Print a line; characters that the encoding lacks as `\\xe9`."""
    try:
        print(_encodable(text), flush=True)
    except FAILURES:
        return


def _encodable(text: str) -> str:
    encoding = getattr(sys.stdout, "encoding", None)
    if not isinstance(encoding, str):
        return text
    try:
        return text.encode(encoding, "backslashreplace").decode(encoding)
    except (LookupError, UnicodeError):
        return text.encode("ascii", "backslashreplace").decode()
