"""The kernels of a program as text, in the order of its steps; comments say where scans and chains begin and end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lepton_jit.codegen.loops.printer import print_kernel
from lepton_jit.codegen.program.lowered import Scan, Step

__all__ = ["print_steps"]


def print_steps(steps: Iterable[Step | Scan], layer: str | None = None) -> str:
    """Print kernels so that `parse_kernels` reads them back; with `layer`, those of this layer and of layers inside."""
    return "\n".join(_steps(steps, layer))


def _steps(steps: Iterable[Step | Scan], layer: str | None) -> Iterator[str]:
    for step in steps:
        if isinstance(step, Scan):
            body = list(_steps(step.body, layer))
            yield from [_begin(step), *body, f"// end of the scan of {step.layer!r}\n"] if body else ()
            continue
        kernels = [x.kernel for x in step.launches if layer is None or f"{x.kernel.layer}/".startswith(f"{layer}/")]
        if kernels and step.when != "always":
            yield f"// at the {step.when} turn"
        if kernels and step.turn:
            yield f"// a chain, in turns of {step.turn} groups of iterations of the last kernel"
        yield from map(print_kernel, kernels)
        if kernels and step.turn:
            yield "// end of the chain"


def _begin(scan: Scan) -> str:
    order = ", from the last to the first" if scan.reverse else ""
    if scan.rows is None:
        how = "each kernel on all threads"
    else:
        batch = scan.rows.symbol
        how = f"blocks of up to {scan.rows.block} rows go through all of them; {batch} is the number of rows of a block"
    return f"// scan of {scan.layer!r}: {scan.length!r} turns{order}; {how}"
