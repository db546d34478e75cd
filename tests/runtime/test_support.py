"""The support code for every architecture: it compiles, and asks for nothing but libc."""

from __future__ import annotations

import re

import pytest

from lepton_jit.codegen.llvm.machine_code import compile_assembly
from lepton_jit.codegen.target import get_target
from lepton_jit.errors import UnsupportedError
from lepton_jit.runtime.support_text import ARCHITECTURES, SUPPORT_FUNCTIONS, support_text

LIBC = {"calloc", "clock_gettime", "free", "getpid", "madvise", "malloc", "memcpy", "memmove", "memset", "mmap"}
LIBC |= {"munmap", "posix_memalign", "pthread_create", "pthread_detach", "pthread_sigmask", "sched_getaffinity"}
LIBC |= {"sched_getcpu", "sched_setaffinity", "sched_yield", "syscall"}
TARGETS = {"x86_64": "x86-64", "aarch64": "aarch64"}
CALLS = {"x86_64": r"\bcallq\s+(\w+)", "aarch64": r"\bbl\s+(\w+)"}
FLOAT_STATE = {"x86_64": "ldmxcsr", "aarch64": "FPCR"}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_support_code_compiles_and_calls_libc_only(architecture: str) -> None:
    assembly = compile_assembly(support_text(architecture), get_target(TARGETS[architecture]))
    defined = set(re.findall(r"^(\w+):", assembly, re.MULTILINE))
    called = set(re.findall(CALLS[architecture], assembly))
    assert called - defined <= LIBC
    assert set(SUPPORT_FUNCTIONS) <= defined
    assert FLOAT_STATE[architecture] in assembly


def test_an_unknown_architecture_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="expected one of x86_64, aarch64, got 'm68k'"):
        support_text("m68k")
