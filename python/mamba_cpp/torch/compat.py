"""Functions with the names, arguments and layouts of mamba_ssm's and causal-conv1d's, for code written for them."""

from __future__ import annotations

from typing import Optional, Tuple, Union

import torch
from torch import Tensor

from . import ops
from ._checks import check_rank, check_shape, error, sizes


def _channels_last(tensor: Optional[Tensor]) -> Optional[Tensor]:
    """[batch, channels, time] as [batch, time, channels]: a view where the memory is so, else a copy."""
    if tensor is None:
        return None
    turned = tensor.transpose(1, 2)
    return turned if turned.stride(2) == 1 or turned.shape[2] == 1 else turned.contiguous()


def _groups(where: str, name: str, tensor: Tensor, channels: int) -> Tensor:
    """[batch, groups, d_state, time] of a B or C with or without groups."""
    if tensor.is_complex():
        raise error(where, name, "real numbers", tensor.dtype)
    if tensor.dim() == 3:
        tensor = tensor[:, None]
    elif tensor.dim() != 4:
        raise error(
            where, name,
            "[batch, d_state, time] or [batch, groups, d_state, time] (it varies with time)",
            sizes(tensor),
        )
    if tensor.shape[1] < 1 or channels % tensor.shape[1] != 0:
        raise error(where, name, f"groups that divide {channels} channels", tensor.shape[1])
    return tensor


def selective_scan_fn(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor] = None,
    z: Optional[Tensor] = None,
    delta_bias: Optional[Tensor] = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
) -> Union[Tensor, Tuple[Tensor, Tensor]]:
    """mamba_ssm's selective_scan_fn by `selective_scan`.

    u, delta, z    [batch, channels, time] f32, bf16 or f16, all of one dtype
    A              [channels, d_state] f32, real
    B, C           [batch, d_state, time] or [batch, groups, d_state, time] of u's dtype: each group
                   serves channels / groups neighbouring channels. B and C that do not vary with time
                   ([channels, d_state]) and complex numbers are a ValueError
    D, delta_bias  [channels] f32

    Gives y [batch, channels, time], and with `return_last_state` also h [batch, channels, d_state] f32
    after the last step. Where neighbouring channels are not neighbours in memory an operand is copied:
    `selective_scan` spares that.
    """
    where = "selective_scan_fn"
    check_rank(where, "u", u, 3, "[batch, channels, time]")
    check_shape(where, "delta", delta, u.shape)
    if z is not None:
        check_shape(where, "z", z, u.shape)
    if A.is_complex():
        raise error(where, "A", "real numbers", A.dtype)
    channels = u.shape[1]
    B, C = _groups(where, "B", B, channels), _groups(where, "C", C, channels)
    groups = max(B.shape[1], C.shape[1])
    if min(B.shape[1], C.shape[1]) not in (1, groups):
        raise error(where, "C", f"{B.shape[1]} groups or 1", C.shape[1])
    u, delta, z = _channels_last(u), _channels_last(delta), _channels_last(z)

    def part(tensor: Optional[Tensor], group: int, dim: int) -> Optional[Tensor]:
        if tensor is None or groups == 1:
            return tensor
        width = channels // groups
        return tensor.narrow(dim, group * width, width)

    pieces = [
        ops.selective_scan(
            part(u, g, 2), part(delta, g, 2), part(A, g, 0),
            _channels_last(B[:, g if B.shape[1] > 1 else 0]),
            _channels_last(C[:, g if C.shape[1] > 1 else 0]),
            part(D, g, 0), part(z, g, 2), part(delta_bias, g, 0), delta_softplus,
            return_final_state=True,
        )
        for g in range(groups)
    ]
    y = pieces[0][0] if groups == 1 else torch.cat([piece[0] for piece in pieces], 2)
    if not return_last_state:
        return y.transpose(1, 2)
    state = pieces[0][1] if groups == 1 else torch.cat([piece[1] for piece in pieces], 1)
    return y.transpose(1, 2), state


def causal_conv1d_fn(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    seq_idx: Optional[Tensor] = None,
    initial_states: Optional[Tensor] = None,
    return_final_states: bool = False,
    final_states_out: Optional[Tensor] = None,
    activation: Optional[str] = None,
) -> Union[Tensor, Tuple[Tensor, Tensor]]:
    """causal-conv1d's causal_conv1d_fn by `causal_conv1d`.

    x                 [batch, channels, time] f32, bf16 or f16
    weight            [channels, width], bias [channels]; taken in f32
    seq_idx           [batch, time] i32: the sequence that each step belongs to, whose steps stand
                      together; a negative one is padding, whose y is zero. Not with states
    initial_states    [batch, channels, width - 1] of x's dtype, oldest first
    final_states_out  where the final states are written, if a gradient through them is not wanted
    activation        None, "silu" or "swish"

    Gives y [batch, channels, time], and with `return_final_states` also the state after the last step,
    [batch, channels, width - 1]. Where neighbouring channels are not neighbours in memory x is copied:
    `causal_conv1d` spares that.
    """
    where = "causal_conv1d_fn"
    check_rank(where, "x", x, 3, "[batch, channels, time]")
    batch, channels, time = x.shape
    reset = None
    if seq_idx is not None:
        if initial_states is not None or return_final_states or final_states_out is not None:
            raise error(where, "seq_idx", "None where there are states", "a tensor")
        check_shape(where, "seq_idx", seq_idx, (batch, time))
        reset = torch.nn.functional.pad((seq_idx[:, 1:] != seq_idx[:, :-1]).int(), (min(time, 1), 0))
    if final_states_out is not None:
        check_shape(where, "final_states_out", final_states_out, (batch, channels, weight.shape[1] - 1))
        if final_states_out.requires_grad:
            raise error(where, "final_states_out", "a tensor that wants no gradient", "one that does")
    bias = None if bias is None else bias.float()
    y, states = ops.causal_conv1d(
        _channels_last(x), weight.float(), bias, initial_states, reset, activation, True
    )
    y = y.transpose(1, 2)
    if seq_idx is not None:
        y = torch.where((seq_idx < 0)[:, None], 0, y)
    if not return_final_states:
        return y
    if final_states_out is not None:
        with torch.no_grad():
            final_states_out.copy_(states)
        states = final_states_out
    return y, states
