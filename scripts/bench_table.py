#!/usr/bin/env python3
"""Turns the JSON of `mamba_bench --benchmark_out=FILE` into a Markdown table.

Usage: scripts/bench_table.py FILE [FILE ...]
"""
import json
import sys

SKIPPED = {"iterations", "repetitions", "threads"}


def number(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def rows(path):
    for run in json.load(open(path))["benchmarks"]:
        if run.get("error_occurred") or run.get("aggregate_name", "median") != "median":
            continue
        name = run["run_name"].replace("/iterations:1", "").replace("/manual_time", "").replace("/real_time", "")
        known = {"name", "run_name", "run_type", "aggregate_name", "aggregate_unit", "family_index",
                 "per_family_instance_index", "repetition_index", "real_time", "cpu_time", "time_unit"} | SKIPPED
        counters = ", ".join(f"{key} {number(value)}" for key, value in run.items() if key not in known)
        yield f"| {name} | {number(run['real_time'])} {run['time_unit']} | {counters} |"


def main():
    print("| benchmark | time | counters |\n|---|---|---|")
    for path in sys.argv[1:]:
        print("\n".join(rows(path)))


if __name__ == "__main__":
    main()
