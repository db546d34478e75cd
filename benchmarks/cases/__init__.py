"""The cases by name; a new one is a file here and an entry below."""

from __future__ import annotations

from benchmarks.case import Case
from benchmarks.cases.mlp import MLP
from benchmarks.cases.mnist_cnn import MNIST_CNN

__all__ = ["CASES"]

CASES: dict[str, Case] = {case.name: case for case in (MLP, MNIST_CNN)}
