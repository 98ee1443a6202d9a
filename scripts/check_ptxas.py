#!/usr/bin/env python3
"""Reads the ptxas reports of a CUDA build: no kernel may spill or keep a stack frame, and each must have been built
for every architecture. The kernels' registers are cut for sm_90; on the older ones a few may spill a little (SPILLS).

Usage: scripts/check_ptxas.py BUILD_FOLDER [--table]   (--table prints every kernel with its registers)
"""
import collections
import pathlib
import re
import subprocess
import sys

SPILLS = {"sm_80": 64, "sm_86": 64}  # bytes of a kernel, stores and loads together; measured: 36 and 56 of the scans'
ALONE = "sm_90a"  # files named *_90a.cu are for it, and in code for others their kernels are empty
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
    found = [kernel for report in reports for kernel in kernels(report)
             if kernel[1] == ALONE or f"_{ALONE[3:]}.cu" not in report.name]
    if not found:
        sys.exit(f"no kernels in the ptxas reports under {folder}: was CUDA built there?")
    names = readable([kernel[0] for kernel in found])
    built, bad = collections.defaultdict(set), collections.Counter()
    for name, (_, arch, registers, stack, spills) in zip(names, found):
        wrong = spills > SPILLS.get(arch, 0) or (stack > 0 and spills == 0) or (stack > 0 and arch not in SPILLS)
        built[arch].add(name)
        bad[arch] += wrong
        if spills > 0 or wrong or "--table" in sys.argv:
            print(f"{arch} {registers:4d} registers {stack:5d} stack {spills:5d} spilled  {name}")
    everything = set().union(*(names for arch, names in built.items() if arch != ALONE))
    for arch in sorted(built):
        for name in sorted(everything - built[arch]) if arch != ALONE else ():
            bad[arch] += 1
            print(f"{arch} not built  {name}")
        print(f"ptxas: {len(built[arch])} kernels for {arch}, {bad[arch]} with a stack frame or too many spills, or not built")
    return 1 if bad.total() else 0


if __name__ == "__main__":
    sys.exit(main())
