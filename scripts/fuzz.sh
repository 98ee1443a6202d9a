#!/usr/bin/env bash
# Builds the fuzz targets (tests/fuzz) and runs each for so many seconds: scripts/fuzz.sh [SECONDS] [TARGET...]
# Fails on the first finding, whose input stays in build/fuzz/findings; what was learnt stays in build/fuzz/corpus.
set -euo pipefail
cd "$(dirname "$0")/.."
seconds=${1:-10}
shift || true

cmake --preset asan --log-level=NOTICE
cmake --build --preset asan --target fuzz_targets
programs=build/asan/tests/fuzz
build=build/fuzz
"$programs/make_seeds" "$build/seeds"
mkdir -p "$build/findings" "$build/corpus"
if [ $# -eq 0 ]; then
  for target in tests/fuzz/*_fuzz.cpp; do set -- "$@" "$(basename "$target" .cpp)"; done
fi

# What a target says of itself at its end is in a log of its own.
run() {
  mkdir -p "$build/corpus/$1" "$build/seeds/$1"
  "$programs/$1" -dict=tests/fuzz/json.dict -max_total_time="$seconds" -timeout=10 -rss_limit_mb=2048 \
    -malloc_limit_mb=1024 -max_len=32768 -print_final_stats=1 -artifact_prefix="$build/findings/$1-" \
    "$build/corpus/$1" "$build/seeds/$1" >"$build/$1.log" 2>&1
}
export -f run
export programs build seconds
if ! printf '%s\n' "$@" | xargs -P "$(nproc)" -I{} bash -c 'run {} || { echo "fuzz: {} found something:"; tail -40 "$build/{}.log"; exit 255; }'; then
  exit 1
fi
total=0
for target in "$@"; do
  number=$(sed -n 's/^stat::number_of_executed_units: *//p' "$build/$target.log")
  printf '%12d  %s\n' "$number" "$target"
  total=$((total + number))
done
printf '%12d  inputs without a finding\n' "$total"
