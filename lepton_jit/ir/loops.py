"""Build loops: the region of a `scan` from a Python function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lepton_jit.errors import GraphError
from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import Dim

__all__ = ["Body", "scan"]

# body(builder, carries, slices, captured) -> new carries, values to stack
Body = Callable[[Builder, Sequence[Value], Sequence[Value], Sequence[Value]], tuple[Sequence[Value], Sequence[Value]]]


def scan(
    b: Builder,
    body: Body,
    carries: Sequence[Value],
    scanned: Sequence[Value] = (),
    captured: Sequence[Value] = (),
    *,
    length: Dim | None = None,
    reverse: bool = False,
) -> tuple[Sequence[Value], Sequence[Value]]:
    """The final carries and the stacked values of a loop over the leading dimension of the `scanned` arrays.

    A region reads nothing but its inputs: what `body` needs from outside is `captured`. `length` is only needed where
    nothing is scanned. With `reverse` the loop runs from the last index to the first, and stacks at the same indices.

    >>> from lepton_jit.ir.types import TensorType
    >>> b = Builder()
    >>> x = b.input("x", TensorType.of("f32", 5, "N"))
    >>> zero = b.full(0.0, TensorType.of("f32", "N"))
    >>> def running_sum(b, carries, slices, captured):
    ...     total = b("add", carries[0], slices[0])
    ...     return [total], [total]
    >>> scan(b, running_sum, [zero], [x])
    ([%2: f32[N]], [%3: f32[5,N]])
    """
    if length is None:
        if not scanned or not scanned[0].type.rank:
            raise GraphError("scan: expected a length, or a scanned array with a leading dimension")
        length = scanned[0].type.shape[0]
    inner = Builder("region")
    with inner.layer(b.current_layer, absolute=True):
        carried = [inner.input(f"carry{i}", value.type) for i, value in enumerate(carries)]
        slices = [
            inner.input(f"slice{i}", value.type.with_shape(value.type.shape[1:])) for i, value in enumerate(scanned)
        ]
        outside = [inner.input(f"captured{i}", value.type) for i, value in enumerate(captured)]
        new, stacked = body(inner, carried, slices, outside)
    for i, value in enumerate(new):
        inner.output(value, f"carry{i}")
    for i, value in enumerate(stacked):
        inner.output(value, f"stacked{i}")
    results = b.emit(
        "scan",
        *carries,
        *scanned,
        *captured,
        regions=(inner.build(),),
        length=length,
        carries=len(carries),
        scanned=len(scanned),
        reverse=reverse,
    )
    return list(results[: len(carries)]), list(results[len(carries) :])
