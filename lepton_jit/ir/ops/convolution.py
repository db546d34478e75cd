"""convolution, with StableHLO's meaning: any order of dimensions, dilations, reversal, groups."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lepton_jit.errors import ArgumentError, DTypeError, ShapeError
from lepton_jit.ir.op import Family, Sample
from lepton_jit.ir.ops.contraction import type_of_sums
from lepton_jit.ir.ops.convolution_gradient import convolution_gradient
from lepton_jit.ir.ops.parts import padded
from lepton_jit.ir.ops.rules import BOOLS, INT, INTS, PAIRS, define, expect_dtype, expect_rank, window_size
from lepton_jit.ir.ops.window import Pairs, windows
from lepton_jit.ir.traits import Traits
from lepton_jit.ir.types import Dim, Poly, TensorType, dtype_of

Ints = Sequence[int]


def _infer(
    x: TensorType,
    k: TensorType,
    *,
    lhs_spec: Ints,
    rhs_spec: Ints,
    out_spec: Ints,
    strides: Ints,
    padding: Pairs,
    lhs_dilation: Ints,
    rhs_dilation: Ints,
    window_reversal: Sequence[bool],
    feature_group_count: int,
    batch_group_count: int,
) -> TensorType:
    _check_ranks(x, k, lhs_spec=lhs_spec, rhs_spec=rhs_spec, out_spec=out_spec)
    for name, entries in (
        ("strides", strides),
        ("padding", padding),
        ("lhs_dilation", lhs_dilation),
        ("rhs_dilation", rhs_dilation),
        ("window_reversal", window_reversal),
    ):
        if len(entries) != x.rank - 2:
            raise ShapeError(
                f"{name}: expected one entry for each of {x.rank - 2} spatial dimensions, got {list(entries)}"
            )
    batch, features = x.shape[lhs_spec[0]], x.shape[lhs_spec[1]]
    out_features, in_features = k.shape[rhs_spec[0]], k.shape[rhs_spec[1]]
    _check_groups(x, k, features, in_features, feature_group_count, batch_group_count)
    result: list[Dim] = [0] * x.rank
    result[out_spec[0]] = _share(batch, batch_group_count, "batch", "batch_group_count")
    result[out_spec[1]] = out_features
    _share(out_features, feature_group_count * batch_group_count, "output features", "groups")
    for i, (stride, pair, base, dilation) in enumerate(zip(strides, padding, lhs_dilation, rhs_dilation, strict=True)):
        dim, window = x.shape[lhs_spec[i + 2]], k.shape[rhs_spec[i + 2]]
        result[out_spec[i + 2]] = window_size(dim, window, stride, pair, dilation, base)
    return x.with_dtype(type_of_sums(x.dtype)).with_shape(result)


def _check_ranks(x: TensorType, k: TensorType, **specs: Ints) -> None:
    if x.dtype != k.dtype:
        raise DTypeError(f"expected operands of one dtype, got {x} and {k}")
    expect_dtype(x, "float", "signed", "unsigned")
    if x.rank < 2:
        raise ShapeError(f"x: expected batch, features and spatial dimensions, got {x}")
    expect_rank(k, x.rank, "k")
    for name, spec in specs.items():
        if sorted(spec) != list(range(x.rank)):
            raise ShapeError(f"{name}: expected the dimensions 0 to {x.rank - 1} in some order, got {list(spec)}")


def _check_groups(
    x: TensorType, k: TensorType, features: Dim, in_features: Dim, by_feature: int, by_batch: int
) -> None:
    if by_feature < 1 or by_batch < 1 or (by_feature > 1 and by_batch > 1):
        raise ArgumentError(
            f"feature_group_count, batch_group_count: expected one of them to be 1, got {by_feature} and {by_batch}"
        )
    if in_features * by_feature != features:
        raise ShapeError(
            f"k: expected {features!r} input features, as x has, over {by_feature} groups; "
            f"got {in_features!r} (x: {x}, k: {k})"
        )


def _share(dim: Dim, groups: int, what: str, who: str) -> Dim:
    if isinstance(dim, Poly):
        return dim // groups
    if dim % groups:
        raise ShapeError(f"{who}: expected a divisor of the {dim} {what}, got {groups}")
    return dim // groups


def _grouped(x: np.ndarray, k: np.ndarray, by_feature: int, by_batch: int) -> tuple[np.ndarray, np.ndarray]:
    """x as (groups, batch, features, *space), k as (groups, out_features, in_features, *window)."""
    batch, features, *space = x.shape
    groups = by_feature * by_batch
    if by_feature > 1:
        x = x.reshape(batch, groups, features // groups, *space).swapaxes(0, 1)
    else:
        x = x.reshape(groups, batch // groups, features, *space)
    return x, k.reshape(groups, k.shape[0] // groups, *k.shape[1:])


def _convolution(
    x: np.ndarray,
    k: np.ndarray,
    *,
    lhs_spec: Ints,
    rhs_spec: Ints,
    out_spec: Ints,
    strides: Ints,
    padding: Pairs,
    lhs_dilation: Ints,
    rhs_dilation: Ints,
    window_reversal: Sequence[bool],
    feature_group_count: int,
    batch_group_count: int,
) -> np.ndarray:
    x, k = x.transpose(lhs_spec), k.transpose(rhs_spec)
    k = np.flip(k, tuple(i + 2 for i, flipped in enumerate(window_reversal) if flipped))
    low, high = [0, 0, *(lo for lo, _ in padding)], [0, 0, *(hi for _, hi in padding)]
    interior = [0, 0, *(d - 1 for d in lhs_dilation)]
    x = padded(x, np.zeros((), x.dtype), low=low, high=high, interior=interior)
    grouped_x, grouped_k = _grouped(x, k, feature_group_count, batch_group_count)
    view = windows(grouped_x, (1, 1, 1, *k.shape[2:]), (1, 1, 1, *strides), (1, 1, 1, *rhs_dilation))
    product = _product(view, grouped_k)
    # (groups, batch, *space, out_features) -> (batch, groups, out_features, *space)
    product = np.moveaxis(np.moveaxis(product, 0, 1), -1, 2)
    result = product.reshape(product.shape[0], k.shape[0], *product.shape[3:])
    return result.transpose(np.argsort(out_spec))


def _product(view: np.ndarray, k: np.ndarray) -> np.ndarray:
    """(groups, batch, features, *space, 1, 1, 1, *window) times k, as matrices."""
    spatial = k.ndim - 3
    groups, batch, features, *space = view.shape[: 3 + spatial]
    order = (0, 1, *range(3, 3 + spatial), 2, *range(3 + spatial, view.ndim))
    summed = features * math.prod(k.shape[3:])
    rows = view.transpose(order).reshape(groups, batch * math.prod(space), summed)
    columns = k.reshape(groups, k.shape[1], summed).swapaxes(1, 2)
    dtype = type_of_sums(dtype_of(view.dtype)).numpy
    return np.matmul(rows, columns, dtype=dtype).reshape(groups, batch, *space, k.shape[1])


def _sample(dtype: str, x: Sequence[Dim | str], k: Sequence[Dim | str], **changes: object) -> Sample:
    """Channels last, `HWIO` kernels, strides and dilations of 1, unless changed."""
    spatial = len(x) - 2
    attributes = _defaults(spatial) | changes
    return Sample((TensorType.of(dtype, *x), TensorType.of(dtype, *k)), attributes)


def _defaults(spatial: int) -> dict[str, object]:
    between = tuple(range(1, spatial + 1))
    return {
        "lhs_spec": (0, spatial + 1, *between),
        "rhs_spec": (spatial + 1, spatial, *range(spatial)),
        "out_spec": (0, spatial + 1, *between),
        "strides": (1,) * spatial,
        "padding": ((0, 0),) * spatial,
        "lhs_dilation": (1,) * spatial,
        "rhs_dilation": (1,) * spatial,
        "window_reversal": (False,) * spatial,
        "feature_group_count": 1,
        "batch_group_count": 1,
    }


_UNEVEN = ((2, 3), (0, 0))
_CHANNELS_FIRST = {"lhs_spec": (0, 1, 2, 3), "rhs_spec": (0, 1, 2, 3), "out_spec": (0, 1, 2, 3)}

define(
    "convolution",
    Family.CONTRACTION,
    operands="x k",
    attributes={
        "lhs_spec": INTS,
        "rhs_spec": INTS,
        "out_spec": INTS,
        "strides": INTS,
        "padding": PAIRS,
        "lhs_dilation": INTS,
        "rhs_dilation": INTS,
        "window_reversal": BOOLS,
        "feature_group_count": INT,
        "batch_group_count": INT,
    },
    infer=_infer,
    reference=_convolution,
    gradient=convolution_gradient,
    traits=Traits(epilogue="window"),  # of each channel by itself; others become contractions
    samples=[
        _sample("f32", ("N", 6, 7, 3), (3, 3, 3, 4)),
        _sample("f32", ("N", 6, 7, 3), (3, 2, 3, 4), padding=((1, 1), (0, 1))),
        _sample("f32", ("N", 7, 6, 4), (1, 1, 4, 3), strides=(2, 2)),
        _sample("f64", ("N", 8, 7, 2), (3, 3, 2, 3), strides=(2, 3), padding=((0, 1), (1, 1))),
        _sample("f64", ("N", 8, 8, 2), (2, 3, 2, 3), rhs_dilation=(2, 3), strides=(1, 2)),
        _sample("f64", ("N", 4, 5, 2), (3, 3, 2, 3), lhs_dilation=(2, 3), padding=((2, 1), (0, 2)), strides=(2, 1)),
        _sample("f64", (2, 5, 5, 4), (3, 3, 2, 6), feature_group_count=2, padding=((1, 1), (1, 1))),
        _sample("f64", ("N", 5, 5, 3), (3, 3, 1, 3), feature_group_count=3, strides=(2, 2), padding=((1, 1), (0, 1))),
        _sample("f64", ("N", 5, 4, 3), (2, 2, 1, 6), feature_group_count=3, rhs_dilation=(2, 1)),
        _sample("f64", (4, 5, 4, 3), (2, 3, 3, 6), batch_group_count=2, strides=(2, 1)),
        _sample("f64", (2 * Poly.symbol("N"), 5, 4, 3), (2, 3, 3, 2), batch_group_count=2, lhs_dilation=(2, 1)),
        _sample("f64", (2, 6, 5, 2), (3, 2, 2, 3), window_reversal=(True, False), padding=((1, 0), (0, 1))),
        _sample("f64", (2, 6, 6, 2), (2, 3, 2, 3), padding=((-1, 2), (1, -2))),
        _sample("f64", (2, 7, 7, 2), (2, 2, 2, 3), padding=((-2, -1), (0, -1)), strides=(3, 2), rhs_dilation=(1, 2)),
        _sample("f64", (2, 3, 6, 5), (4, 3, 3, 2), **_CHANNELS_FIRST, strides=(2, 1)),
        _sample("f64", (3, 6, 2, 5), (2, 3, 4, 3), lhs_spec=(2, 0, 1, 3), rhs_spec=(2, 1, 3, 0), out_spec=(3, 0, 2, 1)),
        _sample("f64", (5, 3, "N", 5), (5, 4, "N", 5), lhs_spec=(0, 2, 1, 3), rhs_spec=(1, 2, 0, 3), padding=_UNEVEN),
        _sample("f64", ("N", 9, 2), (4, 2, 3), strides=(3,), padding=((2, 1),)),
        _sample("f64", (2, 4, 3, 4, 2), (2, 3, 2, 2, 3), strides=(1, 1, 2), padding=((0, 0), (1, 1), (0, 1))),
        _sample("f64", (4, 3), (3, 5)),
        _sample("i32", (2, 5, 5, 2), (3, 3, 2, 3)),
        _sample("i8", (2, 5, 5, 2), (3, 3, 2, 3)),
        _sample("u8", ("N", 5, 5, 4), (3, 3, 1, 4), feature_group_count=4),
    ],
)  # fmt: skip
