#!/usr/bin/env python3
"""Makes gru.safetensors: a GRU of PyTorch in float64 with resets, its outputs and gradients.

    tests/golden/make_gru.py tests/golden/gru.safetensors

A reset is a multiplication of h by zero before the step, in a loop over torch.nn.GRUCell.
"""
import sys

import torch
from safetensors.torch import save_file

BATCH, TIME, INPUT, HIDDEN = 3, 11, 5, 6


def main():
    torch.manual_seed(5)
    torch.set_default_dtype(torch.float64)
    cell = torch.nn.GRUCell(INPUT, HIDDEN)
    for weight in cell.parameters():
        weight.data = (weight.data * 1.5).float().double()
    x = torch.randn(BATCH, TIME, INPUT).float().double().requires_grad_()
    h0 = torch.randn(BATCH, HIDDEN).float().double().requires_grad_()
    reset = (torch.rand(BATCH, TIME) < 0.2).int()
    dy = torch.randn(BATCH, TIME, HIDDEN).float().double()
    dfinal = torch.randn(BATCH, HIDDEN).float().double()
    h, ys = h0, []
    for t in range(TIME):
        h = h * (1 - reset[:, t:t + 1])
        h = cell(x[:, t], h)
        ys.append(h)
    y = torch.stack(ys, 1)
    ((y * dy).sum() + (h * dfinal).sum()).backward()
    tensors = {
        "x": x, "h0": h0, "reset": reset, "dy": dy, "dfinal": dfinal, "y": y, "dx": x.grad, "dh0": h0.grad,
        **{name: weight for name, weight in cell.named_parameters()},
        **{"d" + name: weight.grad for name, weight in cell.named_parameters()},
    }
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, sys.argv[1])


if __name__ == "__main__":
    main()
