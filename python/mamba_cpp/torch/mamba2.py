"""The Mamba-2 layer (Dao & Gu 2024, figure 6): the library's, or of PyTorch's linear layers and its operations."""

from __future__ import annotations

from typing import Any, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _layer, ops
from ._checks import error
from .mamba1 import initial_dt_bias
from .state import ABSENT, MambaInferenceState, StateOfLayer


class GatedRMSNorm(nn.Module):
    """An RMS norm over each of `groups` runs of channels and a gate silu(z), before or after it; in f32."""

    def __init__(self, channels: int, groups: int, norm_before_gate: bool, **made: Any) -> None:
        super().__init__()
        self.groups, self.norm_before_gate, self.eps = groups, norm_before_gate, 1e-5
        self.weight = nn.Parameter(torch.ones(channels, **made))

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x, z [..., channels] -> the same shape, of x's dtype."""
        return ops.gated_rms_norm(x, z, self.weight.float(), self.groups, self.norm_before_gate, self.eps)


class Mamba2(StateOfLayer, nn.Module):
    """A layer that takes mamba_ssm's checkpoints and arguments and has its state in the caller's hands.

    Called as `Mamba` is: y = layer(x), y, state = layer(x, state, reset=done). Its state's ssm_state
    [batch, d_ssm, d_state] is the memory of mamba_ssm's [batch, heads, headdim, d_state].

    d_model, d_state, d_conv, expand    as Mamba's; d_state is 1 to 256
    conv_init      the convolution's weight begins uniform within +- it, if given
    headdim        channels of a head, 1 to 256
    d_ssm          channels that the recurrence works on, a multiple of headdim; the other of d_inner
                   = expand d_model are a gated MLP. None: all
    ngroups        groups of heads that share B and C
    A_init_range   -A begins uniform in it
    D_has_hdim     D for each channel, not for each head
    rmsnorm, norm_before_gate           a norm of what comes out, and on which side of the gate
    dt_min, dt_max, dt_init_floor       dt begins log-uniform between the first two
    dt_limit       dt is held within it
    bias, conv_bias                     of in_proj and out_proj, and of the convolution
    chunk_size, use_mem_eff_path, sequence_parallel    taken as mamba_ssm takes them, without effect
    layer_idx      the key of the layer's state, see get_inference_state

    A_log, D and dt_bias are f32 whatever the dtype. A call is the library's own layer under the conditions that
    `Mamba` says, here of in_proj, conv1d, norm and out_proj, unless D_has_hdim or d_ssm are given.
    Parallelism over a `process_group` is a ValueError.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 128,
        d_conv: int = 4,
        conv_init: Optional[float] = None,
        expand: int = 2,
        headdim: int = 64,
        d_ssm: Optional[int] = None,
        ngroups: int = 1,
        A_init_range: Tuple[float, float] = (1, 16),
        D_has_hdim: bool = False,
        rmsnorm: bool = True,
        norm_before_gate: bool = False,
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init_floor: float = 1e-4,
        dt_limit: Tuple[float, float] = (0.0, float("inf")),
        bias: bool = False,
        conv_bias: bool = True,
        chunk_size: int = 256,
        use_mem_eff_path: bool = True,
        layer_idx: Optional[int] = None,
        process_group: Any = None,
        sequence_parallel: bool = True,
        device: Optional[Union[str, torch.device]] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> None:
        super().__init__()
        if process_group is not None:
            raise error("Mamba2", "process_group", "None", process_group)
        made: Any = {"device": device, "dtype": dtype}
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = int(expand * d_model)
        self.d_ssm = self.d_inner if d_ssm is None else d_ssm
        self.d_mlp = self.d_inner - self.d_ssm
        if self.d_ssm < 1 or self.d_ssm % headdim != 0 or self.d_mlp < 0:
            raise error("Mamba2", "d_ssm", f"a multiple of headdim {headdim}, at most {self.d_inner}", self.d_ssm)
        self.headdim, self.nheads, self.ngroups = headdim, self.d_ssm // headdim, ngroups
        if ngroups < 1 or self.nheads % ngroups != 0:
            raise error("Mamba2", "ngroups", f"a divisor of {self.nheads} heads", ngroups)
        if not A_init_range[0] > 0 or not A_init_range[1] >= A_init_range[0]:
            raise error("Mamba2", "A_init_range", "0 < low <= high", A_init_range)
        self.D_has_hdim, self.dt_limit, self.layer_idx = D_has_hdim, dt_limit, layer_idx
        self.conv_channels = self.d_ssm + 2 * ngroups * d_state

        self.in_proj = nn.Linear(
            d_model, 2 * self.d_mlp + self.d_ssm + self.conv_channels + self.nheads, bias=bias, **made
        )
        self.conv1d = nn.Conv1d(
            self.conv_channels, self.conv_channels, d_conv, groups=self.conv_channels,
            padding=d_conv - 1, bias=conv_bias, **made,
        )
        if conv_init is not None:
            nn.init.uniform_(self.conv1d.weight, -conv_init, conv_init)
        like = torch.empty(0, device=device)
        self.dt_bias = nn.Parameter(initial_dt_bias(self.nheads, dt_min, dt_max, dt_init_floor, like))
        A = torch.empty(self.nheads, device=device).uniform_(*A_init_range)
        self.A_log = nn.Parameter(torch.log(A))
        self.D = nn.Parameter(torch.ones(self.d_ssm if D_has_hdim else self.nheads, device=device))
        for parameter in (self.dt_bias, self.A_log, self.D):
            setattr(parameter, "_no_weight_decay", True)  # optimisers that ask let it be
        self.norm = GatedRMSNorm(self.d_ssm, ngroups, norm_before_gate, **made) if rmsnorm else None
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **made)

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
        before, reset = self._given("Mamba2", x, state, reset)
        done = self._at_once(x, before, reset, state is not ABSENT)
        if done is not None:
            return done if state is not ABSENT else done[0]

        mlp_gate, mlp, z, xBC, dt = self.in_proj(x).split(
            [self.d_mlp, self.d_mlp, self.d_ssm, self.conv_channels, self.nheads], dim=-1
        )
        xBC, conv_state = self._convolve(xBC, before, reset)
        width = self.ngroups * self.d_state
        u, B, C = xBC.split([self.d_ssm, width, width], dim=-1)
        heads = u.unflatten(-1, (self.nheads, self.headdim))
        groups = (self.ngroups, self.d_state)
        D = self.D.float()
        ssm_shape = (x.shape[0], self.nheads, self.headdim, self.d_state)
        y, ssm_state = ops.ssd(
            heads, dt, self.A_log.float(), B.unflatten(-1, groups), C.unflatten(-1, groups),
            None if self.D_has_hdim else D, self.dt_bias.float(), True, self.dt_limit,
            None if before is None else before.ssm_state.view(ssm_shape), reset, True,
            A_is_log=True,
        )
        y = y.flatten(2)
        if self.D_has_hdim:
            y = (y + D * u).to(y.dtype)
        y = y * F.silu(z) if self.norm is None else self.norm(y, z)
        if self.d_mlp > 0:
            y = torch.cat([F.silu(mlp_gate) * mlp, y], dim=-1)
        y = self.out_proj(y)
        if state is ABSENT:
            return y
        return y, MambaInferenceState(conv_state, ssm_state.flatten(1, 2))

    # The library's weights in its order, see _layer.weights_of.
    _parts = (
        ("in_proj", nn.Linear), ("conv1d", nn.Conv1d), "dt_bias", "A_log", "D", ("norm", GatedRMSNorm),
        ("out_proj", nn.Linear),
    )

    def _settings(self) -> Any:
        bias = self.in_proj.bias is not None
        if self.d_mlp > 0 or self.D_has_hdim or bias != (self.out_proj.bias is not None):
            return None
        low, high = self.dt_limit
        if not 0 <= low <= high:
            return None
        norm: Any = {}
        if self.norm is not None:
            if self.norm.groups != self.ngroups:
                return None
            norm = {"norm_before_gate": self.norm.norm_before_gate, "epsilon": self.norm.eps}
        return _layer.config(
            mamba2=True, d_model=self.d_model, d_state=self.d_state, d_conv=self.d_conv, d_inner=self.d_ssm,
            bias=bias, conv_bias=self.conv1d.bias is not None, head_dim=self.headdim, groups=self.ngroups,
            rmsnorm=self.norm is not None, dt_low=low, dt_high=high, **norm,
        )

    def _ssm_of_mamba_ssm(self, batch: int) -> Tuple[int, ...]:
        return (batch, self.nheads, self.headdim, self.d_state)
