#!/usr/bin/env bash
# What only a machine with a GPU can check, each part under 8 minutes.
#   scripts/gpu_check.sh tests|sanitize|bench [BUILD_FOLDER]
# BUILD_FOLDER holds tests/mamba_tests and bench/mamba_bench; without one the cuda preset is built first.
set -euo pipefail
cd "$(dirname "$0")/.."

part=${1:-}
build=${2:-}
if [ -z "$build" ]; then
  scripts/install_packages.sh
  cmake --preset cuda --log-level=NOTICE
  cmake --build --preset cuda --target mamba_tests mamba_bench
  build=build/cuda
fi
tests=$build/tests/mamba_tests
export MAMBA_REQUIRE_CUDA=1 MAMBA_GOLDEN_DIR=$PWD/tests/golden

case $part in
  tests)
    "$tests" --gtest_brief=1
    ;;
  sanitize)
    # The small cases: whole layers of every dtype and variant, rows, resets, sampling. Only our kernels.
    cases='LayerTest.SplitAnywhere:LayerTest.ResetsAre*:LayerTest.RowMaps*:LayerTest.StepStates*:StateTest.*'
    cases+=':Sample.*:Embedding.*:AddRmsNorm.*Absent*:LanguageModel.Pieces*:GeneratorTest.Forks*'
    for tool in memcheck racecheck initcheck synccheck; do
      echo "== $tool"
      compute-sanitizer --tool "$tool" --kernel-name kernel_substring=mamba --error-exitcode 9 \
        --print-limit 5 "$tests" --gtest_brief=1 --gtest_filter="$cases"
    done
    ;;
  bench)
    "$build/bench/mamba_bench" --benchmark_filter=cuda_ --benchmark_out="${OUT:-/tmp}/cuda_bench.json"
    scripts/bench_table.py "${OUT:-/tmp}/cuda_bench.json"
    ;;
  *)
    echo "usage: scripts/gpu_check.sh tests|sanitize|bench [BUILD_FOLDER]" >&2
    exit 2
    ;;
esac
