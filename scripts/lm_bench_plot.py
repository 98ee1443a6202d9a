#!/usr/bin/env python3
"""Plots what `mamba-lm bench` printed: time to first token, prompt and generated tokens per second.

Usage: scripts/lm_bench_plot.py OUTPUT.md PLOT.svg
"""
import collections
import sys

import svg_panels


def tables(lines):
    """{first cells of the header: rows of numbers} of the tables in Markdown."""
    found, rows = {}, None
    for line in lines:
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")]
        if not line.startswith("|"):
            rows = None
        elif rows is None:
            header = cells
            rows = found.setdefault(tuple(cells), [])
        elif not cells[0].startswith("-"):
            try:
                row = [float(cell) for cell in cells]
            except ValueError:
                row = []
            if len(row) == len(header):
                rows.append(row)
            else:
                print(f"a row that cannot be read is left out: {line}", file=sys.stderr)
    return found


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    with open(sys.argv[1], encoding="utf-8") as file:
        lines = file.read().splitlines()
    found = tables(lines)
    prefill = found.get(("batch", "prompt", "first token, ms", "prompt tok/s"), [])
    decode = found.get(("batch", "decode, ms/step", "tok/s"), [])
    if not prefill or not decode:
        sys.exit(f"{sys.argv[1]}: not what mamba-lm bench prints")
    first, prompt = collections.defaultdict(list), collections.defaultdict(list)
    for batch, length, ms, rate in prefill:
        first[f"batch {batch:.0f}"].append((int(length), ms))
        prompt[f"batch {batch:.0f}"].append((int(length), rate))
    panels = [svg_panels.Panel("prompt length", "time to first token (ms)", first, "ms"),
              svg_panels.Panel("prompt length", "prompt tokens per second", prompt, "tok/s"),
              svg_panels.Panel("batch", "generated tokens per second", {"": [(int(b), r) for b, _, r in decode]}, "tok/s")]
    heading = next(line for line in lines if line.startswith("mamba-lm"))
    svg_panels.write(sys.argv[2], svg_panels.plot(heading, panels))


if __name__ == "__main__":
    main()
