"""Programs as Python sees them: arguments in, results out, errors with names, contexts freed."""

from __future__ import annotations

import gc
import mmap
import re
import subprocess
import sys
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from lepton_jit.codegen.llvm.machine_code import compile_object
from lepton_jit.errors import ArgumentError, DTypeError, LeptonError, ShapeError
from lepton_jit.runtime import arguments
from lepton_jit.runtime import threads as thread_settings
from lepton_jit.runtime.arguments import Results
from lepton_jit.runtime.linker import link
from lepton_jit.runtime.manifest import Manifest, Tensor
from lepton_jit.runtime.program import Program
from tests.runtime.programs import AFFINE_MANIFEST, TARGET, affine, affine_object, elementwise, one_step, support_object

SHIFT = [np.array([3.0], np.float32)]


def run(values: object, threads: int = 2) -> np.ndarray:
    program = affine(threads)
    (y,) = program(values, parameters=program.bind(SHIFT))
    return y


def test_a_program_of_two_steps_computes() -> None:
    assert run(np.array([1.0, 2.0], np.float32)).tolist() == [5.0, 7.0]


def test_any_batch_runs_and_each_result_is_fresh() -> None:
    program = affine(2)
    bound = program.bind(SHIFT)
    sizes = [1, 7, 64, 1000, 64, 0, 1]
    results = [program(np.full(n, n, np.float32), parameters=bound)[0] for n in sizes]
    assert [r.tolist() for r in results] == [[2.0 * n + 3.0] * n for n in sizes]


@pytest.mark.parametrize(
    "values",
    [
        [1, 2],
        np.array([1, 2], np.int64),
        np.array([1, 2], np.float64),
        np.array([1, 9, 2, 9], np.float32)[::2],
        np.array([1, 2], ">f4"),
        np.frombuffer(b"\0" + np.array([1, 2], np.float32).tobytes(), np.float32, offset=1, count=2),
    ],
    ids=["list", "int64", "float64", "strided", "big-endian", "unaligned and read-only"],
)
def test_inputs_are_cast_to_the_declared_type(values: object) -> None:
    assert run(values).tolist() == [5.0, 7.0]


def test_bool_becomes_float() -> None:
    assert run(np.array([False, True])).tolist() == [3.0, 5.0]


def test_an_input_by_name() -> None:
    assert run({"x": [1.0]}).tolist() == [5.0]


