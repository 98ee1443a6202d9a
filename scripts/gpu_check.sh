#!/usr/bin/env bash
# What only a machine with a GPU can check, each part under 8 minutes.
#   scripts/gpu_check.sh tests|programs|sanitize|bench|several [FOLDER]
# programs: mamba-lm and the others as their users run them (mamba_program_tests).
# several: two GPUs or more, with NCCL; its tests, then how train-lm's speed grows with their number.
# FOLDER is a build folder of this machine, or any with all programs in it: mamba_tests, mamba_bench
# and so on, for `programs` also mamba-lm, mamba-rl, train-lm, mamba-server, beam_search, best_of_n and a copy
# of examples/model; shared libraries that the machine lacks lie beside them. Without FOLDER the
# cuda preset is built here first, for this machine's GPU. Results are left in ${OUT:-/tmp}.
set -euo pipefail
cd "$(dirname "$0")/.."

part=${1:-}
folder=${2:-}
out=${OUT:-/tmp}
case $part in
  tests | sanitize) programs=(mamba_tests) ;;
  programs) programs=(mamba_program_tests) ;;
  bench) programs=(mamba_bench) ;;
  several) programs=(mamba_data_parallel_tests mamba_program_tests train-lm) ;;
  *)
    echo "usage: scripts/gpu_check.sh tests|programs|sanitize|bench|several [FOLDER]" >&2
    exit 2
    ;;
esac
if [ -z "$folder" ]; then
  folder=build/cuda
  scripts/install_packages.sh
  cmake --preset cuda --log-level=NOTICE -DCMAKE_CUDA_ARCHITECTURES=native
  cmake --build --preset cuda --target "${programs[@]}"
fi
find_program() {
  for place in "$folder" "$folder"/{tests,bench,examples,tests/programs}; do
    if [ -x "$place/$1" ]; then echo "$place/$1" && return; fi
  done
  echo "no $1 in $folder" >&2
  return 1
}
program=$(find_program "${programs[0]}")
export MAMBA_REQUIRE_CUDA=1 MAMBA_GOLDEN_DIR=$PWD/tests/golden
if [ -x "$folder/mamba_program_tests" ]; then  # not of a build: all in one folder, libraries too
  export MAMBA_PROGRAM_DIR=$folder LD_LIBRARY_PATH=$folder${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi

# Small cases that reach every kernel of ours. initcheck has the operations alone, since it does not
# see what cuBLASLt writes, and all kernels, since ours read what CUB's sort writes. racecheck leaves
# out the scan's rings: their warps hand each other values and round numbers in single 8-byte
# accesses, without a barrier, which it takes for a race.
operations='SelectiveScan.*Choice*:SelectiveScan.CutAnywhere*:SelectiveScan.StepStates*'
operations+=':SelectiveScan.RowMap*:SelectiveScan.YMay*:CausalConv.*Choice*:CausalConv.CutAnywhere*'
operations+=':CausalConv.RowMap*:CausalConv.StepStates*:AddRmsNorm.AnyOperand*:Embedding.*'
operations+=':Sample.LimitsAct*:Sample.ThePenalty*:StateTest.*:CudaBadValues.*:CudaRows.*'
operations+=':CausalConvGrad.CutAnywhere*:CausalConvGrad.NothingCrosses*:NormGrad.Accumulate*:SumRows.*'
operations+=':CudaScan.EveryCutSelects*:SelectiveScanGrad.CutAnywhere*:SelectiveScanGrad.NothingCrosses*'
operations+=':EmbeddingGrad.*:CrossEntropy.*:Categorical.*:Activate.*:SumSquares.*:AdamWStep.*'
operations+=':RlEnvironments.*:RlAdvantages.*:RlNormaliseAdvantages.*:RlPpoLoss.*:RlGru.*'
operations+=':NormMatmulConv.*:LayerWeights.*:StackStep.Resets*:StackStep.ReadsAndWrites*'
models='RlCollect.*:LayerTest.SplitAnywhere*:LayerTest.RowMaps*:Matmul.TheBias*:Graph.*Error*'

case $part in
  tests)
    "$program" --gtest_brief=1
    ;;
  programs)  # they start about two hundred times on each device: one GPU is enough
    CUDA_VISIBLE_DEVICES=${CUDA_VISIBLE_DEVICES:-0} "$program" --gtest_brief=1
    ;;
  sanitize)
    declare -A running
    for tool in memcheck racecheck synccheck initcheck; do  # at once: they wait more than they work
      cases=$operations
      kernels=(--kernel-name kernel_substring=mamba)
      case $tool in
        initcheck) kernels=() ;;
        racecheck) kernels=(--kernel-name-exclude kernel_substring=ring_kernel) ;;&
        *) cases+=:$models ;;
      esac
      timeout 450 compute-sanitizer --tool $tool "${kernels[@]}" \
        --error-exitcode 9 --print-limit 5 "$program" --gtest_brief=1 --gtest_filter="$cases" \
        >"$out/$tool.txt" 2>&1 &
      running[$tool]=$!
    done
    failed=0
    for tool in "${!running[@]}"; do
      status=0
      wait "${running[$tool]}" || status=$?
      echo "== $tool: exit $status"
      tail -n 15 "$out/$tool.txt"
      if [ $status -ne 0 ]; then failed=1; fi
    done
    exit $failed
    ;;
  several)
    "$program" --gtest_brief=1
    "$(find_program mamba_program_tests)" --gtest_brief=1 --gtest_filter='TrainLmOnTwo.*'
    scripts/scaling.py "$(find_program train-lm)" src --rows 8 -- \
      --dtype bf16 --d-model 768 --layers 24 --time 2048 | tee "$out/scaling.md"
    ;;
  bench)
    "$program" --benchmark_filter=cuda_ --benchmark_out="$out/cuda_bench.json" >&2
    scripts/bench_table.py "$out/cuda_bench.json"
    scripts/growth_plot.py "$out/cuda_bench.json" "$out/cuda_scan_growth.svg"
    ;;
esac
