"""MultiHeadAttention."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

from lepton_jit import initializers, regularizers
from lepton_jit.common import arguments
from lepton_jit.errors import ShapeError
from lepton_jit.ir.graph import Value
from lepton_jit.ir.types import DTYPES, Shape
from lepton_jit.layers.base.layer import Layer, Spec
from lepton_jit.layers.base.registry import registry
from lepton_jit.layers.base.symbolic import ShapeTuple
from lepton_jit.layers.core import drop
from lepton_jit.random import check_seed
from lepton_jit.tracing import Tracer

__all__ = ["MultiHeadAttention"]

_HIDDEN = -1e9  # Keras' score of a position that is not attended to: its exponential is 0


@registry.register
class MultiHeadAttention(Layer):
    """Looks `query: [N, T, C]` up in `value: [N, S, E]` by `key: [N, S, D]`, which is `value` if not given.

    Every head h has scores `softmax(q_h k_h^T / sqrt(key_dim))` of projections `q_h = query @ W_h + b_h` and likewise
    k_h and v_h; the heads' `scores @ v_h` together are projected to `output_shape` (C by default): `[N, T, C]`. With
    `return_attention_scores`, the scores `[N, heads, T, S]` are a second result.

    Attended to is what all masks allow: `query_mask: [N, T]`, `value_mask: [N, S]` and `key_mask: [N, S]`, which come
    with masked tensors, `attention_mask: [N, T, S]` (or `[T, S]`, or `[N, heads, T, S]`), `use_causal_mask` (no later
    positions than one's own) and `sliding_window` (positions nearer than that). The result's mask is the query's.
    """

    fields = (
        "num_heads",
        "key_dim",
        "value_dim",
        "dropout",
        "use_bias",
        "output_shape",
        "sliding_window",
        "kernel_initializer",
        "bias_initializer",
        "kernel_regularizer",
        "bias_regularizer",
        "use_gate",
        "seed",
    )
    accepts = ("attention_axes", "flash_attention", "activity_regularizer", "kernel_constraint", "bias_constraint")
    rank = 3
    supports_masking = True

    def __init__(
        self,
        num_heads: int,
        key_dim: int,
        value_dim: int | None = None,
        dropout: float = 0.0,
        use_bias: bool = True,
        output_shape: int | Sequence[int] | None = None,
        attention_axes: Any = None,
        sliding_window: int | None = None,
        flash_attention: bool | None = None,
        kernel_initializer: Any = "glorot_uniform",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        bias_regularizer: Any = None,
        activity_regularizer: Any = None,
        kernel_constraint: Any = None,
        bias_constraint: Any = None,
        use_gate: bool = False,
        seed: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            attention_axes=attention_axes,
            flash_attention=flash_attention,
            activity_regularizer=activity_regularizer,
            kernel_constraint=kernel_constraint,
            bias_constraint=bias_constraint,
            **options,
        )
        self.num_heads = arguments.integer(self.label, "num_heads", num_heads)
        self.key_dim = arguments.integer(self.label, "key_dim", key_dim)
        self.value_dim = self.key_dim if value_dim is None else arguments.integer(self.label, "value_dim", value_dim)
        self.dropout = arguments.number(self.label, "dropout", dropout, low=0, high=1)
        self.use_bias = arguments.boolean(self.label, "use_bias", use_bias)
        self.output_shape = self._output_shape(output_shape)
        self.sliding_window = None
        if sliding_window is not None:
            self.sliding_window = arguments.integer(self.label, "sliding_window", sliding_window)
        self.kernel_initializer = initializers.get(kernel_initializer)
        self.bias_initializer = initializers.get(bias_initializer)
        self.kernel_regularizer = regularizers.get(kernel_regularizer)
        self.bias_regularizer = regularizers.get(bias_regularizer)
        self.use_gate = arguments.boolean(self.label, "use_gate", use_gate)
        self.seed = check_seed(self.label, seed)
        self._projections: dict[str, _Projection] = {}

    def _output_shape(self, given: Any) -> tuple[int, ...] | None:
        if given is None:
            return None
        return arguments.integer_tuple(self.label, "output_shape", given if isinstance(given, Sequence) else (given,))

    @property
    def sublayers(self) -> Sequence[Layer]:
        return tuple(self._projections.values())

    # Shapes

    def ensure_built(self, inputs: Sequence[Spec], **arguments: Any) -> None:
        specs = [*inputs, arguments["key"]] if "key" in arguments else list(inputs)
        self._check_rank(specs)
        shapes = [shape for shape, _ in specs]
        self.compute_output_shape(*shapes)
        if not self.built:
            self.compute_dtype = self._resolve_dtype([dtype for _, dtype in specs])
            self.build(*shapes)
            self.built = True
        query, value, key = (*shapes, shapes[1])[:3]
        for name, shape in {"query": query, "key": key, "value": value}.items():
            self.check_input(f"features as {name}", self._projections[name].kernel.shape[0], shape[-1], shape)

    def build(self, query_shape: ShapeTuple, value_shape: ShapeTuple, key_shape: ShapeTuple | None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        key_shape = value_shape if key_shape is None else key_shape
        keys, values = (self.num_heads, self.key_dim), (self.num_heads, self.value_dim)
        self._project("query", query_shape[-1:], keys)
        self._project("key", key_shape[-1:], keys)
        if self.use_gate:
            self._project("gate", query_shape[-1:], values)
        self._project("value", value_shape[-1:], values)
        self._project("attention_output", values, self.output_shape or query_shape[-1:])

    def _project(self, name: str, summed: Sequence[int | None], made: Sequence[int | None]) -> None:
        self._projections[name] = _Projection(self, name, summed, made)

    def compute_output_shape(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, query_shape: ShapeTuple, value_shape: ShapeTuple, key_shape: ShapeTuple | None = None
    ) -> ShapeTuple:
        if key_shape is not None and value_shape[1:-1] != key_shape[1:-1]:
            raise ShapeError(
                f"{self.label}: expected a key of as many steps as the value of shape {value_shape}, got {key_shape}"
            )
        return (*query_shape[:-1], *(self.output_shape or query_shape[-1:]))

    def output_specs(self, inputs: Sequence[Spec], **arguments: Any) -> list[Spec]:
        (query, _), (value, _) = inputs
        dtype = self.compute_dtype.numpy.name
        result: list[Spec] = [(self.compute_output_shape(query, value), dtype)]
        if arguments.get("return_attention_scores"):
            result.append(((query[0], self.num_heads, query[1], value[1]), dtype))
        return result

    # Tracing

    def trace(
        self,
        t: Tracer,
        query: Value,
        value: Value,
        key: Value | None = None,
        query_mask: Value | None = None,
        value_mask: Value | None = None,
        key_mask: Value | None = None,
        attention_mask: Value | None = None,
        return_attention_scores: bool = False,
        use_causal_mask: bool = False,
    ) -> Any:
        p = self._projections
        # [N, T, heads, dim] each; the products below read the heads where they lie.
        q = self._split(t, t("multiply", p["query"].apply(t, query), 1.0 / math.sqrt(self.key_dim)))
        k = self._split(t, p["key"].apply(t, value if key is None else key))
        v = self._split(t, p["value"].apply(t, value))
        scores = _batched(t, q, k, lhs_batching=(0, 2), lhs_contracting=3, rhs_batching=(0, 2), rhs_contracting=3)
        masks = {
            (0, 2): [query_mask],
            (0, 3): [value_mask, key_mask],
            (2, 3): self._positions(t, scores.type.shape[2:], use_causal_mask),
        }
        allowed = [_over(t, m, scores, dims) for dims, group in masks.items() for m in group if m is not None]
        if attention_mask is not None:
            allowed.append(self._given(t, attention_mask, scores))
        # Keras has two ways to compute this; they differ in what a query finds that may attend to nothing.
        explicit = self.dropout > 0 or return_attention_scores
        scores = _masked_softmax(t, scores, allowed, nothing_is_zero=explicit)
        kept = drop(t, scores, self.dropout, self.seed) if self.dropout else scores
        heads = _batched(t, kept, v, lhs_batching=(0, 1), lhs_contracting=3, rhs_batching=(0, 2), rhs_contracting=1)
        joined = t.reshape(t("transpose", heads, permutation=(0, 2, 1, 3)), (*query.type.shape[:2], self._width))
        if self.use_gate:
            joined = t("multiply", joined, t("logistic", p["gate"].apply(t, query)))
        result = p["attention_output"].apply(t, joined)
        result = t.reshape(result, (*query.type.shape[:2], *p["attention_output"].made))
        return (result, scores) if return_attention_scores else result

    @property
    def _width(self) -> int:
        return self.num_heads * self.value_dim

    def _split(self, t: Tracer, x: Value) -> Value:
        batch, steps, width = x.type.shape
        assert isinstance(width, int)
        return t.reshape(x, (batch, steps, self.num_heads, width // self.num_heads))

    def _positions(self, t: Tracer, shape: Shape, causal: bool) -> list[Value]:
        """The masks of positions j that position i may attend to, each `bool[T, S]`, the same for all samples."""
        if not causal and self.sliding_window is None:
            return []
        own, other = (t("iota", dtype=DTYPES["i32"], shape=shape, dimension=d) for d in (0, 1))
        found = [t("compare", own, other, direction="GE")] if causal else []
        if self.sliding_window is not None:
            distance = t("abs", t("subtract", own, other))
            found.append(t("compare", distance, self.sliding_window, direction="LT"))
        return found

    def _given(self, t: Tracer, mask: Value, scores: Value) -> Value:
        """The call's `attention_mask` in the shape of the scores."""
        dimensions = {2: (2, 3), 3: (0, 2, 3), 4: (0, 1, 2, 3)}.get(mask.type.rank, ())
        wanted = [scores.type.shape[d] for d in dimensions]
        if not wanted or any(m not in (1, w) for m, w in zip(mask.type.shape, wanted, strict=True)):
            raise ShapeError(
                f"{self.label}: attention_mask: expected dimensions of 1 or those of [N, T, S] or [N, heads, T, S] in "
                f"{scores.type}, got {mask.type}"
            )
        return _over(t, mask, scores, dimensions)


class _Projection(Layer):
    """`x @ kernel + bias` over the last dimension of x: `kernel: [*summed, *made]`, `bias: [*made]`.

    Heads and their features are one dimension in the product: one wide product instead of a narrow one for each head.
    """

    def __init__(
        self, owner: MultiHeadAttention, name: str, summed: Sequence[int | None], made: Sequence[int | None]
    ) -> None:
        super().__init__(name=name, dtype=owner.compute_dtype.numpy.name, trainable=owner.trainable)
        self.kernel = self.add_weight("kernel", (*summed, *made), owner.kernel_initializer, owner.kernel_regularizer)
        self.bias = None
        if owner.use_bias:
            self.bias = self.add_weight("bias", made, owner.bias_initializer, owner.bias_regularizer)
        self.made = self.kernel.shape[len(summed) :]
        self.built = True

    def apply(self, t: Tracer, x: Value) -> Value:
        """`x: [N, T, summed]` projected: `[N, T, made]`."""
        width = math.prod(self.made)
        with t.b.layer(self.name):
            kernel = t.reshape(t.weight(self.kernel), (self.kernel.size // width, width))
            y = t(
                "dot_general",
                x,
                kernel,
                lhs_batching=(),
                rhs_batching=(),
                lhs_contracting=(2,),
                rhs_contracting=(0,),
            )
            if self.bias is None:
                return y
            return t("add", y, t.along(t.reshape(t.weight(self.bias), (width,)), y))


def _batched(
    t: Tracer,
    a: Value,
    b: Value,
    *,
    lhs_batching: tuple[int, ...],
    lhs_contracting: int,
    rhs_batching: tuple[int, ...],
    rhs_contracting: int,
) -> Value:
    return t(
        "dot_general",
        a,
        b,
        lhs_batching=lhs_batching,
        rhs_batching=rhs_batching,
        lhs_contracting=(lhs_contracting,),
        rhs_contracting=(rhs_contracting,),
    )


def _over(t: Tracer, mask: Value, scores: Value, dimensions: tuple[int, ...]) -> Value:
    return t.b.broadcast(mask, scores.type.shape, dimensions=dimensions)


def _masked_softmax(t: Tracer, scores: Value, allowed: Sequence[Value], *, nothing_is_zero: bool) -> Value:
    """Softmax over the last dimension among what is allowed; where nothing is: 0 everywhere, or all alike."""
    if not allowed:
        return t("softmax", scores, axis=3)
    together = reduce(lambda a, b: t("and", a, b), allowed)
    result = t("softmax", t("select", together, scores, _HIDDEN), axis=3)
    return t("select", together, result, 0.0) if nothing_is_zero else result