def test_one_sample_without_a_batch_axis_is_a_batch_of_one() -> None:
    assert run(np.float32(2.0)).tolist() == [7.0]


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        (np.zeros((2, 3), np.float32), ShapeError, r"affine: input 'x': expected f32\[N\], got f32\[2,3\]"),
        (np.array(["a"]), DTypeError, r"affine: input 'x': expected numbers that can be cast to float32, got <U1"),
        (np.zeros(2, np.complex64), DTypeError, r"affine: input 'x': .* got complex64"),
        ([[1], [1, 2]], ShapeError, r"affine: input 'x': .*ragged"),
        ({"y": [1.0]}, ArgumentError, r"affine: expected inputs named \['x'\], got \['y'\]"),
    ],
)
def test_a_wrong_input_is_named(values: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        run(values)


def test_forgotten_parameters_are_an_error() -> None:
    with pytest.raises(ArgumentError, match="expected 1 bound parameters, got 0"):
        affine()([1.0])


def test_large_results_stand_on_cache_lines() -> None:
    program = affine()
    bound = program.bind(SHIFT)
    addresses = [program(np.zeros(n, np.float32), parameters=bound)[0].ctypes.data for n in (1024, 5000, 100_000)]
    assert [a % 64 for a in addresses] == [0, 0, 0]


@pytest.mark.parametrize(("limit", "pieces"), [(1 << 20, 1), (1 << 10, 3)])
def test_weights_are_one_piece_of_memory_on_cache_lines(
    limit: int, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arguments, "ONE_PIECE_BYTES", limit)
    shapes = ((37, 41), (2000,), (3, 1024))
    arrays = Results([Tensor(f"w{i}", "f32", s) for i, s in enumerate(shapes)], ()).make_together()
    for i, array in enumerate(arrays):
        array[...] = i
    assert [(a.shape, a.dtype, a.min(), a.max()) for a in arrays] == [
        (shape, np.dtype(np.float32), i, i) for i, shape in enumerate(shapes)
    ]
    assert [arguments.address_of(a) % 64 for a in arrays] == [0, 0, 0]
    assert len({id(a.base) for a in arrays}) == pieces


def test_a_wrong_number_of_inputs_is_named() -> None:
    with pytest.raises(ArgumentError, match=r"affine: expected 1 inputs \(x\), got 2"):
        affine()([1.0], [1.0], parameters=None)


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_bad_data_names_layer_and_the_smallest_index(threads: int) -> None:
    values = np.zeros(1000, np.float32)
    values[[400, 77, 900]] = 13
    with pytest.raises(ArgumentError, match=r"affine: head/double: expected no 13 \(at element 77\)"):
        run(values, threads)


def test_a_program_runs_again_after_an_error() -> None:
    program = affine(2)
    bound = program.bind(SHIFT)
    with pytest.raises(ArgumentError):
        program([13.0], parameters=bound)
    assert program([1.0], parameters=bound)[0].tolist() == [5.0]


def test_parameters_are_read_at_each_call() -> None:
    program = affine()
    shift = np.array([1.0], np.float32)
    bound = program.bind([shift])
    before = program([1.0], parameters=bound)[0].tolist()
    shift[0] = 10.0
    assert (before, program([1.0], parameters=bound)[0].tolist()) == ([3.0], [12.0])


@pytest.mark.parametrize(
    ("arrays", "error", "message"),
    [
        ([], ArgumentError, "affine: expected 1 parameters, got 0"),
        ({}, ArgumentError, "affine: parameter 'shift' is missing"),
        ([np.zeros(1)], DTypeError, r"affine: parameter 'shift': expected f32\[1\], got f64\[1\]"),
        ([np.zeros(2, np.float32)], ShapeError, r"affine: parameter 'shift': expected f32\[1\], got f32\[2\]"),
    ],
)
def test_a_wrong_parameter_is_named(arrays: list[np.ndarray], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        affine().bind(arrays)


def test_two_inputs_that_disagree_about_a_symbol_are_both_named() -> None:
    manifest = Manifest(
        name="pair",
        prefix="affine",
        target="x86-64",
        architecture="x86_64",
        symbols=("N",),
        inputs=(Tensor("images", "f32", ("N", 4)), Tensor("labels", "i32", ("N",))),
    )
    program = Program(manifest, link([affine_object()], support_object(), "affine"))
    with pytest.raises(ShapeError, match=r"input 'labels': expected i32\[N\], N = 3 from input 'images', got i32\[2\]"):
        program(np.zeros((3, 4)), np.zeros(2, np.int32))
    with pytest.raises(ArgumentError, match=r"input 'labels': expected values that int32 can hold exactly"):
        program(np.zeros((2, 4)), np.array([0.5, 1.0]))


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        (np.array([[1.0, np.nan]]), "nan"),
        (np.array([[1.0, np.inf]]), "inf"),
        (np.array([[1.0, 2.0**31]], np.float32), "2147483648.0"),
        (np.array([[1, -(2**31) - 1]]), "-2147483649"),
        (np.array([[1, 2**32 - 1]], np.uint32), "4294967295"),
        (np.array([[1, 2**63]], np.uint64), "9223372036854775808"),
    ],
    ids=str,
)
def test_numbers_that_an_integer_input_cannot_hold_are_named_with_their_place(rows: np.ndarray, wrong: str) -> None:
    message = f"the input: expected values that int32 can hold exactly, got {wrong} at [0, 1]"
    with pytest.raises(ArgumentError, match=re.escape(message)):
        arguments.cast(rows, np.dtype(np.int32), "the input")


def test_memory_plan_and_profile_name_layers() -> None:
    program = affine(1)
    plan = program.plan(N=1000)
    assert (plan.arena, plan.lower_bound, plan.gap) == (4032, 4032, 0)
    assert [(b.name, b.offset, b.size, b.layer) for b in plan.buffers] == [("t", 0, 4000, "head/double")]
    profile = program.profile(np.zeros(1000, np.float32), parameters=program.bind(SHIFT), calls=3)
    assert [(s.kernel, s.layer, s.flops, s.bytes) for s in profile.steps] == [
        ("double", "head/double", 1000, 8000),
        ("shift", "head/shift", 1000, 8000),
    ]
    assert all(s.seconds > 0 for s in profile.steps)
    assert "head/shift" in str(profile)
    assert "N = 1000" in str(plan)


