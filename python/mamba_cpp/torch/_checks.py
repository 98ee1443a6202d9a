"""What the operations ask of their tensors before anything runs, and how they bring them there."""

from __future__ import annotations

from typing import Any, Optional, Sequence, TypeVar

import torch
from torch import Tensor

from .._errors import error


# A tensor, or one that may be None, and stays what it is.
Maybe = TypeVar("Maybe", Tensor, Optional[Tensor])


def sizes(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def check_rank(where: str, name: str, tensor: Tensor, rank: int, form: str) -> None:
    """`form` is the shape in words, as "[batch, time, channels]"."""
    if tensor.dim() != rank:
        raise error(where, name, form, sizes(tensor))


def check_shape(where: str, name: str, tensor: Tensor, shape: Sequence[int]) -> None:
    if tuple(tensor.shape) != tuple(shape):
        raise error(where, name, str(list(shape)), sizes(tensor))


def autocast_dtype(tensor: Tensor) -> Optional[torch.dtype]:
    """What torch.autocast stores activations in here, if it is on."""
    if not torch.compiler.is_compiling() and not torch._C._is_any_autocast_enabled():
        return None  # a tenth of the time of asking for the device's
    kind = tensor.device.type
    if not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def to(dtype: torch.dtype, tensor: Maybe) -> Maybe:
    return tensor if tensor is None or tensor.dtype == dtype else tensor.to(dtype)


def resets(where: str, reset: Optional[Tensor], batch: int, time: int) -> Optional[Tensor]:
    """[batch, time] i32 of a reset that is bool or i32, and [batch] (before the first step) or [batch, time]."""
    if reset is None:
        return None
    if reset.dtype not in (torch.bool, torch.int32):
        raise error(where, "reset", "bool or int32", reset.dtype)
    if reset.dim() == 1 and reset.shape[0] == batch:
        flags = reset.to(torch.int32)[:, None]
        return torch.nn.functional.pad(flags, (0, time - 1)) if time > 0 else flags[:, :0]
    if tuple(reset.shape) != (batch, time):
        raise error(where, "reset", f"[{batch}, {time}] or [{batch}]", sizes(reset))
    return reset.to(torch.int32)
