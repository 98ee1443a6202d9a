"""The library's operations as operations of PyTorch's: what they take and give, and where they run."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Optional, Sequence, Tuple

import torch
from torch import Tensor

from .. import _core as _compiled
from ._operation import operation

# Such a tensor tells the library its stream; before PyTorch 2.10 it is told here.
_TELLS_STREAM = hasattr(Tensor, "__dlpack_c_exchange_api__")

_core: Any = _compiled  # a checker of types cannot count starred arguments
Tensors = Sequence[Any]  # each a tensor, or None where it is optional
Options = Sequence[Any]


def place(tensor: Tensor) -> Tuple[Optional[int], int]:
    """The CUDA stream and the number of CPU threads of a call: PyTorch's own."""
    if not _TELLS_STREAM and tensor.is_cuda:
        return torch.cuda.current_stream(tensor.device).cuda_stream, 0
    return None, torch.get_num_threads()


@lru_cache(maxsize=None)
def _chunk_steps(name: str, device: str) -> int:
    """How many steps lie between two states that are kept for backward."""
    return _core.chunk_steps(name, device)


def _kept(name: str, x: Tensor, state: Tuple[int, ...], keep: bool) -> Tensor:
    """[batch, chunks, *state] f32; no chunks where nothing is kept."""
    chunks = -(-x.shape[1] // _chunk_steps(name, x.device.type)) if keep else 0
    return x.new_empty((x.shape[0], chunks, *state), dtype=torch.float32)


def _chunks(name: str, kept: Optional[Tensor]) -> Tuple[Optional[Tensor], int]:
    return (None, 0) if kept is None else (kept, _chunk_steps(name, kept.device.type))


def _present(gradients: Tensors, tensors: Tensors) -> Tensors:
    return [None if x is None else dx for x, dx in zip(tensors, gradients)]


# ---- causal convolution ---------------------------------------------------------------------------


def _conv_outputs(tensors: Tensors, options: Options) -> Tuple[Tensor, Tensor]:
    x, weight = tensors[:2]
    batch, _, channels = x.shape
    return torch.empty_like(x), x.new_empty(batch, channels, weight.shape[1] - 1)


def _nothing_kept(tensors: Tensors, options: Options, keep: bool) -> Tensor:
    return tensors[0].new_empty((0,))


def _conv_run(
    y: Tensor, final_state: Tensor, tensors: Tensors, options: Options, kept: Optional[Tensor]
) -> None:
    _core.causal_conv1d(*tensors, *options, y, final_state, *place(y))


def _conv_grad(
    gradients: Tensors, tensors: Tensors, options: Options, kept: Tensor, dy: Tensor,
    dfinal_state: Optional[Tensor],
) -> None:
    _core.causal_conv1d_grad(
        *tensors, *options, dy, dfinal_state, *_present(gradients, tensors), *place(dy)
    )


causal_conv1d = operation(
    "causal_conv1d",
    "Tensor x, Tensor weight, Tensor? bias, Tensor? initial_state, Tensor? reset",
    "bool silu",
    _conv_outputs, _nothing_kept, _conv_run, _conv_grad,
)


# ---- selective scan -------------------------------------------------------------------------------


def _scan_outputs(tensors: Tensors, options: Options) -> Tuple[Tensor, Tensor]:
    u, _, A = tensors[:3]
    batch, _, channels = u.shape
    return torch.empty_like(u), u.new_empty(batch, channels, A.shape[1], dtype=torch.float32)


def _scan_kept(tensors: Tensors, options: Options, keep: bool) -> Tensor:
    u, _, A = tensors[:3]
    return _kept("selective_scan", u, (u.shape[2], A.shape[1]), keep)


def _scan_run(
    y: Tensor, final_state: Tensor, tensors: Tensors, options: Options, kept: Optional[Tensor]
) -> None:
    _core.selective_scan(
        *tensors, *options, y, final_state, *_chunks("selective_scan", kept), *place(y)
    )


def _scan_grad(
    gradients: Tensors, tensors: Tensors, options: Options, kept: Tensor, dy: Tensor,
    dfinal_state: Optional[Tensor],
) -> None:
    _core.selective_scan_grad(
        *tensors, *options, *_chunks("selective_scan", kept), dy, dfinal_state,
        *_present(gradients, tensors), *place(dy),
    )


selective_scan = operation(
    "selective_scan",
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? initial_state, Tensor? reset",
    "bool delta_softplus, bool A_is_log",
    _scan_outputs, _scan_kept, _scan_run, _scan_grad,
)


# ---- state space duality --------------------------------------------------------------------------


def _ssd_outputs(tensors: Tensors, options: Options) -> Tuple[Tensor, Tensor]:
    x, _, _, B = tensors[:4]
    batch, _, heads, head_dim = x.shape
    state = x.new_empty(batch, heads, head_dim, B.shape[3], dtype=torch.float32)
    return torch.empty_like(x), state


def _ssd_kept(tensors: Tensors, options: Options, keep: bool) -> Tensor:
    x, _, _, B = tensors[:4]
    return _kept("ssd", x, (x.shape[2] * x.shape[3], B.shape[3]), keep)


def _ssd_run(
    y: Tensor, final_state: Tensor, tensors: Tensors, options: Options, kept: Optional[Tensor]
) -> None:
    _core.ssd(*tensors, *options, y, final_state, *_chunks("ssd", kept), *place(y))


def _ssd_grad(
    gradients: Tensors, tensors: Tensors, options: Options, kept: Tensor, dy: Tensor,
    dfinal_state: Optional[Tensor],
) -> None:
    _core.ssd_grad(
        *tensors, *options, *_chunks("ssd", kept), dy, dfinal_state, *_present(gradients, tensors),
        *place(dy),
    )


ssd = operation(
    "ssd",
    "Tensor x, Tensor dt, Tensor A_log, Tensor B, Tensor C, Tensor? D, Tensor? dt_bias, "
    "Tensor? initial_state, Tensor? reset",
    "bool dt_softplus, float dt_low, float dt_high",
    _ssd_outputs, _ssd_kept, _ssd_run, _ssd_grad,
)


# ---- the gated norm of Mamba-2 --------------------------------------------------------------------


def _norm_outputs(tensors: Tensors, options: Options) -> Tuple[Tensor, Tensor]:
    x = tensors[0]
    return x.new_empty(x.shape), x.new_empty((0,))


def _norm_run(
    y: Tensor, final_state: Tensor, tensors: Tensors, options: Options, kept: Optional[Tensor]
) -> None:
    _core.gated_rms_norm(*tensors, *options, y, *place(y))


def _norm_grad(
    gradients: Tensors, tensors: Tensors, options: Options, kept: Tensor, dy: Tensor,
    dfinal_state: Optional[Tensor],
) -> None:
    _core.gated_rms_norm_grad(*tensors, *options, dy, *_present(gradients, tensors), *place(dy))


gated_rms_norm = operation(
    "gated_rms_norm",
    "Tensor x, Tensor z, Tensor? weight",
    "int groups, bool norm_before_gate, float epsilon",
    _norm_outputs, _nothing_kept, _norm_run, _norm_grad,
    resets=False,
)
