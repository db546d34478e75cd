"""The errors of this project: what was expected, what came, where, and what to do about it."""

from __future__ import annotations

__all__ = [
    "ArgumentError",
    "DTypeError",
    "FileFormatError",
    "GraphError",
    "LeptonError",
    "OutOfMemoryError",
    "OutOfRangeError",
    "ParseError",
    "ShapeError",
    "UnsupportedError",
]


class LeptonError(Exception):
    """The root of everything that this package raises on purpose."""


class ShapeError(LeptonError, ValueError):
    """A tensor's shape does not fit; the message names the layer or op, the expected shape and the one that came."""


class ArgumentError(LeptonError, ValueError):
    """An argument or a value in the data is out of its range (a NaN label, an unknown activation, an empty batch)."""


class OutOfRangeError(ArgumentError, IndexError):
    """An index or a label in the data names no row or class; the message has its position and the allowed range."""


class OutOfMemoryError(LeptonError, MemoryError):
    """The memory that this process may have is not enough; the message says how much is needed."""


class DTypeError(LeptonError, TypeError):
    """A tensor's element type does not fit."""


class UnsupportedError(LeptonError, NotImplementedError):
    """A valid request that this version cannot carry out; it never falls back in silence."""


class FileFormatError(LeptonError, ValueError):
    """A file or buffer is damaged, truncated, of another format, or built for another machine."""


class ParseError(FileFormatError):
    """A text that does not follow its grammar.

    >>> str(ParseError("expected ')'", line=3, column=7))
    "line 3, column 7: expected ')'"
    """

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message, line, column)  # a pickle calls the class on these
        self.line = line
        self.column = column

    def __str__(self) -> str:
        return f"line {self.line}, column {self.column}: {self.args[0]}"


class GraphError(LeptonError):
    """A graph or kernel broke an invariant: a defect of a pass or of a hand-written text, found by the verifier."""
