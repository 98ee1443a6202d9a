#!/usr/bin/env python3
"""Plots how the time of the CUDA scan grows: one SVG from the JSON of `mamba_bench --benchmark_out=FILE`.

Usage: scripts/growth_plot.py FILE.json PLOT.svg
Takes the runs called cuda_scan_growth: three panels (batch, time steps, d_state), both axes logarithmic.
"""
import collections
import json
import math
import re
import sys

AXES = [("batch", "batch"), ("time", "time steps"), ("d_state", "d_state")]
WIDTH, HEIGHT, LEFT, BOTTOM, TOP, GAP = 300, 280, 70, 60, 50, 24  # of a panel, and around them
TEXT = 'font-family="sans-serif" font-size="12" fill="#222"'
LINE = "#1f5fa8"


def points(path):
    """({batch, d_inner, time, d_state}, microseconds) of every run, each once."""
    with open(path) as file:
        runs = json.load(file)["benchmarks"]
    found = {}
    for run in runs:
        if not run["name"].startswith("cuda_scan_growth/") or run.get("error_occurred"):
            continue
        sizes = tuple((key, int(value)) for key, value in re.findall(r"(\w+):(\d+)", run["name"])
                      if key in ("batch", "d_inner", "time", "d_state"))
        found[sizes] = run["us"]
    return [(dict(sizes), us) for sizes, us in found.items()]


def series(found, axis):
    """(size, us) along one axis; the other sizes are those that most runs have."""
    usual = {key: collections.Counter(sizes[key] for sizes, _ in found).most_common(1)[0][0]
             for key in found[0][0]}
    return sorted((sizes[axis], us) for sizes, us in found
                  if all(sizes[key] == usual[key] for key in usual if key != axis)), usual


def text(x, y, words, anchor="middle", more=""):
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {TEXT} {more}>{words}</text>'


def panel(left, label, values, low, high):
    """One pair of axes from `left` on; low and high are the powers of ten of the time axis."""
    first, last = math.log2(values[0][0]), math.log2(values[-1][0])

    def x(size):
        return left + (math.log2(size) - first) / max(last - first, 1) * WIDTH

    def y(us):
        return TOP + HEIGHT - (math.log10(us) - low) / (high - low) * HEIGHT

    yield f'<rect x="{left}" y="{TOP}" width="{WIDTH}" height="{HEIGHT}" fill="none" stroke="#888"/>'
    for power in range(low, high + 1):
        yield f'<line x1="{left}" x2="{left + WIDTH}" y1="{y(10**power):.1f}" y2="{y(10**power):.1f}" stroke="#ddd"/>'
    every = 1 if len(values) <= 9 else 2
    for size, _ in values[::every]:
        yield f'<line x1="{x(size):.1f}" x2="{x(size):.1f}" y1="{TOP}" y2="{TOP + HEIGHT}" stroke="#eee"/>'
        yield text(x(size), TOP + HEIGHT + 16, size if size < 10000 else f"{size // 1024}k")
    yield text(left + WIDTH / 2, TOP + HEIGHT + 40, label)
    line = " ".join(f"{x(size):.1f},{y(us):.1f}" for size, us in values)
    yield f'<polyline points="{line}" fill="none" stroke="{LINE}" stroke-width="2"/>'
    for size, us in values:
        yield f'<circle cx="{x(size):.1f}" cy="{y(us):.1f}" r="3" fill="{LINE}"><title>{us:.4g} us</title></circle>'


def plot(found):
    times = [us for _, us in found]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    high = max(high, low + 1)
    width, height = LEFT + 3 * (WIDTH + GAP), TOP + HEIGHT + BOTTOM
    yield f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}">'
    yield f'<rect width="{width}" height="{height}" fill="#fff"/>'
    for power in range(low, high + 1):
        y = TOP + HEIGHT - (power - low) / (high - low) * HEIGHT
        yield text(LEFT - 6, y + 4, f"{10.0**power:g}", "end")
    yield text(18, TOP + HEIGHT / 2, "time of one scan (us)", more=f'transform="rotate(-90 18 {TOP + HEIGHT / 2})"')
    for i, (axis, label) in enumerate(AXES):
        values, usual = series(found, axis)
        left = LEFT + i * (WIDTH + GAP)
        others = ", ".join(f"{key} {value}" for key, value in usual.items() if key != axis)
        yield text(left + WIDTH / 2, TOP - 12, others)
        yield from panel(left, label, values, low, high)
    yield text(LEFT, 18, "Selective scan on CUDA, bf16, cold cache: both axes logarithmic", "start", 'font-weight="bold"')
    yield "</svg>"


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    found = points(sys.argv[1])
    if not found:
        sys.exit(f"{sys.argv[1]}: no cuda_scan_growth runs")
    with open(sys.argv[2], "w") as file:
        file.write("\n".join(plot(found)) + "\n")


if __name__ == "__main__":
    main()
