"""The C face of an exported program: its header, the LLVM IR of its functions, the assembly that embeds its weights."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
from collections.abc import Iterable, Sequence

from lepton_jit.runtime.manifest import Manifest, Tensor

__all__ = [
    "MODULE_TABLE",
    "c_identifier",
    "function_name",
    "header_text",
    "version_script",
    "weights_assembly",
    "wrapper_text",
]

C_TYPES = {
    "f16": "uint16_t",
    "f32": "float",
    "f64": "double",
    "i8": "int8_t",
    "i16": "int16_t",
    "i32": "int32_t",
    "i64": "int64_t",
    "u8": "uint8_t",
    "u16": "uint16_t",
    "u32": "uint32_t",
    "u64": "uint64_t",
    "bool": "uint8_t",
}

# The functions that Python calls in a loaded module, in the order of the table `lepton_module`.
MODULE_TABLE = (
    "lpt_context_create",
    "lpt_context_destroy",
    "lpt_context_set_threads",
    "lpt_context_profile",
    "lpt_plan",
)

# The reserved words of C23 and C++23, with macros that compilers and headers define, and the types of the header.
_C_WORDS = re.compile(
    "NULL|EOF|alignas|alignof|and|and_eq|asm|assert|auto|bitand|bitor|bool|break|case|catch|char|char16_t|char32_t|"
    "char8_t|class|co_await|co_return|co_yield|compl|concept|const|const_cast|consteval|constexpr|constinit|continue|"
    "decltype|default|delete|do|double|dynamic_cast|else|enum|errno|explicit|export|extern|false|float|for|friend|"
    "goto|if|inline|int|linux|long|main|mutable|namespace|new|noexcept|not|not_eq|nullptr|operator|or|or_eq|private|"
    "protected|public|register|reinterpret_cast|requires|restrict|return|short|signed|sizeof|static|static_assert|"
    "static_cast|stderr|stdin|stdout|struct|switch|template|this|thread_local|throw|true|try|typedef|typeid|typename|"
    "typeof|typeof_unqual|union|unix|unsigned|using|virtual|void|volatile|wchar_t|while|xor|xor_eq"
    f"|{'|'.join(C_TYPES.values())}"
)

_RUNTIME_ERRORS = {
    -1: "out of memory",
    -2: "a dimension is too large: a buffer is beyond any memory",
    -3: "a dimension is negative or not below 2147483648",
    -4: "the program was built for another version of the runtime",
}


def c_identifier(name: str) -> str:
    """A C identifier that resembles `name`.

    >>> c_identifier("my-model.v2"), c_identifier("2d"), c_identifier("float")
    ('my_model_v2', '_2d', 'float_')
    """
    text = re.sub(r"[^A-Za-z0-9_]", "_", name) or "_"
    if text[0].isdigit():
        text = "_" + text
    return text + "_" if _C_WORDS.fullmatch(text) else text


def function_name(name: str, manifest: Manifest) -> str:
    """The C function of a module called `name`: neither a symbol inside the module nor a function of the C library.

    A program that links with `./write.so` would call the module wherever it means the system's `write`.
    """
    text = c_identifier(name)
    inside = text.startswith(("lpt_", "lepton_", f"{manifest.prefix}_")) and not text.endswith("_")
    return text + "_" if inside or any(hasattr(library, text) for library in _c_libraries()) else text


@functools.cache
def _c_libraries() -> list[ctypes.CDLL]:
    found = []
    for name in ("libc.so.6", "libm.so.6"):
        with contextlib.suppress(OSError):
            found.append(ctypes.CDLL(name))
    return found


def _arguments(manifest: Manifest, name: str) -> tuple[list[str], list[str], list[str]]:
    """C names for symbols, inputs and outputs, no two alike, none that of the function."""
    taken = {name}

    def unique(names: Iterable[str]) -> list[str]:
        result = []
        for name in names:
            candidate = c_identifier(name)
            while candidate in taken:
                candidate += "_"
            taken.add(candidate)
            result.append(candidate)
        return result

    symbols = unique(s.lower() for s in manifest.symbols)
    return symbols, unique(t.name for t in manifest.inputs), unique(t.name for t in manifest.outputs)


def header_text(manifest: Manifest, name: str) -> str:
    """The C header of a module."""
    symbols, inputs, outputs = _arguments(manifest, name)
    parameters = [f"int64_t {s}" for s in symbols]
    parameters += [f"const {C_TYPES[t.dtype]} *{n}" for t, n in zip(manifest.inputs, inputs, strict=True)]
    parameters += [f"{C_TYPES[t.dtype]} *{n}" for t, n in zip(manifest.outputs, outputs, strict=True)]
    lines = [f" *   {c:<12} {s}" for s, c in zip(manifest.symbols, symbols, strict=True)]
    lines += [_tensor_line(t, n, "read") for t, n in zip(manifest.inputs, inputs, strict=True)]
    lines += [_tensor_line(t, n, "written") for t, n in zip(manifest.outputs, outputs, strict=True)]
    codes = [f" *   {c:<4} {_comment(text)}" for c, text in sorted({**manifest.errors, **_RUNTIME_ERRORS}.items())]
    guard = f"{name.upper()}_H"
    needs = " with ".join(filter(None, [manifest.architecture, ", ".join(manifest.features)]))
    return "\n".join(
        [
            f"/* {_comment(manifest.name)}, compiled for {manifest.target}. Needs libc and a processor of {needs}. */",
            f"#ifndef {guard}",
            f"#define {guard}",
            "",
            "#include <stdint.h>",
            "",
            "#ifdef __cplusplus",
            'extern "C" {',
            "#endif",
            "",
            "/* Runs the model. Arrays are dense, in row-major order, the last dimension fastest:",
            *lines,
            " * Returns 0, or an error code; then the outputs hold nothing useful:",
            *codes,
            " * May be called from several threads at once. The result does not depend on the number of threads. */",
            f"int {name}({', '.join(parameters) or 'void'});",
            "",
            "/* The number of threads of later calls, the caller included; 0 (the start value): all processors. */",
            f"void {name}_set_threads(int threads);",
            "",
            "/* What an error code means, in English; never NULL. */",
            f"const char *{name}_message(int code);",
            "",
            "/* Linking, or starting, fails with a library whose arguments are not those of this header. */",
            f"extern const char {_interface(manifest, name)};",
            f"static const char *const {name}_interface __attribute__((used)) = &{_interface(manifest, name)};",
            "",
            "#ifdef __cplusplus",
            "}",
            "#endif",
            "",
            "#endif",
            "",
        ]
    )


def _interface(manifest: Manifest, name: str) -> str:
    """The symbol that a header needs and its library has."""
    return f"{name}_interface_{manifest.interface}"


def _tensor_line(tensor: Tensor, name: str, use: str) -> str:
    shape = "".join(f"[{d}]" for d in tensor.shape)
    return f" *   {name:<12} {C_TYPES[tensor.dtype]}{shape or ', one value'}, {use}"


def _comment(text: str) -> str:
    """Text that neither ends a comment nor seems to begin one, in one line."""
    return " ".join(text.replace("*/", "* /").replace("/*", "/ *").split())


def wrapper_text(manifest: Manifest, name: str) -> str:
    """LLVM IR of `<name>`, `<name>_set_threads`, `<name>_message` and of the table that Python reads."""
    symbols = [f"%symbol{i}" for i in range(len(manifest.symbols))]
    inputs = [f"%input{i}" for i in range(len(manifest.inputs))]
    outputs = [f"%output{i}" for i in range(len(manifest.outputs))]
    arguments = ", ".join([f"i64 {s}" for s in symbols] + [f"ptr {p}" for p in inputs + outputs])
    prefix = manifest.prefix
    table = ["i64 1", f"ptr @{prefix}_run", "ptr @lepton_parameters", *(f"ptr @{f}" for f in MODULE_TABLE)]
    return f"""; The C face of {name}. Contract: docs/runtime.md.

