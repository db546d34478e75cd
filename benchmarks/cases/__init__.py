"""The cases by name; a new one is a file here and an entry below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.case import Case, Problem
from benchmarks.cases.encoder import ENCODER
from benchmarks.cases.lstm import LSTM
from benchmarks.cases.mlp import MLP
from benchmarks.cases.mnist_cnn import MNIST_CNN
from benchmarks.cases.mobilenetv2 import MOBILENETV2
from benchmarks.cases.resnet import RESNET18, RESNET18_SMALL, RESNET50
from benchmarks.cases.text_gap import TEXT_GAP

__all__ = ["CASES", "requested"]

CASES: dict[str, Case] = {
    case.name: case
    for case in (MLP, MNIST_CNN, TEXT_GAP, LSTM, RESNET18, RESNET50, MOBILENETV2, ENCODER, RESNET18_SMALL)
}


def requested(request: Mapping[str, Any]) -> Problem:
    """The problem of a request to a worker."""
    return Problem(CASES[request["case"]], request["mode"], request["batch"], request.get("fixed", False))
