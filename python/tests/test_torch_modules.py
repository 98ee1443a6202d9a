"""The layers: one state however time is cut, gradients through it, checkpoints and beginnings of mamba_ssm's."""

import math

import pytest
import torch
import torch.nn.functional as F

import mamba_cpp.torch as mt
import operands
import plain
from mamba_cpp.torch import MambaInferenceState


def mamba1(device, **options):
    return mt.Mamba(32, d_state=8, device=device, **options)


def mamba2(device, **options):
    return mt.Mamba2(32, d_state=16, headdim=16, ngroups=2, device=device, **options)


LAYERS = {"Mamba": mamba1, "Mamba2": mamba2}
every = pytest.mark.parametrize("kind", LAYERS)


def plain_mamba1(w, x, state=None, reset=None):
    """w: parameters in float64, by mamba_ssm's names."""
    u, z = F.linear(x, w["in_proj.weight"], w.get("in_proj.bias")).chunk(2, -1)
    conv, ssm = state if state is not None else (None, None)
    u, conv = plain.causal_conv1d(u, w["conv1d.weight"][:, 0], w.get("conv1d.bias"), conv, reset, "silu")
    d_state = w["A_log"].shape[1]
    dt, B, C = F.linear(u, w["x_proj.weight"]).split([w["dt_proj.weight"].shape[1], d_state, d_state], -1)
    dt = F.linear(dt, w["dt_proj.weight"])
    y, ssm = plain.selective_scan(
        u, dt, -torch.exp(w["A_log"]), B, C, w["D"], z, w["dt_proj.bias"], True, ssm, reset
    )
    return F.linear(y, w["out_proj.weight"], w.get("out_proj.bias")), (conv, ssm)


def plain_mamba2(w, x, state=None, reset=None, groups=2, d_state=16, norm_before_gate=False,
                 dt_limit=(0.0, math.inf), d_ssm=64):
    heads = w["A_log"].shape[0]
    width = groups * d_state
    d_mlp = 64 - d_ssm
    z0, x0, z, xBC, dt = F.linear(x, w["in_proj.weight"], w.get("in_proj.bias")).split(
        [d_mlp, d_mlp, d_ssm, d_ssm + 2 * width, heads], -1
    )
    conv, ssm = state if state is not None else (None, None)
    xBC, conv = plain.causal_conv1d(xBC, w["conv1d.weight"][:, 0], w.get("conv1d.bias"), conv, reset, "silu")
    u, B, C = xBC.split([d_ssm, width, width], -1)
    u = u.unflatten(-1, (heads, -1))
    if ssm is not None:
        ssm = ssm.unflatten(1, (heads, -1))
    D = w["D"] if w["D"].shape[0] == heads else None
    y, ssm = plain.ssd(
        u, dt, -torch.exp(w["A_log"]), B.unflatten(-1, (groups, -1)), C.unflatten(-1, (groups, -1)),
        D, w["dt_bias"], True, dt_limit, ssm, reset,
    )
    if D is None:
        y = y + w["D"].view(heads, -1) * u
    y = y.flatten(2)
    if "norm.weight" in w:
        y = y if norm_before_gate else y * F.silu(z)
        y = y.unflatten(-1, (groups, -1))
        y = (y / (y.square().mean(-1, keepdim=True) + 1e-5).sqrt()).flatten(-2) * w["norm.weight"]
        y = y * F.silu(z) if norm_before_gate else y
    else:
        y = y * F.silu(z)
    if d_mlp > 0:
        y = torch.cat([F.silu(z0) * x0, y], -1)
    return F.linear(y, w["out_proj.weight"], w.get("out_proj.bias")), (conv, ssm.flatten(1, 2))


def check_layer(layer, exact, device, reset=None, **options):
    x = torch.randn(2, 21, 32, device=device)
    state = MambaInferenceState(*(torch.randn_like(v) for v in (
        layer.make_state(2).conv_state, layer.make_state(2).ssm_state)))
    mine = [v.clone().requires_grad_() for v in (x, state.conv_state, state.ssm_state)]
    double = [v.double().requires_grad_() for v in (x, state.conv_state, state.ssm_state)]
    weights = {k: v.detach().double().requires_grad_() for k, v in layer.named_parameters()}
    y, after = layer(mine[0], MambaInferenceState(*mine[1:]), reset=reset)
    y_exact, after_exact = exact(weights, double[0], double[1:], reset, **options)
    outs, outs_exact = [y, after.conv_state, after.ssm_state], [y_exact, *after_exact]
    for got, expected in zip(outs, outs_exact):
        operands.check_close(got, expected, 1e-5)
    gradients = [torch.randn_like(v) for v in outs]
    torch.autograd.backward(outs, gradients)
    torch.autograd.backward(outs_exact, [g.double() for g in gradients])
    for got, expected in zip(mine, double):
        operands.check_close(got.grad, expected.grad, 1e-5)
    for name, parameter in layer.named_parameters():
        operands.check_close(parameter.grad, weights[name].grad, 2e-5, name)


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"conv_bias": False}, {"d_conv": 2}, {"expand": 3}])
def test_mamba_against_float64(options, device):
    check_layer(mamba1(device, **options), plain_mamba1, device, operands.resets(device, time=21))


