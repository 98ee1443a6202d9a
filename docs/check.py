#!/usr/bin/env python3
"""Checks what the pages name: the tests behind each promise, every public header, every recipe."""
import re
import sys
from pathlib import Path

root = Path(__file__).resolve().parent.parent
docs = root / "docs"
problems = []

# A fixture's name is its suite's.
declared = r"^ *TEST\w*\(\s*(\w+),\s*(\w+)"
tests = {
    f"{suite}.{name}"
    for file in (root / "tests").rglob("*.cpp")
    for suite, name in re.findall(declared, file.read_text(), re.MULTILINE)
}
named = re.findall(r"`([A-Z]\w+\.\w+)`", (docs / "promises.md").read_text())
problems += [f"promises.md names {name}, which is no test" for name in named if name not in tests]
for line in (docs / "promises.md").read_text().splitlines():
    if line.startswith("| ") and "held by" not in line and not re.search(r"\| `[A-Z]\w+\.\w+`", line):
        problems.append(f"promises.md: no test holds: {line}")

# mamba.hpp includes all others, export.hpp is a mark alone; the model itself, in detail, has a page of its own.
elsewhere = {"mamba.hpp", "export.hpp", "mamba1.hpp", "mamba2.hpp", "mamba1_grad.hpp", "mamba2_grad.hpp"}
headers = {path.name for path in (root / "include/mamba").glob("*.hpp")} - elsewhere
shown = [name for page in (docs / "api").glob("*.rst") for name in re.findall(r"header:: (\S+)", page.read_text())]
problems += [f"no page of docs/api shows {name}" for name in sorted(headers - set(shown))]
problems += [f"two pages of docs/api show {name}" for name in sorted(set(shown)) if shown.count(name) > 1]

cookbook = (docs / "cookbook.md").read_text()
built = (docs / "cookbook/CMakeLists.txt").read_text()
for path in sorted((docs / "cookbook").glob("*.cpp")):
    for shown in (path, path.with_suffix(".py")):
        if f"cookbook/{shown.name}\n" not in cookbook or not shown.exists():
            problems.append(f"cookbook.md does not show {shown.name}")
    if not re.search(rf"\b{path.stem}\b", built):
        problems.append(f"{path.name} is not built")

sys.exit("\n".join(problems) or 0)
