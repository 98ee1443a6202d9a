"""The operations as loops of PyTorch's own, in float64: what the library is held against."""

import torch
import torch.nn.functional as F


def causal_conv1d(x, weight, bias=None, initial_state=None, reset=None, activation=None):
    """-> y and the final state."""
    batch, time, channels = x.shape
    width = weight.shape[1]
    window = x.new_zeros(batch, channels, width - 1) if initial_state is None else initial_state
    ys = []
    for t in range(time):
        if reset is not None:
            window = torch.where(reset[:, t, None, None] != 0, 0, window)
        window = torch.cat([window, x[:, t, :, None]], dim=2)
        y = (window * weight).sum(2)
        if bias is not None:
            y = y + bias
        ys.append(F.silu(y) if activation else y)
        window = window[:, :, 1:]
    y = torch.stack(ys, 1) if ys else x.clone()
    return y, window


def selective_scan(
    u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=True, initial_state=None, reset=None
):
    """-> y and the final state."""
    batch, time, channels = u.shape
    h = u.new_zeros(batch, channels, A.shape[1]) if initial_state is None else initial_state
    d = delta if delta_bias is None else delta + delta_bias
    if delta_softplus:
        d = F.softplus(d)
    ys = []
    for t in range(time):
        if reset is not None:
            h = torch.where(reset[:, t, None, None] != 0, 0, h)
        step = d[:, t, :, None]
        h = torch.exp(step * A) * h + step * B[:, t, None, :] * u[:, t, :, None]
        y = (h * C[:, t, None, :]).sum(2)
        ys.append(y if D is None else y + D * u[:, t])
    y = torch.stack(ys, 1) if ys else u.clone()
    return (y if z is None else y * F.silu(z)), h


def ssd(
    x, dt, A, B, C, D=None, dt_bias=None, dt_softplus=True, dt_limit=(0.0, float("inf")),
    initial_state=None, reset=None,
):
    """-> y and the final state."""
    batch, time, heads, head_dim = x.shape
    h = x.new_zeros(batch, heads, head_dim, B.shape[3]) if initial_state is None else initial_state
    B, C = (v.repeat_interleave(heads // v.shape[2], 2) for v in (B, C))
    d = dt if dt_bias is None else dt + dt_bias
    d = (F.softplus(d) if dt_softplus else d).clamp(*dt_limit)
    ys = []
    for t in range(time):
        if reset is not None:
            h = torch.where(reset[:, t, None, None, None] != 0, 0, h)
        step = d[:, t, :, None, None]
        h = torch.exp(step * A[:, None, None]) * h + step * B[:, t, :, None, :] * x[:, t, :, :, None]
        y = (h * C[:, t, :, None, :]).sum(3)
        ys.append(y if D is None else y + D[:, None] * x[:, t])
    return (torch.stack(ys, 1) if ys else x.clone()), h
