"""A lowered program: steps in order on buffers. Nothing here decides; `lower.py` does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lepton_jit.codegen.loops.ir import Kernel
from lepton_jit.ir.graph import Input, Output
from lepton_jit.ir.types import THREADS_NAME, Dim, DType

# view: where a value stands at one turn of a scan
BufferKind = Literal["input", "parameter", "state", "output", "arena", "constant", "view"]
When = Literal["always", "first", "last"]


@dataclass(frozen=True)
class Slot:
    """One index of a stacked array: at turn i that of turn i + shift."""

    scan: int
    array: int
    shift: int = 0

    @property
    def buffers(self) -> tuple[int, ...]:
        return (self.array,)


@dataclass(frozen=True)
class Alternate:
    """Two buffers in turns, so that the last turn is in `last`."""

    scan: int
    last: int
    other: int

    @property
    def buffers(self) -> tuple[int, ...]:
        return self.last, self.other


@dataclass(frozen=True)
class Except:
    """`chosen` at the first (last) turn, `otherwise` at all others."""

    scan: int
    when: Literal["first", "last"]
    chosen: int
    otherwise: int

    @property
    def buffers(self) -> tuple[int, ...]:
        return self.chosen, self.otherwise


View = Slot | Alternate | Except


@dataclass(frozen=True)
class ProgramBuffer:
    """Memory that steps read and write.

    `first` and `last` are the steps between which an arena buffer is needed; -1 where no step uses it.
    `per_thread`: `elements` for each thread: a window of rows between two kernels of a chain, or a kernel's own memory.
    """

    kind: BufferKind
    name: str
    dtype: DType
    elements: Dim
    index: int = 0  # the position among buffers of its kind
    first: int = -1
    last: int = -1
    layer: str = ""
    value: tuple = ()  # of a constant: its elements
    view: View | None = None
    per_thread: bool = False
    block: Dim = 0  # elements that each block of a scan's rows has for itself, where they do not go by rows

    @property
    def bytes(self) -> Dim:
        return self.elements * self.dtype.bytes


@dataclass(frozen=True)
class Launch:
    """A kernel on the buffers of its frame, by number."""

    kernel: Kernel
    buffers: tuple[int, ...]

    @property
    def scratch(self) -> tuple[int, ...]:
        """What the kernels of its node alone use."""
        return tuple(n for b, n in zip(self.kernel.buffers, self.buffers, strict=True) if b.name.startswith("s"))


@dataclass(frozen=True)
class Step:
    """One launch, or launches that run slice by slice of the batch while what they pass on is in cache.

    With `turn`, a chain: each turn is that many groups of the last launch's rows, and what they need of the others.

    In the body of a scan: at every turn, or `when` it is the first or the last one.
    """

    launches: tuple[Launch, ...]
    layer: str
    op: str
    checked: str = ""  # the input whose elements a check reads
    when: When = "always"
    turn: int = 0

    @property
    def buffers(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(b for launch in self.launches for b in launch.buffers))

    @property
    def flops(self) -> Dim:
        total: Dim = 0
        for launch in self.launches:
            total = launch.kernel.flops + total
        return total


@dataclass(frozen=True)
class Rows:
    """No row of the batch `symbol` depends on another: blocks of `block` rows each go through all turns by themselves.

    `shared` is true where a turn reads more than a core's cache holds: then few rows are better served by all threads
    together, turn by turn.
    """

    symbol: str
    block: int
    shared: bool = False


@dataclass(frozen=True)
class Scan:
    """Steps that run in order at each of `length` turns; views of `number` say what they work on."""

    number: int
    length: Dim
    reverse: bool
    body: tuple[Step | Scan, ...]
    layer: str
    op: str = "scan"
    rows: Rows | None = None
    checked: str = ""

    @property
    def launches(self) -> tuple[Launch, ...]:
        return tuple(launch for step in self.body for launch in step.launches)

    @property
    def buffers(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(b for step in self.body for b in step.buffers))

    @property
    def scratch(self) -> tuple[int, ...]:
        """What kernels have for themselves."""
        return tuple(dict.fromkeys(n for launch in self.launches for n in launch.scratch))

    @property
    def flops(self) -> Dim:
        total: Dim = 0
        for step in self.body:
            total = step.flops + total
        return self.length * total


@dataclass(frozen=True)
class Lowered:
    """A program: steps in order on buffers."""

    name: str
    symbols: tuple[str, ...]
    steps: tuple[Step | Scan, ...]
    buffers: tuple[ProgramBuffer, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    errors: tuple[tuple[int, str], ...] = ()  # what the codes of reports mean

    @property
    def kernel_symbols(self) -> tuple[str, ...]:
        return kernel_symbols(self.symbols)

    def arena(self) -> list[int]:
        """The buffers that the memory plan places."""
        return [i for i, b in enumerate(self.buffers) if b.kind == "arena" and b.first >= 0]


def kernel_symbols(symbols: tuple[str, ...]) -> tuple[str, ...]:
    """What kernels read: the program's symbols and the number of threads."""
    return (*symbols, THREADS_NAME)


def memory_of(buffers: Sequence[ProgramBuffer], numbers: Iterable[int]) -> tuple[int, ...]:
    """Buffers without views: in place of a view all that it may stand in."""
    found: dict[int, None] = {}
    for number in numbers:
        view = buffers[number].view
        found |= dict.fromkeys(memory_of(buffers, view.buffers) if view else (number,))
    return tuple(found)
