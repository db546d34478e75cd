"""Decide how threads share tensors that a scan reads or stacks: by samples, as they share the scan."""

from __future__ import annotations

from lepton_jit.ir.types import Poly, Shape, element_count, typical

# Rows of one block: two tiles of 8 rows, so that each panel that comes from the L2 cache is used by two tiles.
ROW_BLOCK = 16
# Samples of fewer elements share cache lines.
LINE = 16


def batch_of_turns(shape: Shape) -> Poly | None:
    """The batch of a tensor [iterations of a scan][batch][...], which threads are to share by samples; else None.

    With another share, half of an LSTM's gates would move to another core between the product and the loop.
    """
    if len(shape) < 3 or typical(element_count(shape[2:])) < LINE:
        return None
    turns, batch = shape[:2]
    return batch if isinstance(turns, int) and isinstance(batch, Poly) and repr(batch).isidentifier() else None
