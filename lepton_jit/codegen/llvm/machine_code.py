"""LLVM IR text to object code or assembly, for a target."""

from __future__ import annotations

import functools

import llvmlite.binding as llvm

from lepton_jit.codegen.target import Target

# The effort of LLVM's code generator: hot loops need all of it; 0 takes a tenth of the time, and every value goes
# through memory.
THOROUGH, QUICK = 2, 0


@functools.cache
def target_machine(target: Target, effort: int = THOROUGH) -> llvm.TargetMachine:
    """LLVM's code generator for `target`; kept, since making one takes a millisecond."""
    _initialize()
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu, features=target.features, opt=effort, reloc="pic", codemodel="small"
    )


@functools.cache
def _initialize() -> None:
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()


def parse_module(text: str, target: Target) -> llvm.ModuleRef:
    """Parse and verify LLVM IR, in a context of its own, with the target's triple and data layout set."""
    machine = target_machine(target)
    module = llvm.parse_assembly(text, llvm.create_context())
    module.triple = target.triple
    module.data_layout = str(machine.target_data)
    module.verify()
    return module


def optimize(module: llvm.ModuleRef, target: Target, level: int) -> None:
    """Run LLVM's middle end at `level` (0 does nothing: explicit vector kernels need none)."""
    if level == 0:
        return
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    builder = llvm.create_pass_builder(target_machine(target), options)
    builder.getModulePassManager().run(module, builder)


def compile_object(text: str, target: Target, level: int = 0, effort: int = THOROUGH) -> bytes:
    """LLVM IR text -> the bytes of a relocatable object file."""
    module = parse_module(text, target)
    optimize(module, target, level)
    return target_machine(target, effort).emit_object(module)


def compile_assembly(text: str, target: Target, level: int = 0, effort: int = THOROUGH) -> str:
    """LLVM IR text -> assembly text."""
    module = parse_module(text, target)
    optimize(module, target, level)
    return target_machine(target, effort).emit_assembly(module)
