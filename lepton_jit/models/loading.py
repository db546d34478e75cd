"""Models out of files that `model.save` wrote."""

from __future__ import annotations

import os

from lepton_jit.models import saving
from lepton_jit.models.model import Model

__all__ = ["load_model"]


def load_model(filepath: str | os.PathLike[str]) -> Model:
    """The model that `save` wrote: weights, what `compile` chose and the optimizer's state."""
    model = saving.model_in(filepath)
    assert isinstance(model, Model)
    return model
