#!/usr/bin/env bash
# Builds the library and shows its main job: the model that comes with it writes a text, is stopped in the middle,
# and goes on in a new process as if nothing had happened. Then an agent learns to remember.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/install_packages.sh
preset=cpu
if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then preset=cuda; fi
echo "== configure and build ($preset)"
cmake --preset "$preset" --log-level=NOTICE -DMAMBA_TESTS=OFF -DMAMBA_BENCH=OFF
cmake --build --preset "$preset" --target mamba-lm mamba-rl hello_layer

mamba_lm=build/$preset/examples/mamba-lm
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
prompt="And the king said unto the prophet, "
sampling=(--temperature 0.7 --seed 7)

# The text as it is written and into a file; then, on a line of its own, how fast it was.
generate() {
  local into=$1 status=0
  "$mamba_lm" generate "${@:2}" 2>"$scratch/speed" | tee "$into" || status=$?
  echo
  cat "$scratch/speed" >&2
  return $status
}

echo
echo "== a layer and its state, in C++ (examples/hello_layer.cpp)"
"build/$preset/examples/hello_layer"

echo
echo "== the model: it reads and writes bytes and has read one old book (examples/model/README.md)"
"$mamba_lm" info

echo
echo "== \"$prompt\", and 300 bytes in one run"
generate "$scratch/whole" --prompt "$prompt" -n 300 "${sampling[@]}"
echo
echo "== the same, stopped after 100 ..."
generate "$scratch/first" --prompt "$prompt" -n 100 "${sampling[@]}" --save-state "$scratch/state"
echo
echo "== ... and gone on with in a new process, from a state file of $(stat -c %s "$scratch/state") bytes"
generate "$scratch/second" -n 200 --resume "$scratch/state" --as text

echo
if cat "$scratch/first" "$scratch/second" | cmp - "$scratch/whole"; then
  echo "== nothing changed: both halves together are the same bytes as the whole"
else
  echo "== the halves differ from the whole" >&2
  exit 1
fi

echo
echo "== an agent learns to remember four bits for 200 steps, in half a minute on two cores"
"build/$preset/examples/rl/mamba-rl" --horizon 200 --out "$scratch/agent"
