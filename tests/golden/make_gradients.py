"""Makes gradients.safetensors of the checkpoints in this folder, by PyTorch's autograd.

    python make_gradients.py            every model below, into the folder of this file
    python make_gradients.py base       only `base`

The model is written here as plain float64 loops over time, sharing no code with the library, with
plain_mamba.py or with transformers; what autograd makes of it is the answer. The run starts from a
random state, has resets inside, and the loss weighs every logit and every element of the final state:

    loss = sum(dlogits * logits) + sum(dconv_final * conv_final) + sum(dssm_final * ssm_final)

`gated` is a checkpoint of its own, made here: config.json has "mamba_cpp" with gated_norm. Needs torch,
safetensors and numpy; README.md says which versions were used.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
MODELS = ["base", "biased", "wide", "falcon", "one", "gated", "mamba2_one", "mamba2_groups", "mamba2_limits",
          "mamba2_original", "mamba2_gate"]
BATCH, TIME = 2, 11
torch.set_default_dtype(torch.float64)


def make_gated(folder: Path) -> None:
    """A model with the options that no published checkpoint has."""
    d_model, inner, states, rank, layers, vocab = 10, 20, 6, 2, 2, 24
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int, scale: float) -> torch.Tensor:
        return (torch.randn(*shape, generator=generator) * scale).float()

    weights = {"backbone.embeddings.weight": normal(vocab, d_model, scale=1.0)}
    for i in range(layers):
        mixer = f"backbone.layers.{i}.mixer."
        weights[f"backbone.layers.{i}.norm.weight"] = 1 + normal(d_model, scale=0.3)
        weights[mixer + "in_proj.weight"] = normal(2 * inner, d_model, scale=0.4)
        weights[mixer + "conv1d.weight"] = normal(inner, 1, 4, scale=0.5)
        weights[mixer + "conv1d.bias"] = normal(inner, scale=0.3)
        weights[mixer + "x_proj.weight"] = normal(rank + 2 * states, inner, scale=0.4)
        weights[mixer + "dt_proj.weight"] = normal(inner, rank, scale=0.5)
        weights[mixer + "dt_proj.bias"] = normal(inner, scale=1.0) - 2
        weights[mixer + "A_log"] = torch.log(torch.arange(1, states + 1).double()).repeat(inner, 1).float()
        weights[mixer + "D"] = normal(inner, scale=0.5)
        weights[mixer + "norm.weight"] = 1 + normal(inner, scale=0.3)
        weights[mixer + "norm.bias"] = normal(inner, scale=0.3)
        weights[mixer + "out_proj.weight"] = normal(d_model, inner, scale=0.3)
    weights["backbone.norm_f.weight"] = 1 + normal(d_model, scale=0.3)
    config = {
        "architectures": ["MambaForCausalLM"], "model_type": "mamba", "hidden_size": d_model,
        "intermediate_size": inner, "state_size": states, "conv_kernel": 4, "expand": 2,
        "time_step_rank": rank, "num_hidden_layers": layers, "vocab_size": vocab, "use_bias": False,
        "use_conv_bias": True, "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
        "mamba_cpp": {"gated_norm": True, "gated_norm_epsilon": 1e-3},
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")


def rms(x: torch.Tensor, eps: float) -> torch.Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def softplus(v: torch.Tensor) -> torch.Tensor:
    return torch.clamp(v, min=0) + torch.log1p(torch.exp(-v.abs()))


def silu(v: torch.Tensor) -> torch.Tensor:
    return v * torch.sigmoid(v)


def hugging_face(config: dict) -> dict:
    """A config of mamba_ssm for Mamba-2 with Hugging Face's keys; any other as it is."""
    if "ssm_cfg" not in config:
        return config
    ssm = config["ssm_cfg"]
    return {
        "model_type": "mamba2", "hidden_size": config["d_model"], "num_hidden_layers": config["n_layer"],
        "vocab_size": config["vocab_size"], "state_size": ssm["d_state"], "conv_kernel": ssm["d_conv"],
        "expand": 2, "n_groups": ssm["ngroups"], "layer_norm_epsilon": 1e-5, "tie_word_embeddings": True,
        "time_step_limit": [0.0, math.inf], "mamba_cpp": {"rmsnorm": ssm.get("rmsnorm", True), "norm_before_gate": ssm["norm_before_gate"]},
    }  # fmt: skip


