"""The Mamba selective state space models with their recurrent state as a value in your hands.

Operations on NumPy arrays are here, those on PyTorch tensors and the modules made of them in
`mamba_cpp.torch`, which needs PyTorch; nothing else does. Language models are here too, and behind
transformers' generate() in `mamba_cpp.hf`, which needs PyTorch and transformers.
"""

from . import models
from ._arrays import causal_conv1d, selective_scan, ssd
from ._core import __version__  # type: ignore[attr-defined]  # stubs have no names with underscores
from .models import *  # noqa: F403

__all__ = ["__version__", "causal_conv1d", "selective_scan", "ssd", *models.__all__]
