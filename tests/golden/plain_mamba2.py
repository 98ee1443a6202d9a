"""Mamba-2 in float64, one token at a time, written to be read.

It shares no code with PyTorch, with transformers or with the library that its numbers test. Weights
are numpy arrays under their Hugging Face names; of the sizes only those that no shape tells are given.
"""

from __future__ import annotations

import numpy as np

from plain_mamba import LayerState, Weights, rms_norm, silu, softplus


class PlainMamba2:
    """A Mamba-2 language model: `groups` of heads, and how their norm and their time steps are."""

    def __init__(
        self,
        weights: Weights,
        eps: float,
        groups: int,
        norm_before_gate: bool = False,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        rmsnorm: bool = True,
        norm_groups: int | None = None,  # mistakes to tell apart: another number of groups in the norm,
        interleaved: bool = False,  # and every other head in a group in place of neighbours
    ) -> None:
        self.weights = weights
        self.eps = eps
        self.groups = groups
        self.norm_before_gate = norm_before_gate
        self.dt_limit = dt_limit
        self.rmsnorm = rmsnorm
        self.norm_groups = norm_groups or groups
        self.interleaved = interleaved
        self.layers = sum(name.endswith(".mixer.A_log") for name in weights)

    def fresh_state(self, batch: int) -> list[LayerState]:
        states = []
        for layer in range(self.layers):
            channels, _, d_conv = self._mixer(layer, "conv1d.weight").shape
            d_inner = self._mixer(layer, "out_proj.weight").shape[1]
            d_state = (channels - d_inner) // (2 * self.groups)
            states.append(
                LayerState(
                    conv=np.zeros((batch, channels, d_conv - 1)), ssm=np.zeros((batch, d_inner, d_state))
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

    def _norm(self, y: np.ndarray) -> np.ndarray:
        apart = y.reshape(len(y), self.norm_groups, -1)
        return rms_norm(apart, self.eps).reshape(y.shape)

    def _gated(self, layer: int, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        if not self.rmsnorm:
            return y * silu(z)
        weight = self._mixer(layer, "norm.weight")
        if self.norm_before_gate:
            return self._norm(y) * weight * silu(z)
        return self._norm(y * silu(z)) * weight

    def _mixer_step(self, layer: int, u: np.ndarray, state: LayerState) -> np.ndarray:
        in_proj, conv, out_proj = (
            self._mixer(layer, name + ".weight") for name in ("in_proj", "conv1d", "out_proj")
        )
        A, D = -np.exp(self._mixer(layer, "A_log")), self._mixer(layer, "D")
        batch, heads, d_inner = len(u), len(A), out_proj.shape[1]
        head_dim, d_state = d_inner // heads, state.ssm.shape[2]

        projected = u @ in_proj.T + self._bias(layer, "in_proj.bias")
        z, xBC, dt = np.split(projected, [d_inner, d_inner + conv.shape[0]], axis=-1)

        window = np.concatenate([state.conv, xBC[:, :, None]], axis=2)  # [batch, channels, d_conv]
        state.conv = window[:, :, 1:]
        xBC = silu(np.sum(window * conv[:, 0, :], axis=2) + self._bias(layer, "conv1d.bias"))

        x, B, C = np.split(xBC, [d_inner, d_inner + self.groups * d_state], axis=-1)
        x = x.reshape(batch, heads, head_dim)
        of_head = np.arange(heads) // (heads // self.groups)  # the group of each head
        if self.interleaved:
            of_head = np.arange(heads) % self.groups
        B = B.reshape(batch, self.groups, d_state)[:, of_head]
        C = C.reshape(batch, self.groups, d_state)[:, of_head]
        delta = np.clip(softplus(dt + self._mixer(layer, "dt_bias")), *self.dt_limit)

        decay = np.exp(delta * A)[:, :, None, None]
        h = state.ssm.reshape(batch, heads, head_dim, d_state)
        h = decay * h + (delta[:, :, None] * x)[..., None] * B[:, :, None, :]
        state.ssm = h.reshape(batch, d_inner, d_state)
        y = (np.sum(h * C[:, :, None, :], axis=3) + D[None, :, None] * x).reshape(batch, d_inner)

        return self._gated(layer, y, z) @ out_proj.T + self._bias(layer, "out_proj.bias")
