"""The native half of the runtime as LLVM IR text."""

from __future__ import annotations

from importlib import resources

from lepton_jit.errors import UnsupportedError

__all__ = ["ARCHITECTURES", "SUPPORT_FUNCTIONS", "support_text"]

ARCHITECTURES = ("x86_64", "aarch64")
SUPPORT_FUNCTIONS = (
    "lpt_context_create",
    "lpt_context_destroy",
    "lpt_context_profile",
    "lpt_context_set_threads",
    "lpt_context_threads",
    "lpt_enter",
    "lpt_gather_rows",
    "lpt_leave",
    "lpt_parallel_for",
    "lpt_plan",
    "lpt_report",
    "lpt_run_batches",
)


def support_text(architecture: str) -> str:
    """The support code for an architecture, the first part of a target triple. Optimization passes gain nothing on it.

    >>> "define i64 @lpt_plan(" in support_text("x86_64")
    True
    """
    if architecture not in ARCHITECTURES:
        raise UnsupportedError(f"runtime: expected one of {', '.join(ARCHITECTURES)}, got {architecture!r}")
    folder = resources.files("lepton_jit.runtime") / "support"
    names = ("types", architecture, "planner", "pool", "context", "rows", "module")
    return "\n".join((folder / f"{name}.ll").read_text("utf-8") for name in names)
