"""Gradients through a state: in at the final one, out at the initial one."""
import torch
from mamba_cpp.torch import Mamba

from recipe import close

torch.manual_seed(1)
time = 12
layer = Mamba(d_model=8)
x = torch.randn(1, time, 8)


# [begin]
def gradient(piece):
    """Of the sum of y, with respect to the state that the sequence begins with."""
    initial = layer.make_state(batch=1)
    initial.ssm_state.requires_grad_()
    state, total = initial, 0
    for first in range(0, time, piece):
        y, state = layer(x[:, first : first + piece], state)  # state.detach() would cut here
        total = total + y.sum()
    return torch.autograd.grad(total, initial.ssm_state)[0]


whole = gradient(time)
assert close(whole.numpy(), gradient(4).numpy())
# [end]


def sum_from(step):
    state = layer.make_state(1)
    state.ssm_state += step * whole
    return layer(x, state)[0].sum().item()


# y is linear in the state; the slope along the gradient is its squared length.
squared = (whole**2).sum().item()
assert squared > 0 and abs((sum_from(1) - sum_from(-1)) / 2 / squared - 1) < 1e-3
