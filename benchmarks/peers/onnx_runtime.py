"""ONNX Runtime, on a graph with channels-first images, as every exporter writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.case import Problem
from benchmarks.contender import Contender
from benchmarks.network import Weights, channels_first_rows

__all__ = ["build", "channels_first", "onnx_model"]

OPSET = 17


class OnnxLayers:
    """Values are names of the graph's tensors."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def conv2d(self, x: str, name: str, filters: int, kernel: int, *, stride: int = 1, padding: int = 0) -> str:
        array = self.weights.arrays[f"{name}/kernel"].transpose(3, 2, 0, 1)
        inputs = [x, self._constant(f"{name}/kernel", array), self._bias(name)]
        sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
        return self._node("Conv", inputs, **sizes)

    def dense(self, x: str, name: str, units: int) -> str:
        array = self.weights.arrays[f"{name}/kernel"]
        if name in self.weights.flattened:
            array = channels_first_rows(array, self.weights.flattened[name])
        return self._node("Gemm", [x, self._constant(f"{name}/kernel", array), self._bias(name)])

    def relu(self, x: str) -> str:
        return self._node("Relu", [x])

    def max_pool(self, x: str, size: int) -> str:
        return self._node("MaxPool", [x], kernel_shape=[size] * 2, strides=[size] * 2)

    def flatten(self, x: str) -> str:
        return self._node("Flatten", [x])

    def softmax(self, x: str) -> str:
        return self._node("Softmax", [x], axis=-1)

    def _bias(self, name: str) -> str:
        return self._constant(f"{name}/bias", self.weights.arrays[f"{name}/bias"])

    def _constant(self, name: str, array: np.ndarray) -> str:
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def _node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        result = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [result], **attributes))
        return result


def onnx_model(problem: Problem) -> bytes:
    """The network with its weights as an ONNX file."""
    layers = OnnxLayers(problem.weights)
    output = layers.softmax(problem.case.network(layers, "input"))
    shape = channels_first(problem).shape
    graph = helper.make_graph(
        layers.nodes,
        problem.case.name,
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [problem.batch, problem.case.classes])],
        layers.initializers,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def channels_first(problem: Problem) -> np.ndarray:
    return np.ascontiguousarray(problem.x.transpose(0, 3, 1, 2)) if problem.is_image else problem.x


def build(problem: Problem, variant: str, threads: int) -> Contender:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    # Workers spin while the session runs, and stop when it is done, or they would take the next contender's time.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1")
    options.add_session_config_entry("session.force_spinning_stop", "1")
    session = onnxruntime.InferenceSession(onnx_model(problem), options, providers=["CPUExecutionProvider"])
    feed = {"input": channels_first(problem)}
    return Contender(lambda: session.run(None, feed), lambda: np.asarray(session.run(None, feed)[0]))
