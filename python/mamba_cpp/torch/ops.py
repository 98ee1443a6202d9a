"""The operations on tensors, differentiable through every operand, the state before and the state after."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import torch
from torch import Tensor

from .._errors import error, takes_silu
from . import _kernels
from ._checks import autocast_dtype, resets, sizes, to

f32 = torch.float32

# Ranks are asked for in place below: by a function it would be 0.1 us of the 5 that a call may add.


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Optional[Tensor] = None,
    initial_state: Optional[Tensor] = None,
    reset: Optional[Tensor] = None,
    activation: Optional[str] = None,
    return_final_state: bool = False,
) -> Any:
    """A causal convolution of each channel with its memory as an explicit state.

        y[b, t, c] = act(bias[c] + sum_k weight[c, k] x[b, t - (width - 1) + k, c])

    where x before t = 0 is the initial state, zeros if there is none.

    x              [batch, time, channels] f32, bf16 or f16; any strides with contiguous channels
    weight         [channels, width] f32
    bias           [channels] f32
    initial_state  [batch, channels, width - 1] of x's dtype: the last inputs, oldest first
    reset          [batch, time] bool or i32: where it is not zero x[b, t] begins a new sequence, and
                   neither values nor gradients pass; or [batch]: before the first step
    activation     None, or "silu" (also called "swish")

    Gives y, of x's shape and dtype, and with `return_final_state` also the state after the last step.
    Under torch.autocast x and the state are taken in its dtype, weight and bias in f32. x is never
    copied; parameters and states are where they are not contiguous. A wrong operand is a ValueError.
    """
    where = "causal_conv1d"
    if x.dim() != 3:
        raise error(where, "x", "[batch, time, channels]", sizes(x))
    if weight.dim() != 2:
        raise error(where, "weight", "[channels, width]", sizes(weight))
    silu = takes_silu(where, activation)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, initial_state = to(dtype, x), to(dtype, initial_state)
        weight, bias = to(f32, weight), to(f32, bias)
    if reset is not None:
        reset = resets(where, reset, x.shape[0], x.shape[1])
    y, final_state = _kernels.causal_conv1d(x, weight, bias, initial_state, reset, silu)
    return (y, final_state) if return_final_state else y


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor] = None,
    z: Optional[Tensor] = None,
    delta_bias: Optional[Tensor] = None,
    delta_softplus: bool = True,
    initial_state: Optional[Tensor] = None,
    reset: Optional[Tensor] = None,
    return_final_state: bool = False,
    *,
    A_is_log: bool = False,
) -> Any:
    """The selective scan of Mamba-1 (Gu & Dao 2023, algorithm 2) with its memory as an explicit state.

        d     = softplus(delta[b, t, c] + delta_bias[c])              without `delta_softplus` the sum
        h[n]  = exp(d A[c, n]) h[n] + d B[b, t, n] u[b, t, c]
        y     = (sum_n C[b, t, n] h[n] + D[c] u[b, t, c]) silu(z[b, t, c])

    h starts as the initial state, zeros if there is none, and ends as the final state.

    u, delta, z    [batch, time, channels] f32, bf16 or f16, all of one dtype; any strides with
                   contiguous channels
    A              [channels, d_state] f32 of any sign; with `A_is_log` what a layer stores, log(-A), for
                   which CUDA has faster kernels. d_state is 1 to 256
    B, C           [batch, time, d_state] of u's dtype, strides likewise
    D, delta_bias  [channels] f32
    initial_state  [batch, channels, d_state] f32
    reset          [batch, time] bool or i32: where it is not zero h is set to zero before that step,
                   and neither values nor gradients pass; or [batch]: before the first step

    Gives y, of u's shape and dtype, and with `return_final_state` also h after the last step. Under
    torch.autocast u, delta, B, C and z are taken in its dtype, all others in f32. Activations are never
    copied; parameters and states are where they are not contiguous. A wrong operand is a ValueError.
    """
    where = "selective_scan"
    if u.dim() != 3:
        raise error(where, "u", "[batch, time, channels]", sizes(u))
    if A.dim() != 2:
        raise error(where, "A", "[channels, d_state]", sizes(A))
    dtype = autocast_dtype(u)
    if dtype is not None:
        u, delta, z = to(dtype, u), to(dtype, delta), to(dtype, z)
        B, C = to(dtype, B), to(dtype, C)
        A, D, delta_bias = to(f32, A), to(f32, D), to(f32, delta_bias)
        initial_state = to(f32, initial_state)
    if reset is not None:
        reset = resets(where, reset, u.shape[0], u.shape[1])
    y, final_state = _kernels.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, initial_state, reset, delta_softplus, A_is_log
    )
    return (y, final_state) if return_final_state else y


def ssd(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Optional[Tensor] = None,
    dt_bias: Optional[Tensor] = None,
    dt_softplus: bool = True,
    dt_limit: Tuple[float, float] = (0.0, float("inf")),
    initial_state: Optional[Tensor] = None,
    reset: Optional[Tensor] = None,
    return_final_state: bool = False,
    *,
    A_is_log: bool = False,
) -> Any:
    """The recurrence of Mamba-2 (Dao & Gu 2024, state space duality) with its memory as an explicit state.

        d       = clamp(softplus(dt[b, t, k] + dt_bias[k]), *dt_limit)    without `dt_softplus` the sum
        h[p, n] = exp(d A[k]) h[p, n] + d B[b, t, g, n] x[b, t, k, p]
        y[p]    = sum_n C[b, t, g, n] h[p, n] + D[k] x[b, t, k, p]

    for head k of group g (heads / groups neighbouring heads share B and C). h starts as the initial
    state, zeros if there is none, and ends as the final state.

    x              [batch, time, heads, head_dim] f32, bf16 or f16; the last two dimensions contiguous,
                   batch and time of any stride
    dt             [batch, time, heads] of x's dtype
    A              [heads] f32, negative; with `A_is_log` what a layer stores, log(-A)
    B, C           [batch, time, groups, d_state] of x's dtype, strides likewise; head_dim and d_state
                   are 1 to 256
    D, dt_bias     [heads] f32
    initial_state  [batch, heads, head_dim, d_state] f32
    reset          [batch, time] bool or i32: where it is not zero h is set to zero before that step,
                   and neither values nor gradients pass; or [batch]: before the first step

    Gives y, of x's shape and dtype, and with `return_final_state` also h after the last step. Under
    torch.autocast x, dt, B and C are taken in its dtype, all others in f32. Activations are never
    copied; parameters and states are where they are not contiguous. A wrong operand is a ValueError.
    """
    where = "ssd"
    if x.dim() != 4:
        raise error(where, "x", "[batch, time, heads, head_dim]", sizes(x))
    if B.dim() != 4:
        raise error(where, "B", "[batch, time, groups, d_state]", sizes(B))
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, dt, B, C = to(dtype, x), to(dtype, dt), to(dtype, B), to(dtype, C)
        A, D, dt_bias = to(f32, A), to(f32, D), to(f32, dt_bias)
        initial_state = to(f32, initial_state)
    if reset is not None:
        reset = resets(where, reset, x.shape[0], x.shape[1])
    y, final_state = _kernels.ssd(
        x, dt, A if A_is_log else torch.log(-A), B, C, D, dt_bias, initial_state, reset, dt_softplus,
        *dt_limit,
    )
    return (y, final_state) if return_final_state else y


def gated_rms_norm(
    x: Tensor,
    z: Tensor,
    weight: Optional[Tensor] = None,
    groups: int = 1,
    norm_before_gate: bool = False,
    epsilon: float = 1e-5,
) -> Tensor:
    """The norm of Mamba-2 with its gate (Dao & Gu 2024), over each of `groups` runs of as many channels.

        v = x silu(z);  y = v rsqrt(mean(v^2) + epsilon) weight
                        y = x rsqrt(mean(x^2) + epsilon) weight silu(z)      with `norm_before_gate`
                        y = x silu(z)                                        without a weight

    x, z    [..., channels] of one to three dimensions, f32, bf16 or f16, both of one dtype; any strides with
            contiguous channels
    weight  [channels] f32

    Gives y, of x's shape and dtype; means and gates are computed in f32. Under torch.autocast x and z are
    taken in its dtype, the weight in f32. A wrong operand is a ValueError.
    """
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, z, weight = to(dtype, x), to(dtype, z), to(f32, weight)
    return _kernels.gated_rms_norm(x, z, weight, groups, norm_before_gate, epsilon)[0]
