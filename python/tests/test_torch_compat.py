"""The functions with the arguments and layouts of mamba_ssm and causal-conv1d."""

import pytest
import torch
import torch.nn.functional as F

import mamba_cpp.torch as mt
import operands
import plain

SEQUENCES = ("u", "delta", "B", "C", "z")


def channels_first(given):
    """The operands of a scan as selective_scan_fn takes them, without what it has not."""
    given = {k: v for k, v in given.items() if k != "initial_state"}
    return {k: v.transpose(1, 2).contiguous() if k in SEQUENCES else v for k, v in given.items()}


@pytest.mark.parametrize("softplus", [False, True])
def test_selective_scan_fn(softplus, device):
    given = channels_first(operands.scan(device))
    if not softplus:
        given["delta"], given["delta_bias"] = given["delta"].abs() * 0.1, given["delta_bias"].abs() * 0.1
    mine, exact = operands.leaves(given), operands.doubles(given)
    y, state = mt.selective_scan_fn(**mine, delta_softplus=softplus, return_last_state=True)
    turned = {k: v.transpose(1, 2) if k in SEQUENCES else v for k, v in exact.items()}
    y_exact, state_exact = plain.selective_scan(**turned, delta_softplus=softplus)
    y_exact = y_exact.transpose(1, 2)
    operands.check_close(y, y_exact, 1e-5, "y")
    operands.check_close(state, state_exact, 1e-5, "state")
    dy, dstate = torch.randn_like(y), torch.randn_like(state)
    torch.autograd.backward([y, state], [dy, dstate])
    torch.autograd.backward([y_exact, state_exact], [dy.double(), dstate.double()])
    for key in given:
        operands.check_close(mine[key].grad, exact[key].grad, 1e-5, "d" + key)


def test_selective_scan_fn_takes_positions(device):
    given = channels_first(operands.scan(device))
    y = mt.selective_scan_fn(*(given[k] for k in "u delta A B C D z delta_bias".split()), True)
    assert torch.equal(y, mt.selective_scan_fn(**given, delta_softplus=True))


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("of", ["B", "C", "both"])
def test_groups_of_B_and_C(groups, of, device):
    given = channels_first(operands.scan(device))
    expected = dict(given)
    for key in ("B", "C") if of == "both" else (of,):
        given[key] = torch.randn(2, groups, 16, 37, device=device)
    y, state = mt.selective_scan_fn(**given, delta_softplus=True, return_last_state=True)
    width = 24 // groups
    for g in range(groups):
        part = slice(g * width, (g + 1) * width)
        one = {k: v[part] if k in ("A", "D", "delta_bias") else v for k, v in given.items()}
        one.update({k: given[k][:, part] for k in ("u", "delta", "z")})
        one.update({k: v[:, g] for k, v in given.items() if v.dim() == 4})
        y_one, state_one = mt.selective_scan_fn(**one, delta_softplus=True, return_last_state=True)
        assert torch.equal(y[:, part], y_one) and torch.equal(state[:, part], state_one)
    assert y.shape == expected["u"].shape


@pytest.mark.parametrize(
    "key, change, message",
    [
        ("B", lambda v: torch.randn(24, 16), r"B: expected \[batch, d_state, time\] or"),
        ("C", lambda v: torch.randn(24, 16), r"C: expected \[batch, d_state, time\] or"),
        ("A", lambda v: v.to(torch.complex64), "A: expected real numbers"),
        ("B", lambda v: v.to(torch.complex64), "B: expected real numbers"),
        ("B", lambda v: torch.randn(2, 5, 16, 37), "B: expected groups that divide 24 channels, got 5"),
        ("delta", lambda v: v[:, :, 1:], r"delta: expected \[2, 24, 37\], got \[2, 24, 36\]"),
    ],
)
def test_what_selective_scan_fn_refuses(key, change, message):
    given = channels_first(operands.scan("cpu"))
    given[key] = change(given[key])
    with pytest.raises(ValueError, match=message):
        mt.selective_scan_fn(**given)


def test_groups_of_B_and_C_that_differ():
    given = channels_first(operands.scan("cpu"))
    given["B"], given["C"] = torch.randn(2, 2, 16, 37), torch.randn(2, 4, 16, 37)
    with pytest.raises(ValueError, match="C: expected 2 groups or 1, got 4"):
        mt.selective_scan_fn(**given)


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_causal_conv1d_fn(activation, channels_last, device):
    given = operands.conv(device)
    x = given["x"].transpose(1, 2)
    x = x if channels_last else x.contiguous()
    y, states = mt.causal_conv1d_fn(
        x, given["weight"], given["bias"], None, given["initial_state"], True, None, activation
    )
    exact = {key: value.double() for key, value in given.items()}
    y_exact, states_exact = plain.causal_conv1d(**exact, activation=activation)
    operands.check_close(y, y_exact.transpose(1, 2), 1e-5)
    operands.check_close(states, states_exact, 0)


def test_causal_conv1d_fn_writes_the_final_states(device):
    given = operands.conv(device)
    out = torch.zeros(2, 24, 3, device=device)
    _, states = mt.causal_conv1d_fn(
        given["x"].transpose(1, 2), given["weight"], return_final_states=True, final_states_out=out
    )
    assert states is out and torch.equal(out, given["x"][:, -3:].transpose(1, 2))


def test_causal_conv1d_fn_with_packed_sequences(device):
    given = operands.conv(device)
    x = given["x"].transpose(1, 2).contiguous()
    lengths = ([10, 20, 4], [1, 30, 3])  # and three steps of padding
    index = torch.full((2, 37), -1, dtype=torch.int32, device=device)
    expected = torch.zeros_like(x)
    for b in range(2):
        first = 0
        for i, length in enumerate(lengths[b]):
            index[b, first : first + length] = i
            part = F.pad(x[b : b + 1, :, first : first + length], (3, 0))
            expected[b : b + 1, :, first : first + length] = F.conv1d(
                part, given["weight"][:, None], given["bias"], groups=24
            )
            first += length
    y = mt.causal_conv1d_fn(x, given["weight"], given["bias"], seq_idx=index)
    operands.check_close(y, expected.double(), 1e-5)
    assert not y[:, :, 34:].any()


def test_what_causal_conv1d_fn_refuses():
    given = operands.conv("cpu")
    x = given["x"].transpose(1, 2)
    index = torch.zeros(2, 37, dtype=torch.int32)
    with pytest.raises(ValueError, match="seq_idx: expected None where there are states"):
        mt.causal_conv1d_fn(x, given["weight"], seq_idx=index, initial_states=given["initial_state"])
    with pytest.raises(ValueError, match=r"seq_idx: expected \[2, 37\], got \[2, 36\]"):
        mt.causal_conv1d_fn(x, given["weight"], seq_idx=index[:, 1:])
    with pytest.raises(ValueError, match="activation: expected None, 'silu' or 'swish'"):
        mt.causal_conv1d_fn(x, given["weight"], activation="gelu")
