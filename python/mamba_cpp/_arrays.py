"""The operations on NumPy arrays, on the CPU, forward only; mamba_cpp.torch has the differentiable ones."""

from __future__ import annotations

from typing import Any, Optional, Tuple

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._errors import error, takes_silu

Array = NDArray[Any]


def _check_rank(where: str, name: str, array: Array, rank: int, form: str) -> None:
    if np.ndim(array) != rank:
        raise error(where, name, form, list(np.shape(array)))


def _resets(where: str, reset: Optional[Array], x: Array) -> Optional[Array]:
    if reset is None:
        return None
    if reset.dtype not in (np.bool_, np.int32):
        raise error(where, "reset", "bool or int32", reset.dtype)
    if reset.shape == x.shape[:1]:
        flags = np.zeros(x.shape[:2], np.int32)
        flags[:, :1] = reset[:, None]
        return flags
    if reset.shape != x.shape[:2]:
        raise error(where, "reset", f"{list(x.shape[:2])} or {list(x.shape[:1])}", list(reset.shape))
    return reset.astype(np.int32, copy=False)


def causal_conv1d(
    x: Array,
    weight: Array,
    bias: Optional[Array] = None,
    initial_state: Optional[Array] = None,
    reset: Optional[Array] = None,
    activation: Optional[str] = None,
    return_final_state: bool = False,
    *,
    threads: int = 0,
) -> Any:
    """A causal convolution of each channel with its memory as an explicit state.

        y[b, t, c] = act(bias[c] + sum_k weight[c, k] x[b, t - (width - 1) + k, c])

    where x before t = 0 is the initial state, zeros if there is none.

    x              [batch, time, channels] f32 or f16; any strides with contiguous channels
    weight         [channels, width] f32
    bias           [channels] f32
    initial_state  [batch, channels, width - 1] of x's dtype: the last inputs, oldest first
    reset          [batch, time] bool or i32: where it is not zero x[b, t] begins a new sequence; or
                   [batch]: before the first step
    activation     None, or "silu" (also called "swish")
    threads        0: one per core

    Gives y, of x's shape and dtype, and with `return_final_state` also the state after the last step.
    x is never copied; parameters and states are where they are not contiguous. A wrong operand is a
    ValueError.
    """
    where = "causal_conv1d"
    _check_rank(where, "x", x, 3, "[batch, time, channels]")
    _check_rank(where, "weight", weight, 2, "[channels, width]")
    silu = takes_silu(where, activation)
    y = np.empty(x.shape, x.dtype)
    state = None
    if return_final_state:
        state = np.empty((x.shape[0], x.shape[2], weight.shape[1] - 1), x.dtype)
    _core.causal_conv1d(
        x, weight, bias, initial_state, _resets(where, reset, x), silu, y, state, None, threads
    )
    return y if state is None else (y, state)


def selective_scan(
    u: Array,
    delta: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Optional[Array] = None,
    z: Optional[Array] = None,
    delta_bias: Optional[Array] = None,
    delta_softplus: bool = True,
    initial_state: Optional[Array] = None,
    reset: Optional[Array] = None,
    return_final_state: bool = False,
    *,
    A_is_log: bool = False,
    threads: int = 0,
) -> Any:
    """The selective scan of Mamba-1 (Gu & Dao 2023, algorithm 2) with its memory as an explicit state.

        d     = softplus(delta[b, t, c] + delta_bias[c])              without `delta_softplus` the sum
        h[n]  = exp(d A[c, n]) h[n] + d B[b, t, n] u[b, t, c]
        y     = (sum_n C[b, t, n] h[n] + D[c] u[b, t, c]) silu(z[b, t, c])

    h starts as the initial state, zeros if there is none, and ends as the final state.

    u, delta, z    [batch, time, channels] f32 or f16, all of one dtype; any strides with contiguous
                   channels
    A              [channels, d_state] f32 of any sign; with `A_is_log` what a layer stores, log(-A).
                   d_state is 1 to 256
    B, C           [batch, time, d_state] of u's dtype, strides likewise
    D, delta_bias  [channels] f32
    initial_state  [batch, channels, d_state] f32
    reset          [batch, time] bool or i32: where it is not zero h is set to zero before that step; or
                   [batch]: before the first step
    threads        0: one per core

    Gives y, of u's shape and dtype, and with `return_final_state` also h after the last step.
    Activations are never copied; parameters and states are where they are not contiguous. A wrong
    operand is a ValueError.
    """
    where = "selective_scan"
    _check_rank(where, "u", u, 3, "[batch, time, channels]")
    _check_rank(where, "A", A, 2, "[channels, d_state]")
    y = np.empty(u.shape, u.dtype)
    state = None
    if return_final_state:
        state = np.empty((u.shape[0], u.shape[2], A.shape[1]), np.float32)
    _core.selective_scan(
        u, delta, A, B, C, D, z, delta_bias, initial_state,
        _resets(where, reset, u), delta_softplus, A_is_log, y, state, None, 0, None, threads,
    )
    return y if state is None else (y, state)


def ssd(
    x: Array,
    dt: Array,
    A: Array,
    B: Array,
    C: Array,
    D: Optional[Array] = None,
    dt_bias: Optional[Array] = None,
    dt_softplus: bool = True,
    dt_limit: Tuple[float, float] = (0.0, float("inf")),
    initial_state: Optional[Array] = None,
    reset: Optional[Array] = None,
    return_final_state: bool = False,
    *,
    A_is_log: bool = False,
    threads: int = 0,
) -> Any:
    """The recurrence of Mamba-2 (Dao & Gu 2024, state space duality) with its memory as an explicit state.

        d       = clamp(softplus(dt[b, t, k] + dt_bias[k]), *dt_limit)    without `dt_softplus` the sum
        h[p, n] = exp(d A[k]) h[p, n] + d B[b, t, g, n] x[b, t, k, p]
        y[p]    = sum_n C[b, t, g, n] h[p, n] + D[k] x[b, t, k, p]

    for head k of group g (heads / groups neighbouring heads share B and C). h starts as the initial
    state, zeros if there is none, and ends as the final state.

    x              [batch, time, heads, head_dim] f32 or f16; the last two dimensions contiguous, batch
                   and time of any stride
    dt             [batch, time, heads] of x's dtype
    A              [heads] f32, negative; with `A_is_log` what a layer stores, log(-A)
    B, C           [batch, time, groups, d_state] of x's dtype, strides likewise; head_dim and d_state
                   are 1 to 256
    D, dt_bias     [heads] f32
    initial_state  [batch, heads, head_dim, d_state] f32
    reset          [batch, time] bool or i32: where it is not zero h is set to zero before that step; or
                   [batch]: before the first step
    threads        0: one per core

    Gives y, of x's shape and dtype, and with `return_final_state` also h after the last step.
    Activations are never copied; parameters and states are where they are not contiguous. A wrong
    operand is a ValueError.
    """
    where = "ssd"
    _check_rank(where, "x", x, 4, "[batch, time, heads, head_dim]")
    _check_rank(where, "B", B, 4, "[batch, time, groups, d_state]")
    batch, _, heads, head_dim = x.shape
    y = np.empty(x.shape, x.dtype)
    state = None
    if return_final_state:
        state = np.empty((batch, heads, head_dim, B.shape[3]), np.float32)
    _core.ssd(
        x, dt, A if A_is_log else np.log(-A), B, C, D, dt_bias, initial_state,
        _resets(where, reset, x), dt_softplus, *dt_limit, y, state, None, 0, None, threads,
    )
    return y if state is None else (y, state)
