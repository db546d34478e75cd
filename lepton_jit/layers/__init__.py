"""The layers, with Keras' names, arguments, defaults and weights.

The `__all__` of a module has what users see of it, here and in `lepton_jit`.
"""

from __future__ import annotations

from lepton_jit.layers import (
    attention,
    convolution,
    core,
    embedding,
    global_pooling,
    masking,
    merging,
    normalization,
    pooling,
    recurrent,
    reshaping,
)
from lepton_jit.layers.attention import *
from lepton_jit.layers.base.layer import Layer as Layer
from lepton_jit.layers.base.registry import registry as registry
from lepton_jit.layers.base.symbolic import SymbolicTensor as SymbolicTensor
from lepton_jit.layers.convolution import *
from lepton_jit.layers.core import *
from lepton_jit.layers.embedding import *
from lepton_jit.layers.global_pooling import *
from lepton_jit.layers.masking import *
from lepton_jit.layers.merging import *
from lepton_jit.layers.normalization import *
from lepton_jit.layers.pooling import *
from lepton_jit.layers.recurrent import *
from lepton_jit.layers.reshaping import *
from lepton_jit.tracing.weight import Weight as Weight

__all__ = ["Layer"]
__all__ += attention.__all__
__all__ += convolution.__all__
__all__ += core.__all__
__all__ += embedding.__all__
__all__ += global_pooling.__all__
__all__ += masking.__all__
__all__ += merging.__all__
__all__ += normalization.__all__
__all__ += pooling.__all__
__all__ += recurrent.__all__
__all__ += reshaping.__all__
