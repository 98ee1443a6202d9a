"""The recurrent state of a layer as a value: make it, pass it, copy it, save it, differentiate through it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Callable, List, Optional, Tuple, Union

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from . import _layer, ops
from ._checks import check_rank, check_shape, error, resets

ABSENT = object()  # a state that was not given: not None, which asks for a fresh one


@dataclass
class MambaInferenceState:
    """What one layer remembers, for each row of a batch; zeros are nothing seen yet.

    conv_state  [batch, conv channels, d_conv - 1] of the activations' dtype: the last inputs of the
                convolution, oldest first. The conv channels are d_inner; for Mamba-2 those of B and C too
    ssm_state   [batch, d_inner, d_state] f32. Mamba-2's [batch, heads, headdim, d_state] is the same
                memory

    Its tensors are tensors as any other: gradients flow through them, torch.save keeps them, and as a
    pytree it goes through torch.compile, torch.func and torch.export.
    """

    conv_state: Tensor
    ssm_state: Tensor

    def _each(self, change: Callable[[Tensor], Tensor]) -> "MambaInferenceState":
        return MambaInferenceState(change(self.conv_state), change(self.ssm_state))

    def to(
        self,
        device: Optional[Union[str, torch.device]] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> "MambaInferenceState":
        """On another device; `dtype` is that of the conv state, since the ssm state is always f32."""
        return MambaInferenceState(
            self.conv_state.to(device=device, dtype=dtype), self.ssm_state.to(device=device)
        )

    def clone(self) -> "MambaInferenceState":
        """A copy, through which gradients flow as through the original."""
        return self._each(Tensor.clone)

    def detach(self) -> "MambaInferenceState":
        """The same memory, through which no gradient flows: what truncated backpropagation passes on."""
        return self._each(Tensor.detach)

    def reset(self, rows: Tensor) -> "MambaInferenceState":
        """Zeros in the rows where `rows` ([batch], bool or i32) is not zero, all others as they are."""
        keep = rows == 0
        return self._each(lambda tensor: torch.where(keep[:, None, None], tensor, 0))

    def __getitem__(self, rows: Any) -> "MambaInferenceState":
        """Rows of the batch, by whatever indexes a tensor: a slice, a mask, a list."""
        if isinstance(rows, int):
            rows = slice(rows, rows + 1) if rows != -1 else slice(-1, None)
        return self._each(lambda tensor: tensor[rows])


def _flatten(state: MambaInferenceState) -> Tuple[List[Tensor], None]:
    return [state.conv_state, state.ssm_state], None


def _unflatten(tensors: Any, _: None) -> MambaInferenceState:
    return MambaInferenceState(*tensors)


pytree.register_pytree_node(
    MambaInferenceState,
    _flatten,
    _unflatten,
    serialized_type_name="mamba_cpp.torch.MambaInferenceState",
    flatten_with_keys_fn=lambda state: (
        [(pytree.GetAttrKey("conv_state"), state.conv_state),
         (pytree.GetAttrKey("ssm_state"), state.ssm_state)],
        None,
    ),
)
# torch.load takes it with weights_only=True too.
torch.serialization.add_safe_globals([MambaInferenceState])


class StateOfLayer:
    """What the two kinds of layers do with states alike.

    A layer has `conv_channels`, `d_conv`, `d_ssm` and `d_state`, which are the sizes of its state,
    `layer_idx`, its key in mamba_ssm's parameters of inference, `in_proj` and `conv1d`.
    """

    d_model: int

    conv_channels: int
    d_conv: int
    d_ssm: int
    d_state: int
    layer_idx: Optional[int]
    in_proj: torch.nn.Linear
    conv1d: torch.nn.Conv1d

    _parts: _layer.Parts
    _settings: Callable[[], Any]  # the layer's _layer.config; None where the library has no such layer

    def _shapes(self, batch: int) -> Tuple[Tuple[int, int, int], Tuple[int, int, int]]:
        return (batch, self.conv_channels, self.d_conv - 1), (batch, self.d_ssm, self.d_state)

    def make_state(
        self,
        batch: int,
        device: Optional[Union[str, torch.device]] = None,
        dtype: Optional[torch.dtype] = None,
    ) -> MambaInferenceState:
        """Nothing seen yet: zeros, on the layer's device, the conv state in its dtype unless told."""
        weight = self.in_proj.weight
        device = weight.device if device is None else device
        conv, ssm = self._shapes(batch)
        return MambaInferenceState(
            torch.zeros(conv, device=device, dtype=weight.dtype if dtype is None else dtype),
            torch.zeros(ssm, device=device, dtype=torch.float32),
        )

    # ---- the steps of forward that both have -------------------------------------------------------

    def _given(
        self, where: str, x: Tensor, state: Any, reset: Optional[Tensor]
    ) -> Tuple[Optional[MambaInferenceState], Optional[Tensor]]:
        """What forward was given, checked: the state, None where there is none to go on from, and the
        resets [batch, time] i32."""
        check_rank(where, "x", x, 3, "[batch, time, d_model]")
        check_shape(where, "x", x, (*x.shape[:2], self.d_model))
        flags = resets(where, reset, x.shape[0], x.shape[1])
        if state is ABSENT or state is None:
            return None, flags
        if not isinstance(state, MambaInferenceState):
            raise error(where, "state", "a MambaInferenceState or None", type(state).__name__)
        self._check_state(where, state, x.shape[0])
        return state, flags

    def _at_once(
        self, x: Tensor, before: Optional[MambaInferenceState], reset: Optional[Tensor], gives_state: bool
    ) -> Optional[Tuple[Tensor, Any]]:
        """y and the state after it by the library's own layer; None where it is not for this call."""
        if torch.compiler.is_compiling():
            return None
        weights = _layer.weights_of(self, self._parts)
        if weights is None:
            return None
        settings = self._settings()
        if settings is None:
            return None
        states: _layer.States = (None, None) if before is None else (before.conv_state, before.ssm_state)
        sizes = (self.conv_channels, self.d_conv - 1, self.d_ssm, self.d_state)
        done = _layer.run(settings, sizes, gives_state, x, states, reset, weights)
        if done is None:
            return None
        y, conv, ssm = done
        return y, None if conv is None or ssm is None else MambaInferenceState(conv, ssm)

    def _convolve(
        self, x: Tensor, before: Optional[MambaInferenceState], reset: Optional[Tensor]
    ) -> Tuple[Tensor, Tensor]:
        """x [batch, time, conv channels] -> SiLU of its convolution, and the conv state after it."""
        bias = self.conv1d.bias
        y, state = ops.causal_conv1d(
            x, self.conv1d.weight.squeeze(1).float(), None if bias is None else bias.float(),
            None if before is None else before.conv_state, reset, "silu", True,
        )
        return y, state

    # ---- its checks --------------------------------------------------------------------------------

    def _check_state(self, where: str, state: MambaInferenceState, batch: int) -> None:
        shapes = self._shapes(batch)
        got = tuple(state.conv_state.shape), tuple(state.ssm_state.shape)
        if got != shapes:
            raise error(
                where, "state",
                f"conv_state {list(shapes[0])} and ssm_state {list(shapes[1])}",
                f"{list(got[0])} and {list(got[1])}",
            )

    # ---- the states that mamba_ssm keeps in its parameters of inference ----------------------------

    def _cached(self, where: str, inference_params: Any) -> Optional[Tuple[Tensor, Tensor]]:
        if self.layer_idx is None:
            raise error(where, "layer_idx", "a number, by which the layer's state is found", "None")
        return inference_params.key_value_memory_dict.get(self.layer_idx)

    def get_inference_state(self, inference_params: Any) -> Optional[MambaInferenceState]:
        """A copy of this layer's state in mamba_ssm's `inference_params`; None where there is none yet.

        `inference_params.key_value_memory_dict[layer_idx]` is a pair (conv_state [batch, conv channels,
        d_conv], ssm_state); mamba_ssm's oldest column of conv_state is one that no step reads again.
        """
        cached = self._cached("get_inference_state", inference_params)
        if cached is None:
            return None
        conv, ssm = cached
        state = MambaInferenceState(
            conv[:, :, 1:].clone(), ssm.float().reshape(ssm.shape[0], -1, ssm.shape[-1]).clone()
        )
        self._check_state("get_inference_state", state, conv.shape[0])
        return state

    def set_inference_state(self, state: MambaInferenceState, inference_params: Any) -> None:
        """Writes `state` into mamba_ssm's `inference_params`: in place where this layer has a pair there.

        A state of another layer's shape or batch is a ValueError, and nothing is written.
        """
        where = "set_inference_state"
        self._check_state(where, state, state.conv_state.shape[0])
        cached = self._cached(where, inference_params)
        conv = torch.nn.functional.pad(state.conv_state, (1, 0)).detach()
        ssm = state.ssm_state.detach().view(self._ssm_of_mamba_ssm(state.ssm_state.shape[0]))
        if cached is None:
            inference_params.key_value_memory_dict[self.layer_idx] = (conv, ssm.clone())
            return
        if cached[0].shape != conv.shape or cached[1].shape != ssm.shape:
            raise error(
                where, "state",
                f"conv_state {list(cached[0].shape)} (with a column more) and ssm_state {list(cached[1].shape)}",
                f"{list(conv.shape)} and {list(ssm.shape)}",
            )
        with torch.no_grad():
            cached[0].copy_(conv)
            cached[1].copy_(ssm)

    def zero_inference_state(self, inference_params: Any, rows: Optional[Tensor] = None) -> None:
        """Forgets in place what mamba_ssm's `inference_params` has of this layer; nothing there is fine.

        rows  [batch] bool or i32: only the rows where it is not zero
        """
        cached = self._cached("zero_inference_state", inference_params)
        if cached is None:
            return
        with torch.no_grad():
            for tensor in cached:
                if rows is None:
                    tensor.zero_()
                    continue
                if tuple(rows.shape) != (tensor.shape[0],):
                    raise error("zero_inference_state", "rows", [tensor.shape[0]], list(rows.shape))
                tensor.masked_fill_((rows != 0).view(-1, *[1] * (tensor.dim() - 1)), 0)

    def _ssm_of_mamba_ssm(self, batch: int) -> Tuple[int, ...]:
        return (batch, self.d_ssm, self.d_state)
