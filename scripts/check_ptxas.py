#!/usr/bin/env python3
"""Reads the ptxas reports of a CUDA build: no kernel may spill or keep a stack frame.

Usage: scripts/check_ptxas.py BUILD_FOLDER [--table]   (--table prints every kernel with its registers)
"""
import pathlib
import re
import subprocess
import sys

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
STACK = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers")


def kernels(report):
    """(name, architecture, registers, stack, spills) of every kernel in one report."""
    name = arch = None
    stack = spills = 0
    for line in report.read_text().splitlines():
        if found := ENTRY.search(line):
            name, arch = found.groups()
        elif found := STACK.search(line):
            stack, stores, loads = map(int, found.groups())
            spills = stores + loads
        elif (found := USED.search(line)) and name:
            yield name, arch, int(found[1]), stack, spills
            name = None


def readable(names):
    try:
        output = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True, check=True)
        return output.stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return names


def main():
    folder = pathlib.Path(sys.argv[1])
    reports = sorted(folder.rglob("*.ptxas"))
    found = [kernel for report in reports for kernel in kernels(report)]
    if not found:
        sys.exit(f"no kernels in the ptxas reports under {folder}: was CUDA built there?")
    names = readable([kernel[0] for kernel in found])
    bad = 0
    for name, (_, arch, registers, stack, spills) in zip(names, found):
        wrong = stack > 0 or spills > 0
        bad += wrong
        if wrong or "--table" in sys.argv:
            print(f"{arch} {registers:4d} registers {stack:5d} stack {spills:5d} spilled  {name}")
    print(f"ptxas: {len(found)} kernels, {bad} with a stack frame or spills")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
