"""The layers, with Keras' names, arguments, defaults and weights."""

from __future__ import annotations

from lepton_jit.layers.attention import MultiHeadAttention
from lepton_jit.layers.base.layer import Layer
from lepton_jit.layers.base.symbolic import SymbolicTensor
from lepton_jit.layers.convolution import Conv2D, DepthwiseConv2D
from lepton_jit.layers.core import Activation, Dense, Dropout, Input, InputLayer
from lepton_jit.layers.embedding import Embedding
from lepton_jit.layers.global_pooling import (
    GlobalAveragePooling1D,
    GlobalAveragePooling2D,
    GlobalMaxPooling1D,
    GlobalMaxPooling2D,
)
from lepton_jit.layers.masking import Masking
from lepton_jit.layers.merging import Add, Average, Concatenate, Maximum, Minimum, Multiply, Subtract
from lepton_jit.layers.normalization import BatchNormalization, LayerNormalization
from lepton_jit.layers.pooling import AveragePooling2D, MaxPooling2D
from lepton_jit.layers.recurrent import GRU, LSTM, SimpleRNN
from lepton_jit.layers.reshaping import Flatten, Reshape, ZeroPadding2D
from lepton_jit.tracing.weight import Weight

__all__ = [
    "GRU",
    "LSTM",
    "Activation",
    "Add",
    "Average",
    "AveragePooling2D",
    "BatchNormalization",
    "Concatenate",
    "Conv2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Embedding",
    "Flatten",
    "GlobalAveragePooling1D",
    "GlobalAveragePooling2D",
    "GlobalMaxPooling1D",
    "GlobalMaxPooling2D",
    "Input",
    "InputLayer",
    "Layer",
    "LayerNormalization",
    "Masking",
    "MaxPooling2D",
    "Maximum",
    "Minimum",
    "MultiHeadAttention",
    "Multiply",
    "Reshape",
    "SimpleRNN",
    "Subtract",
    "SymbolicTensor",
    "Weight",
    "ZeroPadding2D",
]
