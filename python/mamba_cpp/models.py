"""Language models: texts that are read, written, put aside and gone on with."""

from ._core import (
    Generator,
    GeneratorPool,
    GeneratorSnapshot,
    LanguageModel,
    MambaState,
    Speculation,
    StackState,
    StackSteps,
    StateCache,
    TextIterator,
    Tokenizer,
    load_state,
    save_state,
)
from ._results import Generated, LogProbs, SavedState

__all__ = [
    "Generated",
    "Generator",
    "GeneratorPool",
    "GeneratorSnapshot",
    "LanguageModel",
    "LogProbs",
    "MambaState",
    "SavedState",
    "Speculation",
    "StackState",
    "StackSteps",
    "StateCache",
    "TextIterator",
    "Tokenizer",
    "load_state",
    "save_state",
]
