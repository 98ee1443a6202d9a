"""Where tests run: on every device that is there. What needs PyTorch is skipped without it."""

import pytest

try:
    import torch
except ImportError:
    torch = None

collect_ignore_glob = [] if torch is not None else ["test_torch_*.py"]


def pytest_generate_tests(metafunc):
    if "device" in metafunc.fixturenames:
        cuda = torch is not None and torch.cuda.is_available()
        metafunc.parametrize("device", ["cpu", "cuda"] if cuda else ["cpu"])


@pytest.fixture(autouse=True)
def same_numbers_every_time():
    if torch is not None:
        torch.manual_seed(7)
