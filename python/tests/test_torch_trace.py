"""What traces sees the operations: torch.compile, opcheck, export, autocast, modes and transforms."""

import pytest
import torch

import mamba_cpp.torch as mt
import operands

OPERATIONS = {
    "causal_conv1d": (mt.causal_conv1d, operands.conv),
    "selective_scan": (mt.selective_scan, operands.scan),
    "ssd": (mt.ssd, operands.ssd),
}
every = pytest.mark.parametrize("name", OPERATIONS)


def operator_arguments(name, given, reset, keep):
    """Of the operator behind it."""
    given = operands.leaves(given) if keep else dict(given)
    if name == "ssd":
        given["A"] = torch.log(-given["A"]).detach().requires_grad_(keep)
    options = {"causal_conv1d": (True,), "selective_scan": (True, False), "ssd": (True, 0.0, float("inf"))}
    return (*given.values(), reset, *options[name], keep)


@every
@pytest.mark.parametrize("with_resets", [False, True])
@pytest.mark.parametrize("keep", [False, True])
def test_opcheck(name, with_resets, keep, device):
    make = OPERATIONS[name][1]
    reset = operands.resets(device) if with_resets else None
    operator = getattr(torch.ops.mamba_cpp, name).default
    torch.library.opcheck(operator, operator_arguments(name, make(device), reset, keep))


@every
def test_opcheck_of_the_gradient(name, device):
    make = OPERATIONS[name][1]
    arguments = operator_arguments(name, make(device), None, True)
    y, state, kept = (v.detach() for v in getattr(torch.ops.mamba_cpp, name)(*arguments))
    backward = getattr(torch.ops.mamba_cpp, name + "_backward").default
    given = [v.detach() if isinstance(v, torch.Tensor) else v for v in arguments[:-1]]
    for dstate in (torch.randn_like(state), None):
        torch.library.opcheck(backward, (*given, kept, torch.randn_like(y), dstate))


@every
def test_compiled_without_graph_breaks(name, device):
    ours, make = OPERATIONS[name]

    def step(given, reset):
        y, state = ours(**given, reset=reset, return_final_state=True)
        return (y * 2).sum() + state.square().sum()

    given, reset = make(device), operands.resets(device)
    plain, compiled = operands.leaves(given), operands.leaves(given)
    expected = step(plain, reset)
    expected.backward()
    got = torch.compile(step, fullgraph=True)(compiled, reset)
    got.backward()
    operands.check_close(got, expected.double(), 1e-6)
    for key in given:
        operands.check_close(compiled[key].grad, plain[key].grad.double(), 1e-5, "d" + key)


def test_compiled_for_any_time(device):
    def step(given):
        return mt.selective_scan(**given, return_final_state=True)

    compiled = torch.compile(step, fullgraph=True, dynamic=True)
    for time in (5, 40, 77):
        given = operands.scan(device, time=time)
        for got, expected in zip(compiled(given), step(given)):
            operands.check_close(got, expected.double(), 1e-6)


def test_compiled_columns_of_a_projection(device):
    """The compiler may lay out what it makes; the operator still gets contiguous channels."""
    project = torch.nn.Linear(8, 3 * 24, device=device)
    given = operands.scan(device)

    def step(x):
        u, delta, z = project(x).chunk(3, -1)
        return mt.selective_scan(**{**given, "u": u, "delta": delta, "z": z})

    x = torch.randn(2, 37, 8, device=device)
    operands.check_close(torch.compile(step, fullgraph=True)(x), step(x).double(), 1e-5)


@every
def test_exported(name, device):
    ours, make = OPERATIONS[name]

    class Module(torch.nn.Module):
        def forward(self, **given):
            return ours(**given)

    given = make(device)
    program = torch.export.export(Module(), (), given)
    assert torch.equal(program.module()(**given), ours(**given))


@every
def test_autocast_takes_activations_in_its_dtype_and_the_rest_in_f32(name, device):
    ours, make = OPERATIONS[name]
    given = make(device)
    low = make(device, torch.bfloat16)
    with torch.autocast(device, torch.bfloat16):
        y, state = ours(**given, return_final_state=True)
    as_asked = {
        key: value.to(low[key].dtype) if low[key].dtype == torch.bfloat16 else value
        for key, value in given.items()
    }
    y_asked, state_asked = ours(**as_asked, return_final_state=True)
    assert y.dtype == torch.bfloat16 and torch.equal(y, y_asked)
    assert state.dtype == state_asked.dtype and torch.equal(state, state_asked)


@every
def test_autocast_of_parameters_in_16_bits_and_their_gradients(name, device):
    ours, make = OPERATIONS[name]
    given = {key: value.bfloat16() for key, value in make(device).items()}
    mine = operands.leaves(given)
    with torch.autocast(device, torch.bfloat16):
        y = ours(**mine)
    y.sum().backward()
    assert all(value.grad.dtype == torch.bfloat16 for value in mine.values())


@every
def test_autocast_compiled(name, device):
    ours, make = OPERATIONS[name]
    given = make(device)

    def step():
        with torch.autocast(device, torch.bfloat16):
            return ours(**given)

    operands.check_close(torch.compile(step, fullgraph=True)(), step().double(), 1e-2)


@every
def test_a_mode_of_dispatch_sees_the_operator(name, device):
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class See(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(str(func))
            return func(*args, **(kwargs or {}))

    ours, make = OPERATIONS[name]
    given = operands.leaves(make(device))
    expected = ours(**given)
    with See():
        y = ours(**given)
        y.sum().backward()
    assert torch.equal(y, expected)
    assert f"mamba_cpp.{name}.default" in seen and f"mamba_cpp.{name}_backward.default" in seen


@every
def test_fake_tensors(name, device):
    from torch._subclasses.fake_tensor import FakeTensorMode

    ours, make = OPERATIONS[name]
    with FakeTensorMode() as mode:
        given = {key: mode.from_tensor(value) for key, value in make("cpu").items()}
        y = ours(**given)
    assert y.shape == next(iter(given.values())).shape


@every
def test_gradients_by_torch_func(name, device):
    ours, make = OPERATIONS[name]
    given = make(device)
    mine = operands.leaves(given)
    ours(**mine).sum().backward()
    gradients = torch.func.grad(lambda operands_: ours(**operands_).sum())(given)
    for key in given:
        operands.check_close(gradients[key], mine[key].grad.double(), 1e-6, "d" + key)


@every
def test_activation_checkpoints(name, device):
    from torch.utils.checkpoint import checkpoint

    ours, make = OPERATIONS[name]
    given = make(device)
    mine, again = operands.leaves(given), operands.leaves(given)
    ours(**mine).sum().backward()
    checkpoint(lambda: ours(**again), use_reentrant=False).sum().backward()
    for key in given:
        assert torch.equal(mine[key].grad, again[key].grad)