@pytest.mark.parametrize("options, plain_options", [
    ({}, {}),
    ({"bias": True, "conv_bias": False}, {}),
    ({"rmsnorm": False}, {}),
    ({"norm_before_gate": True}, {"norm_before_gate": True}),
    ({"D_has_hdim": True}, {}),
    ({"dt_limit": (0.01, 0.05)}, {"dt_limit": (0.01, 0.05)}),
    ({"d_ssm": 32}, {"d_ssm": 32}),
])
def test_mamba2_against_float64(options, plain_options, device):
    check_layer(mamba2(device, **options), plain_mamba2, device, operands.resets(device, time=21), **plain_options)


@every
def test_what_forward_gives(kind, device):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 9, 32, device=device)
    y = layer(x)
    fresh, state = layer(x, None)
    zeros, _ = layer(x, layer.make_state(2))
    assert torch.equal(y, fresh) and torch.equal(y, zeros)
    assert isinstance(state, MambaInferenceState)


@every
def test_however_time_is_cut(kind, device):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 21, 32, device=device)
    y, state = layer(x, None)
    pieces, at = [], layer.make_state(2)
    for part in (x[:, :7], x[:, 7:7], x[:, 7:8], x[:, 8:]):
        piece, at = layer(part, at)
        pieces.append(piece)
    operands.check_close(torch.cat(pieces, 1), y.double(), 1e-5)
    operands.check_close(at.ssm_state, state.ssm_state.double(), 1e-5)
    operands.check_close(at.conv_state, state.conv_state.double(), 1e-5)


@every
def test_a_given_state_is_not_changed(kind, device):
    layer = LAYERS[kind](device)
    _, state = layer(torch.randn(2, 9, 32, device=device), None)
    kept = state.clone()
    layer(torch.randn(2, 9, 32, device=device), state)
    assert torch.equal(state.conv_state, kept.conv_state) and torch.equal(state.ssm_state, kept.ssm_state)


@every
@pytest.mark.parametrize("dtype", [torch.bool, torch.int32])
def test_a_reset_is_a_fresh_state(kind, dtype, device):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 6, 32, device=device)
    _, state = layer(x, None)
    done = torch.tensor([1, 0], device=device).to(dtype)
    y, _ = layer(x, state, reset=done)
    operands.check_close(y[:1], layer(x[:1]).double(), 1e-6)
    operands.check_close(y[1:], layer(x[1:], state[1:])[0].double(), 1e-6)
    operands.check_close(layer(x, state.reset(done))[0], y.double(), 1e-6)


@every
def test_gradients_through_the_state_and_cut(kind, device):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 6, 32, device=device, requires_grad=True)
    _, state = layer(x, None)
    layer(torch.randn(2, 6, 32, device=device), state)[0].sum().backward()
    assert x.grad.abs().sum() > 0
    x.grad = None
    _, state = layer(x, None)
    layer(torch.randn(2, 6, 32, device=device), state.detach())[0].sum().backward()
    assert x.grad is None


@every
def test_compiled_without_graph_breaks(kind, device):
    layer = LAYERS[kind](device)
    x, reset = torch.randn(2, 21, 32, device=device), operands.resets(device, time=21)
    compiled = torch.compile(layer, fullgraph=True)
    state = layer(x, None)[1]
    y, after = layer(x, state, reset=reset)
    y_compiled, after_compiled = compiled(x, state, reset=reset)
    operands.check_close(y_compiled, y.double(), 1e-5)
    operands.check_close(after_compiled.ssm_state, after.ssm_state.double(), 1e-5)
    operands.check_close(compiled(x), layer(x).double(), 1e-5)
    y.sum().backward(retain_graph=True)  # y_compiled goes back through the same state
    plain_gradients = {k: p.grad.clone() for k, p in layer.named_parameters()}
    layer.zero_grad()
    y_compiled.sum().backward()
    for name, parameter in layer.named_parameters():
        operands.check_close(parameter.grad, plain_gradients[name].double(), 1e-4, name)


