"""The contraction micro-kernel against NumPy, for every target that this machine runs."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import itertools
import mmap
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
import numpy as np
import pytest
from llvmlite import ir

from lepton_jit.codegen.llvm.machine_code import compile_assembly, compile_object
from lepton_jit.codegen.llvm.microkernel import SHAPE, Fragment, MicroKernel, emit_microkernel
from lepton_jit.codegen.target import FAR_ELEMENTS, TARGETS, Target
from lepton_jit.errors import ArgumentError
from tests.levels import RUNNABLE

TRIPS = [(1, 1, 1), (1, 3, 3), (2, 3, 5), (1, 1, 17)]
GUARD = 777.0

_NUMBERS = itertools.count()


@functools.cache
def jit() -> llvm.LLJIT:
    return llvm.create_lljit_compiler()


def link(kernels: dict[str, MicroKernel], epilogue: Any = None) -> dict[str, Callable[..., None]]:
    module = ir.Module()
    for name, kernel in kernels.items():
        emit_microkernel(module, kernel, name, epilogue)
    target = next(iter(kernels.values())).target
    builder = llvm.JITLibraryBuilder().add_object_img(compile_object(str(module), target))
    for name in kernels:
        builder.export_symbol(name)
    library = builder.link(jit(), f"microkernel{next(_NUMBERS)}")
    signature = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 6, *[ctypes.c_int64] * 2)

    def call(name: str, *arguments: int) -> None:
        signature(library[name])(*arguments)

    return {name: functools.partial(call, name) for name in kernels}


@dataclasses.dataclass
class Problem:
    """Operands with random strides for one tile, and the result that NumPy gives."""

    kernel: MicroKernel
    trips: tuple[int, int, int]
    active: int
    seed: int = 0

    def __post_init__(self) -> None:
        kernel, rng = self.kernel, np.random.default_rng(self.seed)
        dtype = np.dtype(kernel.dtype.replace("f", "float"))
        self.a_steps = [int(s) for s in rng.integers(1, 40, 3)]
        width = kernel.panel_vectors * kernel.lanes
        self.b_steps = [int(s) for s in rng.integers(width, 2 * width, 3)]
        self.c_row = int(rng.integers(kernel.width, kernel.width + 20))
        self.b_panel = int(rng.integers(10, 10 * width))
        self.row_offsets = rng.integers(0, 500, kernel.rows)
        self.extra = rng.standard_normal(kernel.width).astype(dtype)
        self.a, self.b = rng.standard_normal((2, 8192)).astype(dtype)
        self.c = np.full(kernel.rows * self.c_row, GUARD, dtype)
        self.k = [
            (k2, k1, k0) for k2 in range(self.trips[0]) for k1 in range(self.trips[1]) for k0 in range(self.trips[2])
        ]
        self.columns = kernel.width - (kernel.lanes - self.active if kernel.masked else 0)

    def operands(self) -> tuple[np.ndarray, np.ndarray]:
        """A of [rows, K] and B of [K, columns], gathered by the documented addresses."""
        kernel = self.kernel
        offsets = self.row_offsets if kernel.a_layout == "rows" else np.arange(kernel.rows)
        a_k = np.array(self.k) @ self.a_steps[::-1]
        b_k = np.array(self.k) @ self.b_steps[::-1]
        panel, within = np.divmod(np.arange(self.columns), kernel.panel_vectors * kernel.lanes)
        return self.a[offsets[:, None] + a_k], self.b[b_k[:, None] + panel * self.b_panel + within]

    def tile(self) -> np.ndarray:
        return self.c.reshape(self.kernel.rows, self.c_row)[:, : self.columns]

    def run(self, function: Callable[..., None]) -> None:
        steps = {f"a{i}": s for i, s in enumerate(self.a_steps)} | {f"b{i}": s for i, s in enumerate(self.b_steps)}
        trips = {f"n{i}": n for i, n in enumerate(reversed(self.trips))}
        values = steps | trips | {"c_row": self.c_row, "b_panel": self.b_panel, "active": self.active}
        values |= {"ahead": self.b.ctypes.data + self.b.nbytes, "ahead_step": 16, "c_size": FAR_ELEMENTS}
        shape = np.array([values[key] for key in SHAPE], np.int64)
        arrays = (self.a, self.b, self.c, shape, self.row_offsets, self.extra)
        function(*(array.ctypes.data for array in arrays), 0, 0)


def check(problem: Problem, function: Callable[..., None], finish: Any = lambda sums, problem: sums) -> None:
    """Run, compare with NumPy's float64 sums, and see that nothing beside the tile was written."""
    a, b = problem.operands()
    before = problem.tile().astype(np.float64) if problem.kernel.accumulate else 0
    expected = finish(before + a.astype(np.float64) @ b.astype(np.float64), problem)
    problem.run(function)
    bound = (np.abs(a) @ np.abs(b) + np.abs(before) + 10) * np.finfo(problem.a.dtype).eps * (len(problem.k) + 3)
    assert (np.abs(problem.tile() - expected) <= bound).all()
    outside = problem.c.reshape(problem.kernel.rows, -1)[:, problem.columns :]
    assert (outside == GUARD).all()


