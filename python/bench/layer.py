"""Time of a Mamba layer on a GPU from Python: forward, and forward with backward, as is and compiled.

    PYTHONPATH=build/cuda/python python python/bench/layer.py [BATCH D_MODEL TIME]

bf16 weights and activations, random data, CUDA events around each call, medians of 30 with the caches
flushed before. Beside it stands what mamba_bench measures of the same layer in C++
(--benchmark_filter=cuda_layer.*_bf16).
"""

import statistics
import sys

import torch

import mamba_cpp.torch


def milliseconds(call, flush, rounds=30):
    for _ in range(5):
        call()
    times = []
    for _ in range(rounds):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        torch.cuda.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def main():
    batch, d_model, time = (int(size) for size in sys.argv[1:4]) if len(sys.argv) == 4 else (8, 768, 2048)
    torch.manual_seed(0)
    flush = torch.empty(128 << 20, dtype=torch.uint8, device="cuda")
    x = torch.randn(batch, time, d_model, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    dy = torch.randn_like(x)
    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}, batch {batch}, d_model {d_model}, time {time}")
    for kind in (mamba_cpp.torch.Mamba, mamba_cpp.torch.Mamba2):
        layer = kind(d_model, device="cuda", dtype=torch.bfloat16)
        compiled = torch.compile(layer, fullgraph=True)
        for name, run in ((kind.__name__, layer), (kind.__name__ + " compiled", compiled)):

            def forward(run=run):
                with torch.no_grad():
                    run(x)

            def both(run=run, layer=layer):
                layer.zero_grad(set_to_none=True)
                x.grad = None
                run(x).backward(dy)

            print(f"{name:18s} forward {milliseconds(forward, flush):.3f} ms, forward and backward "
                  f"{milliseconds(both, flush):.3f} ms")


if __name__ == "__main__":
    main()
