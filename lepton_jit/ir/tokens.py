"""Tokens of the text form, each with its place, and a reader that moves over them."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from lepton_jit.errors import ParseError

__all__ = ["Reader", "Token"]

T = TypeVar("T")

_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+|//[^\n]*)
      | (?P<value>%\w+)
      | (?P<number>[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?(?![\w.]))
      | (?P<word>\w+)
      | (?P<string>"(?:[^"\\\n]|\\.)*")
      | (?P<mark>[(){}\[\],=:@*+-])""",
    re.VERBOSE,
)
_KINDS = ("value", "number", "word", "string", "mark")
MAX_DIGITS = 40
MAX_SHOWN = 40


@dataclass(frozen=True)
class Token:
    """A piece of the text; `kind` is value, number, word, string, mark or end."""

    kind: str
    text: str
    position: int


class Reader:
    """Steps over the tokens of a text; whoever expects something else gets a ParseError at the place."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._end = 0
        self.token = Token("end", "", 0)
        self._advance()

    def error(self, message: str, token: Token | None = None) -> ParseError:
        position = (token or self.token).position
        line = self._text.count("\n", 0, position) + 1
        return ParseError(message, line=line, column=position - self._text.rfind("\n", 0, position))

    def at(self, *what: str) -> bool:
        """Tell whether the token is one of these marks or words, or of these kinds."""
        token = self.token
        return token.kind in what or (token.kind in ("mark", "word") and token.text in what)

    def accept(self, text: str) -> bool:
        """Step over this mark or word where it stands."""
        if self.token.text != text or self.token.kind not in ("mark", "word"):
            return False
        self._advance()
        return True

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise self.error(f"expected {text!r}, got {self._shown()}")

    def expect_end(self) -> None:
        if self.token.kind != "end":
            raise self.error(f"expected the end of the text, got {self._shown()}")

    def next(self, *kinds: str) -> Token:
        """Step over a token of one of these kinds."""
        token = self.token
        if token.kind not in kinds:
            raise self.error(f"expected a {' or a '.join(kinds)}, got {self._shown()}")
        self._advance()
        return token

    def separated(self, opening: str, closing: str, item: Callable[[], T]) -> list[T]:
        """`(item, item, ...)`."""
        self.expect(opening)
        items: list[T] = []
        if self.accept(closing):
            return items
        items.append(item())
        while self.accept(","):
            items.append(item())
        self.expect(closing)
        return items

    def string(self) -> str:
        token = self.next("string")
        try:
            text = json.loads(token.text)
            text.encode()
        except (ValueError, UnicodeEncodeError):
            raise self.error("a string with a wrong escape or character", token) from None
        return text

    def integer(self) -> int:
        token = self.next("number")
        if not token.text.isdigit():
            raise self.error(f"expected an integer, got {self._shown(token)}", token)
        if len(token.text) > MAX_DIGITS:
            raise self.error(f"expected at most {MAX_DIGITS} digits, got {len(token.text)}", token)
        return int(token.text)

    def float(self) -> float | None:
        """A float with its sign, `-1.5e-07` or `-inf`; None, without a step, where there is none."""
        match = _FLOAT.match(self._text, self.token.position)
        if match is None:
            return None
        self._end = match.end()
        self._advance()
        number = match.group().replace(" ", "")
        return math.nan if number.endswith("nan") else float(number)

    def _shown(self, token: Token | None = None) -> str:
        token = token or self.token
        if token.kind == "end":
            return "the end of the text"
        return repr(token.text if len(token.text) <= MAX_SHOWN else token.text[:MAX_SHOWN] + "...")

    def _advance(self) -> None:
        position = self._end
        while True:
            match = _TOKEN.match(self._text, position)
            if match is None:
                break
            kind = match.lastgroup or ""
            if kind != "space":
                self._end = match.end()
                self.token = Token(kind, match.group(), position)
                return
            position = match.end()
        self._end = position
        self.token = Token("end", "", position)
        if position < len(self._text):
            raise self.error(f"expected a token, got {self._text[position : position + 10]!r}")


_FLOAT = re.compile(r"-?(?:[0-9]+(?:\.[0-9]+(?:[eE][+-]?[0-9]+)?|[eE][+-]?[0-9]+)(?![\w.])|(?:inf|nan)\b)")
