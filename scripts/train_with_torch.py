#!/usr/bin/env python3
"""Trains the model of a folder as train-lm does, in plain PyTorch, and compares the losses.

    train-lm TEXT --out RUN --start MODEL --steps 1000 --time 256 ...
    scripts/train_with_torch.py TEXT MODEL RUN/metrics.jsonl --steps 1000 --time 256 ...

Same start weights, same order of the data, the state carried from step to step without its gradient.
The model is a loop over time; nothing is shared with the library. Prints both losses now and then, and at
the end the mean of the last hundred of each. TEXT is one file (one document).
"""
import argparse
import json
import math
from pathlib import Path

import torch
from safetensors.torch import load_file


def rms(x, eps):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + eps)


class Mamba(torch.nn.Module):
    def __init__(self, folder):
        super().__init__()
        self.c = json.loads((folder / "config.json").read_text())
        stored = load_file(folder / "model.safetensors")
        self.names = {name: name.replace(".", "_") for name in stored}
        for name, tensor in stored.items():
            self.register_parameter(self.names[name], torch.nn.Parameter(tensor.float().clone()))

    def w(self, name):
        return getattr(self, self.names[name])

    def state(self, batch):
        inner, layers = self.c["intermediate_size"], self.c["num_hidden_layers"]
        conv = torch.zeros(layers, batch, inner, self.c["conv_kernel"] - 1)
        return conv, torch.zeros(layers, batch, inner, self.c["state_size"])

    def layer(self, i, x, conv, ssm, reset):
        """x [batch, time, d_model]; states of the layer; y and the new states."""
        p = f"backbone.layers.{i}.mixer."
        inner, d_state, rank = self.c["intermediate_size"], self.c["state_size"], self.c["time_step_rank"]
        xz = x @ self.w(p + "in_proj.weight").T
        u, z = xz[..., :inner], xz[..., inner:]
        width = self.c["conv_kernel"]
        fresh = reset != 0
        document = fresh.cumsum(1)  # the carried inputs are of document 0
        inputs = torch.cat([conv.transpose(1, 2), u], 1)
        documents = torch.cat([torch.zeros(len(u), width - 1, dtype=document.dtype), document], 1)
        kernel, summed = self.w(p + "conv1d.weight")[:, 0, :], self.w(p + "conv1d.bias")
        for k in range(width):
            tap, of = inputs[:, k : k + u.shape[1]], documents[:, k : k + u.shape[1]]
            summed = summed + kernel[:, k] * torch.where((of == document)[..., None], tap, 0)
        behind = torch.where((documents == document[:, -1:])[..., None], inputs, 0)[:, u.shape[1] :]
        u = torch.nn.functional.silu(summed)
        low = u @ self.w(p + "x_proj.weight").T
        dt, b, c = low.split([rank, d_state, d_state], dim=-1)
        delta = torch.nn.functional.softplus(dt @ self.w(p + "dt_proj.weight").T + self.w(p + "dt_proj.bias"))
        decay = torch.exp(delta.unsqueeze(-1) * -torch.exp(self.w(p + "A_log")))
        added = (delta * u).unsqueeze(-1) * b.unsqueeze(2)
        decay = torch.where(fresh[..., None, None], 0, decay)
        states = []
        for decay_t, added_t in zip(decay.unbind(1), added.unbind(1)):
            ssm = torch.addcmul(added_t, decay_t, ssm)
            states.append(ssm)
        y = torch.einsum("btdn,btn->btd", torch.stack(states, 1), c)
        y = (y + self.w(p + "D") * u) * torch.nn.functional.silu(z)
        return y @ self.w(p + "out_proj.weight").T, behind.transpose(1, 2), ssm

    def forward(self, ids, conv, ssm, reset):
        eps = self.c["layer_norm_epsilon"]
        residual = self.w("backbone.embeddings.weight")[ids]
        convs, ssms = [], []
        for i in range(self.c["num_hidden_layers"]):
            normed = rms(residual, eps) * self.w(f"backbone.layers.{i}.norm.weight")
            y, a, b = self.layer(i, normed, conv[i], ssm[i], reset)
            residual = residual + y
            convs.append(a.detach())
            ssms.append(b.detach())
        hidden = rms(residual, eps) * self.w("backbone.norm_f.weight")
        return hidden @ self.w("backbone.embeddings.weight").T, torch.stack(convs), torch.stack(ssms)


def rate_at(step, f):
    if step < f.warmup:
        return f.rate * step / f.warmup
    if step >= f.steps:
        return f.last_rate
    done = (step - f.warmup) / (f.steps - f.warmup)
    return f.last_rate + (f.rate - f.last_rate) * 0.5 * (1 + math.cos(math.pi * done))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("text", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("metrics", type=Path)
    for name, default in [("steps", 1000), ("batch", 16), ("time", 256), ("warmup", 100)]:
        parser.add_argument(f"--{name}", type=int, default=default)
    for name, default in [("rate", 3e-3), ("last-rate", 3e-4), ("valid-share", 0.05)]:
        parser.add_argument(f"--{name}", type=float, default=default)
    f = parser.parse_args()
    torch.set_num_threads(1)  # the tensors are small

    data = f.text.read_bytes()
    data = torch.tensor(list(data[: int(len(data) * (1 - f.valid_share))]))
    size = len(data)
    positions = [size * b // f.batch for b in range(f.batch)]
    model = Mamba(f.model)
    decays = [p for n, p in model.named_parameters() if p.dim() == 2 and not n.endswith("A_log")]
    others = [p for n, p in model.named_parameters() if not (p.dim() == 2 and not n.endswith("A_log"))]
    optimizer = torch.optim.AdamW([{"params": decays, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                  betas=(0.9, 0.95), eps=1e-8)
    theirs = [json.loads(line) for line in f.metrics.read_text().splitlines()]
    theirs = {line["step"]: line["loss"] for line in theirs if "loss" in line}
    conv, ssm = model.state(f.batch)
    ours = {}
    for step in range(1, f.steps + 1):
        at = torch.tensor(positions)[:, None] + torch.arange(f.time)
        ids, targets = data[at % size], data[(at + 1) % size].clone()
        targets[(at + 1) % size == 0] = -100  # the end of the document
        positions = [(p + f.time) % size for p in positions]
        logits, conv, ssm = model(ids, conv, ssm, (at % size == 0).int())
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, f)
        optimizer.step()
        ours[step] = loss.item()
        if step % 50 == 0 or step == 1:
            print(f"step {step}: torch {ours[step]:.5f}, train-lm {theirs.get(step, math.nan):.5f}", flush=True)
    last = range(max(1, f.steps - 99), f.steps + 1)
    mean = [sum(losses[s] for s in last) / len(last) for losses in (ours, theirs)]
    print(f"mean of the last {len(last)}: torch {mean[0]:.5f}, train-lm {mean[1]:.5f}, "
          f"{100 * (mean[1] / mean[0] - 1):+.3f} %")


if __name__ == "__main__":
    main()