declare i32 @{prefix}_run(ptr, ptr, ptr, ptr, ptr)
declare ptr @lpt_context_create(i32)
declare void @lpt_context_destroy(ptr)
declare void @lpt_context_set_threads(ptr, i32)
declare i32 @lpt_context_profile(ptr, i32)
declare i64 @lpt_plan(i64, ptr, ptr, ptr, ptr)
declare ptr @lpt_contexts_take(ptr, i32, i32)
declare void @lpt_contexts_give(ptr, i32, ptr)
declare i32 @lpt_default_threads()

@lepton_parameters = external hidden constant [0 x ptr]
@lepton_idle = internal global [64 x ptr] zeroinitializer      ; contexts that no call is using
@lepton_threads = internal global i32 0                        ; 0: not decided yet
@{_interface(manifest, name)} = constant i8 0
@lepton_module = constant {{ i64{", ptr" * (len(table) - 1)} }} {{ {", ".join(table)} }}

define i32 @{name}({arguments}) {{
entry:
  %dims = alloca [{max(1, len(symbols))} x i64]
  %inputs = alloca [{max(1, len(inputs))} x ptr]
  %outputs = alloca [{max(1, len(outputs))} x ptr]
{_stores("dims", "i64", symbols)}{_stores("inputs", "ptr", inputs)}{_stores("outputs", "ptr", outputs)}\
  %set = load atomic i32, ptr @lepton_threads monotonic, align 4
  %undecided = icmp eq i32 %set, 0
  br i1 %undecided, label %decide, label %take
decide:
  %default = call i32 @lpt_default_threads()
  store atomic i32 %default, ptr @lepton_threads monotonic, align 4
  br label %take
take:
  %threads = phi i32 [ %set, %entry ], [ %default, %decide ]
  %ctx = call ptr @lpt_contexts_take(ptr @lepton_idle, i32 64, i32 %threads)
  %none = icmp eq ptr %ctx, null
  br i1 %none, label %exit, label %run
run:
  %result = call i32 @{prefix}_run(ptr %ctx, ptr %dims, ptr @lepton_parameters, ptr %inputs, ptr %outputs)
  call void @lpt_contexts_give(ptr @lepton_idle, i32 64, ptr %ctx)
  br label %exit
exit:
  %code = phi i32 [ -1, %take ], [ %result, %run ]
  ret i32 %code
}}

