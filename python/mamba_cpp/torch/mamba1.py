"""The Mamba-1 layer (Gu & Dao 2023, figure 3): the library's, or of PyTorch's linear layers and its operations."""

from __future__ import annotations

import math
from typing import Any, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _layer, ops
from ._checks import error
from .state import ABSENT, MambaInferenceState, StateOfLayer


class Mamba(StateOfLayer, nn.Module):
    """A layer that takes mamba_ssm's checkpoints and arguments and has its state in the caller's hands.

        layer = Mamba(d_model=256)
        y = layer(x)                                    x, y [batch, time, d_model]
        state = layer.make_state(batch)
        y, state = layer(x, state)                      goes on from it
        y, state = layer(x, state, reset=done)          done [batch, time]: new sequences begin there
        y, state = layer(x, None)                       begins anew

    A given state is never changed, and gradients flow through states in both directions; `detach()` cuts
    them. Any time >= 0, a single step as much as a prompt: the results agree however time is cut.

    d_model        channels of x and y
    d_state        states of each inner channel, 1 to 256
    d_conv         width of the convolution
    expand         d_inner = expand d_model
    dt_rank        rank of the projection of dt; "auto" is ceil(d_model / 16)
    dt_min, dt_max, dt_init, dt_scale, dt_init_floor
                   how dt begins: its bias log-uniform between dt_min and dt_max after softplus, its weight
                   "random" or "constant"
    conv_bias, bias    of the convolution, and of in_proj and out_proj
    use_fast_path  taken as mamba_ssm takes it, without effect
    layer_idx      the key of the layer's state, see get_inference_state

    The parameters have mamba_ssm's names and begin with its distributions. A_log and D are f32 whatever
    the dtype; under torch.autocast projections run in its dtype and states stay f32 (ssm_state) and in
    the activations' dtype (conv_state). Anything that does not fit is a ValueError.

    Where nobody looks inside, a call is the library's own layer, as one operation that is differentiable
    once: nothing but tensors and parameters of exactly these classes, no compiler, mode of dispatch or
    transform of torch.func, and in_proj, conv1d, x_proj, dt_proj and out_proj as they were made, without
    another class (as parametrisations give them), hooks or a forward of their own, and without hooks on all
    modules. Every other call is made of PyTorch's linear layers and the operations of mamba_cpp.torch, with
    the same results up to rounding. What backward needs is PyTorch's memory and goes with the graph; a
    parameter that is changed in place before backward is an error, as for PyTorch's own layers.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: int = 2,
        dt_rank: Union[int, str] = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: Optional[int] = None,
        device: Optional[Union[str, torch.device]] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        if dt_init not in ("random", "constant"):
            raise error("Mamba", "dt_init", "'random' or 'constant'", repr(dt_init))
        made: Any = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = self.d_ssm = self.conv_channels = int(expand * d_model)
        self.dt_rank = math.ceil(d_model / 16) if dt_rank == "auto" else int(dt_rank)
        self.layer_idx = layer_idx

        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **made)
        self.conv1d = nn.Conv1d(
            self.d_inner, self.d_inner, d_conv, groups=self.d_inner, padding=d_conv - 1,
            bias=conv_bias, **made,
        )
        self.x_proj = nn.Linear(self.d_inner, self.dt_rank + 2 * d_state, bias=False, **made)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner, bias=True, **made)
        self._begin_dt(dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        # S4D-real: A = -1, -2, ..., -d_state in every channel.
        A = torch.arange(1, d_state + 1, dtype=torch.float32, device=device)
        self.A_log = nn.Parameter(torch.log(A).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner, device=device))
        for parameter in (self.A_log, self.D):
            setattr(parameter, "_no_weight_decay", True)  # optimisers that ask let it be
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **made)

    def _begin_dt(self, low: float, high: float, init: str, scale: float, floor: float) -> None:
        with torch.no_grad():
            spread = self.dt_rank**-0.5 * scale
            if init == "constant":
                self.dt_proj.weight.fill_(spread)
            else:
                self.dt_proj.weight.uniform_(-spread, spread)
            self.dt_proj.bias.copy_(initial_dt_bias(self.d_inner, low, high, floor, self.dt_proj.bias))
        setattr(self.dt_proj.bias, "_no_reinit", True)  # an initialiser of all biases to zero passes it by

    def forward(
        self,
        x: Tensor,
        state: Union[MambaInferenceState, None, object] = ABSENT,
        reset: Optional[Tensor] = None,
    ) -> Union[Tensor, Tuple[Tensor, MambaInferenceState]]:
        """x [batch, time, d_model] -> y of the same shape, and the state after it if one is passed or None.

        reset  [batch, time] bool or i32: where it is not zero x[b, t] begins a new sequence; or [batch]:
               before the first step
        """
        before, reset = self._given("Mamba", x, state, reset)
        done = self._at_once(x, before, reset, state is not ABSENT)
        if done is not None:
            return done if state is not ABSENT else done[0]

        u, z = self.in_proj(x).chunk(2, dim=-1)
        u, conv_state = self._convolve(u, before, reset)
        dt, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        delta = F.linear(dt, self.dt_proj.weight)  # its bias is added in f32, within the scan
        y, ssm_state = ops.selective_scan(
            u, delta, self.A_log.float(), B, C, self.D.float(), z,
            self.dt_proj.bias.float(), True, None if before is None else before.ssm_state, reset, True,
            A_is_log=True,
        )
        y = self.out_proj(y)
        return y if state is ABSENT else (y, MambaInferenceState(conv_state, ssm_state))

    # The library's weights in its order, see _layer.weights_of.
    _parts = (
        ("in_proj", nn.Linear), ("conv1d", nn.Conv1d), ("x_proj", nn.Linear), ("dt_proj", nn.Linear),
        "A_log", "D", ("out_proj", nn.Linear),
    )

    def _settings(self) -> Any:
        bias = self.in_proj.bias is not None
        if bias != (self.out_proj.bias is not None):
            return None
        if self.x_proj.bias is not None or self.dt_proj.bias is None:
            return None
        return _layer.config(
            mamba2=False, d_model=self.d_model, d_state=self.d_state, d_conv=self.d_conv,
            d_inner=self.d_inner, dt_rank=self.dt_rank, bias=bias, conv_bias=self.conv1d.bias is not None,
        )


def initial_dt_bias(count: int, low: float, high: float, floor: float, like: Tensor) -> Tensor:
    """Log-uniform between low and high, at least floor, under the inverse of softplus."""
    log = torch.rand(count, device=like.device, dtype=like.dtype)
    dt = torch.exp(log * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)
    return dt + torch.log(-torch.expm1(-dt))
