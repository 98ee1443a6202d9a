#!/usr/bin/env python3
"""Plots how the time of the CUDA scan grows: one SVG from the JSON of `mamba_bench --benchmark_out=FILE`.

Usage: scripts/growth_plot.py FILE.json PLOT.svg
Takes the runs called cuda_scan_growth: three panels (batch, time steps, d_state), both axes logarithmic.
"""
import collections
import json
import re
import sys

import svg_panels

AXES = [("batch", "batch"), ("time", "time steps"), ("d_state", "d_state")]


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
        if "us" not in run or len(sizes) != 4:
            print(f"{path}: a run that cannot be read is left out: {run['name']}", file=sys.stderr)
            continue
        found[sizes] = run["us"]
    return [(dict(sizes), us) for sizes, us in found.items()]


def series(found, axis):
    """(size, us) along one axis; the other sizes are those that most runs have."""
    usual = {key: collections.Counter(sizes[key] for sizes, _ in found).most_common(1)[0][0]
             for key in found[0][0]}
    return sorted((sizes[axis], us) for sizes, us in found
                  if all(sizes[key] == usual[key] for key in usual if key != axis)), usual


def panels(found):
    for axis, label in AXES:
        values, usual = series(found, axis)
        others = ", ".join(f"{key} {value}" for key, value in usual.items() if key != axis)
        yield svg_panels.Panel(label, others, {"": values}, "us")


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    found = points(sys.argv[1])
    if not found:
        sys.exit(f"{sys.argv[1]}: no cuda_scan_growth runs")
    heading = "Selective scan on CUDA, bf16, cold cache: both axes logarithmic"
    svg_panels.write(sys.argv[2], svg_panels.plot(heading, list(panels(found)), "time of one scan (us)"))


if __name__ == "__main__":
    main()