class Model:
    def __init__(self, folder: Path) -> None:
        self.c = hugging_face(json.loads((folder / "config.json").read_text()))
        stored = load_file(folder / "model.safetensors")
        if self.c["tie_word_embeddings"]:
            stored.pop("lm_head.weight", None)  # a copy
        self.w = {
            name.replace("embedding.", "embeddings."): tensor.double().requires_grad_()
            for name, tensor in stored.items()
        }
        self.own = self.c.get("mamba_cpp", {})
        self.mamba2 = self.c["model_type"] == "mamba2"
        self.states = self.c["state_size"]
        self.width = self.c["conv_kernel"]
        if self.mamba2:
            self.inner, self.groups = self.c["expand"] * self.c["hidden_size"], self.c["n_groups"]
            self.channels = self.inner + 2 * self.groups * self.states
        else:
            self.inner = self.channels = self.c["intermediate_size"]
            self.rank = self.c["time_step_rank"]

    def mix(self, prefix: str, x: torch.Tensor, conv: torch.Tensor, ssm: torch.Tensor):
        """One step of one layer: x [batch, d_model], states of the layer; y and the new states."""
        w = {name[len(prefix):]: t for name, t in self.w.items() if name.startswith(prefix)}
        xz = x @ w["in_proj.weight"].T
        if "in_proj.bias" in w:
            xz = xz + w["in_proj.bias"]
        u, z = xz[:, : self.inner], xz[:, self.inner :]
        window = torch.cat([conv, u.unsqueeze(-1)], dim=-1)  # [batch, inner, width]
        conv = window[:, :, 1:]
        u = (window * w["conv1d.weight"][:, 0, :]).sum(-1)
        if "conv1d.bias" in w:
            u = u + w["conv1d.bias"]
        u = silu(u)
        low = u @ w["x_proj.weight"].T
        dt, b, c = low.split([self.rank, self.states, self.states], dim=-1)
        if self.c["model_type"] == "falcon_mamba":
            dt, b, c = (rms(v, self.c["mixer_rms_eps"]) for v in (dt, b, c))
        delta = softplus(dt @ w["dt_proj.weight"].T + w["dt_proj.bias"])
        decay = torch.exp(delta.unsqueeze(-1) * -torch.exp(w["A_log"]))
        ssm = decay * ssm + (delta * u).unsqueeze(-1) * b.unsqueeze(1)
        y = (ssm * c.unsqueeze(1)).sum(-1) + w["D"] * u
        if self.own.get("gated_norm"):
            centred = y - y.mean(-1, keepdim=True)
            scale = torch.sqrt((centred * centred).mean(-1, keepdim=True) + self.own["gated_norm_epsilon"])
            y = centred / scale * w["norm.weight"] + w["norm.bias"]
        y = y * silu(z)
        y = y @ w["out_proj.weight"].T
        if "out_proj.bias" in w:
            y = y + w["out_proj.bias"]
        return y, conv, ssm

    def mix2(self, prefix: str, x: torch.Tensor, conv: torch.Tensor, ssm: torch.Tensor):
        """The same of Mamba-2: every head of a group has its B and C, and every group its norm."""
        w = {name[len(prefix):]: t for name, t in self.w.items() if name.startswith(prefix)}
        projected = x @ w["in_proj.weight"].T
        if "in_proj.bias" in w:
            projected = projected + w["in_proj.bias"]
        heads, batch = len(w["A_log"]), len(x)
        z, xbc, dt = projected.split([self.inner, self.channels, heads], dim=-1)
        window = torch.cat([conv, xbc.unsqueeze(-1)], dim=-1)
        conv = window[:, :, 1:]
        xbc = (window * w["conv1d.weight"][:, 0, :]).sum(-1)
        if "conv1d.bias" in w:
            xbc = xbc + w["conv1d.bias"]
        u, b, c = silu(xbc).split([self.inner, self.groups * self.states, self.groups * self.states], dim=-1)
        low, high = (float(v["__float__"]) if isinstance(v, dict) else v for v in self.c["time_step_limit"])
        delta = torch.clamp(softplus(dt + w["dt_bias"]), low, high)
        ys, states = [], []
        for head, h in enumerate(ssm.chunk(heads, dim=1)):  # [batch, head_dim, d_state]
            group = head * self.groups // heads
            b_head = b.chunk(self.groups, dim=-1)[group].unsqueeze(1)
            c_head = c.chunk(self.groups, dim=-1)[group].unsqueeze(1)
            u_head, step = u.chunk(heads, dim=-1)[head], delta[:, head].unsqueeze(-1)
            decay = torch.exp(step * -torch.exp(w["A_log"][head])).unsqueeze(-1)
            states.append(decay * h + (step * u_head).unsqueeze(-1) * b_head)
            ys.append((states[-1] * c_head).sum(-1) + w["D"][head] * u_head)
        y, eps = torch.cat(ys, dim=-1), self.c["layer_norm_epsilon"]
        before = self.own.get("norm_before_gate", False)
        y = y if before else y * silu(z)
        if self.own.get("rmsnorm", True):
            y = torch.cat([rms(part, eps) for part in y.chunk(self.groups, dim=-1)], dim=-1)
            y = y * w["norm.weight"]
        y = (y * silu(z) if before else y) @ w["out_proj.weight"].T
        if "out_proj.bias" in w:
            y = y + w["out_proj.bias"]
        return y, conv, torch.cat(states, dim=1)

    def run(self, ids: torch.Tensor, reset: torch.Tensor, conv: list, ssm: list):
        """Logits [batch, time, vocab] and the final states."""
        eps = self.c["layer_norm_epsilon"]
        head = self.w.get("lm_head.weight", self.w["backbone.embeddings.weight"])[: self.c["vocab_size"]]
        conv, ssm, logits = list(conv), list(ssm), []
        mix = self.mix2 if self.mamba2 else self.mix
        for t in range(ids.shape[1]):
            fresh = (reset[:, t] != 0).view(-1, 1, 1)
            residual = self.w["backbone.embeddings.weight"][ids[:, t]]
            for i in range(len(conv)):
                conv[i] = torch.where(fresh, torch.zeros_like(conv[i]), conv[i])
                ssm[i] = torch.where(fresh, torch.zeros_like(ssm[i]), ssm[i])
                layer = f"backbone.layers.{i}."
                normed = rms(residual, eps) * self.w[layer + "norm.weight"]
                y, conv[i], ssm[i] = mix(layer + "mixer.", normed, conv[i], ssm[i])
                residual = residual + y
            logits.append(rms(residual, eps) * self.w["backbone.norm_f.weight"] @ head.T)
        return torch.stack(logits, dim=1), conv, ssm


