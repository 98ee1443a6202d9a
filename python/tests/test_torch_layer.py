"""The library's own layer within the modules: when it runs, that it gives what their operations give, and what
autograd asks of an operation: versions, second ways back, frozen parameters, memory."""

import copy
import pickle
import threading

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import mamba_cpp.torch as mt
import operands
from mamba_cpp.torch import MambaInferenceState, _layer
from mamba_cpp.torch.state import StateOfLayer
from test_torch_memory import growth
from test_torch_modules import LAYERS

every = pytest.mark.parametrize("kind", LAYERS)


@pytest.fixture
def runs(monkeypatch):
    """A list that gets an entry whenever the library's own layer runs."""
    seen = []
    inner = _layer._forward

    def see(*args):
        seen.append(args)
        return inner(*args)

    monkeypatch.setattr(_layer, "_forward", see)
    return seen


def of_operations(monkeypatch, call):
    """What `call` gives where layers are made of operations."""
    with monkeypatch.context() as patched:
        patched.setattr(StateOfLayer, "_at_once", lambda *_: None)
        return call()


def given_state(layer, batch=2, requires_grad=True):
    state = layer.make_state(batch)
    return MambaInferenceState(
        torch.randn_like(state.conv_state).requires_grad_(requires_grad),
        torch.randn_like(state.ssm_state).requires_grad_(requires_grad),
    )


def everything(layer, x, state, reset):
    """Outputs and all gradients of one run, which ends in gradients of all its outputs."""
    leaves = [v.detach().clone().requires_grad_() for v in (x, state.conv_state, state.ssm_state)]
    layer.zero_grad(set_to_none=True)
    y, after = layer(leaves[0], MambaInferenceState(*leaves[1:]), reset=reset)
    outs = [y, after.conv_state, after.ssm_state]
    torch.manual_seed(1)
    torch.autograd.backward(outs, [torch.randn_like(v) for v in outs])
    found = dict(zip(("y", "conv", "ssm"), outs))
    found.update(zip(("dx", "dconv", "dssm"), [v.grad for v in leaves]))
    found.update({name: p.grad for name, p in layer.named_parameters()})
    return found


@every
@pytest.mark.parametrize("options", [{}, {"bias": True}, {"conv_bias": False}, {"d_conv": 1}])
@pytest.mark.parametrize("dtype, bound", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_what_the_operations_give(kind, options, dtype, bound, device, runs, monkeypatch):
    layer = LAYERS[kind](device, **options).to(dtype)
    x = torch.randn(2, 21, 32, device=device).to(dtype)
    state, reset = given_state(layer), operands.resets(device, time=21)
    mine = everything(layer, x, state, reset)
    assert len(runs) == 1
    expected = of_operations(monkeypatch, lambda: everything(layer, x, state, reset))
    assert len(runs) == 1
    for name, value in expected.items():
        assert mine[name].dtype == value.dtype and mine[name].shape == value.shape, name
        operands.check_close(mine[name], value.double(), bound, name)


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast_what_the_operations_give(kind, dtype, device, runs, monkeypatch):
    layer = LAYERS[kind](device, bias=True).to(dtype)
    x = torch.randn(2, 21, 32, device=device)
    state = given_state(layer)

    def call():
        with torch.autocast(device, torch.bfloat16):
            return everything(layer, x, state, None)

    mine = call()
    assert len(runs) == 1
    expected = of_operations(monkeypatch, call)
    assert mine["y"].dtype == mine["conv"].dtype == torch.bfloat16 and mine["ssm"].dtype == torch.float32
    for name, value in expected.items():
        assert mine[name].dtype == value.dtype, name
        operands.check_close(mine[name], value.double(), 4e-2, name)


@every
@pytest.mark.parametrize("call", ["y", "fresh", "no gradient"])
def test_forms_of_a_call(kind, call, device, runs, monkeypatch):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 9, 32, device=device)

    def forward():
        if call == "y":
            return [layer(x)]
        if call == "fresh":
            y, state = layer(x, None)
        else:
            with torch.no_grad():
                y, state = layer(x, given_state(layer))
        return [y, state.conv_state, state.ssm_state]

    torch.manual_seed(2)
    mine = forward()
    assert len(runs) == 1
    torch.manual_seed(2)
    for got, expected in zip(mine, of_operations(monkeypatch, forward)):
        operands.check_close(got, expected.double(), 1e-5)
        assert got.requires_grad == expected.requires_grad


