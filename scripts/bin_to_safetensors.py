#!/usr/bin/env python3
"""Converts a model folder with pytorch_model.bin, whole or sharded, to model.safetensors.

    python bin_to_safetensors.py FOLDER

The new file lies beside the old ones, which stay as they are; an existing one is never overwritten.
Names, shapes, dtypes and values are kept. Tensors that share memory (a tied head) are each written in
full, because safetensors holds no references. Needs torch and safetensors.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

WHOLE = "pytorch_model.bin"
INDEX = "pytorch_model.bin.index.json"
TARGET = "model.safetensors"


class ConversionError(Exception):
    """What went wrong, in one line."""


def read_index(folder: Path) -> dict[str, str]:
    """Which file holds which tensor."""
    try:
        weight_map = json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"]
        files = dict(weight_map)
    except (ValueError, KeyError, TypeError) as error:
        raise ConversionError(f"{folder / INDEX}: expected an object with a weight_map") from error
    for file in files.values():
        # A path in an index from elsewhere must not lead out of the folder.
        if not isinstance(file, str) or Path(file).name != file:
            raise ConversionError(f"{folder / INDEX}: expected plain file names, got {file!r}")
        if not (folder / file).is_file():
            raise ConversionError(f"{folder / file}: named by {INDEX}, but not there")
    return files


def read_bin(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of one file; weights_only keeps a hostile pickle from running code."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise ConversionError(f"{path}: not a file of plain tensors ({type(error).__name__})") from error
    if not isinstance(content, dict):
        raise ConversionError(f"{path}: expected a dictionary of tensors, got {type(content).__name__}")
    for name, value in content.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            raise ConversionError(f"{path}: {name}: expected a tensor, got {type(value).__name__}")
    return dict(content)


def read_tensors(folder: Path) -> dict[str, torch.Tensor]:
    if (folder / WHOLE).is_file():
        return read_bin(folder / WHOLE)
    if not (folder / INDEX).is_file():
        raise ConversionError(f"{folder}: expected {WHOLE} or {INDEX}")
    files = read_index(folder)
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(set(files.values())):
        for name, tensor in read_bin(folder / file).items():
            if files.get(name) != file:
                raise ConversionError(f"{folder / file}: {name}: not where {INDEX} says")
            tensors[name] = tensor
    missing = sorted(files.keys() - tensors.keys())
    if missing:
        raise ConversionError(f"{folder / files[missing[0]]}: {missing[0]}: expected by {INDEX}, not there")
    return tensors


def own_memory(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies every tensor, contiguous and sharing memory with no other; empties `tensors` on the way."""
    owned = {}
    for name in list(tensors):
        owned[name] = tensors.pop(name).detach().clone(memory_format=torch.contiguous_format)
    return owned


def convert(folder: Path) -> Path:
    """Writes model.safetensors into the folder and returns its path."""
    if not folder.is_dir():
        raise ConversionError(f"{folder}: not a folder")
    for taken in (TARGET, TARGET + ".index.json"):
        if (folder / taken).exists():
            raise ConversionError(f"{folder / taken}: already there, not overwritten")
    tensors = own_memory(read_tensors(folder))
    if not tensors:
        raise ConversionError(f"{folder}: no tensors")
    # A crash leaves a .partial file behind, never half a model under the real name.
    partial = folder / (TARGET + ".partial")
    try:
        save_file(tensors, partial, metadata={"format": "pt"})
    except SafetensorError as error:
        raise ConversionError(f"{partial}: {error}") from error
    os.replace(partial, folder / TARGET)
    return folder / TARGET


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help=f"holds {WHOLE}, or {INDEX} and its shards")
    try:
        print(convert(parser.parse_args().folder))
    except (ConversionError, OSError) as error:
        print(f"bin_to_safetensors: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