def make(name: str) -> None:
    folder = HERE / name
    if name == "gated":
        make_gated(folder)
    model = Model(folder)
    layers = model.c["num_hidden_layers"]
    vocab = model.c["vocab_size"]
    generator = torch.Generator().manual_seed(sum(name.encode()))

    def normal(*shape: int) -> torch.Tensor:  # exact in f32, which is how it is stored
        return torch.randn(*shape, generator=generator).float().double()

    ids = torch.randint(vocab, (BATCH, TIME), generator=generator)
    reset = torch.zeros(BATCH, TIME, dtype=torch.int32)
    reset[0, 4] = reset[1, 6] = reset[1, 9] = 1
    conv = [normal(BATCH, model.channels, model.width - 1).requires_grad_() for _ in range(layers)]
    ssm = [normal(BATCH, model.inner, model.states).requires_grad_() for _ in range(layers)]
    dlogits = normal(BATCH, TIME, vocab)
    dconv = [normal(*state.shape) for state in conv]
    dssm = [normal(*state.shape) for state in ssm]

    logits, conv_final, ssm_final = model.run(ids, reset, conv, ssm)
    loss = (dlogits * logits).sum()
    for weight, state in zip(dconv + dssm, conv_final + ssm_final):
        loss = loss + (weight * state).sum()
    loss.backward()
    assert math.isfinite(loss.item())

    file = {
        "ids": ids.int(),
        "reset": reset,
        "conv": torch.stack([s.detach() for s in conv]).float(),
        "ssm": torch.stack([s.detach() for s in ssm]).float(),
        "dlogits": dlogits.float(),
        "dconv_final": torch.stack(dconv).float(),
        "dssm_final": torch.stack(dssm).float(),
        "dconv": torch.stack([s.grad if s.grad is not None else torch.zeros_like(s) for s in conv]).float(),
        "dssm": torch.stack([s.grad for s in ssm]).float(),
    }
    for weight, tensor in model.w.items():
        if tensor.grad is not None:
            file["d " + weight] = tensor.grad.float()
    save_file({key: tensor.contiguous() for key, tensor in file.items()}, folder / "gradients.safetensors")
    print(f"{name}: loss {loss.item():.6f}, {(folder / 'gradients.safetensors').stat().st_size} bytes")


for wanted in sys.argv[1:] or MODELS:
    make(wanted)
