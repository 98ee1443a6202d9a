"""What calls give back that is more than one value."""

from typing import Any, NamedTuple

from ._core import StackState

Bytes = bytes  # for the types of Tokenizer, in which bytes is a method

class LogProbs(NamedTuple):
    """Log-probabilities of one token: natural logarithms of the softmax of the model's logits,
    before bias, penalty, temperature and the limits of sampling."""

    chosen: float
    """Of the token that was chosen."""
    top: list[tuple[int, float]]
    """(token, log-probability) of the likeliest, in falling order."""


class Generated(NamedTuple):
    """What was written in one call."""

    tokens: list[int]
    text: str | None
    """In whole characters; None without a tokenizer."""
    reason: str
    """Why it ended: "max_tokens", "eos", "stop_string", "callback" or "error"."""
    log_probs: list[LogProbs] | None
    """Of each token; None where they were not asked for."""
    error: BaseException | None
    """Where that is the reason, in a group."""


class SavedState(NamedTuple):
    """What is in a state file."""

    state: StackState
    fingerprint: str
    """Of the model; empty: the state is tied to none."""
    tokens_seen: list[int]
    """For each row; empty: not known."""
    notes: dict[str, str]
    extras: dict[str, Any]
    """Arrays by name, on the CPU."""
