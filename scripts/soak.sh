#!/usr/bin/env bash
# mamba-server among clients of every kind (tests/server/soak.cpp), as it is built for use and under the sanitizers:
# scripts/soak.sh [REQUESTS]. Prints what bench/results/server_soak.md keeps.
set -euo pipefail
cd "$(dirname "$0")/.."
requests=${1:-10000}

export TSAN_OPTIONS=halt_on_error=1
for preset in cpu asan tsan; do
  cmake --preset "$preset" --log-level=ERROR >/dev/null
  cmake --build --preset "$preset" --target mamba_server_soak >/dev/null
  printf '\n## %s\n\n' "$preset"
  "build/$preset/tests/server/mamba_server_soak" "$requests"
done
