#!/usr/bin/env bash
# Builds everything and runs every test: the one command behind "Verify" in the README.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install_packages.sh
# The CUDA build is tested where there is a driver to run it.
preset=cpu
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then preset=cuda; fi

echo "== configure ($preset)"
cmake --preset "$preset" --log-level=NOTICE
echo "== build"
cmake --build --preset "$preset"
echo "== test"
ctest --preset "$preset" -j "$(nproc)"