def replaced(layer):
    class Other(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    layer.out_proj = Other(64, 32, bias=False)


def parametrised(layer):
    torch.nn.utils.parametrizations.weight_norm(layer.in_proj)


def old_weight_norm(layer):
    torch.nn.utils.weight_norm(layer.in_proj)


def hooked(layer):
    layer.out_proj.register_forward_hook(lambda module, args, y: 2 * y)


def hooked_before(layer):
    layer.in_proj.register_forward_pre_hook(lambda module, args: (2 * args[0],))


def hooked_backward(layer):
    layer.in_proj.register_full_backward_hook(lambda module, dx, dy: None)


def own_forward(layer):
    inner = layer.out_proj.forward
    layer.out_proj.forward = lambda x: 2 * inner(x)


def other_dtype(layer):
    layer.D.data = layer.D.data.double()


@every
@pytest.mark.parametrize("change", [
    replaced, parametrised, old_weight_norm, hooked, hooked_before, hooked_backward, own_forward, other_dtype])
def test_a_changed_layer_is_made_of_its_parts(kind, change, runs):
    layer = LAYERS[kind]("cpu")
    change(layer)
    try:
        layer(torch.randn(2, 5, 32))
    except ValueError as refused:
        assert change is other_dtype or "float64" in str(refused)
    assert runs == []


@every
def test_a_hook_on_every_module_sees_the_parts(kind, runs):
    layer, seen = LAYERS[kind]("cpu"), []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, *_: seen.append(module))
    try:
        layer(torch.randn(2, 5, 32))
    finally:
        handle.remove()
    assert layer.in_proj in seen and runs == []


@every
def test_transforms_and_modes_see_the_operations(kind, device, runs):
    from torch.utils._python_dispatch import TorchDispatchMode

    class See(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    layer = LAYERS[kind](device)
    x = torch.randn(2, 5, 32, device=device)
    with See():
        layer(x)
    parameters = dict(layer.named_parameters())
    gradients = torch.func.grad(
        lambda weights: torch.func.functional_call(layer, weights, (x,)).sum())(parameters)
    assert runs == []
    layer(x).sum().backward()
    assert len(runs) == 1
    for name, parameter in parameters.items():
        operands.check_close(gradients[name], parameter.grad.double(), 1e-5, name)


@every
def test_mixed_dtypes_are_pytorchs_error(kind, runs):
    with pytest.raises(RuntimeError):
        LAYERS[kind]("cpu", dtype=torch.bfloat16)(torch.randn(2, 5, 32))
    assert runs == []


@every
def test_x_of_any_strides(kind, device, runs):
    layer = LAYERS[kind](device)
    x = torch.randn(32, 9, 2, device=device)
    operands.check_close(layer(x.permute(2, 1, 0)), layer(x.permute(2, 1, 0).contiguous()).double(), 1e-6)
    time_first = torch.randn(9, 2, 32, device=device).transpose(0, 1)
    operands.check_close(layer(time_first), layer(time_first.contiguous()).double(), 1e-6)
    assert len(runs) == 4


@every
def test_frozen_parameters_have_no_gradient(kind, device, runs):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 9, 32, device=device)
    layer(x).square().sum().backward()
    expected = {name: p.grad.clone() for name, p in layer.named_parameters()}
    for alone in expected:
        layer.zero_grad(set_to_none=True)
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name == alone)
        layer(x).square().sum().backward()
        for name, parameter in layer.named_parameters():
            if name == alone:
                operands.check_close(parameter.grad, expected[name].double(), 1e-6, name)
            else:
                assert parameter.grad is None
    layer.requires_grad_(False)
    leaf = x.clone().requires_grad_()
    layer(leaf).sum().backward()
    assert leaf.grad.abs().sum() > 0
    assert len(runs) == len(expected) + 2 and not layer(x).requires_grad


