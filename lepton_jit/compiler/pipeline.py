"""The passes in order, on one page, and the split between what depends on weights alone and the rest."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lepton_jit.codegen.target import Target
from lepton_jit.common import arguments
from lepton_jit.compiler.compile_thread import check_wanted
from lepton_jit.ir.graph import Graph
from lepton_jit.passes.base import Pass
from lepton_jit.passes.check_numerics import CheckNumerics
from lepton_jit.passes.cse import EliminateCommonSubexpressions
from lepton_jit.passes.dce import EliminateDeadCode
from lepton_jit.passes.expand_composites import ExpandComposites
from lepton_jit.passes.fold_constants import FoldConstants
from lepton_jit.passes.fuse import Fuse
from lepton_jit.passes.gradient.autodiff import Autodiff
from lepton_jit.passes.lower_contractions import LowerContractions
from lepton_jit.passes.manager import Observer, Observers, run_pipeline
from lepton_jit.passes.observers import Dump, VerifyStructure
from lepton_jit.passes.phases import SplitStridedGradients
from lepton_jit.passes.recompute import Recompute
from lepton_jit.passes.rewriting.algebra import Algebra
from lepton_jit.passes.rewriting.canonicalize import Canonicalize
from lepton_jit.passes.scans.simplify_loops import SimplifyLoops
from lepton_jit.passes.schedule_updates import ScheduleUpdates
from lepton_jit.passes.split_prepare import split_prepare
from lepton_jit.passes.winograd import Winograd

__all__ = ["AFTER_SPLIT", "WhileWanted", "observer", "optimize", "pipeline", "run_passes", "set_winograd"]

_winograd = True


def set_winograd(enabled: bool) -> None:
    """Choose whether programs that are compiled from now on may use Winograd's algorithm for 3 x 3 convolutions.

    It takes fewer products and rounds differently: errors up to 3e-5 of a layer's largest result instead of 1e-6.
    An infinity or a NaN in an image spoils all results of the tiles that read it, up to 8 x 8 pixels.

    >>> set_winograd(False)
    >>> set_winograd(True)
    """
    global _winograd
    _winograd = arguments.boolean("set_winograd", "enabled", enabled)


def pipeline(target: Target, typical_batch: int | None = None) -> tuple[Pass, ...]:
    """List every pass before the split in order, with the reason for its place."""
    return (
        # Gradients are taken of composites, which have stabler ones than their decompositions.
        Autodiff(),
        # Before anything looks for patterns.
        Canonicalize(),
        FoldConstants(),
        EliminateCommonSubexpressions(),
        # Folds batch normalization into weights: needs composites, and the canonical order of operands.
        Algebra(),
        ExpandComposites(),
        # Before products become contractions, which are not looked into; it brings constants and transposes.
        SimplifyLoops(),
        # Decompositions bring constants, identities and repetitions of their own.
        Canonicalize(),
        FoldConstants(),
        EliminateCommonSubexpressions(),
        EliminateDeadCode(),
        # While the input gradient of a strided convolution can still be told from other convolutions.
        SplitStridedGradients(),
        # While convolutions are still told from dot products.
        *((Winograd(typical_batch or 1),) if _winograd else ()),
        LowerContractions(target.vector_bytes * target.tile_vectors, target.tile_rows),
        Canonicalize(),
        # Packed panels that two contractions share.
        EliminateCommonSubexpressions(),
        EliminateDeadCode(),
        # Panels of what a loop captures are packed before it.
        SimplifyLoops(),
        # Updates next to their gradients, before fusion fixes what runs together.
        ScheduleUpdates(typical_batch),
        # Where the order is settled and each copy can stand before its reader.
        Recompute(),
    )


# The passes on `prepare` and on `main`, each by itself: no kernel has a part in both.
AFTER_SPLIT: tuple[Pass, ...] = (Fuse(),)


def optimize(
    graph: Graph, target: Target, observer: Observer | None = None, typical_batch: int | None = None
) -> tuple[Graph, Graph]:
    """The optimized graphs (prepare, main); what depends on parameters alone is in `prepare`."""
    return run_passes(graph, pipeline(target, typical_batch), observer or Observer())


def run_passes(graph: Graph, passes: Sequence[Pass], observer: Observer) -> tuple[Graph, Graph]:
    """The same by these passes before the split."""
    whole = run_pipeline(graph, passes, observer)
    prepare, main = split_prepare(whole)
    main = replace(main, name="main")
    of_prepare, of_main = observer.split(whole, prepare, main)
    return run_pipeline(prepare, AFTER_SPLIT, of_prepare), run_pipeline(main, AFTER_SPLIT, of_main)


class WhileWanted(Observer):
    """Ends a pipeline between two passes."""

    def after(self, pass_: Pass, before: Graph, after: Graph, seconds: float) -> None:
        check_wanted()


def observer(verify: str | None, dump: Path | None) -> Observer:
    chosen: list[Observer] = [WhileWanted()]
    if verify == "passes":
        chosen += [VerifyStructure(), CheckNumerics()]
    if dump is not None:
        chosen.append(Dump(str(dump)))
    return Observers(*chosen)
