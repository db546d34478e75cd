"""Cut a module into several texts, so that LLVM compiles the first while others are still being emitted."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from llvmlite import ir

# Long enough that what every object file has of its own does not matter.
PART_CHARACTERS = 150_000
# Visible to the other parts of a program and to nobody else; llvmlite prints it where linkage stands.
SHARED = "hidden"

_NAME = re.compile(r'@"([^"]+)"')


@dataclass(frozen=True)
class Part:
    """A part of a module: definitions, and declarations of what they name and do not define."""

    header: str
    declarations: tuple[str, ...]
    definitions: tuple[str, ...]
    metadata: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((self.header, *self.declarations, *self.definitions, *self.metadata))


def joined(parts: Sequence[Part]) -> str:
    """Join all parts to one module, to be read."""
    definitions = [text for part in parts for text in part.definitions]
    defined = {_first_name(text) for text in definitions}
    declarations = dict.fromkeys(text for part in parts for text in part.declarations)
    outside = [text for text in declarations if _first_name(text) not in defined]
    return "\n".join((parts[0].header, *outside, *definitions, *parts[-1].metadata))


class ModuleParts:
    """Cuts a module that grows. Definitions that another part may name are SHARED.

    Declarations are not: calls and addresses that cross parts go through the linker's tables, so that parts may lie far
    apart in memory.
    """

    def __init__(self, module: ir.Module, take: Callable[[Part], None]) -> None:
        self.module = module
        self.take = take
        self._printed = 0
        self._pending: list[str] = []
        self._size = 0

    def grown(self) -> None:
        """Take what the module defines since the last call: all of it is complete now."""
        added = list(self.module.globals.values())[self._printed :]
        self._printed += len(added)
        for value in added:
            if not _is_declaration(value):
                text = str(value)
                self._pending.append(text)
                self._size += len(text)
        if self._size >= PART_CHARACTERS:
            self.cut()

    def cut(self) -> None:
        """Make a part of what has been defined since the last cut."""
        if not self._pending:
            return
        inside = {_first_name(text) for text in self._pending}
        names = dict.fromkeys(name for text in self._pending for name in _NAME.findall(text))
        declarations = tuple(_declaration(self.module.globals[name]) for name in names if name not in inside)
        header = f'; ModuleID = "{self.module.name}"\ntarget triple = "{self.module.triple}"\n'
        metadata = [str(node) for node in self.module.metadata]
        self.take(Part(header, declarations, tuple(self._pending), tuple(metadata)))
        self._pending, self._size = [], 0


def _is_declaration(value: Any) -> bool:
    return not (value.blocks if isinstance(value, ir.Function) else value.initializer)


def _first_name(text: str) -> str:
    found = _NAME.search(text)
    assert found
    return found[1]


def _declaration(value: Any) -> str:
    if _is_declaration(value):
        return str(value)
    if isinstance(value, ir.Function):
        arguments = ", ".join(str(argument.type) for argument in value.args)
        return f'declare {value.function_type.return_type} @"{value.name}"({arguments})\n'
    return f'@"{value.name}" = external constant {value.value_type}\n'