@every
def test_gradients_that_nobody_wants_are_not_computed(kind, device, monkeypatch):
    asked = []
    inner = _layer._core

    class Core:
        def __getattr__(self, name):
            return getattr(inner, name)

        def layer_grad(self, *args):
            asked.append(args)
            return inner.layer_grad(*args)

    monkeypatch.setattr(_layer, "_core", Core())
    layer = LAYERS[kind](device)
    layer.requires_grad_(False)
    layer.out_proj.weight.requires_grad_()
    layer(torch.randn(2, 9, 32, device=device)).sum().backward()
    dconv, dssm, dx, gradients = asked[0][7:11]
    assert dconv is None and dssm is None and dx is None
    assert [g is not None for g in gradients] == [False] * (len(gradients) - 1) + [True]


@every
def test_gradients_add_up(kind, device):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 9, 32, device=device)
    layer(x).sum().backward()
    once = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer(x).sum().backward()
    for name, parameter in layer.named_parameters():
        operands.check_close(parameter.grad, 2 * once[name].double(), 1e-6, name)


@every
def test_gradients_come_from_each_output_alone(kind, device, monkeypatch):
    layer = LAYERS[kind](device)
    state = given_state(layer)
    leaf = torch.randn(2, 9, 32, device=device, requires_grad=True)

    def gradients(of):
        y, after = layer(leaf, state)
        out = {"y": y, "conv": after.conv_state, "ssm": after.ssm_state}[of]
        wanted = [leaf, state.conv_state, state.ssm_state, layer.A_log]
        return torch.autograd.grad(out.sum(), wanted, allow_unused=True, materialize_grads=True)

    for of in ("y", "conv", "ssm"):
        for got, expected in zip(gradients(of), of_operations(monkeypatch, lambda: gradients(of))):
            operands.check_close(got, expected.double(), 1e-5, of)

    def of_a_fresh_state(of):
        after = layer(leaf, None)[1]
        out = {"conv": after.conv_state, "ssm": after.ssm_state}[of]
        return torch.autograd.grad(out.square().sum(), [leaf, layer.in_proj.weight])

    for of in ("conv", "ssm"):
        for got, expected in zip(of_a_fresh_state(of), of_operations(monkeypatch, lambda: of_a_fresh_state(of))):
            assert expected.abs().sum() > 0
            operands.check_close(got, expected.double(), 1e-5, of)


@every
def test_twice_through_one_graph(kind, device):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 9, 32, device=device, requires_grad=True)
    y = layer(x).sum()
    once = torch.autograd.grad(y, [x, layer.D], retain_graph=True)
    again = torch.autograd.grad(y, [x, layer.D])
    assert all(torch.equal(a, b) for a, b in zip(once, again))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        y.backward()


@every
def test_gradients_of_gradients_are_refused(kind, device):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 9, 32, device=device, requires_grad=True)
    dx, = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        dx.sum().backward()


@every
def test_what_is_changed_between_forward_and_backward_is_an_error(kind, device):
    layer = LAYERS[kind](device)
    for name, parameter in layer.named_parameters():
        y = layer(torch.randn(2, 9, 32, device=device))
        with torch.no_grad():
            parameter.mul_(1.5)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.sum().backward()
    x = torch.randn(2, 9, 32, device=device)
    y = layer(x)
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
    state = given_state(layer, requires_grad=False)
    y, _ = layer(torch.randn(2, 9, 32, device=device), state)
    state.conv_state.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@every