define void @{name}_set_threads(i32 %threads) {{
  %negative = icmp slt i32 %threads, 0
  %count = select i1 %negative, i32 0, i32 %threads
  store atomic i32 %count, ptr @lepton_threads monotonic, align 4
  ret void
}}

{_messages(name, {0: "no error", **manifest.errors, **_RUNTIME_ERRORS})}"""


def _stores(array: str, kind: str, values: Sequence[str]) -> str:
    lines = []
    for i, value in enumerate(values):
        lines.append(f"  %{array}.{i} = getelementptr {kind}, ptr %{array}, i64 {i}\n")
        lines.append(f"  store {kind} {value}, ptr %{array}.{i}\n")
    return "".join(lines)


def _messages(name: str, texts: dict[int, str]) -> str:
    constants = [("unknown", _c_string("unknown error"))]
    constants += [(f"code.{c & 0xFFFF}", _c_string(t)) for c, t in texts.items()]
    lines = [f"@message.{n} = internal constant [{size} x i8] {text}" for n, (size, text) in constants]
    cases = " ".join(f"i32 {c}, label %code.{c & 0xFFFF}" for c in texts)
    lines += ["", f"define ptr @{name}_message(i32 %code) {{", f"  switch i32 %code, label %unknown [ {cases} ]"]
    for label, _ in constants:
        lines += [f"{label}:", f"  ret ptr @message.{label}"]
    return "\n".join([*lines, "}", ""])


def _c_string(text: str) -> tuple[int, str]:
    data = text.encode().replace(b"\0", b"") + b"\0"
    return len(data), 'c"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:02X}" for b in data) + '"'


def weights_assembly(file_name: str, offsets: Sequence[int]) -> str:
    """Assembly that embeds a file of weights on a page boundary, and the table of pointers into it."""
    pointers = "\n".join(f"    .quad lepton_weights + {offset}" for offset in offsets) or "    .quad 0"
    return f"""    .section .rodata.lepton_weights, "a", %progbits
    .balign 4096
lepton_weights:
    .incbin "{file_name}"
    .balign 64

    .section .data.rel.ro.lepton_parameters, "aw", %progbits
    .balign 8
    .globl lepton_parameters
    .hidden lepton_parameters
lepton_parameters:
{pointers}

    .section .note.GNU-stack, "", %progbits
"""


def version_script(manifest: Manifest, name: str) -> str:
    """The linker script that hides everything but the module's own names."""
    own = (name, f"{name}_set_threads", f"{name}_message", _interface(manifest, name), "lepton_module")
    return f"{{ global: {'; '.join(own)}; local: *; }};\n"
