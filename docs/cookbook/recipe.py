"""What the recipes in Python share. Each is a script that ends with an AssertionError where what it claims does not hold."""
import pathlib

import numpy as np

from mamba_cpp import _core

MODEL = pathlib.Path(__file__).resolve().parents[2] / "examples" / "model"


# [begin reading]
def ids_of(texts):
    """The ids of texts of one length: a token of the shipped model is a byte."""
    return [list(text.encode()) for text in texts]


def read(model, texts, state):
    """Goes on from `state` with a text for each of its rows.

    Returns the logits that follow, [batch, vocab_size].
    """
    return on_host(model.forward(ids_of(texts), state, "last"))
# [end reading]


def on_host(array):
    """An array that may be in the memory of a GPU, from where PyTorch takes it."""
    if isinstance(array, np.ndarray):
        return array
    import torch

    return torch.from_dlpack(array).cpu().numpy()


def any_device():
    return "cuda" if _core.cuda_device_count() > 0 else "cpu"


def close(expected, got):
    """The same up to rounding: products of another number of rows may add in another order."""
    return np.abs(expected - got).max() <= 1e-5 * np.abs(expected).max() > 0
