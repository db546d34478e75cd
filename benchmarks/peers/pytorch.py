"""PyTorch: eager with contiguous or channels-last images, and torch.compile, for inference with frozen weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional

from benchmarks.case import ADAM_EPSILON, Problem
from benchmarks.contender import Contender, trainer
from benchmarks.network import Weights, channels_first_rows

__all__ = ["build"]


class TorchLayers:
    def __init__(self, parameters: Any) -> None:
        self.parameters = parameters

    def _weights(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self.parameters[f"{name}_kernel"], self.parameters[f"{name}_bias"]

    def conv2d(
        self, x: torch.Tensor, name: str, filters: int, kernel: int, *, stride: int = 1, padding: int = 0
    ) -> torch.Tensor:
        return functional.conv2d(x, *self._weights(name), stride=stride, padding=padding)

    def dense(self, x: torch.Tensor, name: str, units: int) -> torch.Tensor:
        return functional.linear(x, *self._weights(name))

    def relu(self, x: torch.Tensor) -> torch.Tensor:
        return functional.relu(x)

    def max_pool(self, x: torch.Tensor, size: int) -> torch.Tensor:
        return functional.max_pool2d(x, size)

    def flatten(self, x: torch.Tensor) -> torch.Tensor:
        return torch.flatten(x, 1)

    def softmax(self, x: torch.Tensor) -> torch.Tensor:
        return functional.softmax(x, dim=-1)


class Network(torch.nn.Module):
    def __init__(self, problem: Problem, memory_format: torch.memory_format) -> None:
        super().__init__()
        self.network = problem.case.network
        self.probabilities = problem.mode == "inference"
        arrays = _torch_arrays(problem.weights)
        for name, array in arrays.items():
            tensor = torch.from_numpy(array)
            if tensor.ndim == 4:
                tensor = tensor.contiguous(memory_format=memory_format)
            self.register_parameter(name, torch.nn.Parameter(tensor))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        layers = TorchLayers(self._parameters)
        logits = self.network(layers, x)
        return layers.softmax(logits) if self.probabilities else logits


def _torch_arrays(weights: Weights) -> dict[str, np.ndarray]:
    """Kernels as [out, in, kh, kw] and [out, in]."""
    result = {}
    for path, array in weights.arrays.items():
        name, _, kind = path.partition("/")
        if kind == "kernel" and name in weights.flattened:
            array = channels_first_rows(array, weights.flattened[name])
        if kind == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        # A copy: training overwrites it.
        result[path.replace("/", "_")] = np.array(array, order="C")
    return result


def _input(problem: Problem, memory_format: torch.memory_format) -> torch.Tensor:
    if not problem.is_image:
        return torch.from_numpy(problem.x)
    return torch.from_numpy(problem.x.transpose(0, 3, 1, 2)).contiguous(memory_format=memory_format)


def build(problem: Problem, variant: str, threads: int) -> Contender:
    torch.set_num_threads(threads)
    memory_format = torch.channels_last if variant == "channels-last" else torch.contiguous_format
    network, x = Network(problem, memory_format), _input(problem, memory_format)
    make = _inference if problem.mode == "inference" else _training
    return make(problem, network, x, compiled=variant == "compile")


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
