"""Differentiable operations on PyTorch tensors, and Mamba layers whose state is in your hands.

`causal_conv1d`, `selective_scan`, `ssd` and `gated_rms_norm` take and give [batch, time, channels] without a copy;
`causal_conv1d_fn` and `selective_scan_fn` have the arguments of causal-conv1d and mamba_ssm. All run on
CPU tensors and, on PyTorch's current stream, on CUDA tensors, and pass through torch.compile as
operators (torch.ops.mamba_cpp).
"""

from .compat import causal_conv1d_fn, selective_scan_fn
from .mamba1 import Mamba
from .mamba2 import Mamba2
from .ops import causal_conv1d, gated_rms_norm, selective_scan, ssd
from .state import MambaInferenceState

__all__ = [
    "Mamba",
    "Mamba2",
    "MambaInferenceState",
    "causal_conv1d",
    "causal_conv1d_fn",
    "gated_rms_norm",
    "selective_scan",
    "selective_scan_fn",
    "ssd",
]
