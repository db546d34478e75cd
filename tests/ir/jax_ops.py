"""The operations in JAX: an implementation that shares nothing with ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lepton_jit.ir.op import OPS

JAX: dict[str, Callable[..., Any]] = {
    "abs": lax.abs,
    "negate": lax.neg,
    "sqrt": lax.sqrt,
    "floor": lax.floor,
    "ceil": lax.ceil,
    "round_nearest_even": lambda x: lax.round(x, lax.RoundingMethod.TO_NEAREST_EVEN),
    "add": lax.add,
    "subtract": lax.sub,
    "multiply": lax.mul,
    "divide": lax.div,
    "maximum": lax.max,
    "minimum": lax.min,
    "remainder": lax.rem,
    "not": lax.bitwise_not,
    "and": lax.bitwise_and,
    "or": lax.bitwise_or,
    "xor": lax.bitwise_xor,
    "shift_left": lax.shift_left,
    "shift_right_logical": lax.shift_right_logical,
    "compare": lambda a, b, direction: getattr(lax, direction.lower())(a, b),
    "select": lax.select,
    "convert": lambda x, dtype: lax.convert_element_type(x, dtype.numpy),
    "bitcast_convert": lambda x, dtype: lax.bitcast_convert_type(x, dtype.numpy),
    "exponential": lax.exp,
    "exponential_minus_one": lax.expm1,
    "log": lax.log,
    "log_plus_one": lax.log1p,
    "logistic": lax.logistic,
    "tanh": lax.tanh,
    "erf": lax.erf,
    "erfc": lax.erfc,
    "rsqrt": lax.rsqrt,
    "sine": lax.sin,
    "cosine": lax.cos,
    "power": lax.pow,
    "sign": lax.sign,
    "is_finite": lax.is_finite,
    "clamp": lax.clamp,
    "constant": lambda value, dtype, shape: jnp.asarray(value, dtype.numpy).reshape(shape),
    "iota": lambda dtype, shape, dimension: lax.broadcasted_iota(dtype.numpy, shape, dimension),
    "reshape": lambda x, shape: lax.reshape(x, shape),
    "transpose": lambda x, permutation: lax.transpose(x, permutation),
    "reverse": lambda x, dimensions: lax.rev(x, dimensions),
    "slice": lambda x, start, limit, strides: lax.slice(x, start, limit, strides),
    "pad": lambda x, value, low, high, interior: lax.pad(x, value, list(zip(low, high, interior, strict=True))),
    "concatenate": lambda *xs, dimension: lax.concatenate(xs, dimension),
}


def run_all(functions: Sequence[Callable[..., Any]], arguments: Sequence[Sequence[Any]]) -> list[Any]:
    """The results of many functions, in float64 where they say so; compiled at once, since compiling takes the time."""

    def together(lists: Sequence[Sequence[Any]]) -> list[Any]:
        return [function(*given) for function, given in zip(functions, lists, strict=True)]

    with jax.enable_x64(True):
        compiled = jax.jit(together).lower(arguments).compile({"xla_backend_optimization_level": 0})
        return jax.tree.map(np.asarray, compiled(arguments))


def jax_op(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def enter(function: Callable[..., Any]) -> Callable[..., Any]:
        JAX[name] = function
        return function

    return enter


@jax_op("broadcast_in_dim")
def _broadcast_in_dim(x: jax.Array, shape: tuple[int, ...], dimensions: tuple[int, ...]) -> jax.Array:
    """JAX wants the dimensions in order."""
    order = sorted(range(x.ndim), key=lambda i: dimensions[i])
    return lax.broadcast_in_dim(lax.transpose(x, order), shape, sorted(dimensions))


# Reductions and windows

_COMBINE = {
    "add": lax.add,
    "multiply": lax.mul,
    "maximum": lax.max,
    "minimum": lax.min,
    "and": lax.bitwise_and,
    "or": lax.bitwise_or,
}


def _identity(kind: str, dtype: np.dtype) -> np.ndarray:
    if dtype == np.bool_:
        return np.array(kind == "and")
    if kind in ("add", "or", "multiply"):
        return np.array(kind == "multiply", dtype)
    if kind == "and":
        return ~np.array(0, dtype)
    if dtype.kind == "f":
        return np.array(-np.inf if kind == "maximum" else np.inf, dtype)
    return np.array(np.iinfo(dtype).min if kind == "maximum" else np.iinfo(dtype).max, dtype)


@jax_op("reduce")
def _reduce(x: jax.Array, dimensions: tuple[int, ...], kind: str) -> jax.Array:
    functions = {"add": jnp.sum, "multiply": jnp.prod, "maximum": jnp.max, "minimum": jnp.min}
    if kind in functions and dimensions and x.dtype != np.bool_:
        return functions[kind](x, axis=dimensions).astype(x.dtype)
    return lax.reduce(x, _identity(kind, x.dtype), _COMBINE[kind], dimensions)


@jax_op("moments")
def _moments(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    rows = tuple(range(x.ndim - 1))
    return x.mean(rows), x.var(rows)


@jax_op("reduce_window")
def _reduce_window(x: jax.Array, kind: str, window: Any, strides: Any, padding: Any, dilation: Any) -> jax.Array:
    """Padded first: JAX has no gradient for a window with negative padding."""
    initial = _identity(kind, x.dtype)[()]
    x = lax.pad(x, initial, [(low, high, 0) for low, high in padding])
    return lax.reduce_window(x, initial, _COMBINE[kind], window, strides, "VALID", window_dilation=dilation)


@jax_op("select_and_scatter")
def _select_and_scatter(x: jax.Array, source: jax.Array, window: Any, strides: Any, padding: Any) -> jax.Array:
    """JAX has it only as the gradient of a maximum over windows."""
    _, pull = jax.vjp(lambda v: _reduce_window(v, "maximum", window, strides, padding, (1,) * x.ndim), x)
    return pull(source)[0]


# Contractions


def _type_of_sums(x: jax.Array) -> Any:
    """Of products of integers narrower than 32 bits: 32 bits."""
    return {"int8": "int32", "int16": "int32", "uint8": "uint32", "uint16": "uint32"}.get(x.dtype.name)


@jax_op("dot_general")
def _dot_general(a: jax.Array, b: jax.Array, **dims: tuple[int, ...]) -> jax.Array:
    contracting = (dims["lhs_contracting"], dims["rhs_contracting"])
    batching = (dims["lhs_batching"], dims["rhs_batching"])
    return lax.dot_general(a, b, (contracting, batching), "highest", preferred_element_type=_type_of_sums(a))


@jax_op("convolution")
def _convolution(
    x: Any, k: Any, lhs_spec: Any, rhs_spec: Any, out_spec: Any, window_reversal: Any, strides: Any, **attributes: Any
) -> Any:
    k = lax.rev(k, [rhs_spec[i + 2] for i, flipped in enumerate(window_reversal) if flipped])
    numbers = lax.ConvDimensionNumbers(lhs_spec, rhs_spec, out_spec)
    attributes |= {"precision": "highest", "preferred_element_type": _type_of_sums(x)}
    return lax.conv_general_dilated(x, k, strides, dimension_numbers=numbers, **attributes)


# Composites

# Activations mostly have the same name there, and the same options.
JAX |= {name: getattr(jax.nn, name) for name in OPS.keys() - JAX.keys() if hasattr(jax.nn, name)}
JAX |= {
    "softsign": jax.nn.soft_sign,
    "argmax": lambda x, axis: jnp.argmax(x, axis).astype(np.int32),
    "softmax_cross_entropy": lambda logits, targets: -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1),
}


@jax_op("sparse_softmax_cross_entropy")
def _sparse_softmax_cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    index = jnp.asarray(labels).astype(np.int32)[..., None]
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), index, axis=-1)[..., 0]


@jax_op("sigmoid_cross_entropy")
def _sigmoid_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return -targets * jax.nn.log_sigmoid(logits) - (1 - targets) * jax.nn.log_sigmoid(-logits)


def _pooled(x: jax.Array, kind: str, window: Any, strides: Any, padding: Any) -> jax.Array:
    padding = ((0, 0), *padding, (0, 0))
    return _reduce_window(x, kind, (1, *window, 1), (1, *strides, 1), padding, (1,) * x.ndim)


@jax_op("max_pool")
def _max_pool(x: jax.Array, **attributes: Any) -> jax.Array:
    return _pooled(x, "maximum", **attributes)


@jax_op("average_pool")
def _average_pool(x: jax.Array, **attributes: Any) -> jax.Array:
    return _pooled(x, "add", **attributes) / _pooled(jnp.ones_like(x), "add", **attributes)


@jax_op("batch_norm_training")
def _batch_norm_training(x: jax.Array, gamma: jax.Array, beta: jax.Array, epsilon: float, axis: int) -> Any:
    others = tuple(d for d in range(x.ndim) if d != axis % x.ndim)
    mean, variance = jnp.mean(x, others), jnp.var(x, others)
    return _batch_norm_inference(x, gamma, beta, mean, variance, epsilon, axis), mean, variance


@jax_op("batch_norm_inference")
def _batch_norm_inference(x: Any, gamma: Any, beta: Any, mean: Any, variance: Any, epsilon: float, axis: int) -> Any:
    shape = [1] * x.ndim
    shape[axis] = -1
    gamma, beta, mean, variance = (v.reshape(shape) for v in (gamma, beta, mean, variance))
    return (x - mean) / jnp.sqrt(variance + epsilon) * gamma + beta


@jax_op("layer_norm")
def _layer_norm(x: jax.Array, gamma: jax.Array, beta: jax.Array, axes: tuple[int, ...], epsilon: float) -> jax.Array:
    mean, variance = jnp.mean(x, axes, keepdims=True), jnp.var(x, axes, keepdims=True)
    shape = [size if axis in axes else 1 for axis, size in enumerate(x.shape)]
    return (x - mean) / jnp.sqrt(variance + epsilon) * gamma.reshape(shape) + beta.reshape(shape)


# Indexing


@jax_op("take")
def _take(table: jax.Array, indices: jax.Array, axis: int) -> jax.Array:
    return jnp.take(table, indices, axis, mode="clip")


@jax_op("scatter_add")
def _scatter_add(updates: jax.Array, indices: jax.Array, axis: int, size: int) -> jax.Array:
    shape = (*updates.shape[:axis], size, *updates.shape[axis + indices.ndim :])
    at = jnp.zeros(shape, updates.dtype).at[(*[slice(None)] * axis, indices)]
    return at.add(updates, mode="clip")


JAX["check_indices"] = lambda indices, low, high: indices
