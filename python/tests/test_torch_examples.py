"""The examples do what they say."""

import importlib.util
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).parent.parent / "examples"


def example(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def one_thread():
    """Their steps are too small for more to be worth waking."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_training_through_the_state_learns_what_training_without_does_not(device):
    train = example("train_in_chunks").train
    same = dict(steps=250, batch=16, chunk=4, chunks=4, delay=6, device=device)
    assert train(cut=False, **same) < 0.8
    assert train(cut=True, **same) > 1.1  # guessing has log(4), 1.39


def test_ppo_learns_to_remember(device):
    train = example("recurrent_ppo").train
    assert train(updates=90, environments=64, steps=32, length=10, device=device) > 0.9
