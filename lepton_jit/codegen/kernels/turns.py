"""How threads share the rows of what a scan reads and stacks."""

from __future__ import annotations

from lepton_jit.ir.types import Poly, Shape, element_count, typical

# Rows of one block: two tiles of 8 rows, so that each panel that comes from the L2 cache is used by two tiles.
ROW_BLOCK = 16
# Samples of fewer elements share lines of the cache.
LINE = 16


def batch_of_turns(shape: Shape) -> Poly | None:
    """The batch of what a scan reads or stacks, [turns][batch][...]: threads share it there, as they do in a scan.

    With another share half of the gates changed cores, which costs a fifth of an LSTM where their caches lie apart.
    """
    if len(shape) < 3 or typical(element_count(shape[2:])) < LINE:
        return None
    turns, batch = shape[:2]
    return batch if isinstance(turns, int) and isinstance(batch, Poly) and repr(batch).isidentifier() else None
