"""Let masks follow the tensors of a trace: into calls of layers that want them, and out of those that keep them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from lepton_jit.ir.builder import Builder
from lepton_jit.ir.graph import Value
from lepton_jit.ir.interpreter import run_graph
from lepton_jit.ir.types import DTYPES, DType, TensorType, dtype_of
from lepton_jit.layers.base.calling import CallSignature, map_leaves
from lepton_jit.layers.base.symbolic import as_list
from lepton_jit.tracing import Tracer

__all__ = ["compute_mask", "convert_arguments", "hand_on", "masks_of", "with_masks"]


class Masked(Protocol):
    """The part of a layer that masks use."""

    supports_masking: bool

    @property
    def label(self) -> str: ...

    @classmethod
    def call_signature(cls) -> CallSignature: ...

    def trace_mask(
        self, t: Tracer, inputs: Sequence[Value], masks: Sequence[Value | None]
    ) -> Value | Sequence[Value | None] | None: ...


def convert_arguments(t: Tracer, arguments: Mapping[str, Any], dtype: DType) -> dict[str, Any]:
    """The named arguments of a call, masks as bool and other tensors in the layer's element type."""

    def converted(name: str, value: Any) -> Any:
        wanted = DTYPES["bool"] if _is_mask(name) else dtype
        return map_leaves(lambda x: t.convert(x, wanted) if isinstance(x, Value) else x, value)

    return {name: converted(name, value) for name, value in arguments.items()}


def with_masks(
    t: Tracer, signature: CallSignature, inputs: Sequence[Value], arguments: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments, and those masks that a `trace` has parameters for, the call did not give, and tensors brought."""
    result = dict(arguments)
    if signature.many:
        return result
    tensors = dict(zip(signature.required, inputs, strict=True))
    tensors |= {name: x for name, x in arguments.items() if isinstance(x, Value)}
    for name, x in tensors.items():
        mask = t.mask_of(x)
        for wanted in _mask_names(signature, name):
            if mask is not None and wanted in signature.optional:
                result.setdefault(wanted, mask)
    return result


def masks_of(
    t: Tracer, signature: CallSignature, inputs: Sequence[Value], arguments: Mapping[str, Any]
) -> list[Value | None]:
    """The mask of every input: from the call, or else as it came."""
    if signature.many:
        return [t.mask_of(x) for x in inputs]
    masks = []
    for name, x in zip(signature.required, inputs, strict=True):
        given = [arguments[wanted] for wanted in _mask_names(signature, name) if wanted in arguments]
        masks.append(given[0] if given else t.mask_of(x))
    return masks


def hand_on(
    layer: Masked, t: Tracer, inputs: Sequence[Value], masks: Sequence[Value | None], results: Sequence[Value]
) -> tuple[Value, ...]:
    """The results, with the masks that the layer says they have; a layer without masking loses them, and says so."""
    if all(mask is None for mask in masks) and not layer.supports_masking:
        return tuple(results)
    if not layer.supports_masking:
        warnings.warn(
            f"{layer.label}: {type(layer).__name__} got an input with a mask, but does not support masking: "
            "the layers behind it will not see the mask",
            stacklevel=2,
        )
        # A result that is an input would bring that input's mask along.
        return tuple(r if t.mask_of(r) is None else t("reshape", r, shape=r.type.shape) for r in results)
    found: list[Value | None] = as_list(layer.trace_mask(t, inputs, masks))
    for result, mask in zip(results, found, strict=False):
        if mask is not None:
            t.set_mask(result, mask)
    return tuple(results)


def compute_mask(layer: Masked, inputs: Any, mask: Any) -> Any:
    """Compute what `layer.trace_mask` says for arrays."""
    builder = Builder("mask")
    feeds: dict[str, np.ndarray] = {}

    def value(array: Any) -> Value | None:
        if array is None:
            return None
        feeds[name := f"x{len(feeds)}"] = found = np.asarray(array)
        return builder.input(name, TensorType(dtype_of(found.dtype), found.shape))

    several = layer.call_signature().many
    operands = [x for x in map(value, inputs if several else [inputs]) if x is not None]
    masks = [value(m) for m in (mask if several and mask is not None else [mask] * len(operands))]
    results = layer.trace_mask(Tracer(builder), operands, masks)
    for i, result in enumerate(as_list(results)):
        if result is not None:
            builder.output(result, str(i))
    computed = run_graph(builder.build(), feeds)
    arrays = [computed.get(str(i)) for i in range(len(as_list(results)))]
    return arrays if isinstance(results, (list, tuple)) else arrays[0]


def _is_mask(name: str) -> bool:
    return name == "mask" or name.endswith("_mask")


def _mask_names(signature: CallSignature, name: str) -> tuple[str, ...]:
    """List the names of the inputs' masks: `mask` for the only input, `<name>_mask` otherwise."""
    return ("mask", f"{name}_mask") if signature.required == (name,) else (f"{name}_mask",)
