"""Define traits of operations: facts that passes and code generation ask for in place of a name."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Literal

__all__ = ["ORDINARY", "Cost", "Storage", "Traits"]


class Storage(Enum):
    """Where the result of an operation lies."""

    OWN = "own"  # in memory of its own, unless it is fused into what reads it
    ALIAS = "alias"  # where its first operand lies: nothing is copied
    RECOMPUTED = "recomputed"  # nowhere: every kernel that reads it computes it again, which is less than to load it


class Cost(Enum):
    """How many instructions an element of an elementwise operation takes."""

    CHEAP = "cheap"  # one: less than to store the result and to load it
    MODERATE = "moderate"  # some, as a division does, or not known to be fewer
    EXPENSIVE = "expensive"  # a dozen and more: not to be computed twice


@dataclass(frozen=True, kw_only=True)
class Traits:
    """The traits of an operation; the defaults hold for most operations.

    Some traits have the same operations today. They stay apart, because they are different facts.
    """

    # Memory

    # Where the result lies.
    storage: Storage = Storage.OWN
    # Estimates of memory count nothing for the result: it shares the operand's, or is computed where it is read.
    weightless: bool = False
    # The value, written out, is larger than the operation, so that it is not folded to a constant.
    compact: bool = False
    # Each round of a loop computes it again, since one more operand of the loop would cost more.
    stays_in_loops: bool = False

    # Cost

    # How many instructions an element takes.
    cost: Cost = Cost.MODERATE
    # The result is numbers of its operand or its attributes, repeated: who reads it loads no more than these.
    repeats_numbers: bool = False
    # A scalar result comes from attributes alone: any kernel may contain it.
    scalar_source: bool = False

    # Kernels

    # Kernels compute an element of the result at any index, from elements of the operands at indices that follow.
    fuses_as_map: bool = False
    # The kind of kernel that can finish the result with elementwise work before it stores it.
    epilogue: Literal["contraction", "scatter", "window"] | None = None
    # Many elements are combined into each one of the result, while the kernel computes what feeds them.
    accumulates: bool = False
    # Its kernel loads the operands from memory: nothing that computes them is fused into it.
    loads_operands: bool = False
    # A step that computes it among others bears its name.
    named_in_steps: bool = True

    # Values

    # Each element of the result is an element of an operand, with its value.
    keeps_numbers: bool = False
    # The result has the elements of its only operand in their order, perhaps in another dtype.
    keeps_order: bool = False
    # The sum of several results is the result for the sums of the operands.
    additive: bool = False


ORDINARY = Traits()
