"""What is mutated, and the tests that should notice it, the quickest and likeliest first."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SUITES", "Suite"]


@dataclass(frozen=True)
class Suite:
    """The files of one part of the compiler, and stages of pytest's arguments: each runs if those before passed."""

    name: str
    files: tuple[str, ...]  # patterns
    stages: tuple[tuple[str, ...], ...]
    long: tuple[tuple[str, ...], ...] = ()  # with --long alone

    def paths(self, root: Path) -> list[str]:
        found = {path for pattern in self.files for path in root.glob(pattern)}
        return sorted(path.relative_to(root).as_posix() for path in found)


_RANDOM = ("tests/passes/test_random.py",)
_SAMPLES = ("tests/codegen/test_samples.py", "-k", "native_code_agrees")
_PROGRAMS = ("tests/codegen/test_programs.py",)
_PARTS = ("tests/codegen/test_parts.py", "tests/codegen/test_chains.py")
_KERNELS = ("tests/codegen/test_golden.py", "tests/codegen/test_lowering.py")


def _golden(word: str) -> tuple[str, ...]:
    return ("tests/passes/test_golden.py", "-k", word)


def _schedules(*modules: str, tests: tuple[str, ...] = ()) -> Suite:
    """Code generation of some families of operations, with what is tested of them alone."""
    files = tuple(f"lepton_jit/codegen/{module}.py" for module in modules)
    own = tuple(f"tests/codegen/{name}.py" for name in tests)
    return Suite("lowering", files, (_KERNELS, own) if own else (_KERNELS,), (_SAMPLES, _PROGRAMS))


SUITES = (
    Suite(
        "rules",
        (
            "lepton_jit/passes/rewriting/rules_*.py",
            "lepton_jit/passes/rewriting/algebra*.py",
            "lepton_jit/passes/rewriting/canonicalize.py",
        ),
        (
            _golden("canonicalize or algebra"),
            ("tests/passes/test_rules.py", "tests/passes/test_special_values.py"),
        ),
        (_RANDOM,),
    ),
    Suite(
        "fusion",
        ("lepton_jit/passes/fuse*.py",),
        (
            (*_golden("fuse"), "tests/passes/test_fuse_merge.py", "tests/passes/test_fuse_siblings.py"),
            _KERNELS,
        ),
        (_RANDOM, _PROGRAMS),
    ),
    Suite(
        "lowering",
        ("lepton_jit/passes/lower_contractions.py",),
        (_golden("contraction"), _KERNELS),
        (_RANDOM, _PROGRAMS),
    ),
    Suite("lowering", ("lepton_jit/codegen/program/lower.py",), (_KERNELS,), (_PROGRAMS, _PARTS, _SAMPLES)),
    _schedules("program/lower_scan", tests=("test_scan",)),
    _schedules(
        "program/schedule",
        "contraction/schedule_contraction",
        "contraction/schedule_pack",
        tests=("test_packed_rows", "test_residuals"),
    ),
    _schedules(
        "contraction/schedule_vectors",
        "kernels/schedule_map",
        "kernels/schedule_rows",
        "kernels/schedule_reduce",
        "kernels/schedule_moments",
    ),
    _schedules(
        "kernels/schedule_movement", "kernels/schedule_indexing", "kernels/schedule_scatter", tests=("test_indexing",)
    ),
    _schedules("kernels/schedule_window", tests=("test_windows",)),
    Suite(
        "lowering",
        ("lepton_jit/codegen/winograd/schedule_winograd.py",),
        (_KERNELS, ("tests/codegen/test_winograd_kernel.py",), ("tests/codegen/test_winograd_blocks.py",)),
    ),
    Suite(
        "lowering",
        ("lepton_jit/codegen/winograd/schedule_winograd_blocks.py",),
        (("tests/codegen/test_winograd_blocks.py",),),
    ),
    Suite(
        "split",
        ("lepton_jit/passes/split_prepare.py", "lepton_jit/passes/rewriting/facts.py"),
        (_golden("split or algebra"), ("tests/passes/test_split_prepare.py",)),
        (_RANDOM,),
    ),
    Suite(
        "planner",
        ("lepton_jit/passes/liveness.py", "lepton_jit/passes/schedule_updates.py"),
        (_golden("schedule"), ("tests/passes/test_schedule_updates.py",)),
        (_RANDOM,),
    ),
    Suite(
        "planner",
        ("lepton_jit/runtime/plan.py", "lepton_jit/runtime/support/planner.ll"),
        (("tests/runtime/test_planner.py",),),
        (("tests/test_compiler.py",),),
    ),
)
