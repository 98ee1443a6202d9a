"""Errors of the operations, in the library's form."""

from __future__ import annotations

from typing import Any, Optional


def error(where: str, name: str, expected: Any, got: Any) -> ValueError:
    return ValueError(f"{where}: {name}: expected {expected}, got {got}")


def takes_silu(where: str, activation: Optional[str]) -> bool:
    """Whether an `activation` is SiLU; else it must be None."""
    if activation not in (None, "silu", "swish"):
        raise error(where, "activation", "None, 'silu' or 'swish'", repr(activation))
    return activation is not None
