"""The gated norm of Mamba-2: against float64, as an operator, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F

import mamba_cpp.torch as mt
import operands

FORMS = {
    "gate first": {"groups": 2, "norm_before_gate": False},
    "norm first": {"groups": 2, "norm_before_gate": True, "epsilon": 1e-3},
    "no norm": {},
}
every = pytest.mark.parametrize("form", FORMS)


def given(form, device, dtype=torch.float32, channels=24):
    new = lambda *shape: torch.randn(*shape, device=device)
    columns = new(2, 7, 3 * channels).to(dtype)  # x and z are slices of a projection
    operands_ = {"x": columns[..., :channels], "z": columns[..., channels: 2 * channels]}
    return operands_ if form == "no norm" else {**operands_, "weight": new(channels)}


def plain(x, z, weight=None, groups=1, norm_before_gate=False, epsilon=1e-5):
    if weight is None:
        return x * F.silu(z)
    v = x if norm_before_gate else x * F.silu(z)
    v = v.unflatten(-1, (groups, -1))
    v = (v / (v.square().mean(-1, keepdim=True) + epsilon).sqrt()).flatten(-2) * weight
    return v * F.silu(z) if norm_before_gate else v


@every
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-3)])
def test_against_float64(form, dtype, bound, device):
    operands_ = given(form, device, dtype)
    mine, exact = operands.leaves(operands_), operands.doubles(operands_)
    y, y_exact = mt.gated_rms_norm(**mine, **FORMS[form]), plain(**exact, **FORMS[form])
    assert y.dtype == dtype
    operands.check_close(y, y_exact, bound)
    dy = torch.randn_like(y)
    y.backward(dy)
    y_exact.backward(dy.double())
    for key, value in mine.items():
        assert value.grad.dtype == value.dtype
        operands.check_close(value.grad, exact[key].grad, bound, "d" + key)


@every
def test_slices_are_read_in_place(form, device):
    operands_ = given(form, device)
    dense = {key: value.contiguous() for key, value in operands_.items()}
    assert torch.equal(mt.gated_rms_norm(**operands_, **FORMS[form]), mt.gated_rms_norm(**dense, **FORMS[form]))


def arguments(form, device, keep):
    operands_ = given(form, device)
    options = {"groups": 1, "norm_before_gate": False, "epsilon": 1e-5, **FORMS[form]}
    if keep:
        operands_ = operands.leaves(operands_)
    return (operands_["x"], operands_["z"], operands_.get("weight"), *options.values(), keep)


@every
@pytest.mark.parametrize("keep", [False, True])
def test_opcheck(form, keep, device):
    torch.library.opcheck(torch.ops.mamba_cpp.gated_rms_norm.default, arguments(form, device, keep))


@every
def test_opcheck_of_the_gradient(form, device):
    call = [v.detach() if isinstance(v, torch.Tensor) else v for v in arguments(form, device, True)]
    y, state, kept = torch.ops.mamba_cpp.gated_rms_norm(*call)
    assert state.numel() == kept.numel() == 0
    backward = torch.ops.mamba_cpp.gated_rms_norm_backward.default
    torch.library.opcheck(backward, (*call[:-1], kept, torch.randn_like(y), None))


@every
def test_compiled(form, device):
    operands_ = given(form, device)
    mine, compiled = operands.leaves(operands_), operands.leaves(operands_)
    step = lambda operands_: mt.gated_rms_norm(**operands_, **FORMS[form]).square().sum()
    expected, got = step(mine), torch.compile(step, fullgraph=True)(compiled)
    operands.check_close(got, expected.double(), 1e-6)
    expected.backward()
    got.backward()
    for key, value in mine.items():
        operands.check_close(compiled[key].grad, value.grad.double(), 1e-6, "d" + key)


@every
def test_under_autocast(form, device):
    operands_ = given(form, device)
    with torch.autocast(device, torch.bfloat16):
        y = mt.gated_rms_norm(**operands_, **FORMS[form])
    low = {**operands_, "x": operands_["x"].bfloat16(), "z": operands_["z"].bfloat16()}
    assert torch.equal(y, mt.gated_rms_norm(**low, **FORMS[form]))


@every
def test_gradients_by_torch_func(form, device):
    operands_ = given(form, device)
    mine = operands.leaves(operands_)
    mt.gated_rms_norm(**mine, **FORMS[form]).sum().backward()
    found = torch.func.grad(lambda them: mt.gated_rms_norm(**them, **FORMS[form]).sum())(operands_)
    for key, value in mine.items():
        operands.check_close(found[key], value.grad.double(), 1e-6, "d" + key)


@pytest.mark.parametrize("change, options, message", [
    ({"z": torch.randn(2, 7, 23)}, {}, r"z: expected \[2, 7, 24\], got \[2, 7, 23\]"),
    ({"weight": torch.randn(23)}, {}, r"weight: expected \[24\], got \[23\]"),
    ({"weight": torch.randn(24).bfloat16()}, {}, "weight: expected f32, got bf16"),
    ({}, {"groups": 5}, "groups: expected a divisor of"),
    ({}, {"epsilon": -1.0}, "epsilon: expected"),
])
def test_what_it_refuses(change, options, message):
    with pytest.raises(ValueError, match=message):
        mt.gated_rms_norm(**{**given("gate first", "cpu"), **change}, **options)
