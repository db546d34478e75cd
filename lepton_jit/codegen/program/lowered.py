"""A lowered program: steps in order on buffers. Nothing here decides; `lower.py` does."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lepton_jit.codegen.loops.ir import Kernel
from lepton_jit.ir.graph import Input, Output
from lepton_jit.ir.types import THREADS_NAME, Dim, DType

# view: a buffer whose place depends on the iteration of a scan (its turn)
BufferKind = Literal["input", "parameter", "state", "output", "arena", "constant", "view"]
When = Literal["always", "first", "last"]


@dataclass(frozen=True)
class Slot:
    """A view of one index of a stacked array: at iteration i of a scan, that of iteration i + shift."""

    scan: int
    array: int
    shift: int = 0

    @property
    def buffers(self) -> tuple[int, ...]:
        return (self.array,)


@dataclass(frozen=True)
class Alternate:
    """A view of one of two buffers by turns; the last iteration has `last`."""

    scan: int
    last: int
    other: int

    @property
    def buffers(self) -> tuple[int, ...]:
        return self.last, self.other


@dataclass(frozen=True)
class Except:
    """A view of `chosen` at the first (last) iteration, of `otherwise` at all others."""

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
    With `per_thread`, each thread has `elements`: a window of a chain, or a kernel's scratch.
    """

    kind: BufferKind
    name: str
    dtype: DType
    elements: Dim
    index: int = 0  # the position among buffers of its kind
    first: int = -1
    last: int = -1
    layer: str = ""
    value: tuple = ()  # the elements of a constant
    view: View | None = None
    per_thread: bool = False
    block: Dim = 0  # the elements of each block of independent rows of a scan, where it has its own; else 0

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
        """The scratch buffers, which only the kernels of this node use."""
        return tuple(n for b, n in zip(self.kernel.buffers, self.buffers, strict=True) if b.role == "scratch")


@dataclass(frozen=True)
class Step:
    """One launch, or launches that run slice by slice of the batch while a cache holds what they pass on.

    With `turn`, it is a chain: each turn is that many groups of the last launch's rows, and what they need of the
    others. In the body of a scan, `when` says whether it runs at every iteration, or only at the first or the last one.
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
class IndependentRows:
    """Independent rows of a scan: blocks of up to `block` rows of the batch `symbol` go through all iterations alone.

    `shared` is true where an iteration reads more than a core's cache holds: few rows are then better served by all
    threads together, one iteration after the other.
    """

    symbol: str
    block: int
    shared: bool = False


@dataclass(frozen=True)
class Scan:
    """Steps that run in order at each of `length` iterations; views of `number` say what they work on."""

    number: int
    length: Dim
    reverse: bool
    body: tuple[Step | Scan, ...]
    layer: str
    op: str = "scan"
    rows: IndependentRows | None = None
    checked: str = ""

    @property
    def launches(self) -> tuple[Launch, ...]:
        return tuple(launch for step in self.body for launch in step.launches)

    @property
    def buffers(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(b for step in self.body for b in step.buffers))

    @property
    def scratch(self) -> tuple[int, ...]:
        """The scratch buffers of the kernels of its body."""
        return tuple(dict.fromkeys(n for launch in self.launches for n in launch.scratch))

    @property
    def flops(self) -> Dim:
        total: Dim = 0
        for step in self.body:
            total = step.flops + total
        return self.length * total


@dataclass(frozen=True)
class Lowered:
    """A lowered program: steps in order on buffers."""

    name: str
    symbols: tuple[str, ...]
    steps: tuple[Step | Scan, ...]
    buffers: tuple[ProgramBuffer, ...]
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    errors: tuple[tuple[int, str], ...] = ()  # (code, text) of the errors that kernels report
    sources: tuple[frozenset[str], ...] = ()  # the results of the nodes that each step computes, by name

    @property
    def kernel_symbols(self) -> tuple[str, ...]:
        return kernel_symbols(self.symbols)

    def arena(self) -> list[int]:
        """The buffers that the memory plan places."""
        return [i for i, b in enumerate(self.buffers) if b.kind == "arena" and b.first >= 0]


def kernel_symbols(symbols: tuple[str, ...]) -> tuple[str, ...]:
    """The symbols that kernels read: the program's, and the number of threads."""
    return (*symbols, THREADS_NAME)


def memory_of(buffers: Sequence[ProgramBuffer], numbers: Iterable[int]) -> tuple[int, ...]:
    """Replace views among buffers by all buffers that they may stand for."""
    found: dict[int, None] = {}
    for number in numbers:
        view = buffers[number].view
        found |= dict.fromkeys(memory_of(buffers, view.buffers) if view else (number,))
    return tuple(found)
