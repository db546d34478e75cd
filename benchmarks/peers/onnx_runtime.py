"""ONNX Runtime, on a graph with channels-first images, as every exporter writes them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from benchmarks.case import Problem
from benchmarks.contender import Contender
from benchmarks.network import EPSILON, channels_first_rows

__all__ = ["build", "channels_first", "onnx_model"]

OPSET = 20
MICROSOFT = "com.microsoft"


class OnnxLayers:
    """Values are names of the graph's tensors.

    With `fused`, attention and gelu are the operators of ONNX Runtime's own that its offline optimizer would write. The
    rest (convolutions with their batch norms, a residual with its layer norm) it finds by itself.
    """

    def __init__(self, problem: Problem, *, fused: bool) -> None:
        self.problem = problem
        self.weights = problem.weights.with_joined_attention()
        self.fused = fused
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, onnx.TensorProto] = {}
        # What an embedding looked up, for a layer that wants the tokens before the batch.
        self.looked_up: dict[str, tuple[str, str]] = {}

    def conv2d(
        self, x: str, name: str, filters: int, kernel: int, *, stride: int = 1, padding: int = 0, bias: bool = True
    ) -> str:
        array = self.weights[f"{name}/kernel"].transpose(3, 2, 0, 1)
        inputs = [x, self._constant(f"{name}/kernel", array)] + ([self._weight(name, "bias")] if bias else [])
        return self._convolution(inputs, kernel, stride, padding, group=1)

    def depthwise_conv2d(self, x: str, name: str, kernel: int, *, stride: int = 1, padding: int = 0) -> str:
        array = self.weights[f"{name}/kernel"].transpose(2, 3, 0, 1)
        inputs = [x, self._constant(f"{name}/kernel", array)]
        return self._convolution(inputs, kernel, stride, padding, group=array.shape[0])

    def _convolution(self, inputs: list[str], kernel: int, stride: int, padding: int, group: int) -> str:
        sizes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [padding] * 4}
        return self._node("Conv", inputs, group=group, **sizes)

    def batch_norm(self, x: str, name: str) -> str:
        weights = [self._weight(name, kind) for kind in ("gamma", "beta", "moving_mean", "moving_variance")]
        return self._node("BatchNormalization", [x, *weights], epsilon=EPSILON)

    def dense(self, x: str, name: str, units: int) -> str:
        array = self.weights[f"{name}/kernel"]
        if name in self.problem.weights.flattened:
            array = channels_first_rows(array, self.problem.weights.flattened[name])
        kernel, bias = self._constant(f"{name}/kernel", array), self._weight(name, "bias")
        return self._node("Add", [self._node("MatMul", [x, kernel]), bias])

    def embedding(self, x: str, name: str, vocabulary: int, width: int) -> str:
        table = self._weight(name, "embeddings")
        y = self._node("Gather", [table, x])
        self.looked_up[y] = (table, x)
        return y

    def embedding_mean(self, x: str, name: str, vocabulary: int, width: int) -> str:
        return self.token_mean(self.embedding(x, name, vocabulary, width))

    def lstm(self, x: str, name: str, units: int) -> str:
        # It reads the tokens before the batch: words are transposed, not their vectors.
        self.nodes.pop()
        table, words = self.looked_up[x]
        x = self._node("Gather", [table, self._node("Transpose", [words], perm=[1, 0])])
        kernel, recurrent = (self._gates(f"{name}/{kind}").T for kind in ("kernel", "recurrent_kernel"))
        bias = np.concatenate([self._gates(f"{name}/bias"), np.zeros(4 * units, np.float32)])
        constants = {"W": kernel, "R": recurrent, "B": bias}
        weights = [self._constant(f"{name}/{kind}", array[None]) for kind, array in constants.items()]
        last = f"{name}/last"
        self.nodes.append(helper.make_node("LSTM", [x, *weights], ["", last], hidden_size=units))
        return self._node("Squeeze", [last, self._constant("axis_0", np.array([0]))])

    def _gates(self, path: str) -> np.ndarray:
        """In the order input, output, forget, cell."""
        i, f, c, o = np.split(self.weights[path], 4, axis=-1)
        return np.concatenate([i, o, f, c], axis=-1)

    def self_attention(self, x: str, name: str, heads: int) -> str:
        kernel, bias = self._weight(name, "qkv/kernel"), self._weight(name, "qkv/bias")
        if self.fused:
            y = self._node("Attention", [x, kernel, bias], num_heads=heads, domain=MICROSOFT)
        else:
            y = self._plain_attention(self._node("Add", [self._node("MatMul", [x, kernel]), bias]), heads)
        output = [y, self._weight(name, "attention_output/kernel")]
        return self._node("Add", [self._node("MatMul", output), self._weight(name, "attention_output/bias")])

    def _plain_attention(self, joined: str, heads: int) -> str:
        tokens, width = self.problem.case.input_shape
        shape = self._constant("heads", np.array([0, tokens, 3, heads, width // heads]))
        parts = []
        split = self._node("Reshape", [joined, shape])
        for i, order in enumerate(([0, 2, 1, 3], [0, 2, 3, 1], [0, 2, 1, 3])):
            part = self._node("Gather", [split, self._constant(f"part_{i}", np.array(i))], axis=2)
            parts.append(self._node("Transpose", [part], perm=order))
        scale = self._constant("scale", np.array((width // heads) ** -0.5, np.float32))
        scores = self._node("Mul", [self._node("MatMul", parts[:2]), scale])
        y = self._node("MatMul", [self._node("Softmax", [scores], axis=-1), parts[2]])
        y = self._node("Transpose", [y], perm=[0, 2, 1, 3])
        return self._node("Reshape", [y, self._constant("tokens", np.array([0, tokens, width]))])

    def layer_norm(self, x: str, name: str) -> str:
        weights = [self._weight(name, kind) for kind in ("gamma", "beta")]
        return self._node("LayerNormalization", [x, *weights], axis=-1, epsilon=EPSILON)

    def relu(self, x: str) -> str:
        return self._node("Relu", [x])

    def relu6(self, x: str) -> str:
        bounds = [self._constant(f"bound_{value}", np.array(value, np.float32)) for value in (0, 6)]
        return self._node("Clip", [x, *bounds])

    def gelu(self, x: str) -> str:
        return self._node("Gelu", [x], **({"domain": MICROSOFT} if self.fused else {}))

    def add(self, x: str, y: str) -> str:
        return self._node("Add", [x, y])

    def max_pool(self, x: str, size: int, *, stride: int | None = None, padding: int = 0) -> str:
        sizes = {"kernel_shape": [size] * 2, "strides": [stride or size] * 2, "pads": [padding] * 4}
        return self._node("MaxPool", [x], **sizes)

    def image_mean(self, x: str) -> str:
        return self._node("Flatten", [self._node("GlobalAveragePool", [x])])

    def token_mean(self, x: str) -> str:
        return self._node("ReduceMean", [x, self._constant("axis_1", np.array([1]))], keepdims=0)

    def flatten(self, x: str) -> str:
        return self._node("Flatten", [x])

    def softmax(self, x: str) -> str:
        return self._node("Softmax", [x], axis=-1)

    def _weight(self, name: str, kind: str) -> str:
        return self._constant(f"{name}/{kind}", self.weights[f"{name}/{kind}"])

    def _constant(self, name: str, array: np.ndarray) -> str:
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(array).reshape(array.shape), name)
        return name

    def _node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        result = f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [result], **attributes))
        return result


def onnx_model(problem: Problem, *, fused: bool = False) -> bytes:
    """The network with its weights as an ONNX file; `fused`, with operators that only ONNX Runtime knows."""
    layers = OnnxLayers(problem, fused=fused)
    output = layers.softmax(problem.case.network(layers, "input"))
    x = channels_first(problem)
    graph = helper.make_graph(
        layers.nodes,
        problem.case.name,
        [helper.make_tensor_value_info("input", helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [problem.batch, problem.case.classes])],
        list(layers.initializers.values()),
    )
    versions = [helper.make_opsetid("", OPSET)] + ([helper.make_opsetid(MICROSOFT, 1)] if fused else [])
    model = helper.make_model(graph, opset_imports=versions, ir_version=9)
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
    session = onnxruntime.InferenceSession(onnx_model(problem, fused=True), options, providers=["CPUExecutionProvider"])
    feed = {"input": channels_first(problem)}
    return Contender(lambda: session.run(None, feed), lambda: np.asarray(session.run(None, feed)[0]))
