"""Contractions in the form that code generation takes: loops with strides into flat operands.

Every `dot_general` and every `convolution` (its two gradients included) becomes one `affine_contraction`; `pack` brings
its right side into panels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lepton_jit.errors import ShapeError
from lepton_jit.ir.graph import Attributes
from lepton_jit.ir.op import NOT_DIFFERENTIABLE, Family, Op, Sample, register
from lepton_jit.ir.ops.rules import DIM, DIMS, INT, INTS, STRINGS, expect_shape
from lepton_jit.ir.traits import Traits
from lepton_jit.ir.types import Dim, TensorType, dim_value

__all__ = ["AFFINE_CONTRACTION", "PACK"]

Symbols = Mapping[str, int]


def _positions(extents: Sequence[int], strides: Sequence[int], offset: int) -> np.ndarray:
    """The flat positions that loops with these strides visit, one axis a loop."""
    total = np.full([1] * len(extents), offset, np.int64)
    for axis, (extent, stride) in enumerate(zip(extents, strides, strict=True)):
        shape = [1] * len(extents)
        shape[axis] = extent
        total = total + (np.arange(extent, dtype=np.int64) * stride).reshape(shape)
    return total


def _numbers(dims: Any, symbols: Symbols) -> list[int]:
    return [dim_value(d, symbols) for d in dims]


def _infer_contraction(types: Sequence[TensorType], attributes: Attributes) -> Sequence[TensorType]:
    shape: Any = attributes["shape"]
    expect_shape(shape)
    return [types[0].with_shape(shape)]


def _contract(arrays: Sequence[np.ndarray], attributes: Attributes, symbols: Symbols) -> Sequence[np.ndarray]:
    lhs, rhs = arrays
    a: Any = attributes
    kinds = a["kinds"]
    extents = _numbers(a["extents"], symbols)
    lhs_strides, out_strides = _numbers(a["lhs"], symbols), _numbers(a["out"], symbols)
    rhs_strides = _numbers(a["rhs"], symbols)
    used = {
        "lhs": [i for i, k in enumerate(kinds) if k != "column"],
        "rhs": [i for i, k in enumerate(kinds) if k != "row"],
    }
    out = [i for i, k in enumerate(kinds) if k != "sum"]

    def positions(which: list[int], strides: list[int], offset: Dim) -> np.ndarray:
        return _positions([extents[i] for i in which], [strides[i] for i in which], dim_value(offset, symbols))

    at = positions(used["lhs"], lhs_strides, a["lhs_offset"])
    left = lhs.ravel()[at + _rows(a, kinds, extents, used["lhs"], symbols)]
    at = positions(used["rhs"], [0 if kinds[i] == "column" else s for i, s in enumerate(rhs_strides)], a["rhs_offset"])
    right = rhs.ravel()[at + _columns(a, kinds, extents, rhs_strides, used["rhs"], symbols)]
    letters = "abcdefghijklmnopqrstuvwxyz"
    spec = ",".join("".join(letters[i] for i in used[side]) for side in ("lhs", "rhs"))
    value = np.einsum(f"{spec}->{''.join(letters[i] for i in out)}", left, right, optimize=True)
    shape = _numbers(a["shape"], symbols)
    result = np.zeros(int(np.prod(shape)), lhs.dtype)
    result[positions(out, out_strides, a["out_offset"]).ravel()] = value.astype(lhs.dtype).ravel()
    return [result.reshape(shape)]


def _columns(
    a: Any, kinds: Sequence[str], extents: list[int], strides: list[int], used: list[int], symbols: Symbols
) -> np.ndarray:
    """The part of the right side's position that its column adds: panels of `panel` columns, or a plain stride."""
    total = np.zeros([1] * len(used), np.int64)
    for axis, i in enumerate(used):
        if kinds[i] != "column":
            continue
        j = np.arange(extents[i], dtype=np.int64)
        panel = a["panel"]
        step = j // panel * dim_value(a["panel_stride"], symbols) + j % panel if panel else j * strides[i]
        shape = [1] * len(used)
        shape[axis] = extents[i]
        total = total + step.reshape(shape)
    return total


