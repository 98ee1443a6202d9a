#!/usr/bin/env bash
# Builds the library and shows its main job: a checkpoint in the published form writes a text, is stopped in
# the middle, and goes on in a new process as if nothing had happened.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install_packages.sh
preset=cpu
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then preset=cuda; fi
echo "== configure and build ($preset)"
cmake --preset "$preset" --log-level=NOTICE -DMAMBA_TESTS=OFF -DMAMBA_BENCH=OFF
cmake --build --preset "$preset" --target mamba-lm hello_layer

mamba_lm=build/$preset/examples/mamba-lm
model=tests/golden/bytes
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
sampling=(--temperature 0.8 --seed 7 --ignore-eos)

echo
echo "== a layer and its state, in C++ (examples/hello_layer.cpp)"
"build/$preset/examples/hello_layer"

echo
echo "== the model: random weights, so its text means nothing, but every byte of it is determined"
"$mamba_lm" info "$model"

echo
echo "== 200 bytes in one run"
"$mamba_lm" generate "$model" --prompt "The state" -n 200 "${sampling[@]}" | tee "$scratch/whole"
echo
echo "== the same, stopped after 80 ..."
"$mamba_lm" generate "$model" --prompt "The state" -n 80 "${sampling[@]}" \
  --save-state "$scratch/state" | tee "$scratch/first"
echo
echo "== ... and gone on with in a new process, from a state file of $(stat -c %s "$scratch/state") bytes"
"$mamba_lm" generate "$model" -n 120 --ignore-eos --resume "$scratch/state" --as text \
  | tee "$scratch/second"

echo
if cat "$scratch/first" "$scratch/second" | cmp - "$scratch/whole"; then
  echo "== nothing changed: both halves together are the same bytes as the whole"
else
  echo "== the halves differ from the whole" >&2
  exit 1
fi
