"""MambaInferenceState as a value, and the states that mamba_ssm keeps."""

import copy
import io
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch.utils import _pytree as pytree

import mamba_cpp.torch as mt
from mamba_cpp.torch import MambaInferenceState


def random_state(batch=2, channels=6, width=3, d_state=4):
    return MambaInferenceState(torch.randn(batch, channels, width), torch.randn(batch, channels, d_state))


def same(a, b):
    return torch.equal(a.conv_state, b.conv_state) and torch.equal(a.ssm_state, b.ssm_state)


@pytest.mark.parametrize("weights_only", [True, False])
def test_saved_and_loaded(weights_only):
    state, file = random_state(), io.BytesIO()
    torch.save({"step": 3, "states": [state, state.clone()]}, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=weights_only)
    assert same(loaded["states"][0], state) and same(loaded["states"][1], state)


def test_pickled_and_copied():
    state = random_state()
    assert same(pickle.loads(pickle.dumps(state)), state)
    copied = copy.deepcopy(state)
    assert same(copied, state) and copied.ssm_state.data_ptr() != state.ssm_state.data_ptr()


def test_moved():
    state = random_state().to("cpu", torch.bfloat16)
    assert state.conv_state.dtype == torch.bfloat16 and state.ssm_state.dtype == torch.float32
    assert state.to(device="meta").ssm_state.is_meta
    assert state.to("cpu").conv_state is state.conv_state


def test_cloned_and_detached():
    state = MambaInferenceState(*(v.requires_grad_() for v in pytree.tree_leaves(random_state())))
    clone, detached = state.clone(), state.detach()
    assert clone.ssm_state.requires_grad and clone.ssm_state.data_ptr() != state.ssm_state.data_ptr()
    assert not detached.ssm_state.requires_grad
    assert detached.ssm_state.data_ptr() == state.ssm_state.data_ptr()


def test_rows_and_resets():
    state = random_state(batch=3)
    assert state[1].conv_state.shape == (1, 6, 3) and state[-1].ssm_state.equal(state.ssm_state[2:])
    assert same(state[[2, 0]], MambaInferenceState(state.conv_state[[2, 0]], state.ssm_state[[2, 0]]))
    state.ssm_state[1] = float("nan")
    fresh = state.reset(torch.tensor([False, True, False]))
    assert not fresh.ssm_state[1].any() and fresh.ssm_state[0].equal(state.ssm_state[0])


def test_a_pytree():
    state = random_state()
    leaves, form = pytree.tree_flatten(state)
    assert len(leaves) == 2 and same(pytree.tree_unflatten(leaves, form), state)
    doubled = pytree.tree_map(lambda v: 2 * v, [state])[0]
    assert torch.equal(doubled.ssm_state, 2 * state.ssm_state)
    names = [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(state)[0]]
    assert names == [".conv_state", ".ssm_state"]


def test_gradients_by_torch_func():
    layer = mt.Mamba(8, d_state=4)
    x = torch.randn(2, 3, 8)
    gradient = torch.func.grad(lambda state: layer(x, state)[0].sum())(layer.make_state(2))
    assert gradient.ssm_state.abs().sum() > 0


LAYERS = [
    lambda: mt.Mamba(8, d_state=4, layer_idx=2),
    lambda: mt.Mamba2(8, d_state=4, headdim=4, layer_idx=2),
]


def parameters_of_inference():
    return SimpleNamespace(key_value_memory_dict={})


@pytest.mark.parametrize("make", LAYERS)
def test_to_and_from_mamba_ssms_parameters_of_inference(make):
    layer, params = make(), parameters_of_inference()
    assert layer.get_inference_state(params) is None
    layer.zero_inference_state(params)
    _, state = layer(torch.randn(2, 5, 8), None)
    state = state.detach()
    layer.set_inference_state(state, params)
    conv, ssm = params.key_value_memory_dict[2]
    assert conv.shape == (2, layer.conv_channels, 4) and torch.equal(conv[:, :, 1:], state.conv_state)
    got = layer.get_inference_state(params)
    assert same(got, state) and got.ssm_state.data_ptr() != ssm.data_ptr()

    other = state.clone()
    other.ssm_state.fill_(3.0)
    layer.set_inference_state(other, params)  # in place
    assert params.key_value_memory_dict[2][1] is ssm and bool((ssm == 3).all())
    layer.zero_inference_state(params, torch.tensor([True, False]))
    assert not ssm[0].any() and bool((ssm[1] == 3).all()) and not conv[0].any() and conv[1].any()
    layer.zero_inference_state(params)
    assert not ssm.any() and not conv.any()


@pytest.mark.parametrize("make", LAYERS)
def test_states_of_another_shape_are_refused_by_both_shapes(make):
    layer, params = make(), parameters_of_inference()
    layer.set_inference_state(layer.make_state(2), params)
    with pytest.raises(ValueError, match=r"expected conv_state \[2, .*, 4\].*, got \[3, .*, 4\] and \[3, "):
        layer.set_inference_state(layer.make_state(3), params)
    with pytest.raises(ValueError, match=r"state: expected conv_state \[2, .*, got \[2, 6, 3\] and \[2, 6, 4\]"):
        layer.set_inference_state(random_state(), params)
    params.key_value_memory_dict[2] = (torch.zeros(2, 6, 4), torch.zeros(2, 6, 4))
    with pytest.raises(ValueError, match=r"state: expected conv_state \[2, .*, got \[2, 6, 3\] and \[2, 6, 4\]"):
        layer.get_inference_state(params)
    with pytest.raises(ValueError, match=r"rows: expected \[2\], got \[3\]"):
        layer.zero_inference_state(params, torch.zeros(3, dtype=torch.bool))
    layer.layer_idx = None
    with pytest.raises(ValueError, match="layer_idx: expected a number"):
        layer.get_inference_state(params)
