"""Operands of the operations, random and with gradients wanted, and their doubles in float64."""

import torch


def conv(device, dtype=torch.float32, batch=2, time=37, channels=24, width=4):
    def new(*shape, of=torch.float32):
        return torch.randn(*shape, device=device).to(of)

    return {
        "x": new(batch, time, channels, of=dtype),
        "weight": new(channels, width),
        "bias": new(channels),
        "initial_state": new(batch, channels, width - 1, of=dtype),
    }


def scan(device, dtype=torch.float32, batch=2, time=37, channels=24, d_state=16):
    def new(*shape, of=torch.float32):
        return torch.randn(*shape, device=device).to(of)

    return {
        "u": new(batch, time, channels, of=dtype),
        "delta": new(batch, time, channels, of=dtype),
        "A": -torch.exp(new(channels, d_state)),
        "B": new(batch, time, d_state, of=dtype),
        "C": new(batch, time, d_state, of=dtype),
        "D": new(channels),
        "z": new(batch, time, channels, of=dtype),
        "delta_bias": new(channels) - 2,
        "initial_state": new(batch, channels, d_state),
    }


def ssd(device, dtype=torch.float32, batch=2, time=37, heads=4, head_dim=16, groups=2, d_state=16):
    def new(*shape, of=torch.float32):
        return torch.randn(*shape, device=device).to(of)

    return {
        "x": new(batch, time, heads, head_dim, of=dtype),
        "dt": new(batch, time, heads, of=dtype),
        "A": -torch.exp(new(heads)),
        "B": new(batch, time, groups, d_state, of=dtype),
        "C": new(batch, time, groups, d_state, of=dtype),
        "D": new(heads),
        "dt_bias": new(heads) - 2,
        "initial_state": new(batch, heads, head_dim, d_state),
    }


def resets(device, batch=2, time=37):
    """Some within, one at the first step, two in a row."""
    reset = torch.zeros(batch, time, dtype=torch.int32, device=device)
    for b, t in ((0, 5), (0, 6), (1, 0), (1, time - 1)):
        reset[b, t] = 1
    return reset


def leaves(operands):
    return {name: value.detach().clone().requires_grad_() for name, value in operands.items()}


def doubles(operands):
    return {name: value.detach().double().requires_grad_() for name, value in operands.items()}


def check_close(got, expected, bound, name=""):
    """The largest difference against the largest value."""
    expected = expected.detach()
    scale = float(expected.abs().max()) if expected.numel() > 0 else 0.0
    difference = float((got.detach().double() - expected).abs().max()) if expected.numel() > 0 else 0.0
    assert difference <= bound * max(scale, 1e-30), f"{name}: {difference} of {scale}"


def check_gradients(ours, plain, operands, bound, **options):
    """y, the final state and every operand's gradient through both, against float64 autograd."""
    mine, exact = leaves(operands), doubles(operands)
    y, state = ours(**mine, return_final_state=True, **options)
    y_exact, state_exact = plain(**exact, **options)
    check_close(y, y_exact, bound, "y")
    check_close(state, state_exact, bound, "final state")
    dy, dstate = torch.randn_like(y), torch.randn_like(state)
    torch.autograd.backward([y, state], [dy, dstate])
    torch.autograd.backward([y_exact, state_exact], [dy.double(), dstate.double()])
    for name in operands:
        assert mine[name].grad.dtype == mine[name].dtype
        expected = exact[name].grad  # None of what no step has read
        check_close(mine[name].grad, torch.zeros_like(exact[name]) if expected is None else expected, bound, "d" + name)