def test_a_batch_beyond_any_memory_is_an_error() -> None:
    program = affine(1)
    x = np.zeros(1, np.float32)
    with pytest.raises(ShapeError, match="affine: a dimension is too large"):
        program.run((2**31,), program.bind(SHIFT), (x,), (x,))


def test_an_arena_that_does_not_fit_is_an_error_and_not_the_end() -> None:
    copy = elementwise("  %yi = fadd float %xi, 0.0")
    program = one_step("huge", copy, grain=1, threads=1, buffer_bytes=2**46)
    with pytest.raises(LeptonError, match="huge: out of memory: the arena needs 140,737,488,355,328 bytes"):
        program([1.0])
    too_large = one_step("larger", copy, grain=1, threads=1, buffer_bytes=2**46 + 1)
    with pytest.raises(ShapeError, match="larger: a dimension is too large"):
        too_large([1.0])


def test_programs_are_freed() -> None:
    program = affine()
    program([1.0], parameters=program.bind(SHIFT))
    reference = weakref.ref(program._code.owner)
    del program
    gc.collect()
    assert reference() is None


def test_an_explicit_thread_count_beats_set_threads() -> None:
    try:
        thread_settings.set_threads(3)
        chosen, explicit = affine(None), affine(2)
        counts = [p.profile([1.0], parameters=p.bind(SHIFT)).threads for p in (chosen, explicit)]
        assert counts == [3, 2]
    finally:
        thread_settings.set_threads(None)


FLUSH_TO_ZERO = 0x9FC0  # MXCSR: FTZ and DAZ set, exceptions masked

CONTROL = """
declare void @llvm.x86.sse.stmxcsr(ptr)
declare void @llvm.x86.sse.ldmxcsr(ptr)
define i32 @control_run(ptr %set, ptr %unused1, ptr %unused2, ptr %unused3, ptr %unused4) {
  %word = alloca i32
  call void @llvm.x86.sse.stmxcsr(ptr %word)
  %before = load i32, ptr %word
  %wide = ptrtoint ptr %set to i64
  %new = trunc i64 %wide to i32
  store i32 %new, ptr %word
  call void @llvm.x86.sse.ldmxcsr(ptr %word)
  ret i32 %before
}
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_the_callers_floating_point_state_is_neither_used_nor_changed(threads: int) -> None:
    control = link([compile_object(CONTROL, TARGET)], support_object(), "control").run
    program = one_step("denormal", elementwise("  %yi = fmul float %xi, 0.5"), grain=1, threads=threads)
    smallest = np.float32(1.1754944e-38)
    result: list[object] = []

    def call() -> None:  # in a thread of its own, whose state may be spoiled
        x, y = np.full(200, smallest, np.float32), np.zeros(200, np.float32)
        bound = program.bind([])
        control(FLUSH_TO_ZERO, None, None, None, None)
        program.run((200,), bound, (x,), (y,))
        after = control(0x1F80, None, None, None, None)
        result.extend([after, set(y.tolist())])

    worker = threading.Thread(target=call)
    worker.start()
    worker.join()
    assert result == [FLUSH_TO_ZERO, {float(smallest / 2)}]


def test_importing_the_runtime_imports_no_compiler() -> None:
    code = (
        "import sys\n"
        "from lepton_jit.runtime import cache, export, linker, module, program\n"
        "print([m for m in ('llvmlite', 'networkx', 'lepton_jit.codegen', 'lepton_jit.ir') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_manifest_of_the_example_survives_json() -> None:
    assert Manifest.from_json(AFFINE_MANIFEST.to_json()) == AFFINE_MANIFEST


def test_a_program_is_linked_in_one_piece_however_full_the_address_space() -> None:
    """Its code reaches its constants within 2 GB; a linker that maps sections apart ends the process here."""
    taken: list[Any] = [affine(1)]
    for _ in range(300):
        taken += [mmap.mmap(-1, 2**36, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0), affine(1)]
    program = taken[-1]
    assert program([1.0], parameters=program.bind(SHIFT))[0].tolist() == [5.0]
