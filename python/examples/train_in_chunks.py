"""Trains a layer on sequences longer than memory, chunk by chunk, its state handed on from one to the next.

The task: say again the symbol that came `delay` steps ago. With `--chunk` shorter than the delay the
gradient has to pass from one chunk to the one before, through the state; `--cut` stops it at every
boundary, as truncated backpropagation does, and what is to be remembered is then found by luck only.

    python train_in_chunks.py            the gradient flows through `--chunks` chunks
    python train_in_chunks.py --cut      it is cut between them
"""

import argparse

import torch
from torch import nn

from mamba_cpp.torch import Mamba


class Repeat(nn.Module):
    def __init__(self, symbols: int, d_model: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(symbols, d_model)
        self.layer = Mamba(d_model)
        self.norm = nn.LayerNorm(d_model)
        self.head = nn.Linear(d_model, symbols)

    def forward(self, symbols, state):
        x = self.embedding(symbols)
        y, state = self.layer(x, state)
        return self.head(self.norm(x + y)), state


def train(steps, batch, chunk, chunks, delay, cut, device, symbols=4, d_model=32, seed=0):
    """-> the loss of the last step, per symbol; guessing has log(symbols)."""
    torch.manual_seed(seed)
    model = Repeat(symbols, d_model).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    for step in range(steps):
        data = torch.randint(symbols, (batch, chunk * chunks), device=device)
        wanted = torch.roll(data, delay, 1)
        state = model.layer.make_state(batch)
        total = torch.zeros((), device=device)
        for first in range(0, chunk * chunks, chunk):
            part = slice(first, first + chunk)
            logits, state = model(data[:, part], state)
            known = torch.arange(first, first + chunk, device=device) >= delay
            total = total + nn.functional.cross_entropy(
                logits[:, known].flatten(0, 1), wanted[:, part][:, known].flatten(), reduction="sum"
            )
            if cut:
                state = state.detach()
        loss = total / (batch * (chunk * chunks - delay))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}  loss {loss.item():.3f}")
    return loss.item()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=4)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--delay", type=int, default=6)
    parser.add_argument("--cut", action="store_true")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    print(f"loss {train(**vars(parser.parse_args())):.3f}")