@every
def test_under_autocast(kind, device):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 21, 32, device=device)
    expected, _ = layer(x, None)
    with torch.autocast(device, torch.bfloat16):
        y, state = layer(x, None)
        y2, _ = layer(x, state)
    assert y.dtype == state.conv_state.dtype == torch.bfloat16 and state.ssm_state.dtype == torch.float32
    operands.check_close(y, expected.double(), 3e-2)
    (y.sum() + y2.sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


@every
def test_in_16_bits(kind, device):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 21, 32, device=device)
    expected = layer(x)
    low = LAYERS[kind](device, dtype=torch.bfloat16)
    low.load_state_dict(layer.state_dict())
    y, state = low(x.bfloat16(), low.make_state(2))
    assert y.dtype == state.conv_state.dtype == torch.bfloat16
    operands.check_close(y, expected.double(), 3e-2)


NAMES = {  # of mamba_ssm's layers
    "Mamba": "A_log D in_proj.weight conv1d.weight conv1d.bias x_proj.weight dt_proj.weight dt_proj.bias "
    "out_proj.weight",
    "Mamba2": "dt_bias A_log D in_proj.weight conv1d.weight conv1d.bias norm.weight out_proj.weight",
}


@every
def test_parameters_have_mamba_ssms_names(kind, device):
    layer = LAYERS[kind](device)
    assert set(layer.state_dict()) == set(NAMES[kind].split())
    assert layer.A_log._no_weight_decay and layer.D._no_weight_decay


def test_mamba_begins_as_mamba_ssm_does():
    layer = mt.Mamba(64)
    assert torch.allclose(torch.exp(layer.A_log), torch.arange(1.0, 17).expand(128, 16))
    assert torch.equal(layer.D, torch.ones(128))
    assert layer.dt_rank == 4 and layer.conv1d.weight.shape == (128, 1, 4)
    dt = F.softplus(layer.dt_proj.bias)
    assert dt.min() >= 0.00099 and dt.max() <= 0.101
    assert layer.dt_proj.weight.abs().max() <= 4**-0.5
    constant = mt.Mamba(64, dt_init="constant", dt_scale=2.0)
    assert torch.equal(constant.dt_proj.weight, torch.ones(128, 4))


def test_mamba2_begins_as_mamba_ssm_does():
    layer = mt.Mamba2(64, headdim=16, conv_init=0.1)
    A = torch.exp(layer.A_log)
    assert A.min() >= 0.999 and A.max() <= 16.001
    dt = F.softplus(layer.dt_bias)
    assert dt.min() >= 0.00099 and dt.max() <= 0.101
    assert layer.conv1d.weight.abs().max() <= 0.1


@every
def test_what_layers_refuse(kind, device):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 5, 32, device=device)
    state = layer.make_state(2)
    with pytest.raises(ValueError, match=r"x: expected \[2, 5, 32\], got \[2, 5, 31\]"):
        layer(x[..., 1:])
    with pytest.raises(ValueError, match=r"x: expected \[batch, time, d_model\], got \[5, 32\]"):
        layer(x[0])
    with pytest.raises(ValueError, match=r"state: expected conv_state \[3, .* and ssm_state \[3, .*, got \[2, "):
        layer(torch.cat([x, x[:1]]), state)
    other = mt.Mamba(48, d_state=4, device=device).make_state(2)
    with pytest.raises(ValueError, match=r"state: expected conv_state .*, got \[2, 96, 3\] and \[2, 96, 4\]"):
        layer(x, other)
    with pytest.raises(ValueError, match="state: expected a MambaInferenceState or None, got tuple"):
        layer(x, (state.conv_state, state.ssm_state))
    with pytest.raises(ValueError, match=r"initial_state: expected f32, got bf16"):
        layer(x, state.to(dtype=torch.bfloat16))


@pytest.mark.parametrize("make, message", [
    (lambda: mt.Mamba(8, dt_init="uniform"), "dt_init: expected 'random' or 'constant'"),
    (lambda: mt.Mamba2(8, headdim=5), "d_ssm: expected a multiple of headdim 5"),
    (lambda: mt.Mamba2(8, headdim=8, ngroups=3), "ngroups: expected a divisor of 2 heads"),
    (lambda: mt.Mamba2(8, headdim=8, process_group="g"), "process_group: expected None"),
])
def test_arguments_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()
