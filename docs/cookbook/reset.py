"""A batch of episodes, each of which ends when it ends."""
import torch
from mamba_cpp.torch import Mamba

from recipe import close

torch.manual_seed(1)
time = 10
layer = Mamba(d_model=8).requires_grad_(False)
x = torch.randn(2, time, 8)
# [begin]
# Two environments, ten steps. In the second an episode begins at step 6.
begins = torch.zeros(2, time, dtype=torch.bool)
begins[1, 6] = True
y, _ = layer(x, None, reset=begins)  # one call for all

# Step by step, as an agent acts: whose episode has ended is forgotten before the next step.
acting = layer.make_state(batch=2)
stepped = []
for t in range(time):
    ended = torch.tensor([False, t == 6])
    step, acting = layer(x[:, t : t + 1], acting.reset(ended))
    stepped.append(step)
assert close(y.numpy(), torch.cat(stepped, 1).numpy())
# [end]
assert close(layer(x[1:, 6:]).numpy(), y[1:, 6:].numpy())
assert close(layer(x[:1]).numpy(), y[:1].numpy())
assert not close(layer(x)[1, 6:].numpy(), y[1, 6:].numpy())
