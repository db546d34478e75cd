"""OpenVINO on the same ONNX file, for latency and in full float32 (by default it takes bfloat16 where there is AMX)."""

from __future__ import annotations

import numpy as np
import openvino

from benchmarks.case import Problem
from benchmarks.contender import Contender
from benchmarks.peers.onnx_runtime import channels_first, onnx_model

__all__ = ["build"]


def build(problem: Problem, variant: str, threads: int) -> Contender:
    core = openvino.Core()
    model = core.read_model(onnx_model(problem))
    config = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    request = core.compile_model(model, "CPU", config).create_infer_request()
    x = channels_first(problem)
    # The buffers are shared, which is the fastest way that there is.
    call = lambda: request.infer({0: x}, share_inputs=True, share_outputs=True)  # noqa: E731
    return Contender(call, lambda: np.array(call()[0]))
