"""The operations on tensors against float64: values, gradients of every operand, both states, resets."""

import pytest
import torch

import mamba_cpp.torch as mt
import operands
import plain

OPERATIONS = {
    "causal_conv1d": (mt.causal_conv1d, plain.causal_conv1d, operands.conv),
    "selective_scan": (mt.selective_scan, plain.selective_scan, operands.scan),
    "ssd": (mt.ssd, plain.ssd, operands.ssd),
}
every = pytest.mark.parametrize("name", OPERATIONS)


def first(given):
    return next(iter(given.values()))


@every
@pytest.mark.parametrize("with_resets", [False, True])
def test_gradients_of_every_operand(name, with_resets, device):
    ours, exact, make = OPERATIONS[name]
    reset = operands.resets(device) if with_resets else None
    operands.check_gradients(ours, exact, make(device), 1e-5, reset=reset)


@pytest.mark.parametrize("leave_out", ["D", "z", "delta_bias", "initial_state"])
def test_gradients_of_a_scan_without_an_operand(leave_out, device):
    given = operands.scan(device)
    del given[leave_out]
    operands.check_gradients(mt.selective_scan, plain.selective_scan, given, 1e-5)


@pytest.mark.parametrize("leave_out", ["D", "dt_bias", "initial_state"])
def test_gradients_of_ssd_without_an_operand(leave_out, device):
    given = operands.ssd(device)
    del given[leave_out]
    operands.check_gradients(mt.ssd, plain.ssd, given, 1e-5)


@pytest.mark.parametrize("activation", [None, "silu", "swish"])
@pytest.mark.parametrize("leave_out", ["bias", "initial_state"])
def test_gradients_of_a_convolution_without_an_operand(activation, leave_out, device):
    given = operands.conv(device)
    del given[leave_out]
    operands.check_gradients(mt.causal_conv1d, plain.causal_conv1d, given, 1e-5, activation=activation)


def test_gradients_of_a_scan_without_softplus(device):
    given = operands.scan(device)
    given["delta"] = given["delta"].abs() * 0.1
    given["delta_bias"] = given["delta_bias"].abs() * 0.1
    operands.check_gradients(
        mt.selective_scan, plain.selective_scan, given, 1e-5, delta_softplus=False
    )


def test_gradients_of_a_growing_scan(device):
    given = operands.scan(device)
    given["A"] = given["A"] * torch.where(torch.rand_like(given["A"]) < 0.2, -0.1, 1.0)
    operands.check_gradients(mt.selective_scan, plain.selective_scan, given, 1e-5)


@pytest.mark.parametrize("name", ["selective_scan", "ssd"])
def test_gradients_of_log_A(name, device):
    ours, exact, make = OPERATIONS[name]
    given = make(device)
    given["A"] = torch.log(-given["A"])
    operands.check_gradients(
        lambda A, **rest: ours(A=A, **rest, A_is_log=True),
        lambda A, **rest: exact(A=-torch.exp(A), **rest),
        given, 1e-5,
    )


@pytest.mark.parametrize("options", [{"dt_softplus": False}, {"dt_limit": (0.05, 0.3)}])
def test_gradients_of_ssd_with_options(options, device):
    given = operands.ssd(device)
    given["dt"], given["dt_bias"] = given["dt"].abs() * 0.1, given["dt_bias"].abs() * 0.1
    operands.check_gradients(mt.ssd, plain.ssd, given, 1e-5, **options)


