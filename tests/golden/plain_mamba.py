"""Mamba-1 in float64, one token at a time, written to be read.

It shares no code with PyTorch, with transformers or with the library that its numbers test. Weights
are numpy arrays under their Hugging Face names; every size is read from their shapes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

Weights = dict[str, np.ndarray]


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1.0 + np.exp(-x))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0.0, x)  # log(1 + e^x), without losing the small values at x << 0


def rms_norm(x: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


@dataclass
class LayerState:
    """What one layer remembers; all zeros means that nothing was seen yet."""

    conv: np.ndarray  # [batch, d_inner, d_conv - 1], the last inputs of the convolution, oldest first
    ssm: np.ndarray  # [batch, d_inner, d_state]


class PlainMamba:
    """A Mamba language model. `mixer_eps` (Falcon-Mamba) normalises dt, B and C, without weights."""

    def __init__(self, weights: Weights, eps: float, mixer_eps: float | None = None) -> None:
        self.weights = weights
        self.eps = eps
        self.mixer_eps = mixer_eps
        self.layers = sum(name.endswith(".mixer.A_log") for name in weights)

    def fresh_state(self, batch: int) -> list[LayerState]:
        states = []
        for layer in range(self.layers):
            d_inner, d_state = self._mixer(layer, "A_log").shape
            d_conv = self._mixer(layer, "conv1d.weight").shape[2]
            states.append(
                LayerState(
                    conv=np.zeros((batch, d_inner, d_conv - 1)), ssm=np.zeros((batch, d_inner, d_state))
                )
            )
        return states

    def step(self, ids: np.ndarray, states: list[LayerState]) -> np.ndarray:
        """Consumes one token per row, ids [batch]; gives logits [batch, vocab]."""
        residual = self.weights["backbone.embeddings.weight"][ids]
        for layer, state in enumerate(states):
            norm = self.weights[f"backbone.layers.{layer}.norm.weight"]
            residual = residual + self._mixer_step(layer, rms_norm(residual, self.eps) * norm, state)
        hidden = rms_norm(residual, self.eps) * self.weights["backbone.norm_f.weight"]
        head = self.weights.get("lm_head.weight", self.weights["backbone.embeddings.weight"])
        return hidden @ head.T

    def forward(self, ids: np.ndarray, states: list[LayerState]) -> np.ndarray:
        """ids [batch, time] -> logits [batch, time, vocab]; the states move on by `time` tokens."""
        return np.stack([self.step(ids[:, t], states) for t in range(ids.shape[1])], axis=1)

    def _mixer(self, layer: int, name: str) -> np.ndarray:
        return self.weights[f"backbone.layers.{layer}.mixer.{name}"]

    def _bias(self, layer: int, name: str) -> np.ndarray | float:
        return self.weights.get(f"backbone.layers.{layer}.mixer.{name}", 0.0)

    def _mixer_step(self, layer: int, u: np.ndarray, state: LayerState) -> np.ndarray:
        in_proj, conv, x_proj, dt_proj, out_proj = (
            self._mixer(layer, name + ".weight")
            for name in ("in_proj", "conv1d", "x_proj", "dt_proj", "out_proj")
        )
        A = -np.exp(self._mixer(layer, "A_log"))
        dt_rank, d_state = dt_proj.shape[1], A.shape[1]

        x, z = np.split(u @ in_proj.T + self._bias(layer, "in_proj.bias"), 2, axis=-1)

        window = np.concatenate([state.conv, x[:, :, None]], axis=2)  # [batch, d_inner, d_conv]
        state.conv = window[:, :, 1:]
        x = silu(np.sum(window * conv[:, 0, :], axis=2) + self._bias(layer, "conv1d.bias"))

        dt, B, C = np.split(x @ x_proj.T, [dt_rank, dt_rank + d_state], axis=-1)
        if self.mixer_eps is not None:
            dt, B, C = (rms_norm(part, self.mixer_eps) for part in (dt, B, C))
        delta = softplus(dt @ dt_proj.T + self._mixer(layer, "dt_proj.bias"))

        decay = np.exp(delta[:, :, None] * A)
        state.ssm = decay * state.ssm + (delta * x)[:, :, None] * B[:, None, :]
        y = np.sum(state.ssm * C[:, None, :], axis=2) + self._mixer(layer, "D") * x
        return (y * silu(z)) @ out_proj.T + self._bias(layer, "out_proj.bias")
