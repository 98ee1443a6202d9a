"""Nothing is copied on the way in or out, and nothing is kept after a call."""

import gc
import os
import resource

import numpy as np
import pytest
import torch

import mamba_cpp.torch as mt
import operands
from mamba_cpp.torch import _kernels


def arguments_seen(monkeypatch, function, call):
    """What the library was handed."""
    seen = []
    inner = getattr(_kernels._core, function)

    def see(*args):
        seen.extend(args)
        return inner(*args)

    class Core:
        def __getattr__(self, name):
            return see if name == function else getattr(inner_core, name)

    inner_core = _kernels._core
    monkeypatch.setattr(_kernels, "_core", Core())
    result = call()
    monkeypatch.undo()
    return seen, result


@pytest.mark.parametrize("name, ours, make", [
    ("causal_conv1d", mt.causal_conv1d, operands.conv),
    ("selective_scan", mt.selective_scan, operands.scan),
    ("ssd", mt.ssd, operands.ssd),
])
def test_no_copies(name, ours, make, device, monkeypatch):
    given = make(device)
    arguments, (y, state) = arguments_seen(
        monkeypatch, name, lambda: ours(**given, return_final_state=True)
    )
    seen = [value.data_ptr() for value in arguments if isinstance(value, torch.Tensor)]
    # ssd stores log(-A), which is another tensor.
    pointers = [v.data_ptr() for k, v in given.items() if not (name == "ssd" and k == "A")]
    assert set(pointers) <= set(seen)
    assert y.data_ptr() in seen and state.data_ptr() in seen


@pytest.mark.parametrize("threads", [1, 2])
def test_on_the_cpu_as_many_threads_as_pytorch_has(threads, monkeypatch):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    given = operands.scan("cpu")
    arguments, _ = arguments_seen(monkeypatch, "selective_scan", lambda: mt.selective_scan(**given))
    torch.set_num_threads(before)
    assert arguments[-1] == threads


def growth(call, calls, device):
    """KiB by which the peak of memory grew, after calls enough to have all that is kept."""
    if device == "cuda" and "PYTEST_XDIST_WORKER" in os.environ:
        pytest.skip("a device's free memory is that of all workers: run this test without -n")
    for _ in range(calls // 4):
        call()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.mem_get_info()[0]
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(calls):
        call()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        return (before - torch.cuda.mem_get_info()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before


def test_many_calls_keep_nothing(device):
    given = operands.leaves(operands.scan(device, batch=4, time=64, channels=64))  # 64 KiB each

    def call():
        y, state = mt.selective_scan(**given, return_final_state=True)
        (y.sum() + state.sum()).backward()

    assert growth(call, 2000, device) < 4096


def test_many_errors_keep_nothing(device):
    given = operands.scan(device, batch=4, time=64, channels=64)
    given["B"] = given["B"][..., 1:]

    def call():
        with pytest.raises(ValueError):
            mt.selective_scan(**given)

    assert growth(call, 2000, device) < 4096


def test_numpy_arrays_of_torchs_memory():
    """A NumPy array and a tensor that share memory give the same, from the same memory."""
    import mamba_cpp

    given = operands.scan("cpu")
    arrays = {key: value.numpy() for key, value in given.items()}
    y = mamba_cpp.selective_scan(**arrays)
    assert np.array_equal(y, mt.selective_scan(**given).numpy())
