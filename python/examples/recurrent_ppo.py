"""PPO with a Mamba as the agent's memory: the inner loop of it, on a task that needs one.

The agent sees a cue, +1 or -1, at the first step of an episode, then noise; at the last step it is paid
for the action that names the cue. Episodes begin and end at any step of a rollout, so that the resets lie
within the sequences: one call of the layer reads a whole rollout of all environments.

    python recurrent_ppo.py
"""

import argparse

import torch
from torch import nn
from torch.distributions import Categorical

from mamba_cpp.torch import Mamba


class Agent(nn.Module):
    def __init__(self, d_model: int = 32) -> None:
        super().__init__()
        self.encode = nn.Linear(2, d_model)
        self.memory = Mamba(d_model)
        self.norm = nn.LayerNorm(d_model)
        self.policy, self.value = nn.Linear(d_model, 2), nn.Linear(d_model, 1)

    def forward(self, seen, state, done):
        """seen [batch, time, 2], done [batch, time]: a new episode begins at that step."""
        x = self.encode(seen)
        y, state = self.memory(x, state, reset=done)
        y = self.norm(x + y)
        return Categorical(logits=self.policy(y)), self.value(y).squeeze(-1), state


class Cues:
    """Environments side by side, each at its own step of its episode."""

    def __init__(self, count: int, length: int, device: str) -> None:
        self.count, self.length, self.device = count, length, device
        self.at = torch.randint(length, (count,), device=device)
        self.cue = torch.randint(2, (count,), device=device)

    def see(self):
        """-> what is seen [count, 2] and whether an episode begins [count]."""
        begins = self.at == 0
        shown = torch.where(begins, 2.0 * self.cue - 1, 0.0)
        last = (self.at == self.length - 1).float()
        return torch.stack([shown, last], -1), begins

    def act(self, action):
        ends = self.at == self.length - 1
        reward = torch.where(ends, (action == self.cue).float(), 0.0)
        self.at = (self.at + 1) % self.length
        self.cue = torch.where(ends, torch.randint(2, (self.count,), device=self.device), self.cue)
        return reward, ends


@torch.no_grad()
def rollout(agent, cues, state, steps):
    """A step at a time; the state of each environment goes on into the next rollout."""
    kept = {name: [] for name in ("seen", "begins", "action", "log_prob", "value", "reward", "ends")}
    for _ in range(steps):
        seen, begins = cues.see()
        policy, value, state = agent(seen[:, None], state, begins)
        action = policy.sample()
        reward, ends = cues.act(action[:, 0])
        for name, one in zip(kept, (seen, begins, action[:, 0], policy.log_prob(action)[:, 0],
                                    value[:, 0], reward, ends)):
            kept[name].append(one)
    seen, begins = cues.see()
    after = agent(seen[:, None], state, begins)[1][:, 0]
    return {name: torch.stack(values, 1) for name, values in kept.items()}, after, state


def advantages(kept, after, discount=0.99, smoothing=0.95):
    values = torch.cat([kept["value"], after[:, None]], 1)
    goes_on = 1 - kept["ends"].float()
    last, result = torch.zeros_like(after), torch.zeros_like(kept["value"])
    for t in range(result.shape[1] - 1, -1, -1):
        delta = kept["reward"][:, t] + discount * values[:, t + 1] * goes_on[:, t] - values[:, t]
        result[:, t] = last = delta + discount * smoothing * goes_on[:, t] * last
    return result


def train(updates, environments, steps, length, device, seed=0):
    """-> the share of episodes that were solved in the last ten updates; guessing has a half."""
    torch.manual_seed(seed)
    agent, cues = Agent().to(device), Cues(environments, length, device)
    optimizer = torch.optim.Adam(agent.parameters(), 3e-3)
    state, solved = agent.memory.make_state(environments), []
    for update in range(updates):
        before = state  # the rollout began here; a state is a value, so it is still there
        kept, after, state = rollout(agent, cues, state, steps)
        advantage = advantages(kept, after)
        target = advantage + kept["value"]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        for _ in range(4):
            # The whole rollout in one call, from the state that it began with, resets within it.
            policy, value, _ = agent(kept["seen"], before, kept["begins"])
            ratio = torch.exp(policy.log_prob(kept["action"]) - kept["log_prob"])
            gain = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage).mean()
            loss = -gain + 0.5 * (value - target).square().mean() - 0.01 * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()
        solved.append(float(kept["reward"].sum() / kept["ends"].sum().clamp(min=1)))
        if update % 10 == 0:
            print(f"update {update}  solved {solved[-1]:.2f}")
    return sum(solved[-10:]) / len(solved[-10:])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=100)
    parser.add_argument("--environments", type=int, default=64)
    parser.add_argument("--steps", type=int, default=32)
    parser.add_argument("--length", type=int, default=10)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    print(f"solved {train(**vars(parser.parse_args())):.2f}")