def test_changed_weights_are_seen(kind, device, runs):
    """In place, by another memory, and by another parameter."""
    layer = LAYERS[kind](device)
    x = torch.randn(2, 9, 32, device=device)
    y = layer(x)
    with torch.no_grad():
        layer.out_proj.weight.mul_(2)
    operands.check_close(layer(x), 2 * y.double(), 1e-6)
    layer.out_proj.weight.data = 2 * layer.out_proj.weight.data
    operands.check_close(layer(x), 4 * y.double(), 1e-6)
    layer.out_proj.weight = torch.nn.Parameter(2 * layer.out_proj.weight.data)
    operands.check_close(layer(x), 8 * y.double(), 1e-6)
    layer.out_proj.weight.data = layer.out_proj.weight.data.t().contiguous().t()  # other strides
    operands.check_close(layer(x), 8 * y.double(), 1e-6)
    layer.out_proj.weight.data = layer.out_proj.weight.data[:, 1:]
    with pytest.raises(ValueError, match=r"out_proj.weight: expected \[32, 64\], got \[32, 63\]"):
        layer(x)
    assert len(runs) == 6


@every
def test_copies_and_pickles(kind, device):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 9, 32, device=device)
    y = layer(x)
    assert torch.equal(copy.deepcopy(layer)(x), y)
    assert torch.equal(pickle.loads(pickle.dumps(layer))(x), y)


@every
@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpoints(kind, reentrant, device):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 9, 32, device=device)
    mine, again = x.clone().requires_grad_(), x.clone().requires_grad_()
    layer(mine).sum().backward()
    expected = layer.A_log.grad.clone()
    layer.zero_grad()
    checkpoint(layer, again, use_reentrant=reentrant).sum().backward()
    assert torch.equal(mine.grad, again.grad) and torch.equal(layer.A_log.grad, expected)


@every
def test_hooks_on_saved_tensors_see_all_that_is_kept(kind, device):
    layer = LAYERS[kind](device)
    x = torch.randn(2, 64, 32, device=device, requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t.cpu(), lambda t: t.to(device)):
        y = layer(x)
    assert sum(kept) > 10 * x.numel()
    y.sum().backward()
    expected, = torch.autograd.grad(layer(x).sum(), x)
    assert torch.equal(x.grad, expected)


@every
def test_many_calls_keep_nothing(kind, device):
    layer = LAYERS[kind](device)
    x = torch.randn(4, 64, 32, device=device, requires_grad=True)

    def call():
        y, state = layer(x, None)
        (y.sum() + state.ssm_state.sum()).backward()
        layer(x)  # whose graph goes without a backward

    assert growth(call, 600, device) < 4096


@every
def test_threads_share_a_layer(kind):
    layer = LAYERS[kind]("cpu")
    xs = [torch.randn(2, 33, 32) for _ in range(4)]
    expected = [torch.autograd.grad(layer(x).square().sum(), layer.D)[0] for x in xs]
    got = [None] * 4

    def work(i):
        for _ in range(20):
            got[i], = torch.autograd.grad(layer(xs[i]).square().sum(), layer.D)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for a, b in zip(got, expected):
        operands.check_close(a, b.double(), 1e-6)


@pytest.mark.parametrize("options", [{"D_has_hdim": True}, {"d_ssm": 32}])
def test_a_mamba2_that_the_library_has_not(options, device, runs):
    mt.Mamba2(32, d_state=16, headdim=16, device=device, **options)(torch.randn(2, 5, 32, device=device))
    assert runs == []


@every
def test_no_time_and_no_rows(kind, device):
    layer = LAYERS[kind](device)
    state = given_state(layer)
    y, after = layer(torch.randn(2, 0, 32, device=device), state)
    assert y.shape == (2, 0, 32) and torch.equal(after.ssm_state, state.ssm_state)
    assert layer(torch.randn(0, 3, 32, device=device)).shape == (0, 3, 32)