@pytest.fixture(params=RUNNABLE, ids=lambda t: t.name)
def target(request: pytest.FixtureRequest) -> Target:
    return request.param


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_every_height_of_both_layouts_of_a(target: Target, dtype: Any) -> None:
    kernels = {
        f"{layout}{rows}": MicroKernel(target, dtype, rows, target.tile_vectors, target.tile_vectors, layout)
        for rows in range(1, target.tile_rows + 1)
        for layout in ("rows", "columns")
    }
    functions = link(kernels)
    for seed, (name, kernel) in enumerate(kernels.items()):
        for trips in TRIPS:
            check(Problem(kernel, trips, kernel.lanes, seed), functions[name])


def test_flags(target: Target) -> None:
    flags = [f for f in itertools.product([False, True], repeat=3) if f[0] or not f[1]]
    kernels = {
        f"k{masked}{b_masked}{accumulate}_{rows}_{vectors}": MicroKernel(
            target, "f32", rows, vectors, 2, "rows", masked, b_masked, accumulate
        )
        for masked, b_masked, accumulate in flags
        for rows, vectors in ((3, 2), (2, 1))
    }
    functions = link(kernels)
    for name, kernel in kernels.items():
        for active in {1, kernel.lanes - 1, kernel.lanes}:
            check(Problem(kernel, (2, 2, 3), active, active), functions[name])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("vectors", "panel_vectors"), [(8, 2), (4, 1), (3, 2), (7, 4), (3, 3)])
def test_tiles_over_several_panels(target: Target, vectors: int, panel_vectors: int, masked: bool) -> None:
    kernel = MicroKernel(target, "f32", 2, vectors, panel_vectors, masked=masked)
    check(Problem(kernel, (1, 2, 5), 3), link({"k": kernel})["k"])


def test_looking_ahead_changes_nothing(target: Target) -> None:
    kernel = MicroKernel(target, "f32", 3, 2, 2, ahead=True)
    check(Problem(kernel, (2, 3, 5), kernel.lanes), link({"k": kernel})["k"])


def test_asking_for_the_result_changes_nothing(target: Target) -> None:
    kernel = MicroKernel(target, "f32", 3, 2, 2, fetch=True)
    check(Problem(kernel, (1, 1, 5), kernel.lanes), link({"k": kernel})["k"])


def test_masked_f64(target: Target) -> None:
    kernel = MicroKernel(target, "f64", 3, 2, 2, masked=True, b_masked=True, accumulate=True)
    check(Problem(kernel, (1, 2, 5), 1), link({"k": kernel})["k"])


def test_masked_b_reads_nothing_beyond_the_active_lanes(target: Target) -> None:
    """The last row of B ends where the mapping does: one lane more would be a fault."""
    kernel = MicroKernel(target, "f32", 1, 1, 1, masked=True, b_masked=True)
    area = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    base = np.frombuffer(area, np.float32).ctypes.data
    libc = ctypes.CDLL(None)
    assert libc.mprotect(ctypes.c_void_p(base + mmap.PAGESIZE), mmap.PAGESIZE, 0) == 0
    b = base + mmap.PAGESIZE - 4
    ctypes.c_float.from_address(b).value = 3.0
    a, c = np.array([2.0], np.float32), np.zeros(1, np.float32)
    shape = np.array([{"active": 1}.get(key, 1) for key in SHAPE], np.int64)
    offsets = np.zeros(1, np.int64)
    link({"k": kernel})["k"](a.ctypes.data, b, c.ctypes.data, shape.ctypes.data, offsets.ctypes.data, 0, 0, 0)
    assert libc.mprotect(ctypes.c_void_p(base + mmap.PAGESIZE), mmap.PAGESIZE, 3) == 0
    assert c[0] == 6.0


def test_epilogue_is_applied_to_what_is_stored(target: Target) -> None:
    """relu(sum + bias), the bias read once for all rows and no further than its last element."""

    def epilogue(builder: ir.IRBuilder, value: Any, fragment: Fragment) -> Any:
        if fragment.row == 0:
            extras = builder.function.args[5]
            pointer = builder.gep(extras, [ir.IntType(64)(fragment.column)], source_etype=ir.FloatType())
            biases[fragment.column] = fragment.load(builder, pointer)
        shifted = builder.fadd(value, biases[fragment.column])
        zero = ir.Constant(fragment.type, None)
        return builder.select(builder.fcmp_unordered("<", zero, shifted), shifted, zero)

    def reference(sums: np.ndarray, problem: Problem) -> np.ndarray:
        return np.maximum(sums + problem.extra[: problem.columns], 0)

    for masked in (False, True):
        biases: dict[int, Any] = {}
        kernel = MicroKernel(target, "f32", 5, 2, 2, masked=masked)
        check(Problem(kernel, (1, 1, 9), 2), link({"k": kernel}, epilogue)["k"], reference)


