"""The library's own layer as one differentiable operation, for calls that nobody traces."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from .. import _core as _compiled
from ._checks import autocast_dtype, to
from ._kernels import place
from ._operation import is_plain, readable, wants_gradient

_core: Any = _compiled  # a checker of types cannot count starred arguments

Sizes = Tuple[int, int, int, int]  # conv channels, width of the conv state, inner channels, states of each
Parts = Sequence[Union[str, Tuple[str, Any]]]  # see weights_of
States = Tuple[Optional[Tensor], Optional[Tensor]]  # conv_state and ssm_state


class Weights(NamedTuple):
    """A layer's parameters."""

    all: Tuple[Tensor, ...]  # in the order of the library's LayerWeights, without those that are absent
    matrices: Tuple[Tensor, ...]  # those whose dtype is that of x


_STORAGE = (torch.float32, torch.bfloat16, torch.float16)


@lru_cache(maxsize=None)
def config(**options: Any) -> Any:
    """A layer's sizes and options as the library has them; see _core.layer_config."""
    return _core.layer_config(**options)


def _is_as_made(module: nn.Module, kind: type) -> bool:
    """Whether calling `module` is what calling a new `kind` is: of no other class (a parametrised module has
    one of its own), with no hook and no forward of its own."""
    has = module.__dict__
    return type(module) is kind and not (
        has["_forward_hooks"] or has["_forward_pre_hooks"] or has["_backward_hooks"]
        or has["_backward_pre_hooks"] or "forward" in has
    )


def weights_of(layer: Any, parts: Parts) -> Optional[Weights]:
    """The parameters of `layer` that `parts` says: the name of one of its own, or a module's name and class,
    which stands for its weight and bias. None where a module is not as it was made, or its weight is no
    parameter of it any more."""
    weights, matrices = [], []
    for part in parts:
        if isinstance(part, str):
            weights.append(layer._parameters.get(part))
            continue
        name, kind = part
        module = layer._modules.get(name)
        if module is None and getattr(layer, name) is None:
            continue
        if module is None or not _is_as_made(module, kind):
            return None
        owned = module._parameters
        weights.append(owned.get("weight"))
        if kind is nn.Linear:
            matrices.append(weights[-1])
        if owned.get("bias") is not None:
            weights.append(owned["bias"])
    return None if any([weight is None for weight in weights]) else Weights(tuple(weights), tuple(matrices))


def _new_states(x: Tensor, sizes: Sizes) -> Tuple[Tensor, Tensor]:
    channels, width, inner, states = sizes
    return x.new_empty(x.shape[0], channels, width), x.new_empty(x.shape[0], inner, states, dtype=torch.float32)


def _forward(
    settings: Any, sizes: Sizes, gives_state: bool, keep: bool, x: Tensor, states: States,
    reset: Optional[Tensor], weights: Tuple[Tensor, ...],
) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor], Optional[Tensor]]:
    """y, the state after it, and what backward needs."""
    where = place(x)
    y = x.new_empty(x.shape)
    conv, ssm = _new_states(x, sizes) if gives_state else (None, None)
    kept = None
    if keep:
        kept = x.new_empty(_core.layer_kept(settings, x, *where), dtype=torch.float32)
    _core.layer(settings, x, *states, reset, weights, y, conv, ssm, kept, *where)
    return y, conv, ssm, kept


class _Layer(torch.autograd.Function):
    """All that backward needs is saved as PyTorch's own operations save theirs: so a second way back through one
    graph, a weight that was changed in place meanwhile, hooks on saved tensors and activation checkpoints
    are what they are there, and the memory is PyTorch's."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, settings: Any, sizes: Sizes, gives_state: bool, x: Tensor, conv: Optional[Tensor],
        ssm: Optional[Tensor], reset: Optional[Tensor], *weights: Tensor,
    ) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:
        y, final_conv, final_ssm, kept = _forward(
            settings, sizes, gives_state, True, x, (conv, ssm), reset, weights
        )
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, conv, reset, kept, *weights)
        ctx.settings, ctx.sizes = settings, sizes
        return y, final_conv, final_ssm

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, dy: Optional[Tensor], dconv: Optional[Tensor], dssm: Optional[Tensor]
    ) -> Tuple[Optional[Tensor], ...]:
        x, conv, reset, kept, *weights = ctx.saved_tensors
        _, _, _, wants_x, wants_conv, wants_ssm, _, *wanted = ctx.needs_input_grad
        dy = torch.zeros_like(x) if dy is None else readable(dy)
        dstates: States = (None, None)
        if dconv is not None or dssm is not None or wants_conv or wants_ssm:
            # The library writes where it reads; what autograd hands over may be someone else's too.
            mine = _new_states(x, ctx.sizes)
            for own, given in zip(mine, (dconv, dssm)):
                own.zero_() if given is None else own.copy_(given)
            dstates = mine
        dx = torch.empty_like(x) if wants_x else None
        gradients = tuple(
            [weight.new_empty(weight.shape) if wants else None for weight, wants in zip(weights, wanted)]
        )
        _core.layer_grad(
            ctx.settings, x, conv, reset, tuple(weights), kept, dy, *dstates, dx, gradients,
            *place(x),
        )
        return (
            None, None, None, dx, dstates[0] if wants_conv else None, dstates[1] if wants_ssm else None,
            None, *gradients,
        )


def run(
    settings: Any, sizes: Sizes, gives_state: bool, x: Tensor, states: States,
    reset: Optional[Tensor], weights: Weights,
) -> Optional[Tuple[Tensor, Optional[Tensor], Optional[Tensor]]]:
    """y and the two tensors of the state after it; None where this call is not for the library's layer.

    settings  of `config`
    """
    if x.numel() == 0 or not is_plain((x, *states, reset, *weights.all)):
        return None
    if torch._C._are_functorch_transforms_active() or torch._C._is_tracing() or _has_any_global_hook():
        return None
    conv, ssm = states
    dtype = autocast_dtype(x)
    if dtype is not None:  # the weights are rounded by the layer itself
        x, conv, ssm = to(dtype, x), to(dtype, conv), to(torch.float32, ssm)
    elif any([weight.dtype != x.dtype for weight in weights.matrices]):
        return None
    if x.dtype not in _STORAGE or any([weight.dtype not in _STORAGE for weight in weights.all]):
        return None
    if conv is not None and (conv.dtype != x.dtype or ssm is None or ssm.dtype != torch.float32):
        return None
    x = x.contiguous()
    if wants_gradient((x, conv, ssm, *weights.all)):
        return _Layer.apply(settings, sizes, gives_state, x, conv, ssm, reset, *weights.all)
    return _forward(settings, sizes, gives_state, False, x, (conv, ssm), reset, weights.all)[:3]
