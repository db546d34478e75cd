"""The layers, with Keras' names, arguments, defaults and weights."""

from __future__ import annotations

from lepton_jit.layers.convolution import Conv2D, DepthwiseConv2D
from lepton_jit.layers.core import Activation, Dense, Dropout, Input, InputLayer
from lepton_jit.layers.layer import Layer
from lepton_jit.layers.masking import Masking
from lepton_jit.layers.merging import Add, Concatenate
from lepton_jit.layers.normalization import BatchNormalization
from lepton_jit.layers.pooling import AveragePooling2D, GlobalAveragePooling2D, MaxPooling2D
from lepton_jit.layers.reshaping import Flatten, Reshape, ZeroPadding2D
from lepton_jit.layers.symbolic import SymbolicTensor
from lepton_jit.layers.weight import Weight

__all__ = [
    "Activation",
    "Add",
    "AveragePooling2D",
    "BatchNormalization",
    "Concatenate",
    "Conv2D",
    "Dense",
    "DepthwiseConv2D",
    "Dropout",
    "Flatten",
    "GlobalAveragePooling2D",
    "Input",
    "InputLayer",
    "Layer",
    "Masking",
    "MaxPooling2D",
    "Reshape",
    "SymbolicTensor",
    "Weight",
    "ZeroPadding2D",
]