def gemm(
    function: dict[int, Callable[..., None]], a: np.ndarray, b: np.ndarray, rows: int, width: int, block: int
) -> np.ndarray:
    """A @ B by tiles of `rows` x `width`, K cut into blocks; function[0] starts at zero, function[1] goes on."""
    (m, k), n = a.shape, b.shape[1]
    c = np.zeros((m, n), np.float32)
    offsets = np.arange(rows, dtype=np.int64) * k
    for row, column, start in itertools.product(range(0, m, rows), range(0, n, width), range(0, k, block)):
        values = dict.fromkeys(SHAPE, 1) | {"n0": block, "b0": n, "c_row": n, "b_panel": width}
        shape = np.array([values[key] for key in SHAPE], np.int64)
        places = a.ctypes.data + 4 * (row * k + start), b.ctypes.data + 4 * (start * n + column)
        at = c.ctypes.data + 4 * (row * n + column)
        function[int(start > 0)](*places, at, shape.ctypes.data, offsets.ctypes.data, 0, 0, 0)
    return c


def test_bits_do_not_depend_on_the_tile_or_on_blocks_of_k(target: Target) -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(s).astype(np.float32) for s in ((12, 40), (40, 8 * target.lanes(32))))
    results = []
    for rows, vectors, block in ((6, 2, 40), (1, 8, 40), (4, 1, 40), (2, 4, 10), (3, 2, 8)):
        kernels = {i: MicroKernel(target, "f32", rows, vectors, vectors, accumulate=bool(i)) for i in (0, 1)}
        linked = link({f"k{i}": kernel for i, kernel in kernels.items()})
        functions = {i: linked[f"k{i}"] for i in kernels}
        results.append(gemm(functions, a, b, rows, vectors * target.lanes(32), block))
    assert all(np.array_equal(results[0], result) for result in results[1:])


def test_sums_are_one_chain_of_multiply_adds_in_the_order_of_k(target: Target) -> None:
    kernel = MicroKernel(target, "f32", 1, 1, 1)
    problem = Problem(kernel, (2, 3, 4), kernel.lanes)
    a, b = problem.operands()
    expected = np.zeros(kernel.lanes, np.float32)
    for k in range(len(problem.k)):
        product = a[0, k].astype(np.float64) * b[k]  # exact in float64
        if target.name == "x86-64":  # without fused multiply-add the product is rounded on its own
            product = product.astype(np.float32)
        expected = (expected + product).astype(np.float32)
    problem.run(link({"k": kernel})["k"])
    assert problem.tile()[0].tolist() == expected.tolist()


def test_aarch64_assembles_to_vector_multiply_adds() -> None:
    target = TARGETS["aarch64"]
    module = ir.Module()
    emit_microkernel(module, MicroKernel(target, "f32", 8, 2, 2), "plain")
    emit_microkernel(module, MicroKernel(target, "f64", 3, 2, 2, "columns", True, False, True), "masked")
    text = str(module)
    assembly = compile_assembly(text, target)
    assert (assembly.count("\tfmla\tv"), compile_object(text, target)[:4]) == (16 + 6, b"\x7fELF")


def test_the_inner_loop_keeps_its_accumulators_in_registers(target: Target) -> None:
    module = ir.Module()
    emit_microkernel(module, MicroKernel(target, "f32", target.tile_rows, target.tile_vectors, 2), "k")
    vectors = [line for line in compile_assembly(str(module), target).splitlines() if "mm" in line]
    assert [line for line in vectors if "(%rsp)" in line] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dtype": "f16"}, "dtype: expected 'f32' or 'f64', got 'f16'"),
        ({"a_layout": "diagonal"}, "a_layout: expected one of .*, got 'diagonal'"),
        ({"rows": 0}, "expected at least one row, vector and vector a panel, got 0 x 2, panels of 2"),
        ({"b_masked": True}, "expected `masked` with `b_masked`"),
    ],
)
def test_wrong_arguments_are_named(change: dict[str, Any], message: str) -> None:
    kernel = MicroKernel(TARGETS["x86-64"], "f32", 1, 2, 2)
    with pytest.raises(ArgumentError, match=message):
        dataclasses.replace(kernel, **change)