def _rows(a: Any, kinds: Sequence[str], extents: list[int], used: list[int], symbols: Symbols) -> np.ndarray:
    """The addition of panels of `row_panel` rows to the position in A, which has counted rows side by side."""
    shape = [1] * len(used)
    panel = a["row_panel"]
    if not panel:
        return np.zeros(shape, np.int64)
    last = max(i for i, kind in enumerate(kinds) if kind == "row")
    shape[used.index(last)] = extents[last]
    skipped = dim_value(a["row_panel_stride"], symbols) - panel
    return (np.arange(extents[last], dtype=np.int64) // panel * skipped).reshape(shape)


def _infer_pack(types: Sequence[TensorType], attributes: Attributes) -> Sequence[TensorType]:
    a: Any = attributes
    expect_shape(a["extents"])
    if a["panel"] < 1 or a["columns"] < 0:
        raise ShapeError(f"panel, columns: expected at least 1 and 0, got {a['panel']} and {a['columns']}")
    if not 0 <= a["batches"] <= len(a["extents"]):
        raise ShapeError(f"batches: expected from 0 to {len(a['extents'])} of the extents, got {a['batches']}")
    panels = -(-a["columns"] // a["panel"])
    batches, sums = a["extents"][: a["batches"]], a["extents"][a["batches"] :]
    return [types[0].with_shape((*batches, panels, *sums, a["panel"]))]


def _pack(arrays: Sequence[np.ndarray], attributes: Attributes, symbols: Symbols) -> Sequence[np.ndarray]:
    (x,) = arrays
    a: Any = attributes
    extents, strides = _numbers(a["extents"], symbols), _numbers(a["strides"], symbols)
    panel, columns = a["panel"], a["columns"]
    panels = -(-columns // panel)
    offset = dim_value(a["offset"], symbols)
    step = dim_value(a["column_stride"], symbols)
    at = _positions([*extents, columns], [*strides, step], offset)
    padded = np.zeros((*extents, panels * panel), x.dtype)
    padded[..., :columns] = x.ravel()[at]
    split = padded.reshape(*extents, panels, panel)
    return [np.moveaxis(split, -2, a["batches"]).copy()]


AFFINE_CONTRACTION = register(
    Op(
        name="affine_contraction",
        operands=("lhs", "rhs"),
        attributes={
            "kinds": STRINGS,
            "extents": DIMS,
            "lhs": DIMS,
            "rhs": DIMS,
            "out": DIMS,
            "out_dims": INTS,
            "lhs_offset": DIM,
            "rhs_offset": DIM,
            "out_offset": DIM,
            "panel": INT,
            "panel_stride": DIM,
            "row_panel": INT,
            "row_panel_stride": DIM,
            "shape": DIMS,
        },
        family=Family.CONTRACTION,
        infer=_infer_contraction,
        reference=_contract,
        gradient=NOT_DIFFERENTIABLE,
        traits=Traits(epilogue="contraction", loads_operands=True),
        samples=(
            Sample(
                (TensorType.of("f32", "N", 5), TensorType.of("f32", 5, 7)),
                {
                    "kinds": ("row", "sum", "column"),
                    "extents": (TensorType.of("f32", "N").shape[0], 5, 7),
                    "lhs": (5, 1, 0),
                    "rhs": (0, 7, 1),
                    "out": (7, 0, 1),
                    "out_dims": (0, -1, 1),
                    "lhs_offset": 0,
                    "rhs_offset": 0,
                    "out_offset": 0,
                    "panel": 0,
                    "panel_stride": 0,
                    "row_panel": 0,
                    "row_panel_stride": 0,
                    "shape": (TensorType.of("f32", "N").shape[0], 7),
                },
            ),
            Sample(
                (TensorType.of("f32", 2, "N", 10), TensorType.of("f32", "N", 7)),
                {
                    "kinds": ("row", "sum", "column"),
                    "extents": (17, TensorType.of("f32", "N").shape[0], 7),
                    "lhs": (1, 10, 0),
                    "rhs": (0, 7, 1),
                    "out": (7, 0, 1),
                    "out_dims": (0, -1, 1),
                    "lhs_offset": 0,
                    "rhs_offset": 0,
                    "out_offset": 0,
                    "panel": 0,
                    "panel_stride": 0,
                    "row_panel": 10,
                    "row_panel_stride": 10 * TensorType.of("f32", "N").shape[0],
                    "shape": (17, 7),
                },
            ),
        ),
    )
)

PACK = register(
    Op(
        name="pack",
        operands=("x",),
        attributes={
            "batches": INT,
            "extents": DIMS,
            "strides": DIMS,
            "column_stride": DIM,
            "columns": INT,
            "offset": DIM,
            "panel": INT,
        },
        family=Family.MOVEMENT,
        infer=_infer_pack,
        reference=_pack,
        gradient=NOT_DIFFERENTIABLE,
        samples=(
            Sample(
                (TensorType.of("f32", 3, 4, 10),),
                {
                    "batches": 0,
                    "extents": (3, 4),
                    "strides": (40, 10),
                    "column_stride": 1,
                    "columns": 10,
                    "offset": 0,
                    "panel": 8,
                },
            ),
            Sample(
                (TensorType.of("f32", "N", 5, 2, 3),),
                {
                    "batches": 2,
                    "extents": (TensorType.of("f32", "N").shape[0], 2, 3),
                    "strides": (30, 3, 1),
                    "column_stride": 6,
                    "columns": 5,
                    "offset": 0,
                    "panel": 4,
                },
            ),
        ),
    )
)
