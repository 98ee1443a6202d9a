#!/usr/bin/env python3
"""Times a training step of mamba_ssm's model as train-lm takes it: bytes, AdamW, clipped gradients.

    scripts/train_with_mamba_ssm.py FOLDER [--d-model 768] [--layers 24] [--batch 8] [--time 2048] [--steps 40]

Needs mamba_ssm with its CUDA scan (MAMBA_KEEP_CUDA_BUILD=TRUE) and causal-conv1d. Prints the median step of two
ways to train in bf16: f32 weights under autocast, and bf16 weights without masters.
"""
import argparse
import time
from pathlib import Path

import torch
from mamba_ssm.models.config_mamba import MambaConfig
from mamba_ssm.models.mixer_seq_simple import MambaLMHeadModel


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    for name, value in (("d-model", 768), ("layers", 24), ("batch", 8), ("time", 2048), ("steps", 40)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    text = b"".join(file.read_bytes() for file in sorted(options.folder.rglob("*")) if file.is_file())
    text = torch.tensor(list(text), dtype=torch.long)
    for masters in (True, False):
        name = "f32 weights under autocast" if masters else "bf16 weights"
        step = median_step(options, text, masters)
        print(f"{name}: {step * 1e3:.2f} ms, {options.batch * options.time / step:.0f} tokens/s", flush=True)


def median_step(options, text, masters):
    """Seconds; the first ten steps warm up."""
    torch.manual_seed(0)
    config = MambaConfig(d_model=options.d_model, n_layer=options.layers, vocab_size=256, rms_norm=True,
                         residual_in_fp32=True, fused_add_norm=True)
    model = MambaLMHeadModel(config, device="cuda", dtype=torch.float32 if masters else torch.bfloat16)
    adamw = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    ends = []
    for _ in range(options.steps):
        begins = torch.randint(0, len(text) - options.time - 1, (options.batch,))
        ids = torch.stack([text[at : at + options.time + 1] for at in begins]).cuda(non_blocking=True)
        with torch.autocast("cuda", torch.bfloat16, enabled=masters):
            logits = model(ids[:, :-1].contiguous()).logits
            loss = torch.nn.functional.cross_entropy(logits.float().view(-1, 256), ids[:, 1:].reshape(-1))
        adamw.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        adamw.step()
        loss.item()  # waits
        ends.append(time.time())
    steps = sorted(after - before for before, after in zip(ends[10:], ends[11:]))
    return steps[len(steps) // 2]


if __name__ == "__main__":
    main()
