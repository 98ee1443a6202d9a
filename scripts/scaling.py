#!/usr/bin/env python3
"""Measures how train-lm's tokens/s grow with the number of GPUs: the same rows for each of them.

Usage: scripts/scaling.py TRAIN_LM TEXT [--devices 1,2] [--rows 8] [--steps 60] [-- TRAIN-LM'S FLAGS]
Speed is that of the last half of the steps. Prints a table in Markdown.
"""
import argparse
import json
import pathlib
import subprocess
import sys
import tempfile


def speed(program, text, count, rows, steps, flags):
    """Tokens a second on the first `count` GPUs."""
    with tempfile.TemporaryDirectory() as out:
        devices = ",".join(f"cuda:{i}" for i in range(count))
        command = [program, text, "--out", out, "--device", devices, "--batch", str(rows * count),
                   "--steps", str(steps), "--valid-every", str(steps), "--save-every", str(2 * steps),
                   "--valid-bytes", "1", "--sample-bytes", "0", *flags]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        lines = [json.loads(line) for line in (pathlib.Path(out) / "metrics.jsonl").read_text().splitlines()]
    lines = [line for line in lines if "tokens" in line]
    first, last = lines[len(lines) // 2], lines[-1]
    return (last["tokens"] - first["tokens"]) / (last["seconds"] - first["seconds"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("program")
    parser.add_argument("text")
    parser.add_argument("--devices", default="1,2")
    parser.add_argument("--rows", type=int, default=8, help="of the batch, for each GPU")
    parser.add_argument("--steps", type=int, default=60)
    own = sys.argv[1:]
    flags = own[own.index("--") + 1:] if "--" in own else []
    arguments = parser.parse_args(own[:own.index("--")] if "--" in own else own)
    print("| GPUs | tokens/s | of one GPU |\n|---|---|---|")
    one = None
    for count in map(int, arguments.devices.split(",")):
        tokens = speed(arguments.program, arguments.text, count, arguments.rows, arguments.steps, flags)
        one = one or tokens / count
        print(f"| {count} | {tokens:.0f} | {tokens / one:.2f} x |", flush=True)


if __name__ == "__main__":
    main()
