"""PyTorch: eager with contiguous or channels-last images, and torch.compile, for inference with frozen weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.case import ADAM_EPSILON, Problem
from benchmarks.contender import Contender, trainer
from benchmarks.network import EPSILON, MOMENTUM, Weights, channels_first_rows, is_trained

__all__ = ["build"]


class TorchLayers:
    """Images are [N, c, h, w] in meaning; `training` is that of batch normalization."""

    def __init__(self, tensors: Mapping[str, Any], *, training: bool) -> None:
        self.tensors = tensors
        self.training = training

    def _weight(self, name: str, kind: str) -> torch.Tensor:
        return self.tensors[f"{name}_{kind}"]

    def _weights(self, name: str, *kinds: str) -> list[torch.Tensor]:
        return [self._weight(name, kind) for kind in kinds]

    def conv2d(
        self,
        x: torch.Tensor,
        name: str,
        filters: int,
        kernel: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> torch.Tensor:
        weights = self._weights(name, "kernel", "bias") if bias else self._weights(name, "kernel")
        return functional.conv2d(x, *weights, stride=stride, padding=padding)

    def depthwise_conv2d(
        self, x: torch.Tensor, name: str, kernel: int, *, stride: int = 1, padding: int = 0
    ) -> torch.Tensor:
        return functional.conv2d(x, self._weight(name, "kernel"), stride=stride, padding=padding, groups=x.shape[1])

    def batch_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        weights = self._weights(name, "moving_mean", "moving_variance", "gamma", "beta")
        return functional.batch_norm(x, *weights, training=self.training, momentum=1 - MOMENTUM, eps=EPSILON)

    def dense(self, x: torch.Tensor, name: str, units: int) -> torch.Tensor:
        return functional.linear(x, *self._weights(name, "kernel", "bias"))

    def embedding(self, x: torch.Tensor, name: str, vocabulary: int, width: int) -> torch.Tensor:
        return functional.embedding(x, self._weight(name, "embeddings"))

    def embedding_mean(self, x: torch.Tensor, name: str, vocabulary: int, width: int) -> torch.Tensor:
        # Measured: a bag takes 17 us instead of 9 for one row, and a fifth to a third of the time for 64.
        if len(x) == 1:
            return self.token_mean(self.embedding(x, name, vocabulary, width))
        return functional.embedding_bag(x, self._weight(name, "embeddings"), mode="mean")

    def lstm(self, x: torch.Tensor, name: str, units: int) -> torch.Tensor:
        zeros = x.new_zeros(1, x.shape[0], units)
        # The order of the gates is Keras' own. There are two biases; the second stays zero and is not trained.
        weights = self._weights(name, "kernel", "recurrent_kernel", "bias")
        _, last, _ = torch.lstm(
            x, (zeros, zeros), [*weights, torch.zeros_like(weights[-1])], True, 1, 0.0, self.training, False, True
        )
        return last[0]

    def self_attention(self, x: torch.Tensor, name: str, heads: int) -> torch.Tensor:
        n, tokens, width = x.shape
        joined = functional.linear(x, *self._weights(name, "qkv_kernel", "qkv_bias"))
        parts = joined.view(n, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind()
        y = functional.scaled_dot_product_attention(query, key, value)
        y = y.transpose(1, 2).reshape(n, tokens, width)
        return functional.linear(y, *self._weights(name, "attention_output_kernel", "attention_output_bias"))

    def layer_norm(self, x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.layer_norm(x, x.shape[-1:], *self._weights(name, "gamma", "beta"), eps=EPSILON)

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x)

    def relu6(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu6(x)

    def gelu(self, x: torch.Tensor) -> torch.Tensor:
        return functional.gelu(x)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x + y

    def max_pool(self, x: torch.Tensor, size: int, *, stride: int | None = None, padding: int = 0) -> torch.Tensor:
        return functional.max_pool2d(x, size, stride, padding)

    def image_mean(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))

    def token_mean(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean(1)

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(x, 1)

    def softmax(self, x: torch.Tensor) -> torch.Tensor:
        return functional.softmax(x, dim=-1)


class Network(torch.nn.Module):
    def __init__(self, problem: Problem, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.network = problem.case.network
        self.probabilities = problem.mode == "inference"
        for path, array in problem.weights.with_joined_attention().items():
            tensor = torch.from_numpy(_torch_array(path, array, problem.weights))
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=memory_format)
            name = path.replace("/", "_")
            if is_trained(path):
                self.register_parameter(name, torch.nn.Parameter(tensor))
            else:
                self.register_buffer(name, tensor)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = TorchLayers({**self._parameters, **self._buffers}, training=not self.probabilities)
        logits = self.network(layers, x)
        return layers.softmax(logits) if self.probabilities else logits


def _torch_array(path: str, array: np.ndarray, weights: Weights) -> np.ndarray:
    """Kernels as [out, in, kh, kw], depthwise ones as [c, 1, kh, kw], others as [out, in]; a copy to be trained."""
    layer, _, kind = path.partition("/")
    if layer in weights.flattened and kind == "kernel":
        array = channels_first_rows(array, weights.flattened[layer])
    if path.endswith("kernel") and array.ndim == 4:
        array = array.transpose((2, 3, 0, 1) if array.shape[3] == 1 else (3, 2, 0, 1))
    elif path.endswith("kernel"):
        array = array.T
    return np.array(array, order="C")


def _input(problem: Problem, memory_format: torch.memory_format) -> torch.Tensor:
    if not problem.is_image:
        return torch.from_numpy(problem.x)
    return torch.from_numpy(problem.x.transpose(0, 3, 1, 2)).contiguous(memory_format=memory_format)


def build(problem: Problem, variant: str, threads: int) -> Contender:
    if variant == "compile":
        _need_compiler()
    torch.set_num_threads(threads)
    memory_format = torch.channels_last if variant == "channels-last" else torch.contiguous_format
    network, x = Network(problem, memory_format), _input(problem, memory_format)
    make = _inference if problem.mode == "inference" else _training
    return make(problem, network, x, compiled=variant == "compile")


def _need_compiler() -> None:
    """ImportError, which leaves the contender out, where torch.compile would find no C++ compiler."""
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler:
        raise ImportError("a C++ compiler, such as g++, which torch.compile needs") from None


def _inference(problem: Problem, network: Network, x: torch.Tensor, *, compiled: bool) -> Contender:
    network.eval().requires_grad_(False)
    run: Any = network
    if compiled:
        torch._dynamo.reset()
        run = torch.compile(network, dynamic=False, options={"freezing": True})

    def call() -> torch.Tensor:
        with torch.no_grad():
            return run(x)

    return Contender(call, lambda: call().numpy())


def _training(problem: Problem, network: Network, x: torch.Tensor, *, compiled: bool) -> Contender:
    labels = torch.from_numpy(problem.labels)
    optimizer = torch.optim.Adam(network.parameters(), lr=problem.case.learning_rate, eps=ADAM_EPSILON, fused=True)

    def loss_of(inputs: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(network(inputs), labels)

    loss_function: Any = loss_of
    if compiled:
        torch._dynamo.reset()
        loss_function = torch.compile(loss_of, dynamic=False)

    def step() -> float:
        optimizer.zero_grad(set_to_none=True)
        loss = loss_function(x)
        loss.backward()
        optimizer.step()
        return loss.item()

    def set_learning_rate(value: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = value

    return trainer(step, set_learning_rate)
