"""Time of a Mamba layer on a GPU from Python, as rows of Markdown: forward, and forward with backward.

    PYTHONPATH=build/cuda/python python python/bench/layer.py [--sizes BATCH D_MODEL TIME] [--cpp MAMBA_BENCH]
                                                              [--mamba-ssm]

bf16 weights and activations, random data, CUDA events around each call, medians of 30 with the caches
flushed before: first with a device that waits for each call, as one that is called once does; then with one
that is kept busy until the call is queued, as in a training loop. A layer as it is called is the library's
own; "of operations" is what compilers and other tracers see, called without one; then that compiled. With
--cpp the same layers in C++ by mamba_bench, which knows (8, 768, 2048) of these sizes; with --mamba-ssm the
layers of mamba_ssm, where it is installed.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys

import torch

import mamba_cpp.torch
from mamba_cpp.torch.state import StateOfLayer

SIZES = (8, 768, 2048)  # those of mamba_bench
BUSY = 4_000_000  # cycles of a device: about 2 ms, which any call here is queued within


def milliseconds(call, flush, queued, rounds=30):
    for _ in range(5):
        call()
    times = []
    for _ in range(rounds):
        flush.zero_()
        if queued:
            torch.cuda._sleep(BUSY)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def row(name, *times):
    print(f"| {name} | " + " | ".join("" if ms is None else f"{ms:.3f}" for ms in times) + " |", flush=True)


def measure(name, layer, x, dy, flush, call=None):
    run = layer if call is None else call

    def forward():
        with torch.no_grad():
            run(x)

    def both():
        layer.zero_grad(set_to_none=True)
        x.grad = None
        run(x).backward(dy)

    row(name, *[milliseconds(work, flush, queued) for queued in (False, True) for work in (forward, both)])


@contextlib.contextmanager
def of_operations():
    """Layers run as they do where somebody traces them."""
    at_once = StateOfLayer._at_once
    StateOfLayer._at_once = lambda *_: None
    try:
        yield
    finally:
        StateOfLayer._at_once = at_once


def in_cpp(mamba_bench):
    """(name, ms) of each bench of a layer of SIZES."""
    sizes = "batch:{}/d_model:{}/time:{}/".format(*SIZES)
    out = subprocess.run(
        [mamba_bench, f"--benchmark_filter=cuda_layer.*_bf16/{sizes}", "--benchmark_format=json"],
        check=True, stdout=subprocess.PIPE, text=True,
    ).stdout
    scale = {"ns": 1e-6, "us": 1e-3, "ms": 1.0, "s": 1e3}
    for one in json.loads(out)["benchmarks"]:
        yield one["name"], one["real_time"] * scale[one["time_unit"]]


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--sizes", type=int, nargs=3, default=SIZES, metavar=("BATCH", "D_MODEL", "TIME"))
    arguments.add_argument("--cpp", metavar="MAMBA_BENCH")
    arguments.add_argument("--mamba-ssm", action="store_true")
    given = arguments.parse_args()
    batch, d_model, time = given.sizes
    torch.manual_seed(0)
    flush = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")
    x = torch.randn(batch, time, d_model, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn_like(x)
    made = {"device": "cuda", "dtype": torch.bfloat16}
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, "
          f"batch {batch}, d_model {d_model}, time {time}; ms\n")
    print("| layer | forward | forward and backward | queued ahead: forward | forward and backward |")
    print("|---|---:|---:|---:|---:|")
    for kind in (mamba_cpp.torch.Mamba, mamba_cpp.torch.Mamba2):
        layer = kind(d_model, **made)
        name = f"`{kind.__name__}`"
        measure(name, layer, x, dy, flush)
        with of_operations():
            measure(f"{name} of operations", layer, x, dy, flush)
        measure(f"{name} compiled", layer, x, dy, flush, torch.compile(layer, fullgraph=True))
    if given.cpp:
        if tuple(given.sizes) != SIZES:
            sys.exit(f"--cpp: expected --sizes {SIZES}, which mamba_bench has, got {tuple(given.sizes)}")
        for name, ms in in_cpp(given.cpp):
            both = "backward" in name
            row(f"C++ {name}", None, None, None if both else ms, ms if both else None)
    if given.mamba_ssm:
        try:
            import mamba_ssm
        except ImportError as missing:
            sys.exit(f"--mamba-ssm: expected an installed mamba_ssm, got {missing}")
        for kind in (mamba_ssm.Mamba, mamba_ssm.Mamba2):
            measure(f"mamba_ssm {mamba_ssm.__version__} `{kind.__name__}`", kind(d_model, **made), x, dy, flush)


if __name__ == "__main__":
    main()