@every
@pytest.mark.parametrize("dtype, bound", [(torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
def test_gradients_in_16_bits(name, dtype, bound, device):
    ours, exact, make = OPERATIONS[name]
    operands.check_gradients(ours, exact, make(device, dtype), bound)


@every
@pytest.mark.parametrize("batch, time", [(1, 1), (2, 0), (0, 3), (2, 1), (1, 131)])
def test_any_batch_and_time(name, batch, time, device):
    ours, exact, make = OPERATIONS[name]
    operands.check_gradients(ours, exact, make(device, batch=batch, time=time), 1e-5)


@every
def test_a_sequence_in_pieces_has_the_gradients_of_the_whole(name, device):
    ours, _, make = OPERATIONS[name]
    given = make(device)
    varies = [key for key in given if given[key].dim() > 2 and key != "initial_state"]
    whole, cut = operands.leaves(given), operands.leaves(given)
    y, state = ours(**whole, return_final_state=True)
    pieces, at = [], cut["initial_state"]
    for part in (slice(0, 11), slice(11, 12), slice(12, None)):
        arguments = {key: cut[key][:, part] if key in varies else cut[key] for key in cut}
        arguments["initial_state"] = at
        piece, at = ours(**arguments, return_final_state=True)
        pieces.append(piece)
    dy, dstate = torch.randn_like(y), torch.randn_like(state)
    torch.autograd.backward([y, state], [dy, dstate])
    torch.autograd.backward([torch.cat(pieces, 1), at], [dy, dstate])
    for key in given:
        operands.check_close(cut[key].grad, whole[key].grad.double(), 1e-5, "d" + key)


@every
def test_only_the_final_state_or_only_y(name, device):
    ours, exact, make = OPERATIONS[name]
    for chosen in (0, 1):
        mine, double = operands.leaves(make(device)), None
        double = operands.doubles(mine)
        ours(**mine, return_final_state=True)[chosen].sum().backward()
        exact(**double)[chosen].sum().backward()
        for key in mine:
            if mine[key].grad is None or double[key].grad is None:
                assert double[key].grad is None or not double[key].grad.any()
                continue
            operands.check_close(mine[key].grad, double[key].grad, 1e-5, "d" + key)


@every
def test_a_reset_stops_nan(name, device):
    ours, _, make = OPERATIONS[name]
    given = make(device)
    given["initial_state"].fill_(float("nan"))
    reset = torch.tensor([True, True], device=device)
    y, state = ours(**operands.leaves(given), reset=reset, return_final_state=True)
    assert y.isfinite().all() and state.isfinite().all()
    given["initial_state"] = torch.zeros_like(given["initial_state"])
    assert torch.equal(y, ours(**given))


@every
def test_resets_of_a_row_are_resets_at_the_first_step(name, device):
    ours, _, make = OPERATIONS[name]
    given = make(device)
    rows = torch.tensor([0, 1], dtype=torch.int32, device=device)
    steps = torch.zeros(2, 37, dtype=torch.bool, device=device)
    steps[1, 0] = True
    assert torch.equal(ours(**given, reset=rows), ours(**given, reset=steps))


@every
def test_time_before_batch_and_slices_are_read_in_place(name, device):
    ours, _, make = OPERATIONS[name]
    given = make(device)
    expected = ours(**given)
    strided = {}
    for key, value in given.items():
        if value.dim() > 2 and key != "initial_state":
            wide = torch.zeros(value.shape[1], value.shape[0] + 1, *value.shape[2:-1],
                               value.shape[-1], device=device)
            wide[:, 1:] = value.transpose(0, 1)
            value = wide[:, 1:].transpose(0, 1)
            assert not value.is_contiguous()
        strided[key] = value
    assert torch.equal(ours(**strided), expected)
    mine, exact = operands.leaves(strided), operands.leaves(given)
    dy = torch.randn_like(expected)
    ours(**mine).backward(dy)
    ours(**exact).backward(dy)
    for key in given:
        operands.check_close(mine[key].grad, exact[key].grad.double(), 1e-6, "d" + key)


@every
def test_operands_that_are_expanded(name, device):
    ours, _, make = OPERATIONS[name]
    given = make(device)
    key = "weight" if name == "causal_conv1d" else "B"
    one = given[key][:1]
    given[key] = one.expand(given[key].shape)
    expected = dict(given, **{key: given[key].clone()})
    assert torch.equal(ours(**given), ours(**expected))


@every
def test_gradients_that_are_expanded(name, device):
    ours, exact, make = OPERATIONS[name]
    mine = operands.leaves(make(device))
    double = operands.doubles(mine)
    ours(**mine).sum().backward()
    exact(**double)[0].sum().backward()
    for key in mine:
        operands.check_close(mine[key].grad, double[key].grad, 1e-5, "d" + key)


@every
def test_gradients_of_any_strides(name, device):
    """Of what comes after the operation, which may turn its dimensions about."""
    ours, exact, make = OPERATIONS[name]
    mine = operands.leaves(make(device))
    double = operands.doubles(mine)
    y, y_exact = ours(**mine), exact(**double)[0]
    order = [*range(y.dim())][::-1]
    weights = torch.randn_like(y.permute(order).contiguous())
    (y.permute(order) * weights).sum().backward()
    (y_exact.permute(order) * weights.double()).sum().backward()
    for key in mine:
        operands.check_close(mine[key].grad, double[key].grad, 1e-5, "d" + key)


@every
def test_the_same_bits_twice(name, device):
    ours, _, make = OPERATIONS[name]
    given = make(device, batch=3, time=200)
    runs = []
    for _ in range(2):
        mine = operands.leaves(given)
        y, state = ours(**mine, return_final_state=True)
        (y.sum() + state.sum()).backward()
        runs.append([y, state, *(value.grad for value in mine.values())])
    for a, b in zip(*runs):
        assert torch.equal(a, b)


@every
def test_in_a_stream_of_its_own(name, device):
    if device == "cpu":
        pytest.skip("a CPU has no streams")
    ours, _, make = OPERATIONS[name]
    given = make(device)
    expected = ours(**given)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what comes too early would read what is not yet written
        late = {key: value.clone() for key, value in given.items()}
        y = ours(**late)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(y, expected)


@every
def test_in_a_graph(name, device):
    if device == "cpu":
        pytest.skip("CUDA graphs")
    ours, _, make = OPERATIONS[name]
    given = make(device)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        ours(**given)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        y = ours(**given)
    first(given).copy_(torch.randn_like(first(given)))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(y, ours(**given))


# ---- what cannot be ------------------------------------------------------------------------------


@every
def test_channels_that_are_not_contiguous(name, device):
    ours, _, make = OPERATIONS[name]
    given = make(device)
    key = next(iter(given))
    given[key] = given[key].transpose(1, -1).contiguous().transpose(1, -1)
    with pytest.raises(ValueError, match=r"expected .*contiguous.*, got shape \[2, 37"):
        ours(**given)


WRONG = [
    ("u", lambda v: v[0], r"u: expected \[batch, time, channels\], got \[37, 24\]"),
    ("delta", lambda v: v[:, 1:], r"delta: expected \[2, 37, 24\], got \[2, 36, 24\]"),
    ("A", lambda v: v[1:], r"A: expected \[24, 16\], got \[23, 16\]"),
    ("A", lambda v: v.to(torch.complex64), "A: expected f32, bf16, f16 or i32, got complex64"),
    ("B", lambda v: v[..., :-1], r"B: expected \[2, 37, 16\], got \[2, 37, 15\]"),
    ("C", lambda v: v.double(), "C: expected f32, bf16, f16 or i32, got float64"),
    ("D", lambda v: v.half(), "D: expected f32, got f16"),
    ("z", lambda v: v.bfloat16(), "z: expected f32, got bf16"),
    ("delta_bias", lambda v: v[1:], r"delta_bias: expected \[24\], got \[23\]"),
    ("initial_state", lambda v: v[:1], r"initial_state: expected \[2, 24, 16\], got \[1, 24, 16\]"),
]


@pytest.mark.parametrize("key, change, message", WRONG)
def test_a_wrong_operand_of_a_scan(key, change, message, device):
    given = operands.scan(device)
    given[key] = change(given[key])
    with pytest.raises(ValueError, match=message):
        mt.selective_scan(**given)


def test_a_wrong_reset(device):
    given = operands.scan(device)
    with pytest.raises(ValueError, match="reset: expected bool or int32, got torch.float32"):
        mt.selective_scan(**given, reset=torch.zeros(2, 37, device=device))
    with pytest.raises(ValueError, match=r"reset: expected \[2, 37\] or \[2\], got \[37\]"):
        mt.selective_scan(**given, reset=torch.zeros(37, dtype=torch.bool, device=device))


def test_a_wrong_activation(device):
    with pytest.raises(ValueError, match="activation: expected None, 'silu' or 'swish', got 'relu'"):
        mt.causal_conv1d(**operands.conv(device), activation="relu")


def test_parameters_and_states_may_have_any_strides(device):
    given = operands.scan(device)
    expected = mt.selective_scan(**given)
    for key in ("A", "initial_state"):
        given[key] = given[key].transpose(-1, -2).contiguous().transpose(-1, -2)
    given["D"] = torch.stack([given["D"]] * 2, 1)[:, 0]
    mine, exact = operands.leaves(given), operands.doubles(given)
    y = mt.selective_scan(**mine)
    assert torch.equal(y, expected)
    y.sum().backward()
    plain.selective_scan(**exact)[0].sum().backward()
    for key in given:
        operands.check_close(mine[key].grad, exact[key].grad, 1e-5, "d" + key)


def test_operands_of_two_devices(device):
    if device == "cpu":
        pytest.skip("one device")
    given = operands.scan(device)
    given["A"] = given["A"].cpu()
    with pytest.raises(ValueError, match="A: expected cuda:0, got cpu"):
        mt.selective_scan(**given)


def test_after_an_error_all_is_as_it_was(device):
    given = operands.scan(device)
    before = mt.selective_scan(**given)
    with pytest.raises(ValueError):
        mt.selective_scan(**dict(given, B=given["B"][..., 1:]))
    assert torch.equal(mt.selective_scan(**given), before)


@every
def test_a_gradient_of_a_gradient_is_refused(name, device):
    ours, _, make = OPERATIONS[name]
    mine = operands.leaves(make(device))
    x = first(mine)
    (dx,) = torch.autograd.grad(ours(**mine).square().sum(), [x], create_graph=True)
    with pytest.raises(RuntimeError):
        dx.sum().backward()


def test_an_operand_that_was_changed_before_backward(device):
    mine = operands.leaves(operands.scan(device))
    u = mine["u"] * 1
    y = mt.selective_scan(**dict(mine, u=u))
    with torch.no_grad():
        u.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
