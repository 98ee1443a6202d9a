"""What Python adds to a call: the time of a call whose operands are as small as can be.

    PYTHONPATH=build/cpu/python python python/bench/overhead.py

One batch row, one step, one channel, one state: such a call from C++ takes half a microsecond (0.53 us of a
scan, 0.49 us of ssd, where this was written), so that nearly all of the time is Python's. Prints microseconds of
this thread, the least of many rounds. The two outputs are NumPy's and PyTorch's own to make and are taken
off. Then the time of a layer's single step, whole: an agent's, of 16 channels, as it is called and as one that
is traced ("of operations"). Ends with 1 if a call that wants no gradient adds more than LIMIT to the one from C++.
"""

import contextlib
import sys
import time

import numpy as np

import mamba_cpp

LIMIT = 5.0
FROM_CPP = 0.5


def least(call, count=1000, rounds=40):
    """us a call."""
    for _ in range(100):
        call()
    best = float("inf")
    for _ in range(rounds):
        begin = time.thread_time()
        for _ in range(count):
            call()
        best = min(best, time.thread_time() - begin)
    return best / count * 1e6


def cases(new, ops, **options):
    """(name, a call) of each operation; new(*shape) is an array of f32."""
    x, vector = new(1, 1, 1), new(1)
    weight, window, A = new(1, 4), new(1, 1, 3), -new(1, 1)
    head, state, minus = new(1, 1, 1, 1), new(1, 1, 1, 1), -new(1)
    return [
        ("causal_conv1d", lambda: ops.causal_conv1d(
            x, weight, vector, window, None, "silu", True, **options)),
        ("selective_scan", lambda: ops.selective_scan(
            x, x, A, x, x, vector, x, vector, True, x, None, True, **options)),
        ("ssd", lambda: ops.ssd(
            head, x, minus, head, head, vector, vector, True, (0.0, 1.0), state, None, True, A_is_log=True,
            **options)),
    ]


def report(kind, each, outputs, limit):
    made = least(outputs)
    fits = True
    for name, call in each:
        added = least(call) - made - FROM_CPP
        fits = fits and (limit is None or added <= limit)
        print(f"{kind + ' ' + name:36s}{added:7.2f} us added, and {made:.2f} for the outputs")
    return fits


def layers(torch, ops):
    """us of one step of each layer: without a gradient, and with a backward."""
    from layer import of_operations

    for kind, options in ((ops.Mamba, {}), (ops.Mamba2, {"headdim": 16})):
        layer = kind(16, d_state=16, **options)
        x, state = torch.randn(1, 1, 16), layer.make_state(1)

        def forward():
            with torch.no_grad():
                layer(x, state)

        def both():
            y, _ = layer(x, state)
            y.backward(y.detach())

        for name, way in (("", contextlib.nullcontext), (" of operations", of_operations)):
            with way():
                times = least(forward, 200), least(both, 200)
            print(f"{kind.__name__ + name:36s}{times[0]:7.1f} us, with a backward {times[1]:7.1f}")


def main():
    def array(*shape):
        return np.full(shape, 0.5, np.float32)

    fits = report("numpy", cases(array, mamba_cpp, threads=1),
                  lambda: (np.empty((1, 1, 1), np.float32), np.empty((1, 1, 1), np.float32)), LIMIT)
    try:
        import torch
    except ImportError:
        return fits

    import mamba_cpp.torch as ops

    torch.set_num_threads(1)

    def tensor(*shape):
        return torch.full(shape, 0.5)

    def wanting(*shape):
        return tensor(*shape).requires_grad_()

    like = tensor(1, 1, 1)
    outputs = lambda: (torch.empty_like(like), like.new_empty(1, 1, 1, dtype=torch.float32))
    with torch.no_grad():
        fits = report("torch", cases(tensor, ops), outputs, LIMIT) and fits
    report("torch, gradient wanted,", cases(wanting, ops), outputs, None)
    layers(torch, ops)
    return fits


if __name__ == "__main__":
    sys.exit(0 if main() else 1)
