#!/usr/bin/env bash
# Builds the documentation site into FOLDER (build/docs unless given), without the network: FOLDER/html/index.html. A warning
# is an error.
#
#   scripts/docs.sh [FOLDER]
set -euo pipefail
out=$(realpath -m "${1:-$(dirname "$0")/../build/docs}")
cd "$(dirname "$0")/.."

scripts/install_packages.sh doxygen python3-sphinx python3-myst-parser furo python3-sphinx-inline-tabs
docs/check.py
mkdir -p "$out"
# What a header or a page no longer has would stay, and Sphinx does not see that a header has changed.
rm -rf "$out/xml" "$out/html" "$out/doctrees"
{ cat docs/Doxyfile; echo "OUTPUT_DIRECTORY = \"$out\""; } | doxygen -
# Made when the Python package is built, there or in a venv; without it, its names alone are on the site.
stub=$(ls -t build/*/python/mamba_cpp/_core.pyi build/*/lib/python3*/site-packages/mamba_cpp/_core.pyi 2>/dev/null | head -1) || true
# Debian's Python has these packages, another in the PATH has not.
PATH=/usr/bin:$PATH sphinx-build -q -W --keep-going -j "$(nproc)" -b html -d "$out/doctrees" -D doxygen_xml="$out/xml" \
  -D python_stub="$stub" docs "$out/html"
echo "$out/html/index.html"
